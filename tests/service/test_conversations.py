"""The routes of conversations and search, through a real socket."""

import asyncio
import json
import shutil
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import redis
from fastapi import Request
from pydantic import SecretStr
from typer.testing import CliRunner

from support_rag.cli.main import app as cli
from support_rag.embed import HashingEmbedder
from support_rag.evaluation.publishing import save_parameters
from support_rag.generate import ExtractiveGenerator
from support_rag.local.servers import Running
from support_rag.release import Release, load_release, resource
from support_rag.service.app import create_app
from support_rag.service.replies import stream
from support_rag.state.asking import shown
from support_rag.state.database import create_database
from support_rag.state.events import Exchange
from support_rag.state.indexes import Embedders
from support_rag.state.ingest import Ingestion, accept, ingest
from support_rag.state.messages import MessageRecord
from support_rag.state.settings import ServiceSettings
from support_rag.types import Conflict, Forbidden, GenerationFailed, InputInvalid
from tests.people import as_superuser, hashing_app, leaving_no_work, new_person
from tests.serving import Account, pieces_of, read_events, serving, signed_in
from tests.state.test_ingest import ARTICLE, lease_of

QUESTION = "How long does the kiosk keep punches while it is offline?"
LOW = {
    "answer_threshold": 0.1,
    "abstain_threshold": 0.03,
}  # hashed cosines are low
MESSAGE = {
    "id", "seq", "role", "content", "sources", "confidence", "decision", "reason", "release_id",
}  # fmt: skip


@pytest.fixture(scope="module")
def release() -> Release:
    parameters = load_release().parameters
    return load_release(parameters.with_(embed={"model": "hashing-256"}, gate=LOW))


@pytest.fixture(scope="module")
def embedders() -> Embedders:
    return Embedders(lambda parameters: HashingEmbedder())


@pytest.fixture(scope="module")
def url(servers: Running, release: Release, embedders: Embedders) -> Iterator[str]:
    "The address of a running service."
    settings = ServiceSettings(
        database_url=SecretStr(servers.app_url), redis_url=SecretStr(servers.redis_url)
    )
    app = create_app(
        settings, release=release, embedders=embedders, generator=ExtractiveGenerator()
    )
    with serving(app) as address:
        yield address


@pytest.fixture(scope="module")
def owner(url: str, servers: Running, release: Release, embedders: Embedders) -> Iterator[Account]:
    "A tenant with one article."
    with signed_in(url) as account:
        asyncio.run(store_article(servers.app_url, account.tenant_id, release, embedders))
        yield account


async def store_article(app_url: str, tenant: str, release: Release, embedders: Embedders) -> None:
    database = create_database(app_url)
    await accept(
        database, None, tenant_id=tenant, content=ARTICLE, content_type="text/markdown",
        source="kiosk.md", title="Kiosk",
    )  # fmt: skip
    await ingest(Ingestion(database, release, embedders), await lease_of(database, tenant))
    await database.close()


@pytest.fixture(scope="module")
def stranger(url: str) -> Iterator[Account]:
    with signed_in(url) as account:
        yield account


def problem_of(answered: Any, status: int) -> dict[str, Any]:
    "Return the problem that a response carries, without what differs between requests."
    assert answered.status_code == status, answered.text
    assert answered.headers["content-type"].startswith("application/problem+json")
    return {name: value for name, value in answered.json().items() if name != "request_id"}


def test_a_conversation_from_opening_to_closing(owner: Account) -> None:
    created = owner.client.post("/api/v1/conversations", json={"title": "Kiosk"})
    assert created.status_code == 201
    path, conversation = created.headers["location"], created.json()
    assert path == f"/api/v1/conversations/{conversation['id']}"
    assert (conversation["title"], conversation["status"]) == ("Kiosk", "open")
    reply = owner.ask(conversation["id"], QUESTION).json()
    assert set(reply) >= MESSAGE and (reply["seq"], reply["role"]) == (2, "assistant")
    assert "72 hours" in reply["content"] and reply["decision"] == "answer"
    [source] = [s for s in reply["sources"] if "72 hours" in s["text"]]
    assert set(source) >= {"document_id", "title", "source", "start", "end", "text"}
    assert ARTICLE.decode()[source["start"] : source["end"]] == source["text"]
    assert ARTICLE.decode()[source["source_start"] : source["source_end"]] == source["text"]
    shown = owner.client.get(path).json()
    assert shown["messages"][1] == reply and shown["messages"][0]["content"] == QUESTION
    assert owner.client.get(path, params={"limit": 1}).json()["messages"] == [reply]
    first = owner.client.get(path, params={"before": 2}).json()["messages"]
    assert [message["seq"] for message in first] == [1]
    closed = owner.client.post(f"{path}/close")
    assert closed.status_code == 200 and closed.json()["status"] == "closed"
    assert problem_of(owner.client.post(f"{path}/close"), 409)["code"] == "conflict"
    assert "closed" in problem_of(owner.ask(conversation["id"], QUESTION), 409)["detail"]
    assert len(owner.messages(conversation["id"])) == 2


def test_a_conversation_needs_no_body(owner: Account) -> None:
    for arguments in ({}, {"json": {}}):
        created = owner.client.post("/api/v1/conversations", **arguments)
        assert created.status_code == 201 and created.json()["title"] == ""


def test_lists_are_walked_newest_first_while_more_arrive(url: str, owner: Account) -> None:
    with signed_in(url) as account:
        opened = [account.open(str(n)) for n in range(5)]
        seen, cursor = [], None
        while True:
            query = {"limit": 2} if cursor is None else {"limit": 2, "cursor": cursor}
            page = account.client.get("/api/v1/conversations", params=query).json()
            seen += [item["id"] for item in page["items"]]
            account.open("meanwhile")
            if (cursor := page["next_cursor"]) is None:
                break
            foreign = owner.client.get("/api/v1/conversations", params={"cursor": cursor})
            assert problem_of(foreign, 404)["code"] == "not_found"
        assert seen == opened[::-1]


def test_twenty_messages_at_once_get_one_reply_each(owner: Account) -> None:
    conversation_id = owner.open()
    with ThreadPoolExecutor(20) as pool:
        asked = pool.map(lambda n: owner.ask(conversation_id, f"{QUESTION} {n}"), range(20))
        replies = [answered.json() for answered in asked]
    stored = owner.messages(conversation_id)
    assert [message["seq"] for message in stored] == list(range(1, 41))
    for n, reply in enumerate(replies):
        assert stored[reply["seq"] - 1] == reply
        assert stored[reply["seq"] - 2]["content"] == f"{QUESTION} {n}"


# --- other tenants, and requests that cannot be used


def test_another_tenants_ids_are_like_ids_that_never_existed(
    owner: Account, stranger: Account
) -> None:
    theirs, mine, random = owner.open("Private"), stranger.open(), str(uuid.uuid4())
    owner.ask(theirs, QUESTION)
    before = owner.client.get(f"/api/v1/conversations/{theirs}").json()
    for method, suffix, body in (
        ("GET", "", None),
        ("POST", "/close", None),
        ("POST", "/messages", {"content": QUESTION}),
    ):
        for wanted in ("application/json", "text/event-stream"):
            answers = [
                stranger.client.request(
                    method, f"/api/v1/conversations/{id_}{suffix}", json=body,
                    headers={"Accept": wanted},
                )
                for id_ in (theirs, random)
            ]  # fmt: skip
            assert problem_of(answers[0], 404) == problem_of(answers[1], 404)
        own = stranger.client.request(method, f"/api/v1/conversations/{mine}{suffix}", json=body)
        assert own.status_code == (200 if suffix != "/messages" else 409), "the close came first"
    assert owner.client.get(f"/api/v1/conversations/{theirs}").json() == before
    listed = stranger.client.get("/api/v1/conversations").json()["items"]
    assert [item["id"] for item in listed] == [mine]
    found = stranger.client.post("/api/v1/search", json={"query": QUESTION}).json()
    assert found["hits"] == []


def test_nobody_asks_without_signing_in(url: str, owner: Account) -> None:
    conversation_id, headers = owner.open(), {"Authorization": ""}
    for method, path in (
        ("POST", "conversations"),
        ("GET", "conversations"),
        ("GET", f"conversations/{conversation_id}"),
        ("POST", f"conversations/{conversation_id}/close"),
        ("POST", f"conversations/{conversation_id}/messages"),
        ("POST", "search"),
    ):
        refused = owner.client.request(method, f"/api/v1/{path}", headers=headers, json={})
        assert problem_of(refused, 401)["code"] == "unauthorized"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("messages", {"content": ""}),
        ("messages", {"content": " \u3000\n"}),
        ("messages", {"content": "x" * 4001}),
        ("messages", {"content": 7}),
        ("messages", {"content": QUESTION, "role": "system"}),
        ("messages", {"content": "a\x00b"}),
        ("messages", {}),
        ("conversations", {"title": "x" * 201}),
        ("conversations", {"user_id": str(uuid.uuid4())}),
        ("search", {"query": " "}),
        ("search", {"query": "x" * 100_001}),
        ("search", {"query": QUESTION, "k": 0}),
        ("search", {"query": QUESTION, "k": 101}),
        ("search", {"query": QUESTION, "k": "3"}),
        ("search", {"query": QUESTION, "index_id": str(uuid.uuid4())}),
    ],
)
def test_what_cannot_be_used_is_refused(owner: Account, path: str, body: dict[str, Any]) -> None:
    conversation_id = owner.open()
    if path == "messages":
        path = f"conversations/{conversation_id}/messages"
    refused = problem_of(owner.client.post(f"/api/v1/{path}", json=body), 422)
    assert refused["code"] == "input_invalid" and refused["errors"]
    assert owner.messages(conversation_id) == []


def test_the_longest_question_and_strange_ids(owner: Account) -> None:
    conversation_id = owner.open("t" * 200)
    assert owner.ask(conversation_id, "kiosk ".ljust(4000, "x")).status_code == 200
    assert owner.ask(conversation_id, "🦊" * 2000 + "勤務" * 1000).status_code == 200
    assert owner.client.get("/api/v1/conversations/none").status_code == 422
    for query in ("limit=0", "limit=101", "limit=x"):
        assert owner.client.get(f"/api/v1/conversations?{query}").status_code == 422
    for query in ("limit=1001", "before=0", f"before={10**30}"):
        path = f"/api/v1/conversations/{conversation_id}?{query}"
        assert owner.client.get(path).status_code == 422


# --- streams


def test_a_stream_ends_with_the_stored_reply(owner: Account) -> None:
    conversation_id = owner.open()
    events = owner.stream(conversation_id, QUESTION)
    names, told = [name for name, _ in events], dict(events)
    assert list(dict.fromkeys(names)) == [
        "message.created", "retrieval.completed", "answer.delta", "citation", "decision",
        "message.completed",
    ]  # fmt: skip
    asked, reply = owner.messages(conversation_id)
    assert told["message.completed"] == reply and told["message.created"]["question"] == asked
    assert told["message.created"]["id"] == asked["reply_id"] == reply["id"]
    assert told["retrieval.completed"]["n_documents"] == 1
    assert told["decision"]["decision"] == reply["decision"] == "answer"
    assert [data for name, data in events if name == "citation"] == reply["sources"]
    assert "".join(pieces_of(events)) == reply["content"]
    as_json = owner.ask(conversation_id, QUESTION).json()
    assert as_json["content"] == reply["content"] and as_json["seq"] == 4


def test_a_refusal_is_a_problem_also_for_who_wants_a_stream(owner: Account) -> None:
    conversation_id = owner.open()
    path = f"/api/v1/conversations/{conversation_id}"
    owner.client.post(f"{path}/close")
    refused = owner.client.post(
        f"{path}/messages", json={"content": QUESTION}, headers={"Accept": "text/event-stream"}
    )
    assert problem_of(refused, 409)["code"] == "conflict"


def stored_reply() -> MessageRecord:
    ids = [str(uuid.uuid4()) for _ in range(3)]
    evidence = (0.7, "answer", "confident", "r", "extractive", "")
    return MessageRecord(*ids, 2, "assistant", "Line\n\nline", [], *evidence, datetime.now(UTC))


def tell(exchange: Exchange, *events: str | MessageRecord | Exception) -> Exchange:
    for event in events:
        if isinstance(event, str):
            exchange.tell("answer.delta", {"text": event})
        elif isinstance(event, Exception):
            exchange.fail(event)
        else:
            exchange.tell("message.completed", shown(event))
    return exchange


async def streamed(*events: str | MessageRecord | Exception) -> str:
    request = Request({"type": "http", "state": {"request_id": "r-1"}, "headers": []})
    parts = stream(tell(Exchange(), *events).follow(), request=request)
    return b"".join([part async for part in parts]).decode()


async def test_what_ends_an_exchange_is_the_last_event() -> None:
    reply = stored_reply()
    text = await streamed("a\n\n", "event: message\ndata: {}", reply)
    names = [name for name, _ in read_events(text)]
    assert names == ["answer.delta", "answer.delta", "message.completed"], (
        "no text can forge an event"
    )
    assert read_events(text)[-1][1]["content"] == reply.content
    failed = GenerationFailed("the model gave no usable answer")
    for error, code in ((failed, "generation_failed"), (TimeoutError("secret"), "internal_error")):
        text = await streamed("a", error)
        (_, delta), (name, problem) = read_events(text)
        assert delta == {"text": "a"} and name == "error"
        assert (problem["code"], problem["request_id"]) == (code, "r-1")
        assert "secret" not in text


async def test_a_silent_stream_is_kept_alive() -> None:
    exchange = Exchange()
    request = Request({"type": "http", "state": {}, "headers": []})
    parts = stream(exchange.follow(), request=request, ping_seconds=0.01)
    for _ in range(3):
        assert (await anext(parts)).startswith(b":")
    tell(exchange, stored_reply())
    rest = b"".join([part async for part in parts]).decode()
    assert [name for name, _ in read_events(rest)] == ["message.completed"]


# --- search and documentation


def test_a_search_shows_hits_with_both_ranks(owner: Account, release: Release) -> None:
    found = owner.client.post("/api/v1/search", json={"query": QUESTION, "k": 1})
    assert found.status_code == 200 and found.json()["release_id"] == release.id
    [hit] = found.json()["hits"]
    assert set(hit) == {
        "chunk_id", "document_id", "title", "source", "text", "lead", "start", "end", "score",
        "rank", "ranks", "source_start", "source_end",
    }  # fmt: skip
    assert hit["text"] == ARTICLE.decode()[hit["start"] : hit["end"]]
    assert hit["text"] == ARTICLE.decode()[hit["source_start"] : hit["source_end"]]
    assert (hit["rank"], hit["title"], hit["source"]) == (1, "Kiosk", "kiosk.md")
    assert set(hit["ranks"]) == {"dense", "lexical"}
    assert owner.client.post("/api/v1/search", json={"query": "12", "k": None}).status_code == 200


def test_every_operation_is_documented(owner: Account) -> None:
    paths = owner.client.get("/openapi.json").json()["paths"]
    ours = {p: o for p, o in paths.items() if "/conversations" in p or p.endswith("/search")}
    assert set(ours) >= {
        "/api/v1/conversations",
        "/api/v1/conversations/{conversation_id}",
        "/api/v1/conversations/{conversation_id}/close",
        "/api/v1/conversations/{conversation_id}/messages",
        "/api/v1/search",
    }
    for operations in ours.values():
        for operation in operations.values():
            assert operation["description"] and operation["summary"]
            assert "401" in operation["responses"]
            if "requestBody" in operation:
                assert "example" in str(operation["requestBody"])
    sends = ours["/api/v1/conversations/{conversation_id}/messages"]["post"]["responses"]["200"]
    assert set(sends["content"]) == {"application/json", "text/event-stream"}


def test_admins_are_shown_how_a_reply_came_about(servers: Running) -> None:
    app = hashing_app(servers)
    with leaving_no_work(servers), serving(app) as url, signed_in(url) as account:
        conversation_id = account.open()
        message = account.ask(conversation_id, "Where is the kiosk?").json()
        path = f"/api/v1/messages/{message['id']}/trace"
        told = account.client.get(path)
        assert told.status_code == 200, told.text
        facts = told.json()["facts"]
        assert facts["query"] == "Where is the kiosk?" and facts["hits"] == []
        assert facts["decision"]["outcome"] == message["decision"]
        assert facts["tokens"] == {"read": 0, "written": 0}
        question = account.messages(conversation_id)[0]["id"]
        assert account.client.get(f"/api/v1/messages/{question}/trace").status_code == 404
        for role, status in (("admin", 200), ("agent", 403), ("member", 403)):
            person = new_person(servers, tenant_id=account.tenant_id, role=role)
            assert account.client.get(path, headers=person.headers).status_code == status, role


def everything_that_says(servers: Running, word: str) -> set[str]:
    "Return the tables, and the keys in Redis, that hold a word."
    with as_superuser(servers) as connection:
        rows = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        names = [row[0] for row in rows.fetchall()]
        query = "SELECT 1 FROM {} t WHERE t::text LIKE %s LIMIT 1"
        like = [f"%{word}%"]
        said = {n for n in names if connection.execute(query.format(n), like).fetchone()}
        spelt = [f"%{word.encode().hex()}%"]  # what stands in a column of bytes
        said |= {n for n in names if connection.execute(query.format(n), spelt).fetchone()}
    client = redis.Redis.from_url(servers.redis_url)
    for key in client.scan_iter():
        kind = client.type(key).decode()
        read = {
            "string": client.get,
            "hash": client.hgetall,
            "list": lambda k: client.lrange(k, 0, -1),
        }
        held = read[kind](key) if kind in read else b""
        if word.encode() in key + str(held).encode():
            said.add(key.decode())
    client.close()
    return said


def test_nothing_is_left_of_an_erased_conversation(owner: Account, servers: Running) -> None:
    canary = f"canary{uuid.uuid4().hex}"
    key = {"Idempotency-Key": uuid.uuid4().hex}
    body = {"title": canary, "end_user": canary, "metadata": {"note": canary}}
    made = owner.client.post("/api/v1/conversations", json=body, headers=key)
    path = made.headers["location"]
    for n in range(4):  # a summary is made of them
        asked = {"content": f"{canary} {n}: {QUESTION}"}
        answered = owner.client.post(f"{path}/messages", json=asked, headers={**key})
        key = {"Idempotency-Key": uuid.uuid4().hex}
        assert answered.status_code in (200, 422), answered.text
    reply = owner.client.get(path).json()["messages"][1]["id"]
    thumb = owner.client.post(f"/api/v1/messages/{reply}/feedback", json={"verdict": "up"})
    assert thumb.status_code == 200
    before = everything_that_says(servers, canary)
    assert {"conversations", "messages", "traces", "idempotency"} <= before
    assert owner.client.delete(path).status_code == 204
    assert everything_that_says(servers, canary) == set()
    assert problem_of(owner.client.get(path), 404)["code"] == "not_found"
    assert problem_of(owner.client.delete(path), 404)["code"] == "not_found"


def test_a_reply_under_way_finds_no_erased_conversation(owner: Account, servers: Running) -> None:
    opened = owner.client.post("/api/v1/conversations").headers["location"]
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(owner.ask, opened.rpartition("/")[2], QUESTION) for _ in range(8)]
        erased = owner.client.delete(opened)
    assert erased.status_code == 204
    assert {one.result().status_code for one in asked} <= {200, 404}
    assert problem_of(owner.client.get(opened), 404)["code"] == "not_found"


def test_a_title_is_made_of_the_first_question(owner: Account) -> None:
    path = owner.client.post("/api/v1/conversations").headers["location"]
    long = "The kiosk in our lobby is offline since this morning.\n" + QUESTION
    for content in (long, "And then?"):
        owner.client.post(f"{path}/messages", json={"content": content})
    title = owner.client.get(path).json()["title"]
    assert title.startswith("The kiosk in our lobby is offline since this morning. How long")
    assert title.endswith(" …") and len(title) <= 80
    changed = owner.client.patch(path, json={"title": "Lobby", "metadata": {"shop": 7}}).json()
    assert (changed["title"], changed["metadata"], changed["end_user"]) == (
        "Lobby",
        {"shop": 7},
        "",
    )
    assert owner.client.patch(path, json={}).json() == changed
    assert problem_of(owner.client.patch(path, json={"title": " "}), 422)["code"] == "input_invalid"


def test_customers_behind_one_key_never_see_each_other(owner: Account) -> None:
    made = {}
    for who in ("ada", "bob"):
        named = {"End-User": who}
        made[who] = owner.client.post("/api/v1/conversations", headers=named).headers["location"]
        asked = {"content": f"{QUESTION} says {who}"}
        assert owner.client.post(f"{made[who]}/messages", json=asked, headers=named).is_success
    ada = {"End-User": "ada"}
    listed = owner.client.get("/api/v1/conversations", headers=ada).json()["items"]
    assert [one["end_user"] for one in listed] == ["ada"]
    found = owner.client.get("/api/v1/conversations", params={"said": "SAYS BOB"}, headers=ada)
    assert found.json()["items"] == []
    wild = owner.client.get("/api/v1/conversations", params={"said": "%_%"}).json()["items"]
    assert wild == [], "signs of a pattern are looked for as they are"
    for method, rest in (
        ("GET", ""),
        ("PATCH", ""),
        ("DELETE", ""),
        ("POST", "/close"),
        ("POST", "/messages"),
    ):
        body = (
            {"json": {"content": QUESTION} if rest == "/messages" else {}}
            if method in ("PATCH", "POST") and rest != "/close"
            else {}
        )
        answered = owner.client.request(method, made["bob"] + rest, headers=ada, **body)
        assert problem_of(answered, 404)["code"] == "not_found", (method, rest)
    both = owner.client.post("/api/v1/conversations", json={"end_user": "bob"}, headers=ada)
    assert problem_of(both, 403)["code"] == "forbidden"
    key = {"Idempotency-Key": uuid.uuid4().hex}
    first = owner.client.post("/api/v1/conversations", headers={**ada, **key})
    assert first.json()["end_user"] == "ada"
    again = owner.client.post("/api/v1/conversations", headers={"End-User": "bob", **key})
    assert problem_of(again, 422)["code"] == "key_reused", "it would show what was said to ada"
    long = owner.client.post("/api/v1/conversations", headers={"End-User": "x" * 201})
    assert problem_of(long, 422)["code"] == "input_invalid"
    other = owner.client.get("/api/v1/conversations", params={"end_user": "bob"}, headers=ada)
    assert problem_of(other, 403)["code"] == "forbidden"


def say(account: Account, message_id: str, **said: Any) -> Any:
    "Send feedback on a reply."
    return account.client.post(f"/api/v1/messages/{message_id}/feedback", json=said)


def test_feedback_is_the_last_word_on_a_reply(owner: Account, stranger: Account) -> None:
    talk = owner.open()
    reply = owner.ask(talk, QUESTION).json()["id"]
    first = say(owner, reply, verdict="down", reason="outdated").json()
    assert (first["verdict"], first["reason"]) == ("down", "outdated")
    last = say(owner, reply, verdict="up").json()
    assert (last["verdict"], last["reason"]) == ("up", None) and last["message_id"] == reply
    assert last["created_at"] == first["created_at"] < last["updated_at"]
    problem_of(say(owner, reply, verdict="up", reason="rude"), 422)
    problem_of(say(owner, reply, verdict="down", reason="ugly"), 422)
    question = owner.messages(talk)[0]["id"]
    assert problem_of(say(owner, question, verdict="up"), 404)["code"] == "not_found"
    problem_of(say(stranger, reply, verdict="up"), 404)


@pytest.fixture
def settings(
    servers: Running, release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    "The settings file of the release that serves, and commands that find its servers."
    monkeypatch.setenv("SUPPORT_RAG_DATABASE_URL", servers.app_url)
    monkeypatch.setenv("SUPPORT_RAG_REDIS_URL", servers.redis_url)
    copied = Path(shutil.copy(resource("settings.ini"), tmp_path / "candidate.ini"))
    return save_parameters(release.parameters, copied)


def test_conversations_are_replayed_for_a_tenant_that_agreed(
    owner: Account, settings: Path, tmp_path: Path
) -> None:
    owner.ask(owner.open(), f"I am bob@example.com. {QUESTION}")
    file = tmp_path / "replay.json"
    words = [str(settings), "--against", "stored", "--save", str(file), "--tenant", owner.tenant_id]
    refused = CliRunner().invoke(cli, ["replay", *words])
    assert isinstance(refused.exception, Forbidden) and not file.exists()
    agreed = owner.client.patch("/api/v1/tenant", json={"allow_replay": True})
    assert agreed.json()["allow_replay"]
    same = CliRunner().invoke(cli, ["replay", *words])
    assert same.exit_code == 0 and "0 end in another decision" in same.output, same.output
    assert "bob@example.com" not in file.read_text() and "[email]" in file.read_text()
    strict = ["--set", "gate.answer_threshold=1", "--set", "gate.abstain_threshold=0.99"]
    other = CliRunner().invoke(cli, ["replay", *words, *strict, "--json"])
    found = json.loads(other.stdout[other.stdout.index("{") :])
    assert found["flips"] >= 1 and found["figures"][0]["after"] == 0.0
    assert QUESTION not in other.output, "figures, and nobody's words"
    wrong = CliRunner().invoke(cli, ["replay", *words, "--set", "k=4"])
    assert isinstance(wrong.exception, InputInvalid)


def test_a_canary_answers_its_share_and_says_so(owner: Account, settings: Path) -> None:

    def command(*words: str) -> Any:
        return CliRunner().invoke(cli, ["canary", *words, "--tenant", owner.tenant_id])

    strict = ("--set", "gate.answer_threshold=1", "--set", "gate.abstain_threshold=0.99")
    before = owner.open()
    known = owner.ask(before, QUESTION).json()["release_id"]
    start = ("start", str(settings), "--why", "to see", "--share", "0.5")
    begun = command(*start, *strict)
    assert begun.exit_code == 0 and "50% of new conversations" in begun.output, begun.output
    refused = command(*start, *strict, "--set", "chunk.size_tokens=40")
    assert isinstance(refused.exception, Conflict) and "has no index" in refused.exception.message

    path = "/api/v1/release/canary"
    canary = owner.client.get(path).json()
    assert owner.ask(before, QUESTION).json()["release_id"] == known, "it was open before"
    sides: dict[str, set[str]] = {known: set(), canary["release_id"]: set()}
    for _ in range(12):
        talk = owner.open()
        replies = [owner.ask(talk, QUESTION).json() for _ in range(2)]
        [answered] = {reply["release_id"] for reply in replies}
        assert {r["decision"] for r in replies} == {"answer" if answered == known else "abstain"}
        sides[answered].add(talk)
    assert all(sides.values()), "by chance once in 2,048 runs not"

    [ends, *_] = owner.client.get(path).json()["ends"]
    counted = [ends[name] for name in ("candidate", "candidate_of", "serving", "serving_of")]
    n = len(sides[known])
    assert counted == [0, 12 - n, n, n] and not ends["differs"], "too few to tell"
    shown = json.loads(command("status", "--json").output)
    assert (
        shown["release"] == canary["release_id"]
        and shown["ends"][0]["candidate"] == f"0 of {12 - n}"
    )
    assert command("stop").exit_code == 0
    assert owner.client.get(path).json()["stopped_at"]
    stopped = [
        owner.ask(talk, QUESTION).json()["release_id"] for talk in sides[canary["release_id"]]
    ]
    assert set(stopped) == {known}
