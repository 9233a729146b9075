"""What was evaluated is what serves: the same rankings in memory and in PostgreSQL, one id."""

import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from support_rag import db
from support_rag.chunk import chunk
from support_rag.db import Database
from support_rag.embed import Embedder, analyse, load_embedder
from support_rag.indexes import Embedders, serving_index
from support_rag.ingest import Ingestion, accept, ingest
from support_rag.labels import Labels, load_labels
from support_rag.parse import content_type_of
from support_rag.pgindex import PgIndex
from support_rag.release import Release, load_release, resource
from support_rag.retrieve import InMemoryIndex, fuse
from support_rag.types import Query, Rankings
from tests.test_ingest import lease_of

ROOT = Path(__file__).parent.parent
CANDIDATES = 20


@dataclass
class Both:
    memory: InMemoryIndex
    postgres: PgIndex
    embedder: Embedder
    labels: Labels
    release: Release


@pytest.fixture(scope="module")
def labels() -> Labels:
    return load_labels(resource("data/help_centre"))


@pytest.fixture
async def both(database: Database, tenant: str, labels: Labels) -> AsyncIterator[Both]:
    """The sample help centre through the service's own ingestion, and in memory."""
    release = load_release()
    embedder = load_embedder(release.parameters.embed)
    context = Ingestion(database, release, Embedders(lambda parameters: embedder))
    corpus = resource("data/help_centre") / "corpus"
    served_ids = {}
    for path in sorted(p for p in corpus.rglob("*") if p.is_file()):
        source = path.relative_to(corpus).as_posix()
        accepted = await accept(
            database, None, tenant_id=tenant, content=path.read_bytes(), source=source,
            title=labels.corpus[source].title, content_type=content_type_of(path.name),
        )  # fmt: skip
        served_ids[source] = accepted.document.id
        await ingest(context, await lease_of(database, tenant))
    index = await serving_index(database, tenant)
    assert index is not None and index.digest == release.index_digest
    chunks = []
    for source, document in labels.corpus.items():
        chunks += chunk(replace(document, id=served_ids[source]), release.parameters.chunk)
    vectors = (await embedder.embed([c.embedded_text for c in chunks])).vectors
    yield Both(
        InMemoryIndex(chunks, vectors),
        PgIndex(database, tenant_id=tenant, index_id=index.id, dim=index.dim),
        embedder,
        labels,
        release,
    )


def same_order(ours: tuple, theirs: tuple, tolerance: float) -> bool:
    """Equal ids place by place, or swapped only where the scores differ by less than rounding."""
    if len(ours) != len(theirs):
        return False
    return all(
        a.chunk.id == b.chunk.id or abs(a.score - b.score) <= tolerance
        for a, b in zip(ours, theirs, strict=True)
    )


async def test_the_same_rankings_in_memory_and_in_postgres(both: Both) -> None:
    parameters = both.release.parameters.retrieve
    arguments = {"k1": parameters.bm25_k1, "b": parameters.bm25_b, "candidates": CANDIDATES}
    questions = [q for q in both.labels.questions if not q.history][::4]
    assert len(questions) > 60
    vectors = (await both.embedder.embed([q.text for q in questions])).vectors
    swapped = 0
    for question, vector in zip(questions, vectors, strict=True):
        query = Query(question.text, tuple(map(float, vector)), tuple(analyse(question.text)))
        rankings: tuple[Rankings, Rankings] = (
            await both.memory.search(query, **arguments),
            await both.postgres.search(query, **arguments),
        )
        memory, postgres = rankings
        assert same_order(memory.lexical, postgres.lexical, 1e-6), question.text
        assert same_order(memory.dense, postgres.dense, 1e-4), question.text
        for a, b in zip(memory.dense, postgres.dense, strict=True):
            assert abs(a.score - b.score) <= 1e-3
        served = [hit.chunk.id for hit in fuse(postgres, parameters)]
        swapped += [hit.chunk.id for hit in fuse(memory, parameters)] != served
    assert swapped <= len(questions) * 0.02, "fused lists differ only by near-ties"


async def test_served_chunks_are_the_evaluated_ones(both: Both, database: Database) -> None:
    tenant = both.postgres.tenant_id
    async with database.tenant(tenant) as session:
        stored = set(await session.scalars(sa.select(db.chunks.c.id)))
    assert stored == {c.id for c in both.memory.chunks}


def release_of(package: Path) -> str:
    code = "from support_rag.release import load_release as r; print(r().id, r().index_digest)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=package, check=True, capture_output=True, text=True,
        timeout=60, env={"PYTHONPATH": str(package)},
    )  # fmt: skip
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("module", "reindex"), [("pgindex", False), ("gate", False), ("chunk", True)]
)
def test_one_edited_line_changes_the_release(tmp_path: Path, module: str, reindex: bool) -> None:
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "support_rag", tmp_path / "support_rag", ignore=ignored)
    for name in ("settings.ini", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    before = release_of(tmp_path).split()
    edited = tmp_path / f"support_rag/{module}.py"
    text = edited.read_text()
    edited.write_text(text + "\n# a comment changes nothing that runs\n")
    assert release_of(tmp_path).split() == before
    changed = (
        text.replace("ORDER BY", "ORDER  BY", 1) if module == "pgindex" else text + "\nX = 1\n"
    )
    assert changed != text
    edited.write_text(changed)
    after = release_of(tmp_path).split()
    assert after[0] != before[0]
    assert (after[1] != before[1]) is reindex


def test_ids_do_not_depend_on_the_process() -> None:
    assert np.isfinite(int(load_release().id, 16))
    assert release_of(ROOT).split()[0] == load_release().id
