"""Equal texts get equal vectors; a wrong vector is an error; an endpoint gets two calls."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator

import numpy as np
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support_rag.embed import (
    DEADLINE_SECONDS,
    ENDPOINT_TOKENS,
    LOCAL_EMBEDDERS,
    MAX_CALLS,
    MAX_WAIT_SECONDS,
    REQUEST_TEXTS,
    REQUEST_TOKENS,
    E5Embedder,
    HashingEmbedder,
    LocalEmbedder,
    MiniLMEmbedder,
    OpenAIEmbedder,
    batches,
    load_embedder,
    normalise,
    wait_seconds,
)
from support_rag.language.models import equal_windows
from support_rag.language.segmentation import count_tokens
from support_rag.release import EmbedParameters, load_parameters
from support_rag.types import EmbeddingFailed, SettingsInvalid
from tests.openai_stub import OpenAIStub, Reply, vector_of

# ---------------------------------------------------------------- local embedders


@settings(deadline=None)
@given(st.lists(st.text(max_size=30), min_size=1, max_size=4))
def test_hashed_vectors_have_length_one_and_depend_on_the_text_alone(texts: list[str]) -> None:
    async def embed(some: list[str]) -> np.ndarray:
        return (await HashingEmbedder(64).embed(some)).vectors

    together = asyncio.run(embed(texts))
    assert together.shape == (len(texts), 64) and together.dtype == np.float32
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    for text, vector in zip(texts, together, strict=True):
        assert (asyncio.run(embed([text]))[0] == vector).all()


def test_hashed_vectors_are_the_same_in_every_process() -> None:
    code = (
        "import asyncio; from support_rag.embed import HashingEmbedder as H;"
        "print(asyncio.run(H(16).embed(['The kiosk is offline'])).vectors.tobytes().hex())"
    )
    command = [sys.executable, "-c", code]
    other = subprocess.run(command, env={"PYTHONHASHSEED": "1"}, capture_output=True, check=True)
    here = asyncio.run(HashingEmbedder(16).embed(["The kiosk is offline"]))
    assert other.stdout.decode().strip() == here.vectors.tobytes().hex()


@pytest.fixture(scope="module", params=LOCAL_EMBEDDERS.values())
def local(request: pytest.FixtureRequest) -> LocalEmbedder:
    return request.param(threads=1)


TEXTS = [
    "Refunds",
    "",
    "The kiosk keeps punches. " * 80,
    "打卡机",
    "x" * 3000,
    "<|endoftext|> \x00",
]


async def test_a_local_model_gives_a_text_one_vector_in_any_company(local: LocalEmbedder) -> None:
    together = await local.embed(TEXTS)
    backwards = await local.embed(TEXTS[::-1])
    assert together.truncated_tokens == 0
    assert np.allclose(np.linalg.norm(together.vectors, axis=1), 1, atol=1e-6)
    assert np.array_equal(together.vectors, backwards.vectors[::-1]), "not by a bit"
    for text, vector in zip(TEXTS, together.vectors, strict=True):
        assert np.array_equal((await local.embed([text])).vectors[0], vector)
    assert (await local.embed([])).vectors.shape == (0, 384)


async def test_a_local_model_does_not_depend_on_threads_and_serves_many_at_once(
    local: LocalEmbedder,
) -> None:
    expected = (await local.embed(TEXTS)).vectors
    other = type(local)(threads=2)
    found = await asyncio.gather(*(other.embed(TEXTS) for _ in range(2)))
    assert all(np.array_equal(f.vectors, expected) for f in found)


async def test_a_local_model_reads_the_end_of_a_long_text(local: LocalEmbedder) -> None:
    long = "The kiosk keeps punches for 72 hours. " * 80
    first, second = (await local.embed([long, f"{long} A refund takes five days."])).vectors
    [refund] = (await local.embed(["A refund takes five days."])).vectors
    assert second @ refund > first @ refund


async def test_only_e5_is_told_what_is_asked() -> None:
    minilm, e5 = MiniLMEmbedder(threads=1), E5Embedder(threads=1)
    for local, is_told in ((minilm, False), (e5, True)):
        passage = (await local.embed(["refund"])).vectors
        query = (await local.embed(["refund"], kind="query")).vectors
        assert np.array_equal(passage, query) is not is_told


async def test_e5_finds_the_same_meaning_in_another_language() -> None:
    e5 = E5Embedder(threads=1)
    passages = ["A refund takes five days.", "The kiosk works offline for 72 hours."]
    found = (await e5.embed(passages)).vectors
    questions = ["Wann bekomme ich mein Geld zurück?", "キオスクはオフラインで使えますか?"]
    asked = (await e5.embed(questions, kind="query")).vectors
    assert (asked @ found.T).argmax(axis=1).tolist() == [0, 1]


@settings(deadline=None)
@given(st.integers(0, 3000), st.integers(1, 300))
def test_windows_are_few_equal_and_complete(n: int, size: int) -> None:
    found = equal_windows(range(n), size)
    assert [piece for window in found for piece in window] == list(range(n))
    lengths = [len(window) for window in found]
    assert max(lengths) <= size and max(lengths) - min(lengths) <= 1
    assert len(found) == max(1, -(-n // size))


@settings(deadline=None)
@given(st.lists(st.integers(0, 60_000), max_size=300))
def test_batches(sizes: list[int]) -> None:
    found = batches(sizes)
    assert [n for part in found for n in range(len(sizes))[part]] == list(range(len(sizes)))
    for part in found:
        inside = sizes[part]
        assert 1 <= len(inside) <= REQUEST_TEXTS
        assert len(inside) == 1 or sum(inside) <= REQUEST_TOKENS


def test_vectors_without_a_direction_are_refused() -> None:
    for row in ([0.0, 0.0], [np.nan, 1.0], [np.inf, 1.0]):
        with pytest.raises(EmbeddingFailed, match="the vector of text 1"):
            normalise(np.array([[1.0, 0.0], row]))


# ---------------------------------------------------------------- endpoints, over a real socket


@pytest.fixture
def stub() -> Iterator[OpenAIStub]:
    with OpenAIStub(dim=8) as server:
        yield server


@pytest.fixture
async def endpoint(stub: OpenAIStub) -> AsyncIterator[OpenAIEmbedder]:
    client = openai.AsyncOpenAI(base_url=stub.base_url, api_key="secret-canary")
    yield OpenAIEmbedder("local-model", 8, client)
    await client.close()


async def test_vectors_come_in_the_order_of_the_texts(
    stub: OpenAIStub, endpoint: OpenAIEmbedder
) -> None:
    texts = [f"text {n}" for n in range(300)]
    stub.default = Reply(reverse=True)
    found = await endpoint.embed(texts)
    expected = np.array([vector_of(text, 8) for text in texts], dtype=np.float32)
    assert np.allclose(found.vectors, expected, atol=1e-6)
    sizes = [len(seen.body["input"]) for seen in stub.requests]
    assert sizes == [128, 128, 44]
    assert stub.requests[0].body["model"] == "local-model"
    assert "dimensions" not in stub.requests[0].body
    assert (await endpoint.embed([])).vectors.shape == (0, 8)
    assert stub.n_calls == 3


async def test_openai_is_asked_for_fewer_dimensions(stub: OpenAIStub) -> None:
    client = openai.AsyncOpenAI(base_url=stub.base_url, api_key="none")
    shortened = OpenAIEmbedder("text-embedding-3-small", 256, client)
    assert (await shortened.embed(["a"])).vectors.shape == (1, 256)
    assert stub.requests[0].body["dimensions"] == 256
    assert shortened.name == "text-embedding-3-small@256"
    assert OpenAIEmbedder("text-embedding-3-small", 1536, client).name == "text-embedding-3-small"
    await client.close()


async def test_long_and_empty_texts(stub: OpenAIStub, endpoint: OpenAIEmbedder) -> None:
    long = "word " * (ENDPOINT_TOKENS + 500)
    found = await endpoint.embed([long, "", "short"])
    sent = stub.requests[0].body["input"]
    assert count_tokens(sent[0]) <= ENDPOINT_TOKENS and long.startswith(sent[0])
    assert sent[1:] == [" ", "short"]
    assert found.truncated_tokens == count_tokens(long) - count_tokens(sent[0]) > 0


@pytest.mark.parametrize(
    "reply",
    [Reply(status=500), Reply(status=503), Reply(status=429), Reply(status=408), Reply(drop=True)],
    ids=lambda reply: f"{reply.status}{'drop' if reply.drop else ''}",
)
async def test_a_passing_fault_costs_a_second_call(
    stub: OpenAIStub, endpoint: OpenAIEmbedder, reply: Reply
) -> None:
    stub.script(reply)
    assert (await endpoint.embed(["a"])).vectors.shape == (1, 8)
    assert stub.n_calls == 2
    stub.reset()
    stub.default = reply
    with pytest.raises(EmbeddingFailed, match="the embedding endpoint failed") as caught:
        await endpoint.embed(["a"])
    assert stub.n_calls == MAX_CALLS == 2
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    "reply",
    [
        Reply(status=400), Reply(status=401), Reply(status=404), Reply(body=b"{not json"),
        Reply(body=b"[]"), Reply(body=b'{"data": 1}'), Reply(body=b'{"data": [{"index": 0}]}'),
        Reply(body=b'{"data": [{"index": 0, "embedding": ["a"]}]}'), Reply(body=b"null"),
        Reply(dim=7), Reply(dim=9), Reply(value=float("nan")), Reply(value=float("inf")),
        Reply(value=0.0), Reply(count=-1), Reply(count=1),
    ],
    ids=str,
)  # fmt: skip
async def test_a_lasting_fault_costs_one_call(
    stub: OpenAIStub, endpoint: OpenAIEmbedder, reply: Reply
) -> None:
    stub.default = reply
    with pytest.raises(EmbeddingFailed) as caught:
        await endpoint.embed(["a", "b"])
    assert stub.n_calls == 1
    assert "scripted" not in str(caught.value), "the server's text is never quoted"
    stub.default = Reply()
    assert (await endpoint.embed(["a"])).vectors.shape == (1, 8), "and then it works again"


async def test_retry_after_is_honoured_and_capped(
    stub: OpenAIStub, endpoint: OpenAIEmbedder
) -> None:
    stub.script(Reply(status=429, headers={"Retry-After": "0.4"}))
    await endpoint.embed(["a"])
    first, second = stub.requests
    assert second.at - first.at >= 0.4
    client = openai.AsyncOpenAI(base_url=stub.base_url, api_key="none", max_retries=0)
    asked = {"3600": 5.0, "2": 2.0, "-1": 0.5, "Wed, 21 Oct 2026 07:28:00 GMT": 0.5, "nan": 0.5}
    for header, seconds in asked.items():
        stub.script(Reply(status=503, headers={"Retry-After": header}))
        with pytest.raises(openai.InternalServerError) as caught:
            await client.embeddings.create(model="m", input=["a"])
        assert wait_seconds(caught.value) == seconds <= MAX_WAIT_SECONDS, header
    await client.close()


async def test_a_hanging_endpoint_ends_at_the_deadline(stub: OpenAIStub) -> None:
    client = openai.AsyncOpenAI(base_url=stub.base_url, api_key="none")
    hasty = OpenAIEmbedder("m", 8, client, deadline_seconds=0.5)
    stub.default = Reply(hang=True)
    with pytest.raises(EmbeddingFailed, match="took more than"):
        await hasty.embed(["a"])
    assert stub.n_calls == 1
    await client.close()
    assert (DEADLINE_SECONDS, MAX_CALLS, MAX_WAIT_SECONDS) == (30, 2, 5)


# ---------------------------------------------------------------- choosing one


def test_the_parameters_name_the_embedder() -> None:
    assert load_embedder(load_parameters().embed).name == load_parameters().embed.model
    assert load_embedder(EmbedParameters(model="hashing-64")).dim == 64
    small = load_embedder(EmbedParameters(model="text-embedding-3-small"), api_key="k")
    assert (small.name, small.dim) == ("text-embedding-3-small", 1536)
    local = load_embedder(EmbedParameters(model="bge-m3@1024"), base_url="http://127.0.0.1:9/v1")
    assert (local.name, local.dim) == ("bge-m3@1024", 1024)


@pytest.mark.parametrize("model", ["hashing-1", "hashing-99999", "x@0", "x@4001", "x@y", "unknown"])
def test_an_embedder_that_cannot_be_had_is_refused_at_once(model: str) -> None:
    with pytest.raises(SettingsInvalid, match="dimension"):
        load_embedder(EmbedParameters(model=model), api_key="k")
    with pytest.raises(SettingsInvalid):
        load_embedder(EmbedParameters(model=model))
