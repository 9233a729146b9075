"""What was evaluated is what serves: the same rankings in memory and in PostgreSQL, one id."""

import shutil
import subprocess
import sys
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from support_rag.chunk import chunk
from support_rag.embed import Embedder, load_embedder
from support_rag.evaluation.labels import Labels, load_labels
from support_rag.language.analyse import analyse
from support_rag.parse import content_type_of
from support_rag.release import Release, load_release, resource
from support_rag.retrieve import InMemoryIndex, fuse
from support_rag.state import store, tables
from support_rag.state.database import Database
from support_rag.state.indexes import Embedders, serving_index
from support_rag.state.ingest import Ingestion, accept, ingest
from support_rag.state.pgindex import PgIndex, add_chunks
from support_rag.types import Chunk, Query, Scored
from tests.state.test_ingest import lease_of

ROOT = Path(__file__).parents[2]
CORPUS = resource("data/help_centre") / "corpus"
CANDIDATES = 20


@pytest.fixture(scope="module")
def labels() -> Labels:
    return load_labels(resource("data/help_centre"))


@pytest.fixture(scope="module")
def release() -> Release:
    return load_release()


@pytest.fixture(scope="module")
def embedder(release: Release) -> Embedder:
    return load_embedder(release.parameters.embed)


async def store_chunks(
    database: Database, tenant: str, chunks: Sequence[Chunk], vectors: np.ndarray
) -> PgIndex:
    """Store chunks as they are, in one index of the tenant."""
    async with database.tenant(tenant) as session:
        index = await store.create_index(
            session, tenant_id=tenant, digest="d", dim=vectors.shape[1], model="m", parameters={}
        )
        for document_id in dict.fromkeys(c.document_id for c in chunks):
            own = [at for at, c in enumerate(chunks) if c.document_id == document_id]
            first = chunks[own[0]]
            values = {"id": document_id, "source": first.source, "title": first.title}
            values |= {"content_type": "", "content": b"", "content_hash": ""}
            await session.execute(sa.insert(tables.documents).values(tenant_id=tenant, **values))
            await add_chunks(
                session, tenant_id=tenant, index_id=index.id, document_id=document_id,
                chunks=[chunks[at] for at in own], vectors=vectors[own],
            )  # fmt: skip
    return PgIndex(database, tenant_id=tenant, index_id=index.id, dim=index.dim)


def same_order(ours: Sequence[Scored], theirs: Sequence[Scored], tolerance: float) -> bool:
    """Equal scores place by place, and equal chunks unless their scores differ by rounding."""
    if len(ours) != len(theirs):
        return False
    pairs = list(zip(ours, theirs, strict=True))
    known = {s.chunk.id: s.score for s in theirs}
    return all(abs(a.score - b.score) <= tolerance for a, b in pairs) and all(
        a.chunk == b.chunk or abs(a.score - known.get(a.chunk.id, b.score)) <= tolerance
        for a, b in pairs
    )


async def test_the_same_rankings_in_memory_and_in_postgres(
    database: Database, tenant: str, labels: Labels, release: Release, embedder: Embedder
) -> None:
    chunks: list[Chunk] = []
    for document in labels.corpus[::2]:
        stored = replace(document, id=str(uuid.uuid5(uuid.NAMESPACE_URL, document.id)))
        chunks += chunk(stored, release.parameters.chunk)
    vectors = (await embedder.embed([c.embedded_text for c in chunks])).vectors
    memory = InMemoryIndex(chunks, vectors)
    postgres = await store_chunks(database, tenant, chunks, vectors)
    questions = [q for q in labels.questions if not q.history][::14]
    assert len(questions) > 60
    asked = (await embedder.embed([q.text for q in questions], kind="query")).vectors
    retrieve = release.parameters.retrieve
    arguments = {"k1": retrieve.bm25_k1, "b": retrieve.bm25_b, "candidates": CANDIDATES}
    swapped = 0
    for question, vector in zip(questions, asked, strict=True):
        query = Query(question.text, tuple(map(float, vector)), tuple(analyse(question.text)))
        theirs = await memory.search(query, **arguments)
        ours = await postgres.search(query, **arguments)
        assert [s.chunk for s in ours.lexical] == [s.chunk for s in theirs.lexical], question.text
        assert same_order(ours.lexical, theirs.lexical, 1e-9), question.text
        assert same_order(ours.dense, theirs.dense, 1e-6), question.text
        assert ours.lexical_limit == pytest.approx(theirs.lexical_limit, abs=1e-9)
        hits = [[hit.chunk.id for hit in fuse(found, retrieve)] for found in (ours, theirs)]
        swapped += hits[0] != hits[1]
    assert swapped <= len(questions) * 0.02, "fused lists differ only by near-ties"


async def test_the_service_stores_the_evaluated_chunks(
    database: Database, tenant: str, labels: Labels, release: Release, embedder: Embedder
) -> None:
    """Two articles of each format, by the worker's own code and by the evaluation's."""
    context = Ingestion(database, release, Embedders(lambda parameters: embedder))
    by_type: dict[str, list] = {}
    for document in labels.corpus:
        by_type.setdefault(content_type_of(document.source), []).append(document)
    assert len(by_type) >= 3
    evaluated: list[Chunk] = []
    for document in (document for some in by_type.values() for document in some[:2]):
        accepted = await accept(
            database, None, tenant_id=tenant, content=(CORPUS / document.source).read_bytes(),
            source=document.source, content_type=content_type_of(document.source),
        )  # fmt: skip
        await ingest(context, await lease_of(database, tenant))
        served = replace(document, id=accepted.document.id)
        evaluated += chunk(served, release.parameters.chunk)
    index = await serving_index(database, tenant)
    assert index is not None and index.digest == release.index_digest
    async with database.tenant(tenant) as session:
        rows = await session.execute(sa.select(tables.chunks.c.id, tables.chunks.c.embedding))
        stored = {id_: np.array(vector) for id_, vector in rows}
    assert stored.keys() == {c.id for c in evaluated}
    vectors = (await embedder.embed([c.embedded_text for c in evaluated])).vectors
    for one, vector in zip(evaluated, vectors, strict=True):
        assert float(stored[one.id] @ vector) == pytest.approx(1.0, abs=1e-3)
    postgres = PgIndex(database, tenant_id=tenant, index_id=index.id, dim=index.dim)
    query = Query(evaluated[0].text, tuple(map(float, vectors[0])), ("kiosk",))
    found = await postgres.search(query, candidates=100, k1=1.2, b=0.75)
    assert {s.chunk.id: s.chunk for s in found.dense} == {c.id: c for c in evaluated}


def release_of(package: Path) -> list[str]:
    code = "from support_rag.release import load_release as r; print(r().id, r().index_digest)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=package, check=True, capture_output=True, text=True,
        timeout=300, env={"PYTHONPATH": str(package)},
    )  # fmt: skip
    return done.stdout.split()


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A copy of the package that a test may edit."
    copy = tmp_path_factory.mktemp("copy")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "support_rag", copy / "support_rag", ignore=ignored)
    learned = shutil.ignore_patterns("help_centre")
    shutil.copytree(ROOT / "data", copy / "data", ignore=learned)
    for name in ("settings.ini", "pyproject.toml"):
        shutil.copy(ROOT / name, copy)
    return copy


@pytest.mark.parametrize(
    ("module", "reindex"),
    [("state/pgindex", False), ("state/lexical", False), ("gate", False), ("chunk", True)],
)
def test_one_edited_line_changes_the_release(copied: Path, module: str, reindex: bool) -> None:
    before = release_of(copied)
    edited = copied / f"support_rag/{module}.py"
    text = edited.read_text()
    edited.write_text(text + "\n# a comment changes nothing that runs\n")
    assert release_of(copied) == before
    sql = module.startswith("state/")
    changed = text.replace("WHERE tenant_id", "WHERE  tenant_id", 1) if sql else text + "\nX = 1\n"
    assert changed != text
    edited.write_text(changed)
    after = release_of(copied)
    edited.write_text(text)
    assert after[0] != before[0]
    assert (after[1] != before[1]) is reindex


def test_ids_do_not_depend_on_the_process(copied: Path) -> None:
    assert release_of(copied) == release_of(copied)
    assert len(load_release().id) == 16
