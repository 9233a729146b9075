"""What belongs to one tenant does not exist for another, by two walls of which each holds alone.

The cases come from the OpenAPI document: a route, or a place for an id, that is not in the tables
below fails the suite until somebody says what another tenant could put there.
"""

import asyncio
import re
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import httpx2
import psycopg
import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncSession

from support_rag.embed import HashingEmbedder
from support_rag.generate import ExtractiveGenerator
from support_rag.local.servers import Running
from support_rag.release import load_release, read_facts
from support_rag.service import app as application
from support_rag.service.lists import Cursors
from support_rag.state import (
    accounts,
    answering,
    asking,
    audit,
    custody,
    desk,
    idempotency,
    jobs,
    keys,
    lexical,
    messages,
    pgindex,
    replies,
    store,
    tables,
    traces,
    webhooks,
)
from support_rag.state.answering import Service
from support_rag.state.canary import (
    Canaries,
    compare_canary,
    last_canary,
    start_canary,
    stop_canary,
)
from support_rag.state.database import Database, create_database, database_url, plain
from support_rag.state.feedback import give_feedback
from support_rag.state.idempotency import Try
from support_rag.state.indexes import Embedders, index_status, serving_index
from support_rag.state.ingest import Ingestion, accept, ingest
from support_rag.types import Filter
from tests.people import (
    Person,
    as_superuser,
    hashing_app,
    hashing_release,
    new_person,
)
from tests.serving import serving

pytestmark = pytest.mark.usefixtures("no_work_left")
DOCUMENTS, CONVERSATIONS = "/api/v1/documents", "/api/v1/conversations"
QUEUE = "/api/v1/queue"
MARK = "quartz-7741"
ARTICLE = f"# Zebrafish\n\nThe code of the zebrafish is {MARK}."
QUESTION = "What is the code of the zebrafish?"
FORMS = ({}, {"Accept": "text/event-stream"})  # of a reply


@dataclass
class Owner:
    """A tenant that has something of everything."""

    client: httpx2.Client
    person: Person
    servers: Running
    made: list[str] = field(default_factory=list)  # ids that nobody else may see
    article: str = ARTICLE
    longest: str | None = None  # the id of a document with several chunks

    def send(self, method: str, path: str, **values: Any) -> httpx2.Response:
        headers = self.person.headers | values.pop("headers", {})
        return self.client.request(method, path, headers=headers, **values)

    def keep(self, answer: httpx2.Response) -> str:
        assert answer.status_code in (201, 202), answer.text
        self.made.append(str(answer.json()["id"]))
        return self.made[-1]

    def document(self) -> str:
        "Return the id of a new document."
        sent = {"title": "Z", "content": self.article, "source": f"{uuid.uuid4()}.md"}
        return self.keep(self.send("POST", f"{DOCUMENTS}/ingest", json=sent))

    def ready(self) -> str:
        "Return the id of a new document that is searched."
        id_ = self.document()
        work_off(self.servers, self.person.tenant_id)
        return id_

    def long(self) -> str:
        "Return the id of the one document that has several chunks."
        if self.longest is None:
            text = "\n\n".join(f"# Part {n}\n\n" + self.article * 60 for n in range(3))
            sent = {"title": "L", "content": text, "source": "long.md"}
            self.longest = self.keep(self.send("POST", f"{DOCUMENTS}/ingest", json=sent))
            work_off(self.servers, self.person.tenant_id)
        return self.longest

    def chunk_cursor(self) -> str:
        "Return a cursor that leads to the second page of the chunks of that document."
        path = f"{DOCUMENTS}/{self.long()}/chunks"
        return str(self.send("GET", path, params={"limit": 1}).json()["next_cursor"])

    def conversation(self) -> str:
        "Return the id of a new conversation."
        return self.keep(self.send("POST", CONVERSATIONS, json={"title": "Z"}))

    def reply(self) -> str:
        "Return the id of a new reply."
        path = f"{CONVERSATIONS}/{self.conversation()}/messages"
        answer = self.send("POST", path, json={"content": QUESTION})
        assert answer.status_code == 200, answer.text
        self.made.append(str(answer.json()["id"]))
        return self.made[-1]

    def webhook(self) -> str:
        "Return the id of a new endpoint."
        for one in self.send("GET", "/api/v1/webhooks").json()["items"]:
            self.send("DELETE", f"/api/v1/webhooks/{one['id']}")
        sent = {"url": "https://127.0.0.1/in", "events": ["conversation.closed"]}
        return self.keep(self.send("POST", "/api/v1/webhooks", json=sent))

    def delivery(self) -> str:
        "Return the id of a delivery that was given up."
        self.webhook()
        self.send("POST", f"{CONVERSATIONS}/{self.conversation()}/close")
        with as_superuser(self.servers) as connection:
            found = connection.execute(
                "UPDATE deliveries SET status = 'dead' WHERE tenant_id = %s AND status = 'pending'"
                " RETURNING id::text",
                [self.person.tenant_id],
            ).fetchall()
            connection.execute("DELETE FROM jobs WHERE kind = 'deliver'")
        self.made.append(found[0][0])
        return self.made[-1]

    def delivery_cursor(self) -> str:
        "Return a cursor that leads to the second page of the deliveries."
        self.delivery()
        self.send("POST", f"{CONVERSATIONS}/{self.conversation()}/close")
        path = "/api/v1/deliveries"
        return str(self.send("GET", path, params={"limit": 1}).json()["next_cursor"])

    def unmade(self) -> str:
        "Return the id of a reply that is not stored yet."
        id_ = self.reply()
        with as_superuser(self.servers) as connection:
            connection.execute("DELETE FROM messages WHERE id = %s", [id_])
        return id_

    def waiting(self) -> str:
        "Return the id of a new conversation that needs a person."
        id_ = self.conversation()
        assert self.send("POST", f"{CONVERSATIONS}/{id_}/hand-off").status_code == 200
        return id_

    def taken(self) -> str:
        "Return the id of a new conversation that the owner has."
        id_ = self.conversation()
        assert self.send("POST", f"{CONVERSATIONS}/{id_}/take").status_code == 200
        return id_

    def agent(self) -> str:
        "Return the id of a new colleague who answers customers."
        return self.user("agent")

    def user(self, role: str = "member") -> str:
        "Return the id of a new colleague."
        colleague = new_person(self.servers, tenant_id=self.person.tenant_id, role=role)
        self.made.append(colleague.user_id)
        return colleague.user_id

    def invitation(self) -> str:
        "Return the id of a new invitation."
        sent = {"email": f"{uuid.uuid4().hex}@example.com"}
        return self.keep(self.send("POST", "/api/v1/invitations", json=sent))

    def key(self) -> str:
        "Return the id of a new key."
        return self.keep(self.send("POST", "/api/v1/keys", json={"name": "K"}))

    def cursor(self, path: str, make: Callable[[], str]) -> str:
        "Return a cursor that leads to the second page of a list."
        make(), make()
        return str(self.send("GET", path, params={"limit": 1}).json()["next_cursor"])


# Operations that take an id: the place of the id → how its owner comes by a live one.
PLACES: dict[str, dict[str, Callable[[Owner], str]]] = {
    "list_documents": {"query.cursor": lambda owner: owner.cursor(DOCUMENTS, owner.document)},
    "get_document": {"path.document_id": Owner.document},
    "delete_document": {"path.document_id": Owner.document},
    "update_document": {"path.document_id": Owner.document},
    "list_document_chunks": {
        "path.document_id": Owner.long,
        "query.cursor": Owner.chunk_cursor,
    },
    "get_document_events": {"path.document_id": Owner.ready},
    "get_original": {"path.document_id": Owner.document},
    "get_text": {"path.document_id": Owner.ready},
    "reingest_document": {"path.document_id": Owner.document},
    "list_conversations": {
        "query.cursor": lambda owner: owner.cursor(CONVERSATIONS, owner.conversation),
        "query.assignee_id": Owner.agent,
    },
    "get_conversation": {"path.conversation_id": Owner.conversation},
    "close_conversation": {"path.conversation_id": Owner.conversation},
    "update_conversation": {"path.conversation_id": Owner.conversation},
    "delete_conversation": {"path.conversation_id": Owner.conversation},
    "create_message": {"path.conversation_id": Owner.conversation},
    "get_trace": {"path.message_id": Owner.reply},
    "create_feedback": {"path.message_id": Owner.reply},
    "request_person": {"path.conversation_id": Owner.conversation},
    "list_queued": {
        "query.cursor": lambda owner: owner.cursor(QUEUE, owner.waiting),
        "query.assignee_id": Owner.agent,
    },
    "take_conversation": {"path.conversation_id": Owner.waiting},
    "assign_conversation": {
        "path.conversation_id": Owner.waiting,
        "body.user_id": Owner.agent,
    },
    "return_conversation": {"path.conversation_id": Owner.taken},
    "resolve_conversation": {"path.conversation_id": Owner.taken},
    "create_reply": {
        "path.conversation_id": Owner.taken,
        "body.sources[].document_id": Owner.ready,
    },
    "create_note": {"path.conversation_id": Owner.conversation},
    "list_notes": {"path.conversation_id": Owner.conversation},
    "create_rating": {"path.conversation_id": Owner.conversation},
    "list_done": {"path.conversation_id": Owner.conversation},
    "delete_webhook": {"path.webhook_id": Owner.webhook},
    "list_deliveries": {"query.cursor": Owner.delivery_cursor},
    "resend_delivery": {"path.delivery_id": Owner.delivery},
    "get_events": {"path.message_id": Owner.reply},
    "cancel_reply": {"path.message_id": Owner.unmade},
    "regenerate_reply": {"path.message_id": Owner.reply},
    "list_users": {"query.cursor": lambda owner: owner.cursor("/api/v1/users", owner.user)},
    "get_user": {"path.user_id": Owner.user},
    "update_user": {"path.user_id": Owner.user},
    "list_invitations": {
        "query.cursor": lambda owner: owner.cursor("/api/v1/invitations", owner.invitation)
    },
    "revoke_invitation": {"path.invitation_id": Owner.invitation},
    "list_keys": {"query.cursor": lambda owner: owner.cursor("/api/v1/keys", owner.key)},
    "get_key": {"path.key_id": Owner.key},
    "revoke_key": {"path.key_id": Owner.key},
}
CHANGES = {
    "delete_document", "update_document", "reingest_document", "close_conversation",
    "update_conversation", "delete_conversation", "create_feedback",
    "create_message", "cancel_reply", "regenerate_reply", "delete_webhook", "resend_delivery",
    "update_user", "revoke_invitation",
    "revoke_key", "request_person", "take_conversation", "assign_conversation",
    "return_conversation", "resolve_conversation", "create_reply", "create_note", "create_rating",
}  # fmt: skip
# Whoever has one of these is who it was given to: there is no other tenant to be kept out.
# A release is the operator's and shows nothing of any tenant.
BEARERS = {"body.token", "body.refresh_token", "query.release_id"}
# Operations that take a body: one that can be sent as it is.
BODIES: dict[str, dict[str, Any]] = {
    "register_tenant": {"tenant_name": "N", "email": "no address", "password": "correct horse"},
    "sign_in_user": {"email": "nobody@example.com", "password": "correct horse"},
    "refresh_session": {"refresh_token": "srr_none"},
    "change_password": {"current_password": "not this one", "new_password": "correct horse"},
    "request_password_reset": {"email": "nobody@example.com"},
    "confirm_password_reset": {"token": "srt_none", "new_password": "correct horse"},
    "accept_invitation": {"token": "sri_none", "password": "correct horse"},
    "update_me": {"name": "N"},
    "update_user": {"name": "N"},
    "update_tenant": {"name": "N"},
    "create_invitation": {"email": "somebody@example.com"},
    "create_key": {"name": "K"},
    "create_webhook": {"url": "https://127.0.0.1/mine", "events": ["document.failed"]},
    "ingest_document": {"title": "Mine", "content": "# Mine", "source": "mine.md"},
    "create_conversation": {"title": "Mine"},
    "create_message": {"content": QUESTION},
    "create_feedback": {"verdict": "down", "reason": "wrong"},
    "assign_conversation": {},
    "create_reply": {"content": "Mine"},
    "create_note": {"content": "Mine"},
    "create_rating": {"score": 4, "comment": "Mine"},
    "create_completion": {
        "model": "support-rag",
        "messages": [{"role": "user", "content": QUESTION}],
    },
    "search_chunks": {"query": QUESTION},
    "update_document": {"title": "Mine"},
    "update_conversation": {"title": "Mine"},
}
WITHOUT = {  # take neither
    "get_health", "get_metrics", "list_problems", "get_problem", "get_me", "get_tenant",
    "sign_out_user", "list_models", "get_model", "get_release", "ingest_documents",
    "get_canary", "list_webhooks", "get_usage",
}  # fmt: skip


@dataclass(frozen=True)
class Operation:
    """One operation of the OpenAPI document."""

    id: str
    method: str
    path: str
    described: dict[str, Any]
    schemas: dict[str, Any]

    def fields(self, schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
        "Yield every field of a schema, however deep, with its place."
        if "$ref" in schema:
            yield from self.fields(self.schemas[schema["$ref"].rpartition("/")[2]], path)
        for name, inner in schema.get("properties", {}).items():
            yield f"{path}.{name}", inner
            yield from self.fields(inner, f"{path}.{name}")
        for key in ("anyOf", "allOf", "oneOf"):
            for inner in schema.get(key, ()):
                yield from self.fields(inner, path)
        if "items" in schema:
            yield f"{path}[]", schema["items"]
            yield from self.fields(schema["items"], f"{path}[]")

    def places(self) -> set[str]:
        "Return the places for ids: uuids, cursors, and whatever is called an id."
        every = [(f"{p['in']}.{p['name']}", p["schema"]) for p in self.described["parameters"]]
        for content in self.described.get("requestBody", {}).get("content", {}).values():
            every += self.fields(content["schema"], "body")
        named = re.compile(r"(\bid|_ids?|cursor|after|before_id|key|token)(\[\])?$")
        uuids = re.compile(r'"format": ?"uuid"|\'format\': \'uuid\'')
        found = {place for place, s in every if named.search(place) or uuids.search(str(s))}
        return found - BEARERS


def operations(app: FastAPI) -> list[Operation]:
    "Return every operation that the application describes."
    document = app.openapi()
    return [
        Operation(
            described["operationId"],
            method.upper(),
            path,
            {"parameters": [], **described},
            document["components"]["schemas"],
        )
        for path, methods in document["paths"].items()
        for method, described in methods.items()
    ]


def ask(who: Owner, operation: Operation, ids: dict[str, str], **headers: str) -> httpx2.Response:
    "Send an operation with these ids in their places."
    path = operation.path
    for place, value in ids.items():
        path = path.replace(f"{{{place.removeprefix('path.')}}}", value)
    params = {p.removeprefix("query."): v for p, v in ids.items() if p.startswith("query.")}
    body = BODIES.get(operation.id)
    for place, value in ids.items():
        if place.startswith("body."):
            body = (body or {}) | BODY_PLACES[place](value)
    return who.send(operation.method, path, params=params, json=body, headers=headers)


BODY_PLACES: dict[str, Callable[[str], dict[str, Any]]] = {  # an id → the field of a body
    "body.user_id": lambda id_: {"user_id": id_},
    "body.sources[].document_id": lambda id_: {
        "sources": [{"document_id": id_, "start": 0, "end": 4}]
    },
}


def never_existed(place: str) -> str:
    "Return an id, or a cursor, that nobody was ever given."
    if place.endswith("cursor"):
        position = (datetime.now(UTC), str(uuid.uuid4()))
        return Cursors("of another service").seal(position, scope="none")
    return str(uuid.uuid4())


def told(answer: httpx2.Response) -> tuple[int, str | None, Any]:
    "Return what an answer tells: all of it but what is different for any two requests."
    kind = answer.headers.get("content-type")
    body: Any = answer.text
    if kind == "application/problem+json":
        body = {name: value for name, value in answer.json().items() if name != "request_id"}
    return answer.status_code, kind, body


def everything(servers: Running, person: Person) -> list[tuple[str, ...]]:
    "Return every row that belongs to a tenant."
    found: list[tuple[str, ...]] = []
    with as_superuser(servers) as connection:
        for name, table in tables.metadata.tables.items():
            if "tenant_id" in table.c:
                query = f"SELECT '{name}', t::text FROM {name} t WHERE tenant_id = %s"
                found += connection.execute(query, [person.tenant_id]).fetchall()
    return sorted(found)


def work_off(servers: Running, tenant_id: str) -> None:
    "Process every document that waits."

    async def work() -> None:
        database = create_database(servers.app_url)
        context = Ingestion(database, hashing_release(), Embedders(lambda p: HashingEmbedder()))
        async with database.system() as session:
            query = sa.select(tables.jobs.c.id).where(tables.jobs.c.tenant_id == tenant_id)
            waiting = list(await session.scalars(query))
        for job_id in waiting:
            if (lease := await jobs.claim(database, job_id, "test")) is not None:
                await ingest(context, lease)
        await database.close()

    asyncio.run(work())


@contextmanager
def two_tenants(servers: Running, app: FastAPI) -> Iterator[tuple[Owner, Owner]]:
    "Serve an application to two tenants of which the first has a document that is searched."
    with serving(app) as url, httpx2.Client(base_url=url, timeout=300) as client:
        mine, theirs = (Owner(client, new_person(servers), servers) for _ in range(2))
        theirs.article = "# Other\n\nNothing of interest."
        mine.document()
        sent = {"title": "Other", "content": "# Other\n\nNothing of interest.", "source": "o.md"}
        theirs.keep(theirs.send("POST", f"{DOCUMENTS}/ingest", json=sent))
        for owner in (mine, theirs):
            work_off(servers, owner.person.tenant_id)
        yield mine, theirs


def beside(who: Owner, operation: Operation, place: str) -> dict[str, str]:
    "Return what an owner's own id has to be in the other place, where an operation has two."
    match operation.id, place:
        case "list_document_chunks", "query.cursor":
            return {"path.document_id": who.long()}
        case "assign_conversation", "path.conversation_id":
            return {"body.user_id": who.agent()}
        case "assign_conversation", "body.user_id":
            return {"path.conversation_id": who.waiting()}
        case "create_reply", "body.sources[].document_id":
            return {"path.conversation_id": who.taken()}
    return {}


def check_foreign_ids(servers: Running, app: FastAPI, mine: Owner, theirs: Owner) -> None:
    "Try every id of one tenant as the other, wherever an id can be put."
    for operation in operations(app):
        for place, live in PLACES.get(operation.id, {}).items():
            for headers in FORMS if operation.id == "create_message" else ({},):
                name, id_ = f"{operation.id} {place} {headers}", live(mine)
                own_ids, their_ids = (beside(who, operation, place) for who in (mine, theirs))
                before = everything(servers, mine.person)
                foreign = ask(theirs, operation, {**their_ids, place: id_}, **headers)
                unknown = ask(
                    theirs, operation, {**their_ids, place: never_existed(place)}, **headers
                )
                assert told(foreign) == told(unknown), name
                assert foreign.status_code == 404, name
                assert everything(servers, mine.person) == before, f"{name} changed something"
                own = ask(mine, operation, {**own_ids, place: id_}, **headers)
                assert own.is_success, f"{name}: {own.text}"
                if operation.id in CHANGES:
                    assert everything(servers, mine.person) != before, name


def check_nothing_shows(servers: Running, app: FastAPI, mine: Owner, theirs: Owner) -> None:
    "Call every operation as the other tenant, with ids of its own, and look for what is mine."
    with as_superuser(servers) as connection:
        query = "SELECT id::text FROM chunks WHERE tenant_id = %s"
        chunks = [id_ for (id_,) in connection.execute(query, [mine.person.tenant_id])]
    marks = [MARK, mine.person.tenant_id, mine.person.user_id, mine.person.email]
    marks += [*mine.made, *chunks]
    shown_to_me = ""
    for operation in operations(app):
        if operation.id == "sign_out_user":
            continue  # nobody would be signed in for the others
        for headers in FORMS if operation.id == "create_message" else ({},):
            answers = {}
            for who in (mine, theirs):
                ids = {place: live(who) for place, live in PLACES.get(operation.id, {}).items()}
                answers[who.person.tenant_id] = ask(who, operation, ids, **headers)
            shown = answers[theirs.person.tenant_id].text
            found = [mark for mark in marks if mark in shown]
            assert not found, f"{operation.id} shows {found}"
            shown_to_me += answers[mine.person.tenant_id].text
    assert MARK in shown_to_me, "the owner does find it"
    assert any(chunk in shown_to_me for chunk in chunks), "and its chunks"


@pytest.fixture(scope="module")
def tenants(servers: Running, app: FastAPI) -> Iterator[tuple[Owner, Owner]]:
    with two_tenants(servers, app) as both:
        yield both


def test_the_tables_here_know_every_operation_and_every_place_for_an_id(app: FastAPI) -> None:
    described = operations(app)
    assert {o.id for o in described} == set(PLACES) | set(BODIES) | WITHOUT
    assert {o.id: o.places() for o in described if o.places()} == {
        id_: set(places) for id_, places in PLACES.items()
    }


def test_a_foreign_id_is_an_id_that_never_existed(
    servers: Running, app: FastAPI, tenants: tuple[Owner, Owner]
) -> None:
    check_foreign_ids(servers, app, *tenants)


def test_no_answer_shows_anything_of_another_tenant(
    servers: Running, app: FastAPI, tenants: tuple[Owner, Owner]
) -> None:
    check_nothing_shows(servers, app, *tenants)


def test_a_cursor_is_good_for_one_tenant_and_one_list(tenants: tuple[Owner, Owner]) -> None:
    mine, theirs = tenants
    cursor = mine.cursor(DOCUMENTS, mine.document)
    tampered = [cursor[:n] + ("A" if cursor[n] != "A" else "B") + cursor[n + 1 :] for n in (0, 30)]
    unknown = told(theirs.send("GET", DOCUMENTS, params={"cursor": never_existed("cursor")}))
    for who, path, given in (
        (theirs, DOCUMENTS, cursor),
        (mine, CONVERSATIONS, cursor),
        *((mine, DOCUMENTS, bad) for bad in tampered),
        (mine, DOCUMENTS, cursor[:-4]),
        (mine, DOCUMENTS, ""),
    ):
        assert told(who.send("GET", path, params={"cursor": given})) == unknown
    assert mine.send("GET", DOCUMENTS, params={"cursor": cursor}).status_code == 200


def test_the_same_source_is_another_document_for_another_tenant(
    servers: Running, tenants: tuple[Owner, Owner]
) -> None:
    mine, theirs = tenants
    sent = {"title": "Z", "content": ARTICLE, "source": "shared-name.md"}
    first = mine.keep(mine.send("POST", f"{DOCUMENTS}/ingest", json=sent))
    before = everything(servers, mine.person)
    answer = theirs.send("POST", f"{DOCUMENTS}/ingest", json={**sent, "content": "# Taken over"})
    assert answer.json()["id"] != first and answer.json()["version"] == 1
    assert everything(servers, mine.person) == before


# One wall at a time


def without_tenant(statement: str, *, nth: int | None = None) -> str:
    "Return a statement without its conditions on the tenant, or without the nth of them."
    found = list(re.finditer(r"(\w+\.)?tenant_id = [%\w(.)]+", statement))
    for number, match in reversed(list(enumerate(found))):
        if nth is None or number == nth:
            statement = statement[: match.start()] + "true" + statement[match.end() :]
    return statement


def owned_by_anybody(table: sa.Table, tenant_id: str, **values: Any) -> sa.ColumnElement[bool]:
    "Return the condition of `store.owned` without the tenant."
    return sa.and_(sa.true(), *(table.c[name] == value for name, value in values.items()))


def remove_owned(monkeypatch: pytest.MonkeyPatch) -> None:
    "Let every module that uses `store.owned` do without the tenant."
    original = store.owned
    for module in [m for name, m in sys.modules.items() if name.startswith("support_rag.")]:
        if getattr(module, "owned", None) is original:
            monkeypatch.setattr(module, "owned", owned_by_anybody)


def statements() -> dict[tuple[str, str], str]:
    "Return (module, name) → statement, for every statement that is written as text."
    return {
        (module.__name__, name): value
        for module in (lexical, pgindex)
        for name, value in vars(module).items()
        if isinstance(value, str) and without_tenant(value) != value
    }


def test_row_level_security_holds_without_the_conditions(
    servers: Running, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove_owned(monkeypatch)
    for (module_name, name), value in statements().items():
        monkeypatch.setattr(sys.modules[module_name], name, without_tenant(value))
    assert not statements(), "not one condition is left"
    with two_tenants(servers, app) as (mine, theirs):
        check_foreign_ids(servers, app, mine, theirs)
        check_nothing_shows(servers, app, mine, theirs)


async def allow(database: Database) -> None:
    "Accept any role."


def test_the_conditions_hold_without_row_level_security(
    servers: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(application, "check_roles", allow)
    superuser = plain(database_url(servers.superuser_url), database="support_rag")
    app = hashing_app(servers, database_url=superuser)
    with two_tenants(servers, app) as (mine, theirs):
        check_foreign_ids(servers, app, mine, theirs)
        check_nothing_shows(servers, app, mine, theirs)


def test_the_cases_notice_when_both_walls_are_down(
    servers: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(application, "check_roles", allow)
    remove_owned(monkeypatch)
    superuser = plain(database_url(servers.superuser_url), database="support_rag")
    app = hashing_app(servers, database_url=superuser)
    with serving(app) as url, httpx2.Client(base_url=url, timeout=300) as client:
        mine, theirs = (Owner(client, new_person(servers), servers) for _ in range(2))
        with pytest.raises(AssertionError, match=r"path\.\w+_id"):
            check_foreign_ids(servers, app, mine, theirs)


# Every statement names its tenant

TABLES = "|".join(name for name in tables.metadata.tables if name not in tables.GLOBAL_TABLES)
READ = re.compile(rf"\b(?:FROM|JOIN|UPDATE)\s+({TABLES})\b", re.IGNORECASE)
WRITTEN = re.compile(rf"\bINSERT\s+INTO\s+({TABLES})\s*\(([^)]*)\)", re.IGNORECASE)
CONDITION = re.compile(r"\btenant_id = (%|\w+\.tenant_id)")


def crosses(statement: str) -> bool:
    "Tell whether a statement touches a table of tenants more often than it names the tenant."
    blind = [columns for _, columns in WRITTEN.findall(statement) if "tenant_id" not in columns]
    return bool(blind) or len(READ.findall(statement)) > len(CONDITION.findall(statement))


@contextmanager
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    "Collect every statement that is executed."
    executed, execute = set[str](), psycopg.AsyncCursor.execute

    async def recording(self: Any, query: Any, *args: Any, **values: Any) -> Any:
        executed.add(str(query))
        return await execute(self, query, *args, **values)

    with monkeypatch.context() as patched:
        patched.setattr(psycopg.AsyncCursor, "execute", recording)
        yield executed


async def keep_people(session: AsyncSession, tenant_id: str, user_id: str) -> None:
    "Do all that is done with people, their sessions and their keys."
    place: dict[str, Any] = {"tenant_id": tenant_id}
    who = place | {"user_id": user_id}
    opened, token = await accounts.open_session(session, **who)
    await accounts.find_standing(session, **who, session_id=opened.id)
    for _ in range(2):
        await accounts.spend_refresh_token(session, token)
    await accounts.renew_session(session, token)
    await accounts.change_user(session, **who, name="N")
    await accounts.change_tenant(session, **place, name="N")
    await accounts.list_users(session, **place, limit=1, role="owner")
    ticket, sent = await accounts.create_ticket(
        session, **place, kind="invitation", email="e@example.com", role="agent"
    )
    await accounts.get_invitation(session, **place, invitation_id=ticket.id)
    await accounts.list_invitations(session, **place, limit=1)
    await accounts.revoke_tickets(session, **place, email="nobody@example.com")
    await accounts.take_ticket(session, sent)
    key, secret = await keys.create_key(session, **who, kind="secret", name="K", scopes=["search"])
    await keys.find_key(session, secret)
    await keys.list_keys(session, **place, limit=1)
    await keys.get_key(session, **place, key_id=key.id)
    await keys.revoke_key(session, **place, key_id=key.id)


async def work_at_the_desk(session: AsyncSession, talk: dict[str, Any], user_id: str) -> None:
    "Do all that people do with a conversation."
    by, place = audit.Actor(user_id), {"tenant_id": talk["tenant_id"]}
    ids = {"conversation_ids": [talk["conversation_id"]]}
    await desk.set_desk(session, **place, hours=None)
    held = await custody.hold(session, **talk)
    held = await custody.hand_off(session, held, reason="uncertain", by=by)
    await desk.list_queue(session, **place, limit=1, assigned=False)
    held = await custody.take(session, held, user_id=user_id)
    held = await custody.hear(session, held)
    await desk.add_reply(session, held, user_id=user_id, content="Hello")
    await messages.store_question(session, **talk, content=QUESTION)
    await desk.add_note(session, **talk, user_id=user_id, content="N")
    await desk.list_notes(session, **talk)
    held = await custody.assign(session, held, to=user_id, by=by)
    held = await custody.give_back(session, held, by=by)
    held = await custody.resolve(session, held, by=by)
    await desk.rate(session, held, score=4, by=by)
    await desk.ratings_of(session, **place, **ids)
    await desk.notice_now(session, **talk)
    await custody.names_of(session, **place, user_ids=[user_id])
    await audit.list_actions(session, **place, subject_id=held.id)
    await messages.list_conversations(session, **place, limit=1, rating=[4], reopened=False)


async def repeat(database: Database, tenant_id: str) -> None:
    "Do all that is done with a key of idempotency."
    for _ in range(2):
        this = Try(tenant_id, str(uuid.uuid4()), "POST /x", "k", "digest")
        await idempotency.claim(database, this)
        async with database.tenant(tenant_id) as session:
            await idempotency.keep(session, this, status=201, target_id=this.id)
            await idempotency.forget(session, tenant_id=tenant_id, target_id=this.id)
        await idempotency.claim(database, this)
        await idempotency.release(database, this)


async def live(database: Database, tenant_id: str) -> None:
    "Do all that a tenant does: bring documents, ask, search, close, delete."
    release, embedders = hashing_release(), Embedders(lambda parameters: HashingEmbedder())
    context = Ingestion(database, release, embedders)
    place: dict[str, Any] = {"tenant_id": tenant_id}
    accepted = None
    for text in (ARTICLE, ARTICLE + " Again."):
        sent = {"content": text.encode(), "content_type": "text/markdown", "source": "z.md"}
        accepted = await accept(database, None, **place, **sent)
        async with database.system() as session:
            job_id = await session.scalar(
                sa.select(tables.jobs.c.id).where(tables.jobs.c.tenant_id == tenant_id)
            )
        lease = await jobs.claim(database, str(job_id), "test")
        assert lease is not None
        await ingest(context, lease)
    assert accepted is not None
    service = Service(database, release, embedders, ExtractiveGenerator())
    other = load_release(release.parameters.with_(retrieve={"k": 2}))
    await start_canary(database, other, release, **place, share=0.5, why="to look")
    service.choose = Canaries(database, read_facts(), lambda _: ExtractiveGenerator()).choose
    hits, _ = await answering.search(service, **place, query=QUESTION, chosen=Filter())
    async with database.tenant(tenant_id) as session:
        told = await webhooks.create_webhook(
            session, **place, url="https://127.0.0.1", events=webhooks.EVENTS
        )
        await webhooks.announce(session, "document.ready", **place, data={})
        [one] = await webhooks.list_deliveries(session, **place, limit=9, status="pending")
        again = sa.update(tables.deliveries).where(store.owned(tables.deliveries, tenant_id))
        await session.execute(again.values(status="dead"))
        await webhooks.resend(session, **place, delivery_id=one.id)
        await webhooks.delete_webhook(session, **place, webhook_id=told.id)
        user = await store.create_user(
            session, **place, email=f"{tenant_id}@example.com", password_hash="x", role="owner"
        )
        await keep_people(session, tenant_id, user.id)
        conversation = await messages.create_conversation(session, **place, user_id=user.id)
    talk = place | {"conversation_id": conversation.id}
    await repeat(database, tenant_id)
    async for _ in asking.reply(service, **talk, content=QUESTION):
        pass
    await service.close()
    index = await serving_index(database, tenant_id)
    assert hits and index is not None
    await index_status(database, tenant_id, release)
    async with database.tenant(tenant_id) as session:
        await lexical.merge_segments(session, **place, index_id=index.id, everything=True)
        await messages.get_conversation(session, **talk)
        listed = await messages.list_messages(session, **talk)
        await messages.restore_question(session, **place, message_id=listed[0].id)
        question, _ = await replies.find_reply(session, **place, message_id=listed[-1].id)
        await replies.name_anew(session, question)
        asked, _ = await replies.find_reply(session, **place, message_id=listed[0].id)
        await replies.store_cancelled(session, asked)
        await traces.get_trace(session, **place, message_id=listed[-1].id)
        await give_feedback(session, **place, message_id=listed[-1].id, verdict="up")
        await compare_canary(session, await last_canary(session, **place))
        await stop_canary(session, **place)
        await work_at_the_desk(session, talk, user.id)
        await messages.close_conversation(session, **talk)
        await store.list_documents(session, **place, limit=10, tags=["a"])
        await store.lock_document(session, **place, document_id=accepted.document.id)
        await store.change_document(session, **place, document_id=accepted.document.id, title="T")
        await store.renew_document(session, **place, document_id=accepted.document.id)
        await pgindex.list_chunks(session, **place, document_id=accepted.document.id)
        await messages.list_conversations(session, **place, limit=10, after=None)
        await store.delete_document(session, **place, document_id=accepted.document.id)


async def test_every_statement_names_the_tenant_of_every_table(
    database: Database, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with recorded(monkeypatch) as executed:
        await live(database, tenant)
    assert len(executed) > 40
    assert not [statement for statement in executed if crosses(statement)]
    for (_, name), statement in statements().items():
        for nth in range(len(CONDITION.findall(statement))):
            assert crosses(without_tenant(statement, nth=nth)), f"{name}: nobody would notice"


async def test_a_missing_condition_is_noticed(
    database: Database, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove_owned(monkeypatch)
    with recorded(monkeypatch) as executed:
        await live(database, tenant)
    blind = [statement for statement in executed if crosses(statement)]
    tables = {table for statement in blind for table in READ.findall(statement)}
    assert {"documents", "indexes", "chunks", "conversations", "messages"} <= tables
    assert {"users", "sessions", "refresh_tokens", "tickets", "api_keys"} <= tables
    assert "idempotency" in tables
