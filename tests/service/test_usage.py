"""Quotas of a day over HTTP: exact under a crowd, settled, told in headers, and nobody else's."""

import asyncio
import re
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from support_rag.generate import CallBudget, ExtractiveGenerator, Generator
from support_rag.local.servers import Running
from support_rag.release import Release, Writer
from support_rag.service.app import create_app
from support_rag.state.database import create_database
from support_rag.state.indexes import Embedders
from support_rag.state.quotas import change_limits, foreseen_tokens
from support_rag.types import GenerationFailed, Prompt
from tests.people import as_superuser, hashing_models, settings_of
from tests.service.test_conversations import QUESTION, embedders, release, store_article  # noqa: F401
from tests.serving import Account, serving, signed_in

pytestmark = pytest.mark.usefixtures("no_work_left")
INGEST, USAGE = "/api/v1/documents/ingest", "/api/v1/usage"


class Model:
    """A language model that answers, or breaks off after some words."""

    name, is_model, writer = "model", True, Writer("model")
    breaks = False

    async def generate(
        self, prompt: Prompt, *, budget: CallBudget | None = None
    ) -> AsyncGenerator[str, None]:
        yield "Punches are kept for "
        if self.breaks:
            raise GenerationFailed("the model broke off")
        yield "72 hours [1]."


def running(servers: Running, generator: Generator) -> Any:
    "Return a service that has connections for a crowd."
    settings = settings_of(servers).model_copy(update={"pool_size": 20})
    return serving(create_app(settings, **hashing_models() | {"generator": generator}))


@pytest.fixture(scope="module")
def url(servers: Running) -> Iterator[str]:
    with running(servers, ExtractiveGenerator()) as address:
        yield address


@pytest.fixture(scope="module")
def model() -> Model:
    return Model()


@pytest.fixture(scope="module")
def model_url(servers: Running, model: Model) -> Iterator[str]:
    with running(servers, model) as address:
        yield address


@pytest.fixture
def owner(url: str) -> Iterator[Account]:
    with signed_in(url) as account:
        yield account


@pytest.fixture
def reader(
    model_url: str,
    servers: Running,
    release: Release,  # noqa: F811
    embedders: Embedders,  # noqa: F811
) -> Iterator[Account]:
    "Who has an article and asks a model."
    with signed_in(model_url) as account:
        asyncio.run(store_article(servers.app_url, account.tenant_id, release, embedders))
        yield account


def limit(servers: Running, account: Account, **limits: int) -> None:
    "Give a tenant quotas, as whoever runs the service does."

    async def change() -> None:
        database = create_database(servers.app_url)
        async with database.tenant(account.tenant_id) as session:
            await change_limits(session, limits, tenant_id=account.tenant_id)
        await database.close()

    asyncio.run(change())


def used(account: Account, **params: int) -> dict[str, Any]:
    answer = account.client.get(USAGE, params=params)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def today(account: Account) -> dict[str, int]:
    return dict(used(account)["days"][0])


def document(account: Account, n: int, size: int = 10) -> httpx2.Response:
    body = {"title": "T", "content": "x" * size, "source": f"{n}.md"}
    return account.client.post(INGEST, json=body)


def refused(answer: httpx2.Response) -> dict[str, Any]:
    "Return the problem of a request that is over a quota, which says all it must."
    assert answer.status_code == 429, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert 1 <= int(answer.headers["retry-after"]) <= 86_400
    problem = dict(answer.json())
    assert problem["code"] == "quota_exceeded" and "midnight UTC" in problem["detail"]
    assert answer.headers["ratelimit"] and answer.headers["ratelimit-policy"]
    return problem


def test_of_fifty_at_once_exactly_those_pass_that_there_is_room_for(
    owner: Account, servers: Running, url: str
) -> None:
    limit(servers, owner, messages=12)
    for _ in range(7):
        assert owner.ask(owner.open(), QUESTION).status_code == 200
    talks = [owner.open() for _ in range(50)]
    with ThreadPoolExecutor(50) as crowd:
        answers = list(crowd.map(lambda talk: owner.ask(talk, QUESTION), talks))
    statuses = [answer.status_code for answer in answers]
    assert (statuses.count(200), statuses.count(429)) == (5, 45), statuses
    problem = refused(next(answer for answer in answers if answer.status_code == 429))
    assert problem["detail"].startswith("12 of 12 messages a day are used, and this takes 1:")
    assert today(owner)["messages"] == 12
    kept = [len(owner.messages(talk)) for talk in talks]
    assert sorted(kept) == [0] * 45 + [2] * 5, "what was refused was never stored"
    with signed_in(url) as other:
        assert other.ask(other.open(), QUESTION).status_code == 200, "another tenant is untouched"


def test_a_day_later_everything_is_there_again(owner: Account, servers: Running) -> None:
    limit(servers, owner, messages=1)
    talk = owner.open()
    assert owner.ask(talk, QUESTION).status_code == 200
    refused(owner.ask(talk, QUESTION))
    with as_superuser(servers) as connection:
        connection.execute("UPDATE usage SET day = day - 1 WHERE tenant_id = %s", [owner.tenant_id])
    assert owner.ask(talk, QUESTION).status_code == 200
    assert [day["messages"] for day in used(owner, days=3)["days"]] == [1, 1, 0]


def test_documents_and_bytes_are_counted_when_they_are_processed(
    owner: Account, servers: Running
) -> None:
    limit(servers, owner, documents=4, bytes=100)
    first = document(owner, 1)
    assert first.status_code == 202
    assert first.headers["ratelimit-policy"] == (
        '"documents";q=4;w=86400, "bytes";q=100;qu="content-bytes";w=86400'
    )
    assert re.fullmatch(r'"documents";r=3;t=\d+, "bytes";r=90;t=\d+', first.headers["ratelimit"])
    same = document(owner, 1)
    assert same.status_code == 202 and "ratelimit" not in same.headers, "nothing was processed"
    assert (
        "10 of 100 bytes a day are used, and this takes 95"
        in (refused(document(owner, 2, size=95))["detail"])
    )
    again = owner.client.post(f"{first.headers['location']}/reingest")
    assert again.status_code == 202 and '"documents";r=2' in again.headers["ratelimit"]
    files = [("files", (f"b{n}.md", b"# B")) for n in range(3)]
    batch = owner.client.post("/api/v1/documents/batch", files=files)
    assert [item["status"] for item in batch.json()["items"]] == [202, 202, 429]
    assert batch.json()["items"][2]["problem"]["code"] == "quota_exceeded"
    assert {name: today(owner)[name] for name in ("documents", "bytes")} == {
        "documents": 4,
        "bytes": 26,
    }
    listed = owner.client.get("/api/v1/documents").json()["items"]
    assert sorted(item["source"] for item in listed) == ["1.md", "b0.md", "b1.md"]


def test_tokens_are_reserved_and_settled_to_what_was_used(
    reader: Account,
    servers: Running,
    model: Model,
    release: Release,  # noqa: F811
) -> None:
    most = foreseen_tokens(release, model)
    limit(servers, reader, tokens=most + 500, messages=100)
    model.breaks = False
    reply = reader.ask(reader.open(), QUESTION)
    assert reply.status_code == 200 and reply.json()["generator"] == "model", reply.text
    trace = reader.client.get(f"/api/v1/messages/{reply.json()['id']}/trace").json()
    cost = sum(trace["facts"]["tokens"].values())
    assert 0 < cost < 500 and (today(reader)["tokens"], today(reader)["messages"]) == (cost, 1)
    model.breaks = True
    failed = reader.ask(reader.open(), QUESTION).json()
    assert failed["reason"] == "generation_unavailable"
    trace = reader.client.get(f"/api/v1/messages/{failed['id']}/trace").json()
    lost = sum(trace["facts"]["tokens"].values())
    assert lost > 0 and today(reader)["tokens"] == cost + lost, "the model read it all the same"
    limit(servers, reader, tokens=most + cost + lost - 1)
    problem = refused(reader.ask(reader.open(), QUESTION))
    assert f"this takes {most}:" in problem["detail"]
    assert document(reader, 1).status_code == 202, "a document takes no tokens"


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_completion_counts_like_a_message(
    reader: Account, servers: Running, model: Model, is_streamed: bool
) -> None:
    limit(servers, reader, messages=1)
    model.breaks = False
    chat = {"model": "support-rag", "messages": [{"role": "user", "content": QUESTION}]}
    sent = {"json": chat | {"stream": is_streamed}, "headers": {"Idempotency-Key": "one"}}
    first = reader.client.post("/v1/chat/completions", **sent)
    assert first.status_code == 200 and '"messages";r=0' in first.headers["ratelimit"]
    again = reader.client.post("/v1/chat/completions", **sent)
    assert again.headers["idempotency-replayed"] == "true" and "ratelimit" not in again.headers
    assert today(reader)["messages"] == 1 and 0 < today(reader)["tokens"] < 500
    refused(reader.client.post("/v1/chat/completions", json=chat | {"stream": is_streamed}))


def test_a_repetition_under_a_key_counts_once(owner: Account, servers: Running) -> None:
    path = f"/api/v1/conversations/{owner.open()}/messages"
    sent = {"json": {"content": QUESTION}, "headers": {"Idempotency-Key": "twice"}}
    assert [owner.client.post(path, **sent).status_code for _ in range(2)] == [200, 200]
    assert today(owner)["messages"] == 1
    limit(servers, owner, messages=1)
    more = {"json": {"content": QUESTION}, "headers": {"Idempotency-Key": "other"}}
    refused(owner.client.post(path, **more))
    assert owner.client.post(path, **sent).status_code == 200, "it is not asked again"
    limit(servers, owner, messages=2)
    assert owner.client.post(path, **more).status_code == 200, "a refusal gave its key back"


def test_a_stream_says_what_is_left_and_is_refused_with_a_status(
    owner: Account, servers: Running
) -> None:
    limit(servers, owner, messages=1)
    path, accept = f"/api/v1/conversations/{owner.open()}/messages", {"Accept": "text/event-stream"}
    first = owner.client.post(path, json={"content": QUESTION}, headers=accept)
    assert first.status_code == 200 and first.headers["ratelimit"].startswith('"messages";r=0;t=')
    refused(owner.client.post(path, json={"content": QUESTION}, headers=accept))


def test_usage_is_shown_to_who_may_see_it(owner: Account, servers: Running) -> None:
    limit(servers, owner, messages=5)
    shown = used(owner)
    assert shown["limits"] == {"messages": 5, "tokens": None, "documents": None, "bytes": None}
    assert 0 < shown["resets_in"] <= 86_400 and len(shown["days"]) == 7
    keys = [
        owner.client.post("/api/v1/keys", json={"name": "K", "scopes": scopes}).json()["secret"]
        for scopes in (["usage:read"], ["search"])
    ]
    seen = [
        owner.client.get(USAGE, headers={"Authorization": f"Bearer {key}"}).status_code
        for key in keys
    ]
    assert seen == [200, 403]
    for days in (0, 93):
        assert owner.client.get(USAGE, params={"days": days}).status_code == 422


def test_nobody_raises_the_own_quota(owner: Account) -> None:
    for body in ({"quotas": {"messages": 9}}, {"settings": {"quotas": {}}}):
        assert owner.client.patch("/api/v1/tenant", json=body).status_code == 422


def test_who_signs_in_too_often_is_told_the_limit(owner: Account) -> None:
    who = {"email": "nobody@example.com", "password": "not the one at all"}
    answers = [owner.client.post("/api/v1/auth/login", json=who) for _ in range(11)]
    assert [answer.status_code for answer in answers] == [401] * 10 + [429]
    assert answers[-1].headers["ratelimit-policy"] == '"account";q=10;w=300'
    assert re.fullmatch(r'"account";r=0;t=\d+', answers[-1].headers["ratelimit"])
    assert answers[-1].json()["code"] == "rate_limited"
