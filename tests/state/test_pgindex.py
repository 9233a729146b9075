"""The PostgreSQL index ranks exactly as the one in memory, whatever was written before."""

import asyncio
import math
import os
import random
import uuid
from dataclasses import replace
from pathlib import Path

import bm25s
import numpy as np
import psycopg
import pytest
import sqlalchemy as sa

from support_rag.evaluation.labels import load_labels, sample
from support_rag.evaluation.metrics import ndcg_at_k
from support_rag.language.analyse import analyse
from support_rag.language.spelling import doubtful_terms
from support_rag.release import resource
from support_rag.retrieve import InMemoryIndex
from support_rag.state import lexical, pgindex, store, tables
from support_rag.state.database import Database, create_database, driver
from support_rag.state.lexical import FAN_IN, merge_segments
from support_rag.state.pgindex import PgIndex, add_chunks
from support_rag.types import (
    Chunk,
    EmbeddingFailed,
    InputInvalid,
    NotFound,
    Query,
    Rankings,
    Span,
    chunk_id,
)

SEARCH = {"candidates": 10, "k1": 1.2, "b": 0.75}
ROOT = Path(__file__).parents[2]
LABELLED = ROOT / os.environ.get("SUPPORT_RAG_LABELLED", "../shared/labelled")
WORDS = [
    "kiosk",
    "offline",
    "punch",
    "invoice",
    "shift",
    "error",
    "E-4012",
    "v2.3.1",
    "rota",
    "pin",
]
DIM = 8


def unit(rng: np.random.Generator, n: int, dim: int) -> np.ndarray:
    vectors = rng.normal(size=(n, dim))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def query_of(text: str, vector: np.ndarray) -> Query:
    terms = tuple(analyse(text))
    return Query(text, tuple(float(x) for x in vector), terms, doubtful_terms(text))


class Corpus:
    "One index of one tenant, with a copy of what it should hold."

    def __init__(self, database: Database, tenant_id: str, index_id: str, dim: int = DIM) -> None:
        self.database, self.tenant_id, self.index_id, self.dim = database, tenant_id, index_id, dim
        self.index = PgIndex(database, tenant_id=tenant_id, index_id=index_id, dim=dim)
        self.held: dict[str, tuple[list[Chunk], np.ndarray]] = {}

    @classmethod
    async def create(cls, database: Database, dim: int = DIM) -> "Corpus":
        tenant_id = str(uuid.uuid4())
        async with database.tenant(tenant_id) as session:
            await store.create_tenant(session, tenant_id=tenant_id, name="T")
            index = await store.create_index(
                session, tenant_id=tenant_id, digest="d", dim=dim, model="m", parameters={}
            )
        return cls(database, tenant_id, index.id, dim)

    async def add_document(self, session, texts: list[str], vectors, document_id=None) -> str:
        "Write a document, or replace one, in the session's transaction."
        if document_id is None:
            document, _ = await store.accept_document(
                session, tenant_id=self.tenant_id, title="Title", content_type="text/plain",
                content=b"", source=str(uuid.uuid4()),
            )  # fmt: skip
            document_id, source = document.id, document.source
        else:
            document = await store.get_document(
                session, tenant_id=self.tenant_id, document_id=document_id
            )
            source = document.source
            await store.delete_chunks(session, tenant_id=self.tenant_id, document_id=document_id)
        chunks, start = [], 0
        for ordinal, text in enumerate(texts):
            span = Span(start, start + len(text))
            chunks.append(
                Chunk(
                    chunk_id(document_id, span, text), document_id, span, text, ("Guide",),
                    n_tokens=len(text), ordinal=ordinal, title="Title", source=source,
                    lead="Offline | Punches\n--- | ---\n" if ordinal % 3 == 1 else "",
                )
            )  # fmt: skip
            start += len(text) + 1
        await add_chunks(
            session, tenant_id=self.tenant_id, index_id=self.index_id, document_id=document_id,
            chunks=chunks, vectors=vectors,
        )  # fmt: skip
        self.held[document_id] = (chunks, vectors)
        return document_id

    async def write(self, texts: list[str], vectors=None, document_id=None) -> str:
        vectors = unit(np.random.default_rng(len(self.held)), len(texts), self.dim) if (
            vectors is None
        ) else vectors  # fmt: skip
        async with self.database.tenant(self.tenant_id) as session:
            return await self.add_document(session, texts, vectors, document_id)

    async def delete(self, document_id: str) -> None:
        async with self.database.tenant(self.tenant_id) as session:
            await store.delete_document(session, tenant_id=self.tenant_id, document_id=document_id)
        del self.held[document_id]

    async def merge(self, everything: bool = False) -> int:
        async with self.database.tenant(self.tenant_id) as session:
            return await merge_segments(
                session, tenant_id=self.tenant_id, index_id=self.index_id, everything=everything
            )

    async def count(self, table: sa.Table) -> int:
        async with self.database.tenant(self.tenant_id) as session:
            return await session.scalar(sa.select(sa.func.count()).select_from(table))

    def in_memory(self) -> InMemoryIndex:
        chunks = [c for held, _ in self.held.values() for c in held]
        vectors = [v for _, held in self.held.values() for v in held]
        return InMemoryIndex(chunks, np.array(vectors).reshape(len(chunks), self.dim))

    async def check(self, *queries: Query, **search) -> None:
        "Both indexes give the same chunks in the same order with the same scores."
        memory = self.in_memory()
        for query in queries:
            here = await self.index.search(query, **(SEARCH | search))
            there = await memory.search(query, **(SEARCH | search))
            same(here, there)


def same(here: Rankings, there: Rankings) -> None:
    assert [s.chunk for s in here.lexical] == [s.chunk for s in there.lexical]
    for one, other in zip(here.lexical, there.lexical, strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-9)
    assert here.lexical_limit == pytest.approx(there.lexical_limit, abs=1e-9)
    assert here.unmatched_limit == pytest.approx(there.unmatched_limit, abs=1e-9)
    ours = {s.chunk.id: s.score for s in here.dense}
    assert len(here.dense) == len(there.dense)
    last = there.dense[-1].score if there.dense else 0.0
    for one, other in zip(here.dense, there.dense, strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-6)
        if other.score > last + 1e-6:  # a tie for the last place may go either way
            assert ours[other.chunk.id] == pytest.approx(other.score, abs=1e-6)
    if ours.keys() == {s.chunk.id for s in there.dense}:
        for rest, other_rest in (
            (here.dense_rest, there.dense_rest),
            (here.lexical_rest, there.lexical_rest),
        ):
            scores = {s.chunk: s.score for s in rest}
            assert scores == pytest.approx({s.chunk: s.score for s in other_rest}, abs=1e-6)


@pytest.fixture
async def corpus(database):
    return await Corpus.create(database)


# --- the same as in memory


@pytest.mark.parametrize("seed", range(6))
async def test_rankings_are_exact_after_any_sequence_of_changes(corpus, seed):
    rng, numbers = random.Random(seed), np.random.default_rng(seed)
    choices = ["add"] * 5 + ["replace"] * 2 + ["delete"] * 2 + ["merge", "merge all"]

    def texts() -> list[str]:
        n = rng.choice([1, 1, 2, 5])
        found = [" ".join(rng.choices(WORDS, k=rng.choice([0, 1, 3, 20]))) for _ in range(n)]
        return [text or "the !" for text in found]

    for step in range(60):
        action = rng.choice(choices)
        if action == "add":
            new = texts()
            await corpus.write(new, unit(numbers, len(new), DIM))
        elif action.startswith("merge"):
            await corpus.merge(everything=action == "merge all")
        elif corpus.held:
            document_id = rng.choice(sorted(corpus.held))
            if action == "delete":
                await corpus.delete(document_id)
            else:
                new = texts()
                await corpus.write(new, unit(numbers, len(new), DIM), document_id)
        if step % 4 == 3:
            question = " ".join(rng.choices([*WORDS, "unknown", "the"], k=rng.choice([1, 2, 6])))
            await corpus.check(query_of(question, unit(numbers, 1, DIM)[0]))
    await corpus.merge(everything=True)
    assert await corpus.count(tables.dead) == 0
    for word in WORDS:
        await corpus.check(query_of(f"{word} kiosk", unit(numbers, 1, DIM)[0]), k1=0.9, b=0.4)


async def test_misspelled_words_are_corrected_as_in_memory(corpus):
    texts = [
        "Refunds of a refundable order", "refudns", "Die Kündigung und die Kuendigung",
        "wifi and stock", "room service", "certificates certify", "ertificate", "cretonne",
    ]  # fmt: skip
    ids = [await corpus.write([text]) for text in texts]
    questions = [
        "refudn", "refnud order", "reefundable", "Kundigung", "Kündigungen", "wi fi", "stockroom",
        "certifacte", "ecrtificate", "certificcate zzqqxx", "roooms", "K-3301", "the morning",
    ]  # fmt: skip
    queries = [query_of(text, np.ones(DIM)) for text in questions]
    await corpus.check(*queries)
    await corpus.delete(ids[1])
    await corpus.delete(ids[6])
    await corpus.check(*queries)
    await corpus.merge(everything=True)
    await corpus.check(*queries)
    found = await corpus.index.search(queries[0], **SEARCH)
    assert found.lexical[0].chunk.document_id == ids[0]


async def test_ties_go_to_the_smaller_source(corpus):
    vector = unit(np.random.default_rng(1), 1, DIM)
    for _ in range(15):
        await corpus.write(["kiosk offline"], vector)
    query = query_of("kiosk", vector[0])
    rankings = await corpus.index.search(query, **SEARCH)
    for ranking in (rankings.dense, rankings.lexical):
        sources = [scored.chunk.source for scored in ranking]
        everything = sorted(c.source for chunks, _ in corpus.held.values() for c in chunks)
        assert sources == everything[:10]


async def test_edges(corpus):
    empty = await corpus.index.search(query_of("kiosk", np.ones(DIM)), **SEARCH)
    assert empty == Rankings((), ())
    await corpus.write(["the !"])  # no term at all
    rankings = await corpus.index.search(query_of("kiosk", np.ones(DIM)), **SEARCH)
    assert (len(rankings.dense), rankings.lexical) == (1, ())
    await corpus.write(["kiosk", "kiosk kiosk"], np.array([-np.ones(DIM), np.ones(DIM)]))
    for text in ("kiosk", "kiosk kiosk offline", "the", "nothing known"):
        await corpus.check(query_of(text, np.ones(DIM)), query_of(text, -np.ones(DIM)))
    await corpus.check(query_of("kiosk", np.ones(DIM)), k1=0.0)
    await corpus.check(query_of("kiosk", np.ones(DIM)), b=0.0)
    await corpus.check(query_of("kiosk", np.ones(DIM)), candidates=1)


async def test_everything_a_chunk_carries_comes_back(corpus):
    await corpus.write(["Kiosks keep punches.\r\nGrüße 勤務 🦊"])
    [(chunks, _)] = corpus.held.values()
    rankings = await corpus.index.search(query_of("punches", np.ones(DIM)), **SEARCH)
    assert [s.chunk for s in rankings.dense] == [s.chunk for s in rankings.lexical] == chunks
    assert all(math.isfinite(s.score) for s in (*rankings.dense, *rankings.lexical))


async def test_a_lead_is_stored_ranked_and_in_no_span(corpus):
    await corpus.write(["Kiosks keep them.", "72 hours", "Never."])
    rankings = await corpus.index.search(query_of("offline", np.ones(DIM)), **SEARCH)
    [found] = [s.chunk for s in rankings.lexical]
    assert found.lead.startswith("Offline") and found.text == "72 hours"
    assert found.shown_text == found.lead + found.text and len(found.span) == len(found.text)
    await corpus.check(
        query_of("offline punches kiosk", np.ones(DIM)), query_of("72", np.ones(DIM))
    )


async def test_two_indexes_of_a_tenant_do_not_mix(corpus):
    await corpus.write(["kiosk offline"])
    async with corpus.database.tenant(corpus.tenant_id) as session:
        other = await store.create_index(
            session, tenant_id=corpus.tenant_id, digest="e", dim=4, model="m", parameters={}
        )
        [document_id] = corpus.held
        text = "kiosk kiosk"
        await add_chunks(
            session, tenant_id=corpus.tenant_id, index_id=other.id, document_id=document_id,
            chunks=[Chunk(chunk_id("x", Span(0, 11), text), document_id, Span(0, 11), text)],
            vectors=np.ones((1, 4)),
        )  # fmt: skip
    second = PgIndex(corpus.database, tenant_id=corpus.tenant_id, index_id=other.id, dim=4)
    found = await second.search(query_of("kiosk", np.ones(4)), **SEARCH)
    assert [s.chunk.text for s in found.lexical] == ["kiosk kiosk"]
    await corpus.check(query_of("kiosk", np.ones(DIM)))
    async with corpus.database.tenant(corpus.tenant_id) as session:
        where = {"tenant_id": corpus.tenant_id, "document_id": document_id}
        assert await store.delete_chunks(session, **where, index_id=other.id) == 1
    await corpus.check(query_of("kiosk", np.ones(DIM)))


# --- what is refused


async def test_unusable_vectors_and_texts_are_refused_before_anything_is_written(corpus):
    for vectors, what in (
        (np.ones((2, DIM)), rf"1 vectors of {DIM} dimensions are needed, not \(2, {DIM}\)"),
        (np.ones(DIM), r"are needed, not \(8,\)"),
        (np.ones((1, 3)), r"are needed, not \(1, 3\)"),
        (np.zeros((1, DIM)), "only zeros"),
        (np.full((1, DIM), np.nan), "NaN"),
        (np.full((1, DIM), 1e6), "65,504"),
    ):
        with pytest.raises(EmbeddingFailed, match=what):
            await corpus.write(["kiosk"], vectors)
    for wrong in (np.ones(3), np.zeros(DIM), np.full(DIM, np.nan)):
        with pytest.raises(EmbeddingFailed):
            await corpus.index.search(query_of("kiosk", wrong), **SEARCH)
    with pytest.raises(InputInvalid, match="cannot be stored"):
        await corpus.write(["kiosk\x00"])
    assert await corpus.count(tables.chunks) == await corpus.count(tables.segments) == 0


async def test_an_unknown_index_is_not_found(database, corpus):
    other = await Corpus.create(database)
    corpus.index_id = other.index_id  # another tenant's, and alive
    with pytest.raises(NotFound):
        await corpus.write(["kiosk"])
    foreign = PgIndex(database, tenant_id=corpus.tenant_id, index_id=other.index_id, dim=DIM)
    await other.write(["kiosk"])
    assert await foreign.search(query_of("kiosk", np.ones(DIM)), **SEARCH) == Rankings((), ())


# --- many at once


async def test_writers_do_not_wait_for_each_other(corpus):
    async with corpus.database.tenant(corpus.tenant_id) as slow:
        held = await corpus.add_document(slow, ["kiosk slow"], np.ones((1, DIM)))
        unseen = corpus.held.pop(held)
        for n in range(3):  # each commits while the first is still open
            await asyncio.wait_for(corpus.write([f"kiosk {n}"]), timeout=120)
        await corpus.check(query_of("kiosk slow", np.ones(DIM)))
    corpus.held[held] = unseen
    await corpus.check(query_of("kiosk slow", np.ones(DIM)))


async def test_a_replacement_is_seen_whole_or_not_at_all(corpus):
    document_id = await corpus.write(["kiosk old", "punch old"])
    async with corpus.database.tenant(corpus.tenant_id) as session:
        old = dict(corpus.held)
        await corpus.add_document(session, ["kiosk new"], np.ones((1, DIM)), document_id)
        new, corpus.held = corpus.held, old
        await corpus.check(query_of("kiosk punch new old", np.ones(DIM)))
    corpus.held = new
    await corpus.check(query_of("kiosk punch new old", np.ones(DIM)))


async def test_deletes_and_inserts_during_a_merge_are_kept(corpus):
    ids = [await corpus.write([f"kiosk {WORDS[n % 10]}"]) for n in range(FAN_IN)]
    await corpus.delete(ids[0])
    async with corpus.database.tenant(corpus.tenant_id) as session:
        where = {"tenant_id": corpus.tenant_id, "index_id": corpus.index_id}
        assert await merge_segments(session, **where) == FAN_IN
        assert await corpus.merge(everything=True) == 0, "one merge at a time"
        await corpus.delete(ids[1])
        await corpus.write(["kiosk late"])
        await corpus.check(query_of("kiosk late offline", np.ones(DIM)))
    assert await corpus.count(tables.segments) == 2
    assert await corpus.count(tables.dead) == 1
    await corpus.check(query_of("kiosk late offline", np.ones(DIM)))


async def test_many_writers_mergers_and_searches_at_once(app_url):
    database = create_database(app_url, pool_size=12, pool_timeout_seconds=60)
    corpus, done = await Corpus.create(database), asyncio.Event()
    searches = 0

    async def write(seed: int) -> None:
        rng, mine = random.Random(seed), []
        for _ in range(25):
            if mine and rng.random() < 0.3:
                await corpus.delete(mine.pop(rng.randrange(len(mine))))
            else:
                known = rng.choice(mine) if mine and rng.random() < 0.4 else None
                texts = [" ".join(rng.choices(WORDS, k=6)) for _ in range(rng.choice([1, 4]))]
                written = await corpus.write(
                    texts, unit(np.random.default_rng(seed), len(texts), DIM), known
                )
                mine += [written] if known is None else []
            await corpus.merge(everything=rng.random() < 0.1)

    async def search() -> None:
        nonlocal searches
        while not done.is_set():
            found = await corpus.index.search(query_of("kiosk E-4012 pin", np.ones(DIM)), **SEARCH)
            assert all(scored.chunk.text for scored in (*found.dense, *found.lexical))
            searches += 1

    readers = [asyncio.create_task(search()) for _ in range(2)]
    await asyncio.gather(*(write(seed) for seed in range(6)))
    done.set()
    await asyncio.gather(*readers)
    assert searches > 10
    for word in WORDS:
        await corpus.check(query_of(f"{word} shift", np.ones(DIM)))
    await database.close()


# --- merging


async def test_segments_stay_few_and_the_dead_are_dropped(corpus):
    for n in range(FAN_IN**2 + 3):
        await corpus.write([f"kiosk {WORDS[n % 10]}"])
        await corpus.merge()
    assert await corpus.count(tables.segments) <= 2 * FAN_IN
    for document_id in list(corpus.held)[:25]:
        await corpus.delete(document_id)
    assert await corpus.count(tables.dead) == 25
    await corpus.merge()
    assert (await corpus.count(tables.dead), await corpus.count(tables.segments)) == (0, 1)
    await corpus.check(query_of("kiosk offline", np.ones(DIM)))
    for document_id in list(corpus.held):
        await corpus.delete(document_id)
    await corpus.merge(everything=True)
    for table in (tables.dead, tables.segments, tables.postings):
        assert await corpus.count(table) == 0


# --- tenants beside each other


STATEMENTS = {
    name: getattr(module, name).replace("DIM", "384")
    for module, names in {
        lexical: "STATISTICS POSTINGS TRY_LOCK SEGMENTS JOINED "
        "DROP_POSTINGS DROP_SEGMENTS DROP_DEAD",
        pgindex: "NUMBERS PLACES EXACT TIED APPROXIMATE CHUNKS NUMBERED",
    }.items()
    for name in names.split()
}


@pytest.mark.parametrize("name", STATEMENTS)
async def test_each_statement_names_tenant_and_index(database, unprotected, name):
    """A statement finds the same with and without row-level security.

    Another tenant has documents and chunks with the same ids. What a statement may name beside
    tenant and index is given for both tenants. So each condition is needed.
    """
    mine, theirs = [await Corpus.create(database, dim=384) for _ in range(2)]
    for text in ("kiosk offline", "punch", "kiosk gone"):
        id_, vector = str(uuid.uuid4()), unit(np.random.default_rng(1), 1, 384)
        for corpus in (mine, theirs):
            row = {"source": id_, "title": "", "content_type": "", "content": b"", "id": id_}
            async with database.tenant(corpus.tenant_id) as session:
                row |= {"content_hash": "", "tenant_id": corpus.tenant_id}
                await session.execute(sa.insert(tables.documents).values(**row))
                await corpus.add_document(session, [text], vector, id_)
    values = {"terms": ["kiosk", ""], "candidates": 100, "n": 1, "embedding": str([1.0] * 384)}
    values |= {"segments": [], "numbers": [], "ids": [], "last": 2.0}
    values |= {"documents": [] if name == "NUMBERED" else None}
    for corpus in (mine, theirs):
        await corpus.delete(id_)
        async with database.tenant(corpus.tenant_id) as session:
            values["segments"] += await session.scalars(sa.select(tables.segments.c.id))
            values["numbers"] += await session.scalars(sa.select(tables.chunks.c.number))
            values["numbers"] += await session.scalars(sa.select(tables.dead.c.number))
            values["ids"] += await session.scalars(sa.select(tables.chunks.c.id))
            if values["documents"] is not None:
                values["documents"] += await session.scalars(sa.select(tables.documents.c.id))

    async def found(connected: Database, place: dict[str, str]) -> list[tuple]:
        statement = STATEMENTS[name] + (" RETURNING *" if name.startswith("DROP") else "")
        async with connected.tenant(place["tenant_id"]) as session:
            rows = await lexical.read(session, statement, values | place)
            await session.rollback()
        return sorted(row[1:] if name == "NUMBERS" else row for row in rows)

    bound = []
    for tenant, index in ((mine, mine), (mine, theirs), (theirs, mine), (theirs, theirs)):
        place = {"tenant_id": tenant.tenant_id, "index_id": index.index_id}
        bound.append(await found(database, place))
        assert await found(unprotected, place) == bound[-1]
    own, crossed, *_ = bound
    assert own != crossed == ([(0, 0, [], b"")] if name == "STATISTICS" else [])


async def test_nothing_crosses_tenants_without_row_level_security(unprotected):
    mine, theirs = await Corpus.create(unprotected), await Corpus.create(unprotected)
    await mine.write(["kiosk offline"])
    await theirs.write(["kiosk kiosk kiosk", "offline"])
    await theirs.write(["kiosk gone"])
    place = {"tenant_id": mine.tenant_id, "index_id": theirs.index_id}
    crossed = PgIndex(unprotected, **place, dim=DIM)
    assert await crossed.search(query_of("kiosk", np.ones(DIM)), **SEARCH) == Rankings((), ())
    async with unprotected.tenant(mine.tenant_id) as session:
        ids = [c.id for chunks, _ in theirs.held.values() for c in chunks]
        nothing = (np.zeros(0, np.uint32), np.zeros(0))
        query = query_of("kiosk", np.ones(DIM))
        found = pgindex.read_found(session, ids, query=query, scored=nothing, place=place)
        assert await found == {}
        assert await merge_segments(session, **place, everything=True) == 0
        with pytest.raises(NotFound):
            await add_chunks(
                session, **place, document_id=next(iter(mine.held)),
                chunks=mine.held[next(iter(mine.held))][0], vectors=np.ones((1, DIM)),
            )  # fmt: skip
    await theirs.check(query_of("kiosk offline", np.ones(DIM)))
    await mine.check(query_of("kiosk offline", np.ones(DIM)))


BIG, HNSW_DIM, SMALL = 40_000, 384, (1, 20, 100)
EIGHT = SEARCH | {"candidates": 8}


@pytest.fixture(scope="module")
def big_beside_small(owner_url, app_url):
    "Tenants of 1, 20 and 100 chunks beside one of 40,000, with the graph built last."
    rng = np.random.default_rng(7)

    async def fill(database: Database, n: int) -> Corpus:
        corpus = await Corpus.create(database, HNSW_DIM)
        async with database.tenant(corpus.tenant_id) as session:
            document_id = await corpus.add_document(session, [], np.zeros((0, HNSW_DIM)))
        owner = tuple(map(uuid.UUID, (corpus.tenant_id, corpus.index_id, document_id)))
        span = Span(0, 5)
        for start in range(0, n, 5_000):
            vectors = unit(rng, min(5_000, n - start), HNSW_DIM).astype(np.float16)
            rows = (
                pgindex.as_row(
                    Chunk(str(uuid.uuid4()), document_id, span, "kiosk"), start + at, 1, vector,
                    owner=owner,
                )
                for at, vector in enumerate(vectors)
            )  # fmt: skip
            async with database.tenant(corpus.tenant_id) as session:
                await pgindex.copy_rows(session, rows)
        async with database.tenant(corpus.tenant_id) as session:
            await session.execute(
                sa.insert(tables.segments).values(
                    tenant_id=corpus.tenant_id, index_id=corpus.index_id, n_chunks=n, n_terms=n
                )
            )
        return corpus

    async def fill_all() -> dict[int, tuple[str, str]]:
        database = create_database(app_url, statement_timeout_seconds=120)
        made = {n: await fill(database, n) for n in (*SMALL, BIG)}
        await database.close()
        return {n: (corpus.tenant_id, corpus.index_id) for n, corpus in made.items()}

    graph = f"chunks_hnsw_{HNSW_DIM}"
    with psycopg.connect(owner_url, autocommit=True) as owner:
        [(definition,)] = owner.execute(
            "SELECT indexdef FROM pg_indexes WHERE indexname = %s", [graph]
        ).fetchall()
        owner.execute(f"DROP INDEX {graph}")
        places = asyncio.run(fill_all())
        owner.execute("SET maintenance_work_mem = '256MB'")
        owner.execute(definition)
        owner.execute("ANALYZE chunks")
        yield places
        # The application's role deletes; the graph of 40,000 vectors goes with them.
        owner.execute(f"DROP INDEX {graph}")
        for tenant_id, index_id in places.values():
            with owner.transaction():
                owner.execute("SELECT set_config('app.tenant_id', %s, true)", [tenant_id])
                owner.execute("DELETE FROM indexes WHERE id = %s", [index_id])
        owner.execute(definition)


async def nearest(database: Database, place: tuple[str, str], vector: np.ndarray) -> set[str]:
    "Return the eight nearest chunks, computed here."
    async with database.tenant(place[0]) as session:
        c = tables.chunks.c
        where = sa.and_(c.tenant_id == place[0], c.index_id == place[1])
        rows = (await session.execute(sa.select(c.id, c.embedding).where(where))).all()
    vectors = np.array([row[1] for row in rows], dtype=np.float64)
    halved = vector.astype(np.float16).astype(np.float64)
    best = np.argsort(-(vectors @ halved) / np.linalg.norm(vectors, axis=1))[:8]
    return {rows[at][0] for at in best}


async def test_small_tenants_keep_their_recall_beside_a_big_one(big_beside_small, app_url):
    database = create_database(app_url, pool_size=1)  # everyone on the same connection
    rng = np.random.default_rng(11)
    indexes = {
        n: PgIndex(database, tenant_id=tenant_id, index_id=index_id, dim=HNSW_DIM)
        for n, (tenant_id, index_id) in big_beside_small.items()
    }

    async def check_small() -> None:
        for n in SMALL:
            vectors = unit(rng, 5, HNSW_DIM)
            for vector in vectors:
                found = await indexes[n].search(query_of("", vector), **EIGHT)
                assert len(found.dense) == min(8, n)
                exact = await nearest(database, big_beside_small[n], vector)
                assert {scored.chunk.id for scored in found.dense} == exact

    await check_small()
    for vector in unit(rng, 50, HNSW_DIM):
        found = await indexes[BIG].search(query_of("", vector), **EIGHT)
        assert len(found.dense) == 8
    await check_small()
    async with database.tenant(big_beside_small[BIG][0]) as session:
        place = dict(zip(("tenant_id", "index_id"), big_beside_small[BIG], strict=True))
        values = place | {"embedding": str(unit(rng, 1, HNSW_DIM)[0].tolist()), "candidates": 8}
        values |= {"documents": None}
        statement = pgindex.APPROXIMATE.replace("DIM", str(HNSW_DIM))
        plan = await lexical.read(session, f"EXPLAIN {statement}", values)
    assert f"chunks_hnsw_{HNSW_DIM}" in str(plan), "the big one was searched through the graph"
    await database.close()


async def test_a_graph_that_finds_too_few_is_not_believed(big_beside_small, app_url, monkeypatch):
    database = create_database(app_url)
    narrow = "SELECT set_config('hnsw.iterative_scan', 'off', true), set_config(%s, '1', true)"
    monkeypatch.setattr(pgindex, "WIDEN", narrow.replace("%s", "'hnsw.ef_search'"))
    place = big_beside_small[BIG]
    vector = unit(np.random.default_rng(3), 1, HNSW_DIM)[0]
    values = {"tenant_id": place[0], "index_id": place[1], "candidates": 8}
    values |= {"embedding": str(vector.tolist()), "documents": None}
    async with database.tenant(place[0]) as session:
        few = await pgindex.approximate_ranking(session, values, dim=HNSW_DIM)
        assert len(few) < 8, "the fault is there"
        found, exact = [
            await pgindex.dense_ranking(
                session, query_of("", vector), place=values, n_chunks=n_chunks, candidates=8
            )
            for n_chunks in (BIG, pgindex.EXACT_UP_TO)
        ]
    assert len(found) == 8 and found == exact
    await database.close()


async def test_the_search_setting_ends_with_its_transaction(big_beside_small, app_url):
    database = create_database(app_url, pool_size=1)
    tenant_id, index_id = big_beside_small[BIG]
    index = PgIndex(database, tenant_id=tenant_id, index_id=index_id, dim=HNSW_DIM)
    await index.search(query_of("", np.ones(HNSW_DIM)), **SEARCH)
    async with database.system() as session:
        connection = await driver(session)
        for setting, default in (("hnsw.iterative_scan", "off"), ("hnsw.ef_search", "40")):
            row = await (await connection.execute(f"SHOW {setting}")).fetchone()
            assert row == (default,)
    await database.close()


# --- against another implementation


SETS = {"help_centre": resource("data/help_centre"), "scifact_beir": LABELLED / "scifact_beir"}
PRESENT = [name for name, folder in SETS.items() if folder.is_dir()]


@pytest.mark.parametrize("name", PRESENT)
async def test_rankings_are_those_of_bm25s_and_of_the_index_in_memory(database, name):
    """Each document is one chunk, so that documents can be ranked. All of it: bench_pgindex."""
    labels = sample(load_labels(SETS[name]), 200, distractors=800)
    corpus, keys = await Corpus.create(database), {}
    for start in range(0, len(labels.corpus), 100):
        some = labels.corpus[start : start + 100]
        texts = [f"{document.title} {document.text}" for document in some]
        id_ = await corpus.write(texts, np.ones((len(texts), DIM)))
        for chunk, document in zip(corpus.held[id_][0], some, strict=True):
            keys[chunk.id] = document.id
    memory = corpus.in_memory()
    reference = bm25s.BM25(method="lucene", k1=SEARCH["k1"], b=SEARCH["b"])
    reference.index([analyse(c.embedded_text) for c in memory.chunks], show_progress=False)
    ours, theirs = [], []
    for question in labels.questions:
        if not (qrels := labels.qrels.get(question.id)):
            continue
        query = query_of(question.text, np.ones(DIM))
        same(await corpus.index.search(query, **SEARCH), await memory.search(query, **SEARCH))
        uncorrected = replace(query, doubtful=())  # bm25s corrects no word
        found = await corpus.index.search(uncorrected, **SEARCH)
        ours.append(ndcg_at_k([keys[s.chunk.id] for s in found.lexical], qrels, k=10))
        ranked, _ = reference.retrieve([list(query.terms)], k=10, show_progress=False)
        theirs.append(ndcg_at_k([keys[memory.chunks[at].id] for at in ranked[0]], qrels, k=10))
    assert len(ours) > 100
    assert np.mean(ours) == pytest.approx(np.mean(theirs), abs=0.005)
    assert np.mean(ours) > 0.5, "they found something"
