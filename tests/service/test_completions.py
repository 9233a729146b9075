"""OpenAI's own client asks the service, streamed and not, and finds what it knows."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI

from support_rag.service.completions import MODEL, stream
from support_rag.types import GenerationFailed
from tests.service.test_conversations import QUESTION, embedders, owner, release, url  # noqa: F401
from tests.serving import Account, read_events


@pytest.fixture
def client(url: str, owner: Account) -> Iterator[Any]:  # noqa: F811
    key = owner.client.headers["authorization"].removeprefix("Bearer ")
    with OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client:
        yield client


def test_the_official_client_gets_the_reply_with_its_grounds(
    client: Any,
    owner: Account,  # noqa: F811
) -> None:
    completion = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "system", "content": "Rhyme."}, {"role": "user", "content": QUESTION}],
        temperature=0.9,
        seed=7,
    )
    told = owner.ask(owner.open(), QUESTION).json()
    assert completion.choices[0].message.content == told["content"]
    assert completion.choices[0].finish_reason == "stop"
    grounds = completion.model_extra["support_rag"]
    for name in ("sources", "decision", "reason", "release_id"):
        assert grounds[name] == told[name], name
    assert grounds["confidence"] == pytest.approx(told["confidence"])  # a stored one has 32 bits
    assert grounds["sources"], "the question has an answer"


def test_the_official_client_reads_the_stream(client: Any) -> None:
    messages = [{"role": "user", "content": QUESTION}]
    whole = client.chat.completions.create(model=MODEL, messages=messages)
    chunks = list(client.chat.completions.create(model=MODEL, messages=messages, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content
    assert len(chunks) > 3 and chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert chunks[-1].model_extra["support_rag"] == whole.model_extra["support_rag"]


def test_models_are_the_release(client: Any) -> None:
    [model] = client.models.list().data
    assert model.id == MODEL and client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError, match="no such model"):
        client.models.retrieve("gpt-5")
    with pytest.raises(openai.NotFoundError, match="use support-rag"):
        client.chat.completions.create(model="gpt-5", messages=[{"role": "user", "content": "a"}])


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"role": "assistant", "content": "Hello."}],
        [{"role": "user", "content": "   "}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
        [{"role": "tool", "content": "x", "tool_call_id": "1"}],
        [{"role": "user", "content": "x" * 4001}],
        [{"role": "user", "content": "a\x00"}],
    ],
)
def test_what_is_no_question_is_refused(client: Any, messages: list[dict[str, str]]) -> None:
    with pytest.raises(openai.UnprocessableEntityError):
        client.chat.completions.create(model=MODEL, messages=messages)


def test_a_stranger_is_refused(url: str) -> None:  # noqa: F811
    stranger = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError):
        stranger.models.list()


def test_nothing_is_stored(client: Any, owner: Account) -> None:  # noqa: F811
    before = owner.client.get("/api/v1/conversations").json()
    client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": QUESTION}])
    assert owner.client.get("/api/v1/conversations").json() == before


async def test_a_fault_ends_the_stream_and_a_slow_reply_keeps_it_open() -> None:
    async def fail() -> None:
        await asyncio.sleep(0.05)
        raise GenerationFailed("the model is away")

    def fault(error: Exception) -> bytes:
        return f"event: problem\ndata: {json.dumps(str(error))}\n\n".encode()

    work = asyncio.create_task(fail())
    sent = [e async for e in stream(work, fault=fault, ping_seconds=0.01)]
    assert sent[0].startswith(b":") and len(sent) > 2
    assert read_events(sent[-1].decode()) == [("problem", "the model is away")]


async def test_under_a_key_the_work_ends_without_a_reader() -> None:
    go_on = asyncio.Event()

    async def long() -> str:
        await go_on.wait()
        return "made"

    work = asyncio.create_task(long())
    events = stream(work, fault=lambda error: b"", is_kept=True, ping_seconds=0.01)  # type: ignore[arg-type]
    await anext(events)
    await events.aclose()
    go_on.set()
    assert await work == "made"


async def test_a_reader_that_leaves_ends_the_work() -> None:
    started = asyncio.Event()

    async def long() -> None:
        started.set()
        await asyncio.sleep(60)

    work = asyncio.create_task(long())
    events = stream(work, fault=lambda error: b"", ping_seconds=0.01)
    await anext(events)
    await events.aclose()
    with pytest.raises(asyncio.CancelledError):
        await work
