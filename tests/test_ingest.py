"""Accepted documents become one set of chunks, whatever happens meanwhile."""

import asyncio
import json

import numpy as np
import pytest
import sqlalchemy as sa

from support_rag import db, jobs, store
from support_rag.db import Database
from support_rag.embed import Embeddings, HashingEmbedder
from support_rag.indexes import Embedders, index_status, list_unindexed, serving_index
from support_rag.ingest import Ingestion, accept, give_up, ingest, reindex, request_reindex
from support_rag.release import Release, load_release
from support_rag.types import EmbeddingFailed, NotFound

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

    async def embed(self, texts: list[str]) -> Embeddings:
        self.batches += 1
        if self.batches == self.fail_at_batch:
            raise EmbeddingFailed("the embedding service is away: try again later")
        self.texts += texts
        return await super().embed(texts)


@pytest.fixture
def embedder() -> CountingEmbedder:
    return CountingEmbedder()


@pytest.fixture
def release() -> Release:
    parameters = load_release().parameters
    return load_release(parameters.with_(embed={"model": "hashing-256"}))


@pytest.fixture
def context(database: Database, release: Release, embedder: CountingEmbedder) -> Ingestion:
    return Ingestion(database, release, Embedders(lambda parameters: embedder))


async def lease_of(database: Database, tenant: str) -> jobs.Lease:
    async with database.system() as session:
        query = sa.select(db.jobs.c.id).where(db.jobs.c.tenant_id == tenant)
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


async def texts_of(database: Database, tenant: str) -> list[str]:
    async with database.tenant(tenant) as session:
        c = db.chunks.c
        query = sa.select(c.text).where(c.tenant_id == tenant).order_by(c.index_id, c.ordinal)
        return list(await session.scalars(query))


async def count_jobs(database: Database, tenant: str) -> int:
    async with database.system() as session:
        query = sa.select(sa.func.count()).where(db.jobs.c.tenant_id == tenant)
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
        c = db.chunks.c
        rows = (await session.execute(sa.select(c.start_char, c.end_char, c.text))).all()
    assert len(rows) == ready.n_chunks >= 1
    assert all(ARTICLE.decode()[start:end] == text for start, end, text in rows)
    assert await count_jobs(context.database, tenant) == 0


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
    with pytest.raises(Exception):  # noqa: B017  the staged batch has no document any more
        await ingest(context, lease)
    await ingest(context, lease)
    assert await texts_of(context.database, tenant) == []
    assert await count_jobs(context.database, tenant) == 0
    with pytest.raises(NotFound):
        await state(context.database, tenant, document_id)


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
    changed = Ingestion(database, finer, context.embedders)
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
        old = sa.select(sa.func.count()).where(db.chunks.c.index_id == before.id)
        assert missing == [] and await session.scalar(old) == 0
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
        query = sa.select(db.jobs.c.id).where(db.jobs.c.target_id == building.id)
        reindex_job = (await session.execute(query)).scalar_one()
    document_id = await send(database, tenant, b"# New\n\nBoth have it.", source="new.md")
    async with database.system() as session:
        query = sa.select(db.jobs.c.id).where(db.jobs.c.target_id == document_id)
        ingest_job = (await session.execute(query)).scalar_one()
    await ingest(context, await jobs.claim(database, ingest_job, "one"))
    async with database.tenant(tenant) as session:
        query = sa.select(db.chunks.c.index_id).where(db.chunks.c.document_id == document_id)
        assert len(set(await session.scalars(query))) == 2
    await reindex(context, await jobs.claim(database, reindex_job, "two"))
    assert (await serving_index(database, tenant)).id == building.id


async def test_two_workers_meet_a_new_tenant_at_once(context: Ingestion, tenant: str) -> None:
    database = context.database
    for n in range(4):
        await send(database, tenant, ARTICLE + b"\n%d" % n, source=f"{n}.md")
    async with database.system() as session:
        query = sa.select(db.jobs.c.id).where(db.jobs.c.tenant_id == tenant)
        ids = list(await session.scalars(query))
    leases = [await jobs.claim(database, job_id, f"worker-{job_id}") for job_id in ids]
    await asyncio.gather(*(ingest(context, lease) for lease in leases))
    async with database.tenant(tenant) as session:
        indexes = await store.list_indexes(session, tenant_id=tenant)
        numbers = list(await session.scalars(sa.select(db.chunks.c.number)))
    assert [index.status for index in indexes] == ["active"]
    assert len(numbers) == len(set(numbers)) >= 4
    assert json.dumps(indexes[0].parameters) and np.isfinite(indexes[0].dim)
