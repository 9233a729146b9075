"""Accepted documents become one set of chunks, whatever happens meanwhile."""

import asyncio
import itertools
import json
from collections.abc import Callable, Iterator

import numpy as np
import psycopg
import pytest
import sqlalchemy as sa

from support_rag.embed import Embeddings, HashingEmbedder
from support_rag.language.models import Kind
from support_rag.release import EmbedParameters, Release, load_release
from support_rag.state import jobs, store, tables
from support_rag.state.database import Database
from support_rag.state.indexes import (
    Embedders,
    Grace,
    index_status,
    list_unindexed,
    roll_back,
    serving_index,
)
from support_rag.state.ingest import (
    MAX_BYTES,
    Ingestion,
    accept,
    give_up,
    ingest,
    reindex,
    request_reindex,
    retire,
)
from support_rag.state.labels import add_label
from support_rag.state.observe import REGISTRY
from support_rag.state.sandbox import Limits
from support_rag.types import (
    EmbeddingFailed,
    NotFound,
    SettingsInvalid,
    TooLarge,
    UnsupportedType,
)

DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
ARTICLE = (
    b"# Kiosk\n\nThe kiosk keeps punches for 72 hours while it is offline.\n\n## Reset\n\nHold it."
)


class CountingEmbedder(HashingEmbedder):
    """The hashing embedder, which counts texts and can fail at a given batch."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.fail_at_batch: int | None = None
        self.batches = 0

    async def embed(self, texts: list[str], *, kind: Kind = "passage") -> Embeddings:
        self.batches += 1
        if self.batches == self.fail_at_batch:
            raise EmbeddingFailed("the embedding service is away: try again later")
        self.texts += texts
        return await super().embed(texts, kind=kind)


@pytest.fixture
def embedder() -> CountingEmbedder:
    return CountingEmbedder()


@pytest.fixture
def release() -> Release:
    parameters = load_release().parameters
    return load_release(parameters.with_(embed={"model": "hashing-256"}))


@pytest.fixture
def context(database: Database, release: Release, embedder: CountingEmbedder) -> Ingestion:
    return Ingestion(database, release, Embedders(lambda parameters: embedder), grace=Grace(0, 0))


async def lease_of(database: Database, tenant: str) -> jobs.Lease:
    async with database.system() as session:
        query = sa.select(tables.jobs.c.id).where(tables.jobs.c.tenant_id == tenant)
        job_id = (await session.execute(query)).scalar_one()
    lease = await jobs.claim(database, job_id, "test-worker")
    assert lease is not None
    return lease


async def send(database: Database, tenant: str, content: bytes = ARTICLE, **values: str) -> str:
    arguments = {"content_type": "text/markdown", "source": "kiosk.md", **values}
    accepted = await accept(database, None, tenant_id=tenant, content=content, **arguments)
    return accepted.document.id


async def state(database: Database, tenant: str, document_id: str) -> store.DocumentRecord:
    async with database.tenant(tenant) as session:
        return await store.get_document(session, tenant_id=tenant, document_id=document_id)


async def texts_of(database: Database, tenant: str, index_id: str | None = None) -> list[str]:
    async with database.tenant(tenant) as session:
        c = tables.chunks.c
        query = sa.select(c.text).where(c.tenant_id == tenant).order_by(c.index_id, c.ordinal)
        if index_id is not None:
            query = query.where(c.index_id == index_id)
        return list(await session.scalars(query))


async def count_jobs(database: Database, tenant: str) -> int:
    async with database.system() as session:
        query = sa.select(sa.func.count()).where(tables.jobs.c.tenant_id == tenant)
        return int(await session.scalar(query) or 0)


async def process(context: Ingestion, tenant: str) -> None:
    await ingest(context, await lease_of(context.database, tenant))


async def test_a_document_becomes_ready_with_exact_spans(context: Ingestion, tenant: str) -> None:
    document_id = await send(context.database, tenant)
    assert (await state(context.database, tenant, document_id)).status == "pending"
    await process(context, tenant)
    ready = await state(context.database, tenant, document_id)
    assert (ready.status, ready.ready_version, ready.error) == ("ready", 1, None)
    async with context.database.tenant(tenant) as session:
        c = tables.chunks.c
        rows = (await session.execute(sa.select(c.start_char, c.end_char, c.text))).all()
    assert len(rows) == ready.n_chunks >= 1
    assert all(ARTICLE.decode()[start:end] == text for start, end, text in rows)
    assert await count_jobs(context.database, tenant) == 0


@pytest.fixture
def statuses(owner_url: str) -> Iterator[Callable[[], list[str]]]:
    "What the status of documents became, as any other connection sees it."
    with psycopg.connect(owner_url, autocommit=True) as owner:
        owner.execute(
            "CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN PERFORM pg_notify('status', NEW.status); RETURN NULL; END $$"
        )
        owner.execute(
            "CREATE TRIGGER tell AFTER INSERT OR UPDATE ON documents "
            "FOR EACH ROW EXECUTE FUNCTION tell()"
        )
        owner.execute("LISTEN status")
        yield lambda: [note.payload for note in owner.notifies(timeout=0.5)]
        owner.execute("DROP TRIGGER tell ON documents")
        owner.execute("DROP FUNCTION tell")


async def test_every_status_is_seen_while_it_lasts(
    context: Ingestion, tenant: str, statuses: Callable[[], list[str]]
) -> None:
    await send(context.database, tenant)
    await process(context, tenant)
    steps = [status for status, _ in itertools.groupby(statuses())]
    assert steps == ["pending", "parsing", "chunking", "embedding", "storing", "ready"]
    await send(context.database, tenant, b"", source="empty.md")
    await process(context, tenant)
    assert [status for status, _ in itertools.groupby(statuses())] == [
        "pending",
        "parsing",
        "failed",
    ]


async def test_the_same_bytes_again_are_nothing_to_do(context: Ingestion, tenant: str) -> None:
    document_id = await send(context.database, tenant)
    await process(context, tenant)
    assert await send(context.database, tenant) == document_id
    assert await count_jobs(context.database, tenant) == 0
    assert (await state(context.database, tenant, document_id)).version == 1


async def test_a_new_version_replaces_the_old_and_a_broken_one_does_not(
    context: Ingestion, tenant: str
) -> None:
    document_id = await send(context.database, tenant)
    await process(context, tenant)
    assert await send(context.database, tenant, b"# Kiosk\n\nNow 96 hours.") == document_id
    assert any("72 hours" in text for text in await texts_of(context.database, tenant))
    await process(context, tenant)
    texts = await texts_of(context.database, tenant)
    assert any("96 hours" in t for t in texts) and not any("72 hours" in t for t in texts)
    await send(context.database, tenant, b"%PDF-1.4 broken", content_type="application/pdf")
    await process(context, tenant)
    failed = await state(context.database, tenant, document_id)
    assert failed.status == "failed" and failed.error and failed.ready_version == 2
    assert await texts_of(context.database, tenant) == texts, "the served version stays"


async def test_committed_batches_are_not_embedded_again(
    context: Ingestion, tenant: str, embedder: CountingEmbedder
) -> None:
    article = "\n\n".join(f"## Part {n}\n\n" + f"Fact {n} is told here. " * 40 for n in range(150))
    await send(context.database, tenant, article.encode())
    lease = await lease_of(context.database, tenant)
    embedder.fail_at_batch = 3
    with pytest.raises(EmbeddingFailed):
        await ingest(context, lease)
    done = list(embedder.texts)
    assert len(done) == 64, "two batches were committed"
    await ingest(context, lease)
    assert len(embedder.texts) == len(set(embedder.texts)) > 100
    assert not set(done) & set(embedder.texts[64:])


async def test_a_version_that_arrives_meanwhile_wins(
    context: Ingestion, tenant: str, embedder: CountingEmbedder
) -> None:
    document_id = await send(context.database, tenant)
    lease = await lease_of(context.database, tenant)
    original = embedder.embed

    async def replaced_while_embedding(texts: list[str]) -> Embeddings:
        if embedder.batches == 0:
            await send(context.database, tenant, b"# Kiosk\n\nNow 96 hours.")
        return await original(texts)

    embedder.embed = replaced_while_embedding  # type: ignore[method-assign]
    await ingest(context, lease)
    ready = await state(context.database, tenant, document_id)
    assert (ready.status, ready.ready_version) == ("ready", 2)
    assert not any("72 hours" in text for text in await texts_of(context.database, tenant))
    assert await count_jobs(context.database, tenant) == 0


async def test_a_document_deleted_meanwhile_leaves_nothing(
    context: Ingestion, tenant: str, embedder: CountingEmbedder
) -> None:
    document_id = await send(context.database, tenant)
    lease = await lease_of(context.database, tenant)
    original = embedder.embed

    async def deleted_while_embedding(texts: list[str]) -> Embeddings:
        result = await original(texts)
        async with context.database.tenant(tenant) as session:
            await store.delete_document(session, tenant_id=tenant, document_id=document_id)
        return result

    embedder.embed = deleted_while_embedding  # type: ignore[method-assign]
    assert await ingest(context, lease)
    assert await texts_of(context.database, tenant) == []
    assert await count_jobs(context.database, tenant) == 0
    with pytest.raises(NotFound):
        await state(context.database, tenant, document_id)


async def test_a_paused_document_goes_on_where_it_was(
    context: Ingestion, tenant: str, embedder: CountingEmbedder, release: Release
) -> None:
    article = "\n\n".join(f"## Part {n}\n\n" + f"Fact {n} is told here. " * 20 for n in range(110))
    document_id = await send(context.database, tenant, article.encode())
    turns = 0
    over = False
    while not over:  # each turn by a worker that knows nothing of the one before
        worker = Ingestion(context.database, release, context.embedders)
        lease = await lease_of(context.database, tenant)
        assert lease.attempts == 0, "a turn that was given back is no attempt"
        over = await ingest(worker, lease, lambda: True)
        turns += 1
        status = (await state(context.database, tenant, document_id)).status
        assert status == ("ready" if over else "embedding")
    assert turns == 4, "110 texts in batches of 32"
    assert len(embedder.texts) == len(set(embedder.texts))
    assert len(await texts_of(context.database, tenant)) == len(embedder.texts)


async def test_a_worker_that_lost_its_lease_changes_nothing(
    context: Ingestion, tenant: str, embedder: CountingEmbedder
) -> None:
    document_id = await send(context.database, tenant)
    async with context.database.system() as session:
        query = sa.select(tables.jobs.c.id).where(tables.jobs.c.tenant_id == tenant)
        job_id = (await session.execute(query)).scalar_one()
    slow = await jobs.claim(context.database, job_id, "slow", seconds=0)
    assert slow is not None
    await ingest(context, await lease_of(context.database, tenant))
    before = await state(context.database, tenant, document_id)
    texts = await texts_of(context.database, tenant)
    with pytest.raises(jobs.LeaseLost):
        await ingest(context, slow)
    assert await texts_of(context.database, tenant) == texts
    assert (await state(context.database, tenant, document_id)).ready_at == before.ready_at


async def test_a_document_without_a_title_gets_its_own(context: Ingestion, tenant: str) -> None:
    database = context.database
    named = await send(database, tenant, source="a.md", title="Given")
    await process(context, tenant)
    own = await send(database, tenant, source="b.md")
    await process(context, tenant)
    nameless = await send(database, tenant, b"No heading at all.", source="notes/c.md")
    await process(context, tenant)
    broken = await send(database, tenant, b"%PDF-", source="d.pdf", content_type="application/pdf")
    await process(context, tenant)
    titles = [(await state(database, tenant, id_)).title for id_ in (named, own, nameless, broken)]
    assert titles == ["Given", "Kiosk", "c", "d.pdf"]
    await send(database, tenant, source="a.md")
    await send(database, tenant, source="b.md")
    assert await count_jobs(database, tenant) == 0, "the same bytes again, still without a title"


@pytest.mark.parametrize(
    ("content", "content_type"),
    [
        (b"", "text/plain"),
        (b" \n\t", "text/markdown"),
        (b"%PDF-1.7 and then nothing", "application/pdf"),
        (b"PK\x03\x04 no archive", DOCX),
        (b"<html><body><script>x()</script></body></html>", "text/html"),
        (b"\x89PNG\r\n\x1a\n", "text/plain"),
    ],
)
async def test_what_cannot_be_read_ends_failed_with_a_reason(
    context: Ingestion, tenant: str, content: bytes, content_type: str
) -> None:
    document_id = await send(context.database, tenant, content, content_type=content_type)
    await process(context, tenant)
    failed = await state(context.database, tenant, document_id)
    assert failed.status == "failed" and failed.error and len(failed.error) > 20
    assert failed.error_code in ("document_unreadable", "input_invalid")
    assert await count_jobs(context.database, tenant) == 0
    again = await accept(
        context.database, None, tenant_id=tenant, content=content, content_type=content_type,
        source="kiosk.md",
    )  # fmt: skip
    assert again.acceptance != "unchanged", "sent again, it is tried again"


async def test_a_parser_beyond_its_limits_fails_the_document_alone(
    context: Ingestion, tenant: str
) -> None:
    article = b"## Part\n\nThe kiosk keeps punches for 72 hours.\n\n" * 50_000
    context.limits = Limits(memory_bytes=10_000_000)
    document_id = await send(context.database, tenant, article)
    await process(context, tenant)
    failed = await state(context.database, tenant, document_id)
    assert failed.status == "failed" and failed.error and "memory" in failed.error


async def test_size_and_type_are_checked_before_anything_is_stored(
    database: Database, tenant: str
) -> None:
    with pytest.raises(TooLarge):
        await send(database, tenant, b"x" * (MAX_BYTES + 1))
    with pytest.raises(UnsupportedType):
        await send(database, tenant, b"x", content_type="application/zip")
    async with database.tenant(tenant) as session:
        assert await store.list_documents(session, tenant_id=tenant, limit=10) == []
    assert await count_jobs(database, tenant) == 0


async def test_errors_of_ours_are_not_told_as_they_are(context: Ingestion, tenant: str) -> None:
    document_id = await send(context.database, tenant)
    secret = RuntimeError("connection to postgresql://app:hunter2@db refused")
    await give_up(context, await lease_of(context.database, tenant), secret)
    failed = await state(context.database, tenant, document_id)
    assert failed.error_code == "internal_error" and "hunter2" not in str(failed.error)


async def test_giving_up_tells_the_owner(context: Ingestion, tenant: str) -> None:
    document_id = await send(context.database, tenant)
    lease = await lease_of(context.database, tenant)
    await give_up(context, lease, EmbeddingFailed("away"))
    failed = await state(context.database, tenant, document_id)
    assert failed.status == "failed" and failed.error_code == "embedding_failed"
    assert await count_jobs(context.database, tenant) == 0


async def test_reindex_builds_beside_and_switches(context: Ingestion, tenant: str) -> None:
    database = context.database
    for n in range(5):
        await send(database, tenant, ARTICLE + b"\n%d" % n, source=f"{n}.md")
        await process(context, tenant)
    before = await serving_index(database, tenant)
    finer = load_release(context.release.parameters.with_(chunk={"size_tokens": 16}))
    changed = Ingestion(database, finer, context.embedders, grace=Grace(0, 0))
    assert not (await index_status(database, tenant, finer)).matches
    asked = {"tenant_id": tenant, "release": finer, "embedders": context.embedders}
    building = await request_reindex(database, None, **asked)
    assert building is not None and (await serving_index(database, tenant)) == before
    lease = await lease_of(database, tenant)
    await send(database, tenant, b"# New\n\nA document that arrives meanwhile.", source="new.md")
    await reindex(changed, lease)
    after = await serving_index(database, tenant)
    assert after is not None and after.id == building.id != before.id
    assert (await index_status(database, tenant, finer)).matches
    async with database.tenant(tenant) as session:
        missing = await list_unindexed(session, tenant_id=tenant, index_id=after.id, limit=10)
        assert missing == []
    assert await retire(changed, await lease_for(changed, before.id))
    assert await texts_of(database, tenant, before.id) == []
    await process(changed, tenant)
    assert any("arrives meanwhile" in text for text in await texts_of(database, tenant))
    assert await request_reindex(database, None, **asked) is None


async def test_documents_sent_during_a_reindex_are_in_both_indexes(
    context: Ingestion, tenant: str
) -> None:
    database = context.database
    await send(database, tenant)
    await process(context, tenant)
    finer = load_release(context.release.parameters.with_(chunk={"size_tokens": 16}))
    building = await request_reindex(
        database, None, tenant_id=tenant, release=finer, embedders=context.embedders
    )
    async with database.system() as session:  # the ingest job is claimed first
        query = sa.select(tables.jobs.c.id).where(tables.jobs.c.target_id == building.id)
        reindex_job = (await session.execute(query)).scalar_one()
    document_id = await send(database, tenant, b"# New\n\nBoth have it.", source="new.md")
    async with database.system() as session:
        query = sa.select(tables.jobs.c.id).where(tables.jobs.c.target_id == document_id)
        ingest_job = (await session.execute(query)).scalar_one()
    await ingest(context, await jobs.claim(database, ingest_job, "one"))
    async with database.tenant(tenant) as session:
        c = tables.chunks.c
        query = sa.select(c.index_id).where(c.document_id == document_id)
        assert len(set(await session.scalars(query))) == 2
    await reindex(context, await jobs.claim(database, reindex_job, "two"))
    assert (await serving_index(database, tenant)).id == building.id


async def test_two_workers_meet_a_new_tenant_at_once(context: Ingestion, tenant: str) -> None:
    database = context.database
    for n in range(4):
        await send(database, tenant, ARTICLE + b"\n%d" % n, source=f"{n}.md")
    async with database.system() as session:
        query = sa.select(tables.jobs.c.id).where(tables.jobs.c.tenant_id == tenant)
        ids = list(await session.scalars(query))
    leases = [await jobs.claim(database, job_id, f"worker-{job_id}") for job_id in ids]
    await asyncio.gather(*(ingest(context, lease) for lease in leases))
    async with database.tenant(tenant) as session:
        indexes = await store.list_indexes(session, tenant_id=tenant)
        numbers = list(await session.scalars(sa.select(tables.chunks.c.number)))
    assert [index.status for index in indexes] == ["active"]
    assert len(numbers) == len(set(numbers)) >= 4
    assert json.dumps(indexes[0].parameters) and np.isfinite(indexes[0].dim)


async def build_other(
    context: Ingestion, tenant: str, **chunk: int
) -> tuple[Release, store.IndexRecord, jobs.Lease]:
    release = load_release(context.release.parameters.with_(chunk=chunk))
    building = await request_reindex(
        context.database, None, tenant_id=tenant, release=release, embedders=context.embedders
    )
    assert building is not None
    async with context.database.system() as session:
        query = sa.select(tables.jobs.c.id).where(tables.jobs.c.target_id == building.id)
        job_id = (await session.execute(query)).scalar_one()
    lease = await jobs.claim(context.database, job_id, "reindexer")
    assert lease is not None
    return release, building, lease


async def statuses_of(context: Ingestion, tenant: str) -> dict[str, str]:
    async with context.database.tenant(tenant) as session:
        return {i.id: i.status for i in await store.list_indexes(session, tenant_id=tenant)}


async def test_the_retired_index_stays_until_no_search_can_read_it(
    context: Ingestion, tenant: str
) -> None:
    await send(context.database, tenant)
    await process(context, tenant)
    _, building, lease = await build_other(context, tenant, size_tokens=16)
    context.grace = Grace(0, 60)
    assert await reindex(context, lease)
    statuses = await statuses_of(context, tenant)
    assert sorted(statuses.values()) == ["active", "retired"]
    assert statuses[building.id] == "active"
    async with context.database.system() as session:
        job = await session.scalar(
            sa.select(tables.jobs.c.id).where(tables.jobs.c.tenant_id == tenant)
        )
    assert await jobs.claim(context.database, job, "early") is None
    await make_due(context, tenant)
    early = await jobs.claim(context.database, job, "early")
    assert early is not None and not await retire(context, early), "its time is not over"
    await make_due(context, tenant, over=True)
    later = await jobs.claim(context.database, job, "later")
    assert later is not None and await retire(context, later)
    assert list(await statuses_of(context, tenant)) == [building.id]
    assert await count_jobs(context.database, tenant) == 0


async def make_due(context: Ingestion, tenant: str, *, over: bool = False) -> None:
    "Let the jobs of a tenant be due, and the time of its indexes be over."
    async with context.database.tenant(tenant) as session:
        c = tables.jobs.c
        await session.execute(
            sa.update(tables.jobs).where(c.tenant_id == tenant).values(lease_until=None)
        )
        if over:
            own = tables.indexes.c.tenant_id == tenant
            await session.execute(
                sa.update(tables.indexes).where(own).values(kept_until=sa.func.now())
            )


async def test_the_kept_index_gets_and_loses_every_document_and_serves_again_at_once(
    context: Ingestion, tenant: str, embedder: CountingEmbedder
) -> None:
    database, context.grace = context.database, Grace(3600, 0)
    old_id = await send(database, tenant)
    await process(context, tenant)
    before = await serving_index(database, tenant)
    assert before is not None
    finer, building, lease = await build_other(context, tenant, size_tokens=16)
    assert await reindex(context, lease)
    assert await statuses_of(context, tenant) == {before.id: "ready", building.id: "active"}
    newer = Ingestion(database, finer, context.embedders, grace=context.grace)
    new_id = await send(database, tenant, b"# Badge\n\nHold the badge.", source="badge.md")
    await make_due(context, tenant)
    await ingest(newer, await lease_for(context, new_id))
    async with database.tenant(tenant) as session:
        await store.delete_document(session, tenant_id=tenant, document_id=old_id)
    for index_id in (before.id, building.id):
        text = "\n".join(await texts_of(database, tenant, index_id))
        assert "Hold the badge" in text and "72 hours" not in text
    embedder.texts.clear()
    back = await roll_back(database, tenant_id=tenant, grace=context.grace)
    assert back.id == before.id and embedder.texts == [], "nothing is built"
    assert await statuses_of(context, tenant) == {before.id: "active", building.id: "ready"}
    forth = await request_reindex(
        database, None, tenant_id=tenant, release=finer, embedders=context.embedders
    )
    assert forth is not None and forth.status == "active" and embedder.texts == []


async def test_a_third_index_lets_the_oldest_go(context: Ingestion, tenant: str) -> None:
    context.grace = Grace(3600, 0)
    await send(context.database, tenant)
    await process(context, tenant)
    first = await serving_index(context.database, tenant)
    assert first is not None
    made = []
    for size in (16, 32):
        _, building, lease = await build_other(context, tenant, size_tokens=size)
        assert await reindex(context, lease)
        made.append(building.id)
    statuses = await statuses_of(context, tenant)
    assert statuses == {first.id: "retired", made[0]: "ready", made[1]: "active"}
    await make_due(context, tenant)
    assert await retire(context, await lease_for(context, first.id))
    assert set(await statuses_of(context, tenant)) == set(made)


async def lease_for(context: Ingestion, target_id: str) -> jobs.Lease:
    async with context.database.system() as session:
        query = sa.select(tables.jobs.c.id).where(tables.jobs.c.target_id == target_id)
        job_id = (await session.execute(query)).scalar_one()
    lease = await jobs.claim(context.database, job_id, "worker")
    assert lease is not None
    return lease


async def test_a_kept_index_whose_model_is_gone_is_let_go(
    database: Database, tenant: str, release: Release
) -> None:
    gone: list[str] = []

    def factory(parameters: EmbedParameters) -> HashingEmbedder:
        if parameters.model in gone:
            raise SettingsInvalid(f"{parameters.model} is not here any more")
        return HashingEmbedder(int(parameters.model.removeprefix("hashing-")))

    context = Ingestion(database, release, Embedders(factory), grace=Grace(3600, 0))
    await send(database, tenant)
    await process(context, tenant)
    wider = load_release(release.parameters.with_(embed={"model": "hashing-512"}))
    asked = {"tenant_id": tenant, "release": wider, "embedders": context.embedders}
    building = await request_reindex(database, None, **asked)
    assert building is not None and building.dim == 512
    assert await reindex(context, await lease_for(context, building.id))
    gone.append("hashing-256")
    newer = Ingestion(database, wider, Embedders(factory), grace=Grace(3600, 0))
    later = await send(database, tenant, b"# Badge\n\nHold it.", source="badge.md")
    await ingest(newer, await lease_for(context, later))
    assert (await state(database, tenant, later)).status == "ready"
    assert sorted((await statuses_of(context, tenant)).values()) == ["active", "retired"]


async def test_an_index_that_finds_less_does_not_serve_without_a_reason(
    context: Ingestion, tenant: str
) -> None:
    database = context.database
    for n in range(6):
        text = f"# Topic {n}\n\nThe code of number{n} is {n * 7919}. Nothing else is told."
        await send(database, tenant, text.encode(), source=f"{n}.md")
        await process(context, tenant)
        async with database.tenant(tenant) as session:
            await add_label(
                session, tenant_id=tenant, question=f"What is the code of number{n}?",
                source=f"{n}.md", passage=f"number{n} is {n * 7919}", made_by="ada",
            )  # fmt: skip
    serving = await serving_index(database, tenant)
    release, building, lease = await build_other(context, tenant, size_tokens=16)
    reads = context.release.parameters.with_(retrieve={"k": 1, "candidates": 1})
    context.release = load_release(reads)

    async def deaf(texts: list[str], kind: Kind = "passage") -> Embeddings:
        "Give every text of the new index the same vector."
        return await HashingEmbedder().embed(["nothing"] * len(texts))

    hearing = context.embedders.of(release.parameters.embed)
    original = hearing.embed
    hearing.embed = deaf  # type: ignore[method-assign]
    context.release = load_release(reads.with_(retrieve={"fusion": "dense"}))
    while not await reindex(context, lease, lambda: True):  # builds with the deaf model
        lease = await lease_for(context, building.id)
        if (await index_status(database, tenant, release)).n_missing == 0:
            hearing.embed = original  # type: ignore[method-assign]
    status = await index_status(database, tenant, release)
    assert await serving_index(database, tenant) == serving and status.building is not None
    assert status.building.comparison["lost"] >= 5
    again = await request_reindex(
        database, None, tenant_id=tenant, release=release, embedders=context.embedders,
        override="the labels are out of date",
    )  # fmt: skip
    assert again is not None and again.id == building.id, "it is not built anew"
    assert await reindex(context, await lease_for(context, building.id))
    now = await serving_index(database, tenant)
    assert now is not None and now.id == building.id
    assert now.override == "the labels are out of date"


async def test_building_takes_its_share_and_tells_how_long_it_takes(
    context: Ingestion, tenant: str
) -> None:
    for n in range(4):
        await send(context.database, tenant, ARTICLE + b"\n%d" % n, source=f"{n}.md")
        await process(context, tenant)
    release, _, lease = await build_other(context, tenant, size_tokens=16)
    context.share = 0.001
    assert not await reindex(context, lease, lambda: True)
    assert await jobs.claim(context.database, lease.job_id, "early") is None, "it rests"
    status = await index_status(context.database, tenant, release)
    assert 0 < status.n_missing < 4 == status.n_documents
    assert status.seconds_left is not None and status.seconds_left > 0


async def test_a_paused_reindex_goes_on_and_embeds_nothing_twice(
    context: Ingestion, tenant: str, embedder: CountingEmbedder
) -> None:
    for n in range(3):
        await send(context.database, tenant, ARTICLE + b"\n%d" % n, source=f"{n}.md")
        await process(context, tenant)
    _, building, lease = await build_other(context, tenant, size_tokens=16)
    embedder.texts.clear()
    turns = 1
    while not await reindex(context, lease, lambda: True):
        again = await jobs.claim(context.database, lease.job_id, "next")
        assert again is not None and again.attempts == 0
        lease = again
        turns += 1
    assert turns > 3
    serving = await serving_index(context.database, tenant)
    assert serving is not None and serving.id == building.id
    assert len(embedder.texts) == len(await texts_of(context.database, tenant, building.id))


async def test_a_document_replaced_during_a_reindex_is_new_in_both_indexes(
    context: Ingestion, tenant: str, embedder: CountingEmbedder
) -> None:
    database = context.database
    await send(database, tenant)
    await process(context, tenant)
    _, building, lease = await build_other(context, tenant, size_tokens=16)
    original = embedder.embed

    async def replaced_while_embedding(texts: list[str]) -> Embeddings:
        embedder.embed = original  # type: ignore[method-assign]
        await send(database, tenant, b"# Kiosk\n\nNow 96 hours.")
        async with database.system() as session:
            query = sa.select(tables.jobs.c.id).where(
                tables.jobs.c.tenant_id == tenant, tables.jobs.c.kind == "ingest"
            )
            job_id = (await session.execute(query)).scalar_one()
        ingestion = Ingestion(database, context.release, context.embedders)
        await ingest(ingestion, await jobs.claim(database, job_id, "other"))
        return await original(texts)

    embedder.embed = replaced_while_embedding  # type: ignore[method-assign]
    assert await reindex(context, lease)
    texts = await texts_of(database, tenant)
    assert texts and not any("72 hours" in text for text in texts)
    serving = await serving_index(database, tenant)
    assert serving is not None and serving.id == building.id


async def test_an_index_keeps_the_parameters_it_was_made_with(
    context: Ingestion, tenant: str
) -> None:
    database = context.database
    await send(database, tenant, b"# First\n\n" + b"One fact is told here. " * 40)
    await process(context, tenant)
    finer = load_release(context.release.parameters.with_(chunk={"size_tokens": 16}))
    restarted = Ingestion(database, finer, context.embedders)
    await send(database, tenant, b"# Second\n\n" + b"Another fact is told. " * 40, source="2.md")
    await process(restarted, tenant)
    async with database.tenant(tenant) as session:
        sizes = list(await session.scalars(sa.select(tables.chunks.c.n_tokens)))
    assert max(sizes) > 100, "cut as the serving index is, not as the service is configured"
    status = await index_status(database, tenant, finer)
    assert not status.matches and status.n_missing == status.n_documents == 2


async def test_going_back_to_the_serving_release_drops_the_new_index(
    context: Ingestion, tenant: str
) -> None:
    database = context.database
    await send(database, tenant)
    await process(context, tenant)
    serving = await serving_index(database, tenant)
    _, _, lease = await build_other(context, tenant, size_tokens=16)
    back = await request_reindex(
        database, None, tenant_id=tenant, release=context.release, embedders=context.embedders
    )
    assert back is None
    assert await reindex(context, lease), "its job ends when its turn comes"
    async with database.tenant(tenant) as session:
        assert await store.list_indexes(session, tenant_id=tenant) == [serving]


async def test_a_reindex_that_is_given_up_leaves_the_serving_index(
    context: Ingestion, tenant: str
) -> None:
    await send(context.database, tenant)
    await process(context, tenant)
    serving = await serving_index(context.database, tenant)
    release, _, lease = await build_other(context, tenant, size_tokens=16)
    await give_up(context, lease, EmbeddingFailed("away"))
    status = await index_status(context.database, tenant, release)
    assert (status.active, status.building, status.matches) == (serving, None, False)
    assert await count_jobs(context.database, tenant) == 0


async def test_outcomes_are_counted(context: Ingestion, tenant: str) -> None:
    def count(outcome: str) -> float:
        labels = {"outcome": outcome}
        return REGISTRY.get_sample_value("ingest_outcomes_total", labels) or 0.0

    before = {outcome: count(outcome) for outcome in ("ready", "failed", "gone")}
    await send(context.database, tenant)
    await process(context, tenant)
    await send(context.database, tenant, b"", source="empty.md")
    await process(context, tenant)
    gone = await send(context.database, tenant, source="gone.md")
    async with context.database.tenant(tenant) as session:
        await store.delete_document(session, tenant_id=tenant, document_id=gone)
    await process(context, tenant)
    assert {outcome: count(outcome) - n for outcome, n in before.items()} == dict.fromkeys(
        before, 1
    )
