"""Where a hit stands in the customer's own file: stored, migrated, and shown."""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np
import psycopg
import pytest
import sqlalchemy as sa
from alembic import command
from sqlalchemy.ext.asyncio import AsyncSession

from support_rag.embed import HashingEmbedder
from support_rag.local.servers import Running, local_servers
from support_rag.release import load_release
from support_rag.state.database import create_database, database_url, migrate, migrations, plain
from support_rag.state.indexes import Embedders
from support_rag.state.ingest import Ingestion, accept, ingest
from support_rag.state.pgindex import read_found
from support_rag.state.store import get_extracted
from support_rag.types import Chunk, Document, Query, Span
from tests.state.test_ingest import lease_of

FILE = """---
title: Ferry
---
# Ferry <!-- raise it --> &amp; *fares*

A cabin costs **forty** crowns, see [the list](/fares).\r
Bicycles cost &frac12; of that.
"""


async def chunks_of(session: AsyncSession, ids: list[str], place: Any, *, dim: int) -> list[Chunk]:
    "Return chunks as a search reads them."
    query = Query("", (1.0, *(0.0 for _ in range(dim - 1))))
    nothing = (np.array([], np.uint32), np.array([], np.float64))
    found = await read_found(session, ids, query=query, scored=nothing, place=place)
    return [one.chunk for one in found.values()]


def migrate_to(running: Running, version: str) -> None:
    "Bring an empty database to an earlier version."
    engine = sa.create_engine(database_url(running.owner_url), poolclass=sa.NullPool)
    with engine.begin() as connection:
        config = migrations()
        config.attributes["connection"] = connection
        command.upgrade(config, version)


def put_document(superuser: psycopg.Connection[Any], kind: str, text: str) -> dict[str, str]:
    "Store a document with one chunk, as the version before did; return its ids."
    place = {
        "tenant_id": str(uuid.uuid4()),
        "index_id": str(uuid.uuid4()),
        "id": str(uuid.uuid4()),
        "chunk": str(uuid.uuid4()),
    }
    for statement in (
        "INSERT INTO tenants (tenant_id, name) VALUES (%(tenant_id)s, 'T')",
        """INSERT INTO documents (tenant_id, id, source, title, content_type, content, content_hash,
           text, blocks, status) VALUES
           (%(tenant_id)s, %(id)s, 'a', 'A', %(kind)s, '', '', %(text)s, '[]', 'ready')""",
        """INSERT INTO indexes (tenant_id, id, digest, dim, model, parameters)
           VALUES (%(tenant_id)s, %(index_id)s, 'd', 2, 'm', '{}')""",
        """INSERT INTO chunks (tenant_id, index_id, id, document_id, ordinal, start_char, end_char,
           number, n_tokens, n_terms, dim, heading_path, text, embedding) VALUES
           (%(tenant_id)s, %(index_id)s, %(chunk)s, %(id)s, 0, 4, 9, 1, 1, 1, 2, '{}', 'x',
           '[1,0]')""",
    ):
        superuser.execute(statement, {**place, "kind": kind, "text": text})
    return place


async def test_documents_of_before_have_the_places_that_are_known() -> None:
    with local_servers() as running:
        migrate_to(running, "0002")
        url = plain(database_url(running.superuser_url), database="support_rag")
        kinds = ("text/markdown", "text/plain", "text/html", "application/pdf")
        with psycopg.connect(url, autocommit=True) as superuser:
            stored = {kind: put_document(superuser, kind, "Text of a file") for kind in kinds}
        migrate(running.owner_url, app_user=running.app_user)
        database = create_database(running.app_url)
        for kind, place in stored.items():
            tenant_id = place["tenant_id"]
            async with database.tenant(tenant_id) as session:
                document = await get_extracted(
                    session, tenant_id=tenant_id, document_id=place["id"]
                )
                where = {"tenant_id": tenant_id, "index_id": place["index_id"]}
                chunks = await chunks_of(session, [place["chunk"]], where, dim=2)
            is_known = kind in ("text/markdown", "text/plain")
            assert document.source_map == (((0, 0), (14, 14)) if is_known else ())
            assert chunks[0].source_span == (Span(4, 9) if is_known else None)
        await database.close()


async def stored(running: Running, content: bytes, kind: str) -> tuple[Document, list[Chunk]]:
    "Ingest a file; return what is stored of it."
    database, tenant_id = create_database(running.app_url), str(uuid.uuid4())
    async with database.tenant(tenant_id) as session:
        await session.execute(
            sa.text("INSERT INTO tenants (tenant_id, name) VALUES (:id, 'T')"), {"id": tenant_id}
        )
    parameters = load_release().parameters.with_(embed={"model": "hashing-256"})
    work = Ingestion(
        database, load_release(parameters), Embedders(lambda parameters: HashingEmbedder())
    )
    await accept(database, None, tenant_id=tenant_id, content=content, content_type=kind)
    await ingest(work, await lease_of(database, tenant_id))
    async with database.tenant(tenant_id) as session:
        found = (
            await session.execute(sa.text("SELECT id::text, index_id::text FROM chunks"))
        ).all()
        name = await session.scalar(sa.text("SELECT id::text FROM documents"))
        where = {"tenant_id": tenant_id, "index_id": found[0][1]}
        chunks = await chunks_of(session, [id_ for id_, _ in found], where, dim=256)
        document = await get_extracted(session, tenant_id=tenant_id, document_id=str(name))
    await database.close()
    return document, chunks


@pytest.mark.parametrize(
    ("kind", "file", "shown"),
    [
        ("text/markdown", FILE, FILE[FILE.index("# Ferry") :].strip()),
        ("text/plain", "One.\r\n\r\nTwo.\r\n", "One.\r\n\r\nTwo."),
        ("text/html", "<!-- x --><main><h1>A</h1>\n<p>B <b>C</b>.</p></main>", "<h1>A</h1>"),
    ],
)
async def test_a_chunk_is_found_in_the_file(
    servers: Running, kind: str, file: str, shown: str
) -> None:
    document, chunks = await stored(servers, file.encode(), kind)
    assert document.source_map
    [chunk] = chunks
    assert chunk.source_span is not None
    assert shown in chunk.source_span.of(file)
    assert "raise" not in chunk.text and "title:" not in chunk.source_span.of(file)


async def test_a_format_without_such_text_has_no_places(servers: Running) -> None:
    document, chunks = await stored(servers, b"code,meaning\nTL-1,Stop\n", "text/csv")
    assert document.source_map == ()
    assert [chunk.source_span for chunk in chunks] == [None]
