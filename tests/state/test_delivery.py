"""Webhooks are sent to a receiver that fails, hangs, redirects, and comes back."""

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import sqlalchemy as sa

from support_rag.state import delivery, jobs, tables, webhooks
from support_rag.state.database import Database
from support_rag.state.delivery import WAITS, Refused, deliver, send
from support_rag.state.ingest import Ingestion, accept, ingest
from support_rag.state.store import owned
from support_rag.state.webhooks import DeliveryRecord, WebhookRecord
from tests.people import hashing_models
from tests.state.test_ingest import ARTICLE, lease_of

HERE = frozenset({"127.0.0.1"})


@dataclass
class Receiver:
    """An endpoint that answers as it is told."""

    status: int = 204
    hang: threading.Event = field(default_factory=threading.Event)
    seen: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    url: str = ""


@contextmanager
def receiving() -> Iterator[Receiver]:
    told = Receiver()
    told.hang.set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            told.seen.append(({k.lower(): v for k, v in self.headers.items()}, body))
            told.hang.wait(30)
            self.send_response(told.status)
            if 300 <= told.status < 400:
                self.send_header("location", f"{told.url}/elsewhere")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    told.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield told
    told.hang.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as told:
        yield told


@pytest.fixture
async def context(database: Database, tenant: str) -> AsyncIterator[Ingestion]:
    models = hashing_models()
    yield Ingestion(database, models["release"], models["embedders"], webhook_hosts=HERE)
    async with database.system() as session:
        await session.execute(sa.delete(tables.jobs).where(tables.jobs.c.tenant_id == tenant))


async def announced(database: Database, tenant: str, url: str) -> WebhookRecord:
    "Store an endpoint and one delivery for it."
    async with database.tenant(tenant) as session:
        made = await webhooks.create_webhook(
            session, tenant_id=tenant, url=url, events=["document.ready"]
        )
        await webhooks.announce(session, "document.ready", tenant_id=tenant, data={"n": 1})
    return made


async def attempt(context: Ingestion, tenant: str) -> DeliveryRecord:
    "Perform the job of the newest delivery, due or not, and return the delivery."
    async with context.database.system() as session:
        mine = tables.jobs.c.tenant_id == tenant
        await session.execute(sa.update(tables.jobs).where(mine).values(lease_until=None))
        job_id = await session.scalar(sa.select(tables.jobs.c.id).where(mine))
    lease = await jobs.claim(context.database, str(job_id), "test")
    assert lease is not None and lease.kind == "deliver"
    await deliver(context, lease)
    async with context.database.tenant(tenant) as session:
        [told] = await webhooks.list_deliveries(session, tenant_id=tenant, limit=9)
    return told


async def waits(database: Database, tenant: str) -> float | None:
    "Return in how many seconds the job of a delivery is due; None where there is no job."
    async with database.system() as session:
        left = sa.func.extract("epoch", tables.jobs.c.lease_until - sa.func.now())
        found = await session.scalar(sa.select(left).where(tables.jobs.c.tenant_id == tenant))
    return None if found is None else float(found)


async def test_a_delivery_is_signed_and_sent_once(
    context: Ingestion, tenant: str, receiver: Receiver
) -> None:
    made = await announced(context.database, tenant, f"{receiver.url}/in?a=b")
    told = await attempt(context, tenant)
    assert (told.status, told.attempts, told.answer, told.error) == ("delivered", 1, 204, "")
    [(headers, body)] = receiver.seen
    assert json.loads(body)["type"] == "document.ready" and json.loads(body)["data"] == {"n": 1}
    assert headers["webhook-id"] == told.id
    assert abs(int(headers["webhook-timestamp"]) - time.time()) < 60
    key = base64.b64decode(made.secret.removeprefix("whsec_"))
    signed = f"{told.id}.{headers['webhook-timestamp']}.".encode() + body
    mac = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{mac}"
    assert await waits(context.database, tenant) is None


async def test_a_receiver_that_fails_is_tried_later_and_later_and_given_up(
    context: Ingestion, tenant: str, receiver: Receiver
) -> None:
    receiver.status = 500
    await announced(context.database, tenant, receiver.url)
    for n, wait in enumerate(WAITS, start=1):
        told = await attempt(context, tenant)
        assert (told.status, told.attempts, told.answer) == ("pending", n, 500)
        due = await waits(context.database, tenant)
        assert due is not None and wait - 60 < due <= wait
    told = await attempt(context, tenant)
    assert (told.status, told.error) == ("dead", "answered 500")
    assert await waits(context.database, tenant) is None
    receiver.status = 200
    async with context.database.tenant(tenant) as session:
        await webhooks.resend(session, tenant_id=tenant, delivery_id=told.id)
    back = await attempt(context, tenant)
    assert (back.status, back.attempts, back.id) == ("delivered", 1, told.id)
    assert {headers["webhook-id"] for headers, _ in receiver.seen} == {told.id}


async def test_a_receiver_that_hangs_redirects_or_is_away_is_a_failure(
    context: Ingestion, tenant: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "SEND_SECONDS", 0.3)
    await announced(context.database, tenant, receiver.url)
    receiver.hang.clear()
    assert "no answer" in (await attempt(context, tenant)).error
    receiver.hang.set()
    receiver.status = 307
    assert (await attempt(context, tenant)).error == "answered 307"
    assert len(receiver.seen) == 2, "the redirect was not followed"
    with receiving() as gone:
        await_url = gone.url
    async with context.database.tenant(tenant) as session:
        this = owned(tables.webhooks, tenant)
        await session.execute(sa.update(tables.webhooks).where(this).values(url=await_url))
    assert "connection failed" in (await attempt(context, tenant)).error
    async with context.database.tenant(tenant) as session:
        await session.execute(sa.update(tables.webhooks).where(this).values(url=receiver.url))
    receiver.status = 200
    assert (await attempt(context, tenant)).status == "delivered"


async def test_nothing_is_sent_where_the_operator_does_not_allow_it(
    context: Ingestion, tenant: str, receiver: Receiver
) -> None:
    await announced(context.database, tenant, receiver.url)
    context.webhook_hosts = frozenset({"hooks.example.com"})
    assert (await attempt(context, tenant)).error == "the host is not allowed any more"
    with pytest.raises(Refused, match="private network"):
        await send("https://localhost:1/", "whsec_AAAA", id="i", body=b"", hosts={"localhost"})
    assert receiver.seen == []


async def test_what_is_deleted_is_told_nothing(
    context: Ingestion, tenant: str, receiver: Receiver
) -> None:
    made = await announced(context.database, tenant, receiver.url)
    async with context.database.tenant(tenant) as session:
        await webhooks.delete_webhook(session, tenant_id=tenant, webhook_id=made.id)
    lease = await lease_of(context.database, tenant)
    assert await deliver(context, lease)
    assert receiver.seen == [] and await waits(context.database, tenant) is None


async def test_a_document_tells_that_it_is_ready_or_failed(context: Ingestion, tenant: str) -> None:
    database, place = context.database, {"tenant_id": tenant}
    async with database.tenant(tenant) as session:
        await webhooks.create_webhook(
            session, **place, url="http://127.0.0.1", events=webhooks.EVENTS
        )
    for name, content in (("a.md", ARTICLE), ("b.pdf", b"no pdf")):
        kind = "text/markdown" if name == "a.md" else "application/pdf"
        await accept(database, None, **place, content=content, content_type=kind, source=name)
        async with database.system() as session:
            mine = sa.and_(tables.jobs.c.tenant_id == tenant, tables.jobs.c.kind == "ingest")
            job_id = await session.scalar(sa.select(tables.jobs.c.id).where(mine))
        lease = await jobs.claim(database, str(job_id), "test")
        assert lease is not None
        await ingest(context, lease)
    async with database.tenant(tenant) as session:
        told = await webhooks.list_deliveries(session, **place, limit=9)
    assert [(one.kind, one.data["source"]) for one in told] == [
        ("document.failed", "b.pdf"), ("document.ready", "a.md"),
    ]  # fmt: skip
