"""Real worker processes, killed and starved: every accepted document is ready, once.

Leases last three seconds here instead of thirty, so that a killed worker's work is due again soon:
`run_worker(settings, lease_seconds=…)`. Large documents are embedded through an endpoint on a
socket, which takes as long as a test needs and remembers every text that it was asked for.
"""

import asyncio
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import rq
import sqlalchemy as sa

from support_rag.embed import HashingEmbedder, load_embedder
from support_rag.local.processes import Child, spawn, stop, wait_ready
from support_rag.local.servers import (
    Place,
    Running,
    addresses,
    local_servers,
    postgres_process,
    valkey_process,
)
from support_rag.local.wheels import free_port
from support_rag.release import load_release
from support_rag.state import jobs, store, tables
from support_rag.state.batches import BATCH
from support_rag.state.database import Database, create_database, migrate
from support_rag.state.indexes import Embedders, open_index
from support_rag.state.ingest import Ingestion, accept
from support_rag.state.jobs import Queue
from support_rag.state.store import DocumentRecord
from support_rag.state.worker import perform
from tests.openai_stub import OpenAIStub, Reply

LEASE_SECONDS = 3.0
PATIENCE_SECONDS = 240.0  # within which killed work is taken up again; never waited for in full
KILLS = int(os.environ.get("SUPPORT_RAG_KILLS", "10"))  # 50 take four minutes
RUN = (
    "from support_rag.state.settings import load_settings; "
    "from support_rag.state.worker import run_worker; "
    f"run_worker(load_settings(), lease_seconds={LEASE_SECONDS})"
)


class Worker:
    "A worker process."

    def __init__(self, servers: Running, home: Path, model_url: str) -> None:
        self.log = home / "worker.log"
        environ = {
            "SUPPORT_RAG_DATABASE_URL": servers.app_url,
            "SUPPORT_RAG_REDIS_URL": servers.redis_url,
            "SUPPORT_RAG_LLM_BASE_URL": model_url,
            "SUPPORT_RAG_HOME": str(home),
            "PATH": "/usr/bin:/bin",
        }
        with self.log.open("ab") as output:
            self.process = spawn(
                (sys.executable, "-c", RUN), output=output.fileno(), environ=environ
            )

    def send(self, number: int) -> int:
        "Send a signal and return how the process ended."
        self.process.send_signal(number)
        return self.process.wait(timeout=PATIENCE_SECONDS)


Start = Callable[[], Worker]


@pytest.fixture(scope="module")
def own() -> Iterator[Running]:
    "Servers that no other test leaves jobs in."
    with local_servers() as running:
        migrate(running.owner_url, app_user=running.app_user)
        yield running


@pytest.fixture
async def database(own: Running) -> AsyncIterator[Database]:
    database = create_database(own.app_url)
    yield database
    await database.close()


@pytest.fixture
async def queue(own: Running) -> AsyncIterator[Queue]:
    queue = Queue(own.redis_url)
    yield queue
    await queue.close()


@pytest.fixture
def stub() -> Iterator[OpenAIStub]:
    with OpenAIStub(dim=16) as stub:
        yield stub


@pytest.fixture
def start(own: Running, stub: OpenAIStub, tmp_path: Path) -> Iterator[Start]:
    "Start workers that end with the test."
    with ExitStack() as ending:

        def start() -> Worker:
            worker = Worker(own, tmp_path, stub.base_url)
            ending.callback(worker.process.wait)
            ending.callback(worker.process.kill)
            return worker

        yield start


async def new_tenant(database: Database, stub: OpenAIStub | None = None) -> str:
    "Make a tenant; with a stub, its index is one that the stub embeds for."
    tenant_id = str(uuid.uuid4())
    async with database.tenant(tenant_id) as session:
        await store.create_tenant(session, tenant_id=tenant_id, name="T")
    if stub is not None:
        release = load_release(load_release().parameters.with_(embed={"model": "stub@16"}))
        embedders = Embedders(lambda model: load_embedder(model, base_url=stub.base_url))
        await open_index(database, release, embedders, tenant_id=tenant_id)
    return tenant_id


async def until(happened: Callable[[], Awaitable[Any]]) -> Any:
    "Wait until something is true and return it."
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (found := await happened()):
        assert time.monotonic() < deadline, "it did not happen"
        await asyncio.sleep(0.02)
    return found


def article(n_parts: int, *, words: str = "") -> bytes:
    "Return a document of about so many chunks, each of its own text."
    fact = "It is told at some length, as articles do, so that a chunk is filled. " * 7
    return "\n\n".join(f"## Part {words} {n}\n\nFact {n}. {fact}" for n in range(n_parts)).encode()


async def send(
    database: Database, queue: Queue | None, tenant: str, content: bytes
) -> DocumentRecord:
    accepted = await accept(
        database, queue, tenant_id=tenant, content=content, content_type="text/markdown"
    )
    return accepted.document


async def state(database: Database, document: DocumentRecord) -> DocumentRecord:
    async with database.tenant(document.tenant_id) as session:
        return await store.get_document(
            session, tenant_id=document.tenant_id, document_id=document.id
        )


async def ready(database: Database, document: DocumentRecord) -> DocumentRecord:
    "Wait until a document is ready, and check that it has exactly one set of chunks."

    async def ended() -> DocumentRecord | None:
        now = await state(database, document)
        return now if now.status in ("ready", "failed") else None

    now = await until(ended)
    assert now.status == "ready", now.error
    async with database.tenant(document.tenant_id) as session:
        c = tables.chunks.c
        where = store.owned(tables.chunks, document.tenant_id, document_id=document.id)
        ordinals = sorted(await session.scalars(sa.select(c.ordinal).where(where)))
        there = sa.select(sa.func.sum(tables.segments.c.n_chunks))
        dead = await session.scalar(sa.select(sa.func.count()).select_from(tables.dead)) or 0
        posted = int(await session.scalar(there) or 0) - dead
        n_chunks = await session.scalar(sa.select(sa.func.count()).select_from(tables.chunks))
        staged = await session.scalar(
            sa.select(sa.func.count())
            .select_from(tables.staged_vectors)
            .where(tables.staged_vectors.c.document_id == document.id)
        )
    assert ordinals == list(range(now.n_chunks)) and now.n_chunks > 0
    assert posted == n_chunks, "the lexical index counts each chunk once"
    assert staged == 0
    return now


async def leased_by(database: Database, document: DocumentRecord) -> str | None:
    async with database.system() as session:
        query = sa.select(tables.jobs.c.leased_by).where(tables.jobs.c.target_id == document.id)
        return await session.scalar(query)


async def count_staged(database: Database, document: DocumentRecord) -> int:
    async with database.tenant(document.tenant_id) as session:
        count = sa.select(sa.func.count()).select_from(tables.staged_vectors)
        return int(await session.scalar(count) or 0)


def texts_asked(stub: OpenAIStub) -> list[str]:
    "Return every text that the endpoint was asked to embed, in order."
    return [text for request in list(stub.requests) for text in request.body["input"]]


def slow(stub: OpenAIStub, seconds: float) -> None:
    "Let the endpoint take so long for a batch from now on."
    stub.default = Reply(delay_seconds=seconds)


async def begun(database: Database, document: DocumentRecord) -> None:
    "Wait until a batch of a document was committed."

    async def staged() -> bool:
        return await count_staged(database, document) > 0

    await until(staged)


async def test_a_document_survives_its_killed_workers(
    database: Database, queue: Queue, start: Start, stub: OpenAIStub
) -> None:
    slow(stub, 0.4)
    tenant, moments = await new_tenant(database, stub), random.Random(2)
    document = await send(database, queue, tenant, article(80 * KILLS))
    workers: dict[int, Worker] = {}
    staged, holder = 0, None
    for kill in range(KILLS):
        while len(workers) < 2:  # one at work, one that will take over
            worker = start()
            workers[worker.process.pid] = worker

        async def taken(before: str | None = holder) -> str | None:
            now = await leased_by(database, document)
            return now if now != before else None

        holder = await until(taken)
        if kill % 3:  # after a step forward: three deaths without one are the document's fault

            async def further(before: int = staged) -> bool:
                return await count_staged(database, document) > before

            await until(further)
        await asyncio.sleep(moments.uniform(0.0, 0.6))
        holder = await until(lambda: leased_by(database, document))
        workers.pop(int(holder.partition("/")[0].rpartition("-")[2])).send(signal.SIGKILL)
        assert (await state(database, document)).status in ("parsing", "chunking", "embedding")
        now = await count_staged(database, document)
        assert now >= staged, "what was committed stays"
        staged = now
    slow(stub, 0.0)
    done = await ready(database, document)
    assert done.n_chunks == len(set(texts_asked(stub))) >= 70 * KILLS and done.version == 1
    again = len(texts_asked(stub)) - done.n_chunks
    assert again <= KILLS * BATCH, "only the batches in hand were embedded twice"
    assert sum((await jobs.count_jobs(database)).values()) == 0


async def test_a_stopped_worker_gives_its_work_back(
    database: Database, queue: Queue, start: Start, stub: OpenAIStub
) -> None:
    slow(stub, 0.5)
    document = await send(database, queue, await new_tenant(database, stub), article(200))
    worker = start()
    await begun(database, document)
    assert worker.send(signal.SIGTERM) == 0
    async with database.system() as session:
        query = sa.select(tables.jobs).where(tables.jobs.c.target_id == document.id)
        row = (await session.execute(query)).one()
    assert (row.leased_by, row.lease_until, row.attempts) == (None, None, 0)
    slow(stub, 0.0)
    start()
    done = await ready(database, document)
    assert len(texts_asked(stub)) == done.n_chunks, "nothing was embedded twice"


async def test_a_turn_that_hangs_stops_neither_others_nor_the_worker(
    database: Database, queue: Queue, start: Start, stub: OpenAIStub
) -> None:
    stub.default = Reply(hang=True)
    document = await send(database, queue, await new_tenant(database, stub), article(3))
    worker = start()

    async def asked() -> bool:
        return stub.n_calls > 0

    await until(asked)
    other = await send(database, queue, await new_tenant(database), b"Another tenant's.")
    await ready(database, other)
    assert (await state(database, document)).status == "embedding", "it goes on beside"
    assert worker.send(signal.SIGTERM) == 0
    async with database.system() as session:
        query = sa.select(tables.jobs).where(tables.jobs.c.target_id == document.id)
        row = (await session.execute(query)).one()
    assert (row.leased_by, row.lease_until, row.attempts) == (None, None, 0)


async def test_a_large_document_does_not_hold_up_small_ones(
    database: Database, queue: Queue, start: Start, stub: OpenAIStub
) -> None:
    slow(stub, 1.0)
    busy, other = await new_tenant(database, stub), await new_tenant(database)
    large = [await send(database, queue, busy, article(900, words=f"{n}")) for n in range(2)]
    start()
    await begun(database, large[0])
    for tenant in (other, busy):
        small = await send(database, queue, tenant, b"A small one comes in between.")
        await ready(database, small)
        assert [(await state(database, one)).ready_version for one in large] == [None, None]
    slow(stub, 0.0)
    for document in large:
        await ready(database, document)
    assert len(texts_asked(stub)) == len(set(texts_asked(stub)))


async def test_two_workers_share_the_work(database: Database, queue: Queue, start: Start) -> None:
    start(), start()
    tenants = [await new_tenant(database) for _ in range(3)]
    documents = [
        await send(database, queue, tenant, article(2, words=f"{n}"))
        for n in range(4)
        for tenant in tenants
    ]
    for document in documents:
        await ready(database, document)
    for tenant in tenants:
        async with database.tenant(tenant) as session:
            indexes = await store.list_indexes(session, tenant_id=tenant)
        assert [index.status for index in indexes] == ["active"]


async def test_forged_jobs_are_refused_and_work_goes_on(
    database: Database, queue: Queue, start: Start, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    touch = f"touch {mark}"
    by_name = queue.bells.enqueue("os.system", touch)
    as_callback = queue.bells.enqueue(
        jobs.BELL, str(uuid.uuid4()), on_success=rq.Callback("os.system"),
        on_failure=rq.Callback("os.system"),
    )  # fmt: skip
    garbage = queue.bells.enqueue(jobs.BELL, "x")
    queue.redis.hset(garbage.key, "data", b"\x80\x04 no JSON")
    large = queue.bells.enqueue(jobs.BELL, "".join(str(uuid.uuid4()) for _ in range(500)))
    pickled = rq.Queue(jobs.QUEUE, connection=queue.redis).enqueue("os.system", touch)
    stranger = await new_tenant(database)
    worker = start()
    await ready(database, await send(database, queue, stranger, b"An honest document."))

    async def heard() -> bool:
        return await queue.waiting() == 0

    await until(heard)
    assert not mark.exists()
    assert worker.process.poll() is None, "the worker lives"
    assert by_name.get_status() == garbage.get_status() == pickled.get_status() == "failed"
    assert as_callback.exists(as_callback.id, queue.redis) is False, "a bell, without its callbacks"
    assert large.get_status() == "queued", "never run"
    assert worker.send(signal.SIGINT) == 0, "an idle worker stops"
    assert "os.system" in worker.log.read_text() and touch not in worker.log.read_text()


@pytest.fixture
def home() -> Iterator[Path]:
    "A folder that the account of the servers can pass through."
    with tempfile.TemporaryDirectory(prefix="rag-") as folder:
        Path(folder).chmod(0o711)
        yield Path(folder)


async def test_servers_can_be_late_flushed_killed_and_restarted(
    home: Path, tmp_path: Path, stub: OpenAIStub
) -> None:
    at, place = addresses(home, postgres_port=free_port(), redis_port=free_port()), Place.of(home)
    with ExitStack() as ending:
        worker = Worker(at, tmp_path, stub.base_url)  # before either server is there
        ending.callback(worker.process.wait)
        ending.callback(worker.process.kill)
        valkey = Child(valkey_process(place, at), home=home)
        ending.callback(lambda: stop(valkey))
        postgres = Child(postgres_process(place, at, durable=False), home=home)
        ending.callback(lambda: stop(postgres))
        for child in (valkey, postgres):
            wait_ready(child)
        migrate(at.owner_url, app_user=at.app_user)
        database, queue = create_database(at.app_url), Queue(at.redis_url)
        tenant = await new_tenant(database, stub)
        await ready(database, await send(database, queue, tenant, b"Both came up later."))

        valkey.popen.kill()
        valkey.popen.wait()
        unheard = await send(database, queue, tenant, b"Accepted while Redis is down.")
        assert (await state(database, unheard)).status == "pending"
        valkey = Child(valkey.process, home=home)
        wait_ready(valkey)
        await ready(database, unheard)

        slow(stub, 0.5)
        large = await send(database, queue, tenant, article(200))
        waiting = [await send(database, queue, tenant, b"Waits, number %d." % n) for n in range(3)]
        await begun(database, large)
        queue.redis.flushall()
        stop(postgres)
        postgres = Child(postgres.process, home=home)
        wait_ready(postgres)
        slow(stub, 0.0)
        for document in (large, *waiting):
            await ready(database, document)
        assert worker.process.poll() is None, "the same process, all the time"
        await queue.close()
        await database.close()


async def test_a_document_that_kills_its_workers_ends_failed(database: Database) -> None:
    tenant = await new_tenant(database)
    document = await send(database, None, tenant, article(3))
    release = load_release(load_release().parameters.with_(embed={"model": "hashing-256"}))
    context = Ingestion(database, release, Embedders(lambda _: HashingEmbedder()))
    async with database.system() as session:
        query = sa.select(tables.jobs.c.id).where(tables.jobs.c.target_id == document.id)
        job_id = (await session.execute(query)).scalar_one()
    for _ in range(jobs.MAX_ATTEMPTS):  # each is killed before it gets anywhere
        killed = await jobs.claim(database, job_id, "killed", seconds=0)
        assert killed is not None
        async with database.system() as session:
            assert await jobs.begin(session, killed)
            await session.execute(sa.update(tables.jobs).values(lease_until=None))
    last = await jobs.claim(database, job_id, "last")
    assert last is not None
    await perform(context, last, lambda: False)
    failed = await state(database, document)
    assert failed.status == "failed" and failed.error and "3 workers" in failed.error
    assert await leased_by(database, document) is None
    again = await send(database, None, tenant, article(3))
    assert again.id == document.id and again.version == 2, "sent again, it is tried again"
    fresh = await jobs.claim(database, await job_of(database, document), "fresh")
    assert fresh is not None
    await perform(context, fresh, lambda: False)
    await ready(database, document)


async def job_of(database: Database, document: DocumentRecord) -> str:
    async with database.system() as session:
        query = sa.select(tables.jobs.c.id).where(tables.jobs.c.target_id == document.id)
        return str((await session.execute(query)).scalar_one())


async def test_an_error_is_tried_three_times_and_then_told(database: Database) -> None:
    tenant = await new_tenant(database)
    document = await send(database, None, tenant, article(3))

    class Broken(HashingEmbedder):
        async def embed(self, texts: Any, *, kind: Any = "passage") -> Any:
            raise RuntimeError("hunter2")

    release = load_release(load_release().parameters.with_(embed={"model": "hashing-256"}))
    context = Ingestion(database, release, Embedders(lambda _: Broken()))
    for attempt in range(jobs.MAX_ATTEMPTS):
        async with database.system() as session:
            await session.execute(sa.update(tables.jobs).values(lease_until=None))
        lease = await jobs.claim(database, await job_of(database, document), "worker")
        assert lease is not None and lease.attempts == attempt
        await perform(context, lease, lambda: False)
    failed = await state(database, document)
    assert (failed.status, failed.error_code) == ("failed", "internal_error")
    assert "hunter2" not in str(failed.error)


def test_a_worker_without_addresses_says_what_is_missing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RUN], env={"SUPPORT_RAG_HOME": str(tmp_path), "PATH": "/bin"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode != 0 and "SUPPORT_RAG_DATABASE_URL is empty" in done.stderr
