"""A POST that is sent again takes effect once and is answered as the first time."""

import asyncio
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
import redis
from fastapi import FastAPI

from support_rag.local.servers import Running
from support_rag.service.idempotency import Once
from support_rag.state import answering, asking
from tests.people import Person, as_superuser, new_person
from tests.serving import read_events

CONVERSATIONS, INGEST = "/api/v1/conversations", "/api/v1/documents/ingest"
STREAM = {"Accept": "text/event-stream"}


pytestmark = pytest.mark.usefixtures("no_work_left")


@pytest.fixture
def person(servers: Running) -> Person:
    return new_person(servers)


@pytest.fixture
def client(url: str, person: Person) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=url, timeout=300, headers=person.headers) as client:
        yield client


def with_key(key: str) -> dict[str, str]:
    return {"Idempotency-Key": key}


def new_key() -> dict[str, str]:
    return with_key(str(uuid.uuid4()))


def count(servers: Running, table: str, person: Person) -> int:
    with as_superuser(servers) as connection:
        query = f"SELECT count(*) FROM {table} WHERE tenant_id = %s"
        row = connection.execute(query, [person.tenant_id]).fetchone()
        assert row is not None
        return int(row[0])


def age(servers: Running, person: Person, table: str, seconds: int) -> None:
    "Let rows be older than they are, and leases with them."
    columns = ["created_at"] + ["lease_until"] * (table == "idempotency")
    change = ", ".join(f"{c} = {c} - make_interval(secs => {seconds})" for c in columns)
    with as_superuser(servers) as connection:
        connection.execute(f"UPDATE {table} SET {change} WHERE tenant_id = %s", [person.tenant_id])


def all_at_once(n: int, send: Any) -> list[httpx2.Response]:
    "Send a request n times, all in the same moment."
    gate = threading.Barrier(n)

    def one(_: int) -> httpx2.Response:
        gate.wait()
        return send()  # type: ignore[no-any-return]

    with ThreadPoolExecutor(n) as pool:
        return list(pool.map(one, range(n)))


# Which routes


def test_every_post_behind_a_sign_in_takes_a_key(app: FastAPI) -> None:
    "Those under /auth are asked by nobody known, or end the session that asks."
    seen = 0
    for path, methods in app.openapi()["paths"].items():
        for method, described in methods.items():
            names = {p["name"] for p in described.get("parameters", ()) if p["in"] == "header"}
            expected = method == "post" and "/auth/" not in path
            assert ("Idempotency-Key" in names) == expected, (method, path)
            if expected:
                codes = {
                    code
                    for response in described["responses"].values()
                    for content in response.get("content", {}).values()
                    for code in content.get("examples", {})
                }
                assert {"key_in_flight", "key_reused"} <= codes, path
                seen += 1
    assert seen >= 8


def requests(client: httpx2.Client) -> dict[str, tuple[str, dict[str, Any]]]:
    "Return one good request of each route: path and body."
    talk = client.post(CONVERSATIONS, json={}).json()["id"]
    closing = client.post(CONVERSATIONS, json={}).json()["id"]
    asked = {"messages": [{"role": "user", "content": "Why?"}], "model": "support-rag"}
    return {
        "conversations": (CONVERSATIONS, {"json": {"title": "T"}}),
        "close": (f"{CONVERSATIONS}/{closing}/close", {}),
        "messages": (f"{CONVERSATIONS}/{talk}/messages", {"json": {"content": "Why?"}}),
        "ingest": (INGEST, {"json": {"title": "T", "content": "# T", "source": "t.md"}}),
        "file": (INGEST, {"files": {"file": ("a.md", b"# A")}, "data": {"title": "A"}}),
        "search": ("/api/v1/search", {"json": {"query": "Why?"}}),
        "completions": ("/v1/chat/completions", {"json": asked}),
        "invitations": ("/api/v1/invitations", {"json": {"email": f"{talk}@example.com"}}),
    }


EVERYTHING = ("documents", "conversations", "messages", "tickets", "api_keys", "idempotency")


def test_a_repetition_is_answered_as_the_first_time(
    client: httpx2.Client, servers: Running, person: Person
) -> None:
    for name, (path, sent) in requests(client).items():
        key = new_key()
        first = client.post(path, headers=key, **sent)
        assert first.is_success and "idempotency-replayed" not in first.headers, name
        before = [count(servers, table, person) for table in EVERYTHING]
        second = client.post(path, headers=key, **sent)
        assert second.headers["idempotency-replayed"] == "true", name
        assert (second.status_code, second.content) == (first.status_code, first.content), name
        assert second.headers.get("location") == first.headers.get("location"), name
        assert [count(servers, table, person) for table in EVERYTHING] == before, name
        assert client.post(path, headers=new_key(), **sent).status_code in (
            200, 201, 202, 409,
        ), "a new key is a new request"  # fmt: skip


def test_a_repetition_does_not_show_the_secret_of_a_key(client: httpx2.Client) -> None:
    key, sent = new_key(), {"json": {"name": "CRM"}}
    first, second = (client.post("/api/v1/keys", headers=key, **sent) for _ in range(2))
    assert first.status_code == second.status_code == 201
    assert first.json()["secret"] and second.json() == {**first.json(), "secret": None}


def test_the_secret_of_a_key_is_stored_nowhere(
    client: httpx2.Client, servers: Running, person: Person
) -> None:
    secret = client.post("/api/v1/keys", headers=new_key(), json={"name": "K"}).json()["secret"]
    with as_superuser(servers) as connection:
        rows = connection.execute(
            "SELECT convert_from(body, 'UTF8') FROM idempotency WHERE tenant_id = %s",
            [person.tenant_id],
        ).fetchall()
    assert len(rows) == 1 and secret not in rows[0][0] and '"name":"K"' in rows[0][0]


# Another request


def test_a_key_of_another_request_is_refused(client: httpx2.Client, servers: Running) -> None:
    key = new_key()
    talks = [client.post(CONVERSATIONS, json={}).json()["id"] for _ in range(2)]
    assert client.post(CONVERSATIONS, headers=key, json={"title": "A"}).status_code == 201
    other = client.post(CONVERSATIONS, headers=key, json={"title": "B"})
    assert (other.status_code, other.json()["code"]) == (422, "key_reused")
    sent = {"headers": key, "json": {"content": "Why?"}}
    first = client.post(f"{CONVERSATIONS}/{talks[0]}/messages", **sent)
    assert first.status_code == 200, "another route is another request"
    wrong = client.post(f"{CONVERSATIONS}/{talks[1]}/messages", **sent)
    assert (wrong.status_code, wrong.json()["code"]) == (422, "key_reused")


def test_keys_of_others_are_others(
    url: str, servers: Running, client: httpx2.Client, person: Person
) -> None:
    key, sent = new_key(), {"title": f"secret {uuid.uuid4()}"}
    first = client.post(CONVERSATIONS, headers=key, json=sent)
    colleague = new_person(servers, tenant_id=person.tenant_id)
    program = client.post("/api/v1/keys", json={"name": "P"}).json()["secret"]
    for headers in (
        new_person(servers).headers,
        colleague.headers,
        {"Authorization": f"Bearer {program}"},
    ):
        with httpx2.Client(base_url=url, timeout=300, headers=headers) as other:
            answer = other.post(CONVERSATIONS, headers=key, json=sent)
            assert answer.status_code == 201 and "idempotency-replayed" not in answer.headers
            assert answer.json()["id"] != first.json()["id"]
            probe = other.post(CONVERSATIONS, headers=key, json={"title": "another"})
            assert probe.status_code == 422, "the key is its own now"
    again = client.post(CONVERSATIONS, headers=key, json=sent)
    assert again.content == first.content and again.headers["idempotency-replayed"] == "true"


@pytest.mark.parametrize("bad", ["", "x" * 256, "a b", "é"])
def test_a_key_that_is_none_is_refused(client: httpx2.Client, bad: str) -> None:
    headers = [("Idempotency-Key", bad.encode("latin-1"))]
    answer = client.post(CONVERSATIONS, headers=headers, json={})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "header.Idempotency-Key"


# Refusals and their keys


def test_a_refused_request_gives_its_key_back(
    client: httpx2.Client, servers: Running, person: Person
) -> None:
    key = new_key()
    for _ in range(2):
        assert client.post(CONVERSATIONS, headers=key, json={"title": 5}).status_code == 422
    assert count(servers, "idempotency", person) == 0
    missing = client.post(f"{CONVERSATIONS}/{uuid.uuid4()}/close", headers=key)
    assert missing.status_code == 404
    unknown = client.post(CONVERSATIONS, headers=key, json={}, params={"no": "1"})
    assert unknown.status_code == 422
    assert count(servers, "idempotency", person) == 0
    assert client.post(CONVERSATIONS, headers=key, json={"title": "T"}).status_code == 201


def test_who_may_not_do_something_claims_no_key(url: str, servers: Running, person: Person) -> None:
    member = new_person(servers, tenant_id=person.tenant_id, role="member")
    with httpx2.Client(base_url=url, headers=member.headers) as client:
        sent = {"email": "somebody@example.com"}
        answer = client.post("/api/v1/invitations", headers=new_key(), json=sent)
    assert answer.status_code == 403 and count(servers, "idempotency", person) == 0


def test_the_effect_and_its_answer_are_stored_together_or_not_at_all(
    client: httpx2.Client, servers: Running, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, sent = new_key(), {"title": "T"}
    original = Once.keep

    async def broken(self: Once, *args: Any, **values: Any) -> None:
        await original(self, *args, **values)
        raise RuntimeError("the process dies here")

    with monkeypatch.context() as patched:
        patched.setattr(Once, "keep", broken)
        assert client.post(CONVERSATIONS, headers=key, json=sent).status_code == 500
    assert count(servers, "conversations", person) == count(servers, "idempotency", person) == 0
    assert client.post(CONVERSATIONS, headers=key, json=sent).status_code == 201
    assert count(servers, "conversations", person) == count(servers, "idempotency", person) == 1


def test_a_key_is_free_after_a_day(client: httpx2.Client, servers: Running, person: Person) -> None:
    key = new_key()
    first = client.post(CONVERSATIONS, headers=key, json={"title": "A"})
    age(servers, person, "idempotency", 24 * 3600 - 60)
    assert client.post(CONVERSATIONS, headers=key, json={"title": "A"}).content == first.content
    age(servers, person, "idempotency", 120)
    again = client.post(CONVERSATIONS, headers=key, json={"title": "B"})
    assert again.status_code == 201 and again.json()["id"] != first.json()["id"]
    age(servers, person, "idempotency", 24 * 3600 + 60)
    client.post(CONVERSATIONS, headers=new_key(), json={})
    assert count(servers, "idempotency", person) == 1, "what is over is deleted"


def test_what_is_deleted_is_in_no_stored_answer(
    client: httpx2.Client, servers: Running, person: Person
) -> None:
    canary, key = f"canary-{uuid.uuid4().hex}", new_key()
    sent = {"title": canary, "content": "# T", "source": "t.md"}
    made = client.post(INGEST, headers=key, json=sent)
    assert client.delete(made.headers["location"]).status_code == 204
    with as_superuser(servers) as connection:
        rows = connection.execute("SELECT convert_from(body, 'UTF8') FROM idempotency").fetchall()
    assert rows and not [body for (body,) in rows if canary in body]
    late = client.post(INGEST, headers=key, json=sent)
    assert (late.status_code, count(servers, "documents", person)) == (404, 0)


# Many at once


@pytest.mark.parametrize("name", ["conversations", "close", "messages", "ingest", "invitations"])
def test_fifty_sends_at_once_take_effect_once(
    url: str, client: httpx2.Client, servers: Running, person: Person, name: str
) -> None:
    path, sent = requests(client)[name]
    if name == "ingest":
        del sent["json"]["source"]
    table = {"ingest": "documents", "invitations": "tickets"}.get(name, name)
    table = "conversations" if name == "close" else table
    before, key = count(servers, table, person), new_key()

    def until_answered() -> httpx2.Response:
        with httpx2.Client(base_url=url, timeout=300, headers=person.headers) as one:
            while True:
                answer = one.post(path, headers=key, **sent)
                seen[answer.status_code] += 1
                if answer.status_code not in (409, 503):
                    return answer
                assert answer.status_code == 503 or answer.json()["code"] == "key_in_flight"
                time.sleep(float(answer.headers["retry-after"]))

    seen = Counter[int]()
    answers = all_at_once(50, until_answered)
    made = count(servers, table, person) - before
    assert made == {"close": 0, "messages": 2}.get(name, 1), seen
    assert {a.status_code for a in answers} <= {200, 201, 202}, seen
    assert len({a.content for a in answers}) == 1
    replayed = [a for a in answers if "idempotency-replayed" in a.headers]
    assert len(replayed) == 49, "one of them did it"


def test_fifty_sends_without_a_key_take_effect_fifty_times(
    url: str, servers: Running, person: Person
) -> None:
    "The control: it is the key that makes them one."

    def send() -> httpx2.Response:
        with httpx2.Client(base_url=url, timeout=300, headers=person.headers) as one:
            return one.post(CONVERSATIONS, json={})

    answers = all_at_once(50, send)
    done = [a for a in answers if a.status_code == 201]
    assert len(done) >= 25 and count(servers, "conversations", person) == len(done)


def test_a_request_under_way_is_told_so(
    url: str, client: httpx2.Client, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, sent = requests(client)["conversations"]
    key, begun, may_end = new_key(), threading.Event(), threading.Event()
    original = answering.create_conversation

    async def slow(*args: Any, **values: Any) -> Any:
        begun.set()
        await asyncio.to_thread(may_end.wait)
        return await original(*args, **values)

    monkeypatch.setattr(answering, "create_conversation", slow)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.post, path, headers=key, **sent)
        assert begun.wait(30)
        with httpx2.Client(base_url=url, timeout=300, headers=person.headers) as other:
            second = other.post(path, headers=key, **sent)
        may_end.set()
        assert first.result().status_code == 201
    assert (second.status_code, second.json()["code"]) == (409, "key_in_flight")
    assert int(second.headers["retry-after"]) >= 1
    assert client.post(path, headers=key, **sent).content == first.result().content


def test_a_try_that_was_taken_over_has_no_effect(
    url: str, client: httpx2.Client, servers: Running, person: Person,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    path, sent = requests(client)["conversations"]
    before = count(servers, "conversations", person)
    key, begun, may_end = new_key(), threading.Event(), threading.Event()
    original, calls = answering.create_conversation, list[int]()

    async def slow(*args: Any, **values: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            begun.set()
            await asyncio.to_thread(may_end.wait)
        return await original(*args, **values)

    monkeypatch.setattr(answering, "create_conversation", slow)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.post, path, headers=key, **sent)
        assert begun.wait(30)
        age(servers, person, "idempotency", 61)
        with httpx2.Client(base_url=url, timeout=300, headers=person.headers) as other:
            second = other.post(path, headers=key, **sent)
        may_end.set()
        assert first.result().status_code == 409
    assert second.status_code == 201 and "idempotency-replayed" not in second.headers
    assert count(servers, "conversations", person) == before + 1


# Streams


def test_a_repeated_question_streams_the_stored_reply(client: httpx2.Client) -> None:
    path, sent = requests(client)["messages"]
    key = new_key()
    streamed = client.post(path, headers=STREAM | key, **sent)
    name, message = read_events(streamed.text)[-1]
    assert name == "message.completed"
    again = client.post(path, headers=STREAM | key, **sent)
    assert again.headers["idempotency-replayed"] == "true"
    assert again.text == streamed.text
    behind = client.post(path, headers=STREAM | key | {"Last-Event-ID": "2"}, **sent)
    assert read_events(behind.text) == read_events(streamed.text)[2:]
    as_json = client.post(path, headers=key, **sent)
    assert as_json.json() == message, "the form of an answer is not part of the request"
    (question, reply) = client.get(path.removesuffix("/messages")).json()["messages"]
    assert reply == message and question["content"] == "Why?"


def test_a_repeated_completion_streams_the_same_words(client: httpx2.Client) -> None:
    path, sent = requests(client)["completions"]
    key, sent = new_key(), {"json": {**sent["json"], "stream": True}}
    first, second = (client.post(path, headers=key, **sent) for _ in range(2))
    assert first.text == second.text and first.text.endswith("data: [DONE]\n\n")
    assert second.headers["idempotency-replayed"] == "true"


def test_a_reply_that_failed_is_made_at_its_repetition(
    client: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, sent = requests(client)["messages"]
    key = new_key()

    async def fails(*args: Any) -> None:
        raise RuntimeError("something went wrong")

    with monkeypatch.context() as patched:
        patched.setattr(asking, "respond", fails)
        assert client.post(path, headers=key, **sent).status_code == 500
    answer = client.post(path, headers=key, **sent)
    assert answer.status_code == 200 and answer.json()["seq"] == 2
    assert client.post(path, headers=key, **sent).json() == answer.json()
    assert len(client.get(path.removesuffix("/messages")).json()["messages"]) == 2


def test_a_question_whose_process_died_is_answered_at_its_repetition(
    client: httpx2.Client, servers: Running, person: Person
) -> None:
    path, sent = requests(client)["messages"]
    key = new_key()
    lost = client.post(path, headers=key, **sent).json()["id"]
    with as_superuser(servers) as connection:
        connection.execute("DELETE FROM messages WHERE id = %s", [lost])
    with redis.Redis.from_url(servers.redis_url) as events:
        events.delete(f"support_rag:reply:{person.tenant_id}:{lost}")
    waiting = client.post(path, headers=key, **sent)
    assert (waiting.status_code, waiting.json()["code"]) == (409, "key_in_flight")
    age(servers, person, "messages", 61)
    answer = client.post(path, headers=key, **sent)
    assert answer.status_code == 200 and answer.json()["seq"] == 2
    messages = client.get(path.removesuffix("/messages")).json()["messages"]
    assert [m["seq"] for m in messages] == [1, 2] and messages[1] == answer.json()
