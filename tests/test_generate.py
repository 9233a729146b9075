"""Whatever a model does, a message costs two calls and thirty seconds, and a cut reply is none."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import openai
import pytest

from support_rag.generate import (
    MAX_CALLS,
    TOTAL_SECONDS,
    Breaker,
    CallBudget,
    CallLimits,
    ExtractiveGenerator,
    Generator,
    OpenAIGenerator,
    ReplayGenerator,
    load_generator,
    load_recordings,
    prompt_key,
)
from support_rag.prompt import build_prompt
from support_rag.release import GenerateParameters, PromptParameters, load_parameters
from support_rag.types import Chunk, GenerationFailed, Hit, Prompt, SettingsInvalid, Span
from tests.openai_stub import OpenAIStub, Reply

LIMITS = CallLimits(wait=0.3, default_wait=0.01)
IMPATIENT = CallLimits(first_piece=0.3, between_pieces=0.3, wait=0.1, default_wait=0.01)
GOOD = Reply(tokens=["It keeps ", "72 hours ", "[1]."])


def prompt_of(question: str = "How long does the kiosk keep punches?") -> Prompt:
    text = "The kiosk keeps punches for 72 hours."
    hit = Hit(Chunk("c", "d", Span(0, len(text)), text, ("Kiosk",), title="Kiosk"), 1.0, 1)
    return build_prompt(question, hits=[hit], history=(), summary="", parameters=PromptParameters())


async def reply_of(generator: Generator, budget: CallBudget | None = None) -> str:
    return "".join([piece async for piece in generator.generate(prompt_of(), budget=budget)])


@pytest.fixture
def stub() -> Iterator[OpenAIStub]:
    with OpenAIStub() as server:
        server.default = GOOD
        yield server


@pytest.fixture
async def client(stub: OpenAIStub) -> AsyncIterator[openai.AsyncOpenAI]:
    client = openai.AsyncOpenAI(base_url=stub.base_url, api_key="secret-canary", max_retries=0)
    await client.models.list()  # the first use of a client imports what it needs
    yield client
    await client.close()


@pytest.fixture
def model(client: openai.AsyncOpenAI) -> OpenAIGenerator:
    return OpenAIGenerator(client, model="local", limits=LIMITS, breaker=Breaker(failures=1000))


# ---------------------------------------------------------------- what goes over the wire


async def test_a_reply_streams_piece_by_piece(stub: OpenAIStub, model: OpenAIGenerator) -> None:
    budget = CallBudget()
    pieces = [piece async for piece in model.generate(prompt_of(), budget=budget)]
    assert pieces == ["It keeps ", "72 hours ", "[1]."]
    assert budget.calls == MAX_CALLS - 1
    [seen] = stub.requests
    assert seen.path == "/v1/chat/completions"
    messages = seen.body.pop("messages")
    assert seen.body == {"model": "local", "max_tokens": 400, "temperature": 0.0, "stream": True}
    assert messages == [{"role": m.role, "content": m.content} for m in prompt_of().messages]


async def test_a_slow_model_is_waited_for(stub: OpenAIStub, model: OpenAIGenerator) -> None:
    stub.default = Reply(tokens=GOOD.tokens, delay_seconds=0.2, token_delay_seconds=0.1)
    assert await reply_of(model) == "It keeps 72 hours [1]."
    assert stub.n_calls == 1


async def test_a_reply_that_was_cut_at_max_tokens_is_a_reply(
    stub: OpenAIStub, model: OpenAIGenerator
) -> None:
    stub.default = Reply(tokens=["So it"], finish_reason="length")
    assert await reply_of(model) == "So it"


# ---------------------------------------------------------------- faults before the first piece

PASSING = {
    "429": (Reply(status=429), "rate_limited"),
    "500": (Reply(status=500), "server_error"),
    "503": (Reply(status=503), "server_error"),
    "drops": (Reply(drop=True), "broken"),
    "cut at once": (Reply(tokens=["a"], cut_after=0), "broken"),
    "error in stream": (Reply(tokens=["a"], error_after=0), "broken"),
    "no finish": (Reply(tokens=[], done=False), "broken"),
    "malformed event": (Reply(body=b"data: {not json\n\n"), "broken"),
    "malformed shape": (Reply(body=b'data: {"choices": [{"delta": 1}]}\n\n'), "broken"),
    "no stream": (Reply(body=b"hello"), "broken"),
    "nothing said": (Reply(tokens=[]), "empty"),
    "blank pieces": (Reply(tokens=["", ""]), "empty"),
    "filtered": (Reply(tokens=[], finish_reason="content_filter"), "empty"),
    "NUL": (Reply(tokens=["\x00"]), "broken"),
    "half a pair": (Reply(tokens=["\ud83d"]), "broken"),
}


@pytest.mark.parametrize("fault", PASSING)
async def test_a_fault_costs_a_second_call_and_no_third(
    stub: OpenAIStub, model: OpenAIGenerator, fault: str
) -> None:
    reply, reason = PASSING[fault]
    stub.script(reply)
    assert await reply_of(model) == "It keeps 72 hours [1]."
    assert stub.n_calls == 2
    stub.reset()
    stub.default = reply
    with pytest.raises(GenerationFailed, match=f"no usable answer: {reason}") as caught:
        await reply_of(model)
    assert stub.n_calls == MAX_CALLS == 2
    assert "scripted" not in str(caught.value) and "canary" not in str(caught.value)


@pytest.mark.parametrize("reply", [Reply(hang=True), Reply(delay_seconds=3)], ids=["hangs", "late"])
async def test_a_silent_server_is_asked_twice(
    stub: OpenAIStub, client: openai.AsyncOpenAI, reply: Reply
) -> None:
    model = OpenAIGenerator(client, model="local", limits=IMPATIENT)
    stub.default = reply
    with pytest.raises(GenerationFailed, match="no usable answer: timeout"):
        await reply_of(model)
    assert stub.n_calls == MAX_CALLS


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
async def test_a_refusal_is_not_repeated(
    stub: OpenAIStub, model: OpenAIGenerator, status: int
) -> None:
    stub.default = Reply(status=status)
    with pytest.raises(GenerationFailed, match="refused"):
        await reply_of(model)
    assert stub.n_calls == 1


@pytest.mark.parametrize(
    ("asked", "at_least"), [("0.2", 0.2), ("3600", 0.3), ("soon", 0.0), ("-5", 0.0), ("nan", 0.0)]
)
async def test_retry_after_is_honoured_up_to_the_limit(
    stub: OpenAIStub, model: OpenAIGenerator, asked: str, at_least: float
) -> None:
    stub.script(Reply(status=429, headers={"Retry-After": asked}))
    assert await reply_of(model) == "It keeps 72 hours [1]."
    first, second = stub.requests
    assert second.at - first.at >= at_least
    assert CallLimits().wait == 5.0


async def test_a_wait_that_outlasts_the_message_is_not_begun(
    stub: OpenAIStub, model: OpenAIGenerator
) -> None:
    model = OpenAIGenerator(model.client, model="local", limits=CallLimits(wait=60))
    stub.default = Reply(status=429, headers={"Retry-After": "60"})
    budget = CallBudget(deadline=time.monotonic() + 30)
    with pytest.raises(GenerationFailed) as caught:
        await reply_of(model, budget)
    assert stub.n_calls == 1 and caught.value.retry_after_seconds == 60
    assert budget.seconds > 0, "it was told before the deadline"


# ---------------------------------------------------------------- faults after the first piece

CUT = {
    "cut": Reply(tokens=["It ", "keeps"], cut_after=1),
    "error": Reply(tokens=["It ", "keeps"], error_after=1),
    "stalls": Reply(tokens=["It ", "keeps"], token_delay_seconds=0.0, done=False),
    "filtered": Reply(tokens=["It "], finish_reason="content_filter"),
    "NUL": Reply(tokens=["It ", "\x00"]),
    "endless": Reply(tokens=["It "] + ["x" * 1000] * 60),
}


@pytest.mark.parametrize("fault", CUT)
async def test_a_reply_that_was_cut_is_an_error_and_is_not_repeated(
    stub: OpenAIStub, model: OpenAIGenerator, fault: str
) -> None:
    stub.default = CUT[fault]
    pieces: list[str] = []
    with pytest.raises(GenerationFailed):
        async for piece in model.generate(prompt_of()):
            pieces.append(piece)
    assert pieces[0] == "It " and sum(map(len, pieces)) <= LIMITS.characters
    assert stub.n_calls == 1, "a piece that was seen cannot be taken back"


async def test_a_stream_that_stalls(stub: OpenAIStub, model: OpenAIGenerator) -> None:
    model = OpenAIGenerator(model.client, model="local", limits=CallLimits(between_pieces=0.3))
    stub.default = Reply(tokens=["It ", "keeps"], token_delay_seconds=1.0)
    pieces: list[str] = []
    with pytest.raises(GenerationFailed, match="timeout"):
        async for piece in model.generate(prompt_of()):
            pieces.append(piece)
    assert pieces == ["It "] and stub.n_calls == 1


# ---------------------------------------------------------------- the budget of a message


def test_a_message_has_two_calls_and_thirty_seconds() -> None:
    budget = CallBudget()
    assert budget.calls == MAX_CALLS == 2
    assert 0 < budget.seconds <= TOTAL_SECONDS <= 30
    part = budget.part(calls=1, seconds=60)
    assert (part.calls, budget.calls) == (1, 1) and part.deadline == budget.deadline
    assert budget.part(calls=5, seconds=1).calls == 1 and budget.calls == 0
    assert CallBudget(deadline=0).seconds == 0


@pytest.mark.parametrize(
    "reply", [Reply(hang=True), Reply(tokens=["."] * 99, token_delay_seconds=0.1)]
)
async def test_the_deadline_ends_whatever_is_under_way(
    stub: OpenAIStub, client: openai.AsyncOpenAI, reply: Reply
) -> None:
    model = OpenAIGenerator(client, model="local", breaker=Breaker(failures=1000))
    stub.default = reply
    budget = CallBudget(deadline=time.monotonic() + 1.5)
    with pytest.raises(GenerationFailed, match="timeout"):
        await reply_of(model, budget)
    assert budget.seconds == 0 and stub.n_calls == 1


async def test_no_call_is_made_without_a_call_or_a_second_left(
    stub: OpenAIStub, model: OpenAIGenerator
) -> None:
    for budget in (CallBudget(calls=0), CallBudget(deadline=time.monotonic() - 1)):
        with pytest.raises(GenerationFailed):
            await reply_of(model, budget)
    assert stub.n_calls == 0
    stub.default = Reply(status=500)
    with pytest.raises(GenerationFailed):
        await reply_of(model, CallBudget(calls=1))
    assert stub.n_calls == 1


# ---------------------------------------------------------------- dialects


def refused(parameter: str) -> Reply:
    error = {"message": "Unsupported parameter", "param": parameter, "code": "unsupported"}
    return Reply(status=400, body=json.dumps({"error": error}).encode())


async def test_a_parameter_that_a_model_refuses_is_renamed_and_remembered(
    stub: OpenAIStub, model: OpenAIGenerator
) -> None:
    stub.script(refused("max_tokens"))
    assert await reply_of(model) == "It keeps 72 hours [1]."
    stub.script(refused("temperature"))
    assert await reply_of(model) == "It keeps 72 hours [1]."
    assert await reply_of(model) == "It keeps 72 hours [1]."
    assert stub.n_calls == 5
    last = stub.requests[-1].body
    assert last["max_completion_tokens"] == 400
    assert "max_tokens" not in last and "temperature" not in last
    stub.default = refused("messages")
    with pytest.raises(GenerationFailed, match="refused"):
        await reply_of(model)
    assert stub.n_calls == 6


# ---------------------------------------------------------------- the breaker


async def fail(model: OpenAIGenerator) -> GenerationFailed:
    with pytest.raises(GenerationFailed) as caught:
        await reply_of(model, CallBudget(calls=1))
    return caught.value


async def test_the_breaker_opens_tries_once_and_closes(
    stub: OpenAIStub, client: openai.AsyncOpenAI
) -> None:
    now = 0.0
    breaker = Breaker(clock=lambda: now)
    model = OpenAIGenerator(client, model="local", limits=LIMITS, breaker=breaker)
    stub.default = Reply(status=500)
    for _ in range(3):
        await fail(model)
    assert stub.n_calls == 3
    for _ in range(20):
        error = await fail(model)
        assert "3 times in a row" in str(error) and error.retry_after_seconds == 10
    assert stub.n_calls == 3, "while it is open no call is made"
    now = 10.0
    failures = await asyncio.gather(*(fail(model) for _ in range(20)))
    assert stub.n_calls == 4 and len(failures) == 20, "one message tries, the others do not wait"
    now = 19.0
    await fail(model)
    assert stub.n_calls == 4, "the failed try keeps it open for ten more seconds"
    now, stub.default = 20.0, GOOD
    assert await reply_of(model) == "It keeps 72 hours [1]."
    assert await reply_of(model) == "It keeps 72 hours [1]."
    assert stub.n_calls == 6
    assert breaker.open_seconds + CallLimits().first_piece <= 35, "normal again in time"


async def test_refusals_and_impatient_customers_do_not_open_the_breaker(
    stub: OpenAIStub, client: openai.AsyncOpenAI
) -> None:
    model = OpenAIGenerator(client, model="local", limits=LIMITS)
    stub.default = Reply(status=400)
    for _ in range(5):
        assert "refused" in str(await fail(model))
    stub.default = Reply(tokens=["a"] * 50, token_delay_seconds=0.02)
    for _ in range(5):
        pieces = model.generate(prompt_of())
        assert await anext(pieces) == "a"
        await pieces.aclose()
    stub.default = GOOD
    assert await reply_of(model) == "It keeps 72 hours [1]."


async def test_a_success_between_failures_keeps_the_breaker_closed(
    stub: OpenAIStub, client: openai.AsyncOpenAI
) -> None:
    model = OpenAIGenerator(client, model="local", limits=LIMITS)
    for _ in range(4):
        stub.script(Reply(status=500), Reply(status=500), GOOD)
        await fail(model)
        await fail(model)
        assert await reply_of(model) == "It keeps 72 hours [1]."


async def test_a_cancelled_try_leaves_the_next_one_free(
    stub: OpenAIStub, client: openai.AsyncOpenAI
) -> None:
    now = 0.0
    breaker = Breaker(failures=1, clock=lambda: now)
    model = OpenAIGenerator(client, model="local", limits=LIMITS, breaker=breaker)
    stub.script(Reply(status=500), Reply(tokens=["a"] * 50, token_delay_seconds=0.02))
    await fail(model)
    now = 10.0
    pieces = model.generate(prompt_of())
    await anext(pieces)
    await pieces.aclose()
    assert await reply_of(model) == "It keeps 72 hours [1]."


async def test_many_messages_at_once(stub: OpenAIStub, model: OpenAIGenerator) -> None:
    stub.answer = lambda body: Reply(tokens=[body["messages"][-1]["content"][-60:]])

    async def ask(n: int) -> bool:
        prompt = prompt_of(f"Question number {n}?")
        reply = "".join([piece async for piece in model.generate(prompt)])
        return f"Question number {n}?" in reply

    stub.default = GOOD
    assert all(await asyncio.gather(*(ask(n) for n in range(30))))


# ---------------------------------------------------------------- without a model


async def test_quotations_are_pieces_that_join_to_the_reply() -> None:
    assert await reply_of(ExtractiveGenerator()) == "The kiosk keeps punches for 72 hours. [1]"
    assert not ExtractiveGenerator.is_model


async def test_a_replay_answers_the_exact_prompt_and_costs_a_call(tmp_path: Path) -> None:
    prompt = prompt_of()
    line = {"key": prompt_key(prompt), "question": prompt.question, "text": "72 hours\n [1]. "}
    path = tmp_path / "replies.jsonl"
    path.write_text(json.dumps(line) + "\n")
    replay = ReplayGenerator(load_recordings(path))
    budget = CallBudget()
    assert await reply_of(replay, budget) == "72 hours\n [1]. "
    assert budget.calls == MAX_CALLS - 1
    with pytest.raises(GenerationFailed, match="no call left"):
        await reply_of(replay, CallBudget(calls=0))
    with pytest.raises(GenerationFailed, match="no reply is recorded for prompt"):
        [piece async for piece in replay.generate(prompt_of("Another question?"))]
    assert prompt_key(prompt_of("Another question?")) != prompt_key(prompt)


def test_the_sample_recordings_can_be_read() -> None:
    recordings = load_recordings()
    assert len(recordings) >= 5 and all(recordings.values())


def test_the_parameters_name_the_generator() -> None:
    url = "http://127.0.0.1:9/v1"

    def name(generator: str, **endpoint: str) -> str:
        return load_generator(GenerateParameters(generator=generator), **endpoint).name

    assert name("auto") == "extractive"
    assert name("auto", base_url=url) == name("auto", api_key="k") == "gpt-5.4-mini"
    assert name("extractive", base_url=url, api_key="k") == "extractive"
    assert name("replay", base_url=url) == "replay"
    with pytest.raises(SettingsInvalid, match="neither a base URL nor an API key"):
        name("openai")
    chosen = load_generator(load_parameters().generate, api_key="k")
    assert isinstance(chosen, OpenAIGenerator)
    assert "max_completion_tokens" in chosen.options, "OpenAI's own endpoint wants the new name"
