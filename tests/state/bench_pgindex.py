"""Measure the index in PostgreSQL; run by hand on a quiet machine, never by pytest.

    python -m tests.state.bench_pgindex quality        nDCG@10 beside bm25s, and equality in memory
    python -m tests.state.bench_pgindex speed 1000 50000  load rate, segments, size, latency
    python -m tests.state.bench_pgindex writers 20000      load rate and latency while both happen
    python -m tests.state.bench_pgindex crossover 5000 10000 20000 50000    exact against the graph

It starts servers of its own. Text is made of shuffled sentences of `scifact_beir`, where
SUPPORT_RAG_LABELLED has it, else of the sample help centre; vectors are mixtures of embedded
chunks of it. Each figure is a median and a 95th percentile over n.
"""

import asyncio
import os
import platform
import re
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import bm25s
import numpy as np
import psycopg

from support_rag.embed import load_embedder
from support_rag.evaluation.labels import load_labels
from support_rag.evaluation.metrics import ndcg_at_k
from support_rag.language.analyse import analyse
from support_rag.local.servers import Running, local_servers
from support_rag.release import EmbedParameters, resource
from support_rag.retrieve import InMemoryIndex
from support_rag.state import pgindex, store
from support_rag.state.database import Database, create_database, migrate
from support_rag.state.lexical import merge_segments, read_matches
from support_rag.state.pgindex import PgIndex, add_chunks, lexical_ranking, read_chunks
from support_rag.types import Chunk, Query, Span, chunk_id

ROOT = Path(__file__).parents[2]
SCIFACT = ROOT / os.environ.get("SUPPORT_RAG_LABELLED", "../shared/labelled") / "scifact_beir"
HELP_CENTRE = resource("data/help_centre")
DIM, CANDIDATES, K1, B = 384, 50, 1.2, 0.75
DOCUMENT = 20  # chunks
BASE = 1500  # embedded chunks that vectors are mixed from


def spread(seconds: list[float]) -> str:
    "Return median and 95th percentile in milliseconds."
    p50, p95 = np.percentile(np.array(seconds) * 1000, [50, 95])
    return f"p50 {p50:6.2f}  p95 {p95:6.2f} ms  n={len(seconds)}"


async def timed(work: Callable[[Query], Awaitable[object]], queries: list[Query]) -> list[float]:
    for query in queries[:20]:
        await work(query)
    taken = []
    for query in queries:
        started = time.perf_counter()
        await work(query)
        taken.append(time.perf_counter() - started)
    return taken


class Source:
    "Endless text and vectors, and questions about them."

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        labels = load_labels(SCIFACT if SCIFACT.is_dir() else HELP_CENTRE)
        texts = (document.text for document in labels.corpus)
        self.sentences = [s for text in texts for s in re.split(r"(?<=[.!?])\s+", text) if s]
        self.questions = [question.text for question in labels.questions]
        self.base = np.zeros((0, DIM))
        self.asked = np.zeros((0, DIM))

    def text(self) -> str:
        return " ".join(self.sentences[i] for i in self.rng.integers(len(self.sentences), size=6))

    async def embed(self) -> None:
        "Embed some chunks and questions, so that vectors lie as those of text do."
        embedder = load_embedder(EmbedParameters())
        self.base = (await embedder.embed([self.text() for _ in range(BASE)])).vectors
        self.asked = (await embedder.embed(self.questions[:100])).vectors

    def vectors(self, n: int) -> np.ndarray:
        found = self.rng.normal(size=(n, DIM))
        if len(self.base):
            first, second = self.base[self.rng.integers(len(self.base), size=(2, n))]
            share = self.rng.beta(2, 1, size=(n, 1))
            found = share * first + (1 - share) * second + 0.01 * found
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    def queries(self, n: int) -> list[Query]:
        rows = self.asked if len(self.asked) else self.vectors(n)
        texts = (self.questions[i] for i in self.rng.integers(len(self.questions), size=n))
        return [
            Query(text, tuple(map(float, rows[at % len(rows)])), tuple(analyse(text)))
            for at, text in enumerate(texts)
        ]


@dataclass
class Place:
    tenant_id: str
    index_id: str

    def index(self, database: Database) -> PgIndex:
        return PgIndex(database, tenant_id=self.tenant_id, index_id=self.index_id, dim=DIM)


async def create_place(database: Database) -> Place:
    tenant_id = str(uuid.uuid4())
    async with database.tenant(tenant_id) as session:
        await store.create_tenant(session, tenant_id=tenant_id, name="T")
        index = await store.create_index(
            session, tenant_id=tenant_id, digest="d", dim=DIM, model="m", parameters={}
        )
    return Place(tenant_id, index.id)


def cut(document_id: str, source: str, texts: list[str]) -> Iterator[Chunk]:
    start = 0
    for ordinal, text in enumerate(texts):
        span = Span(start, start + len(text))
        id_ = chunk_id(document_id, span, text)
        yield Chunk(id_, document_id, span, text, ("Guide",), 200, ordinal, "Title", source)
        start += len(text) + 1


async def load_document(
    database: Database, at: Place, texts: list[str], vectors: np.ndarray
) -> str:
    "Store one document as a worker does, and merge what is due; return its id."
    async with database.tenant(at.tenant_id) as session:
        document, _ = await store.accept_document(
            session, tenant_id=at.tenant_id, title="Title", content_type="text/plain",
            content=b"", source=str(uuid.uuid4()),
        )  # fmt: skip
        await add_chunks(
            session, tenant_id=at.tenant_id, index_id=at.index_id, document_id=document.id,
            chunks=list(cut(document.id, document.source, texts)), vectors=vectors,
        )  # fmt: skip
    async with database.tenant(at.tenant_id) as session:
        await merge_segments(session, tenant_id=at.tenant_id, index_id=at.index_id)
    return document.id


async def load(
    database: Database, at: Place, source: Source, n: int, *, size: int = DOCUMENT
) -> float:
    "Load n chunks in documents of a size; return the seconds that storing them took."
    total = 0.0
    for _ in range(n // size):
        texts, vectors = [source.text() for _ in range(size)], source.vectors(size)
        started = time.perf_counter()
        await load_document(database, at, texts, vectors)
        total += time.perf_counter() - started
    return total


async def search_words(database: Database, at: Place, query: Query) -> None:
    "The lexical half of a search, with its chunks."
    place = {"tenant_id": at.tenant_id, "index_id": at.index_id}
    async with database.tenant(at.tenant_id, snapshot=True) as session:
        matches = await read_matches(session, query.terms, place)
        ranking = await lexical_ranking(
            session, matches, query, place=place, candidates=CANDIDATES, k1=K1, b=B
        )
        await read_chunks(session, ranking, place)


async def quality(running: Running) -> None:
    database = create_database(running.app_url)
    for folder in (HELP_CENTRE, SCIFACT):
        if not folder.is_dir():
            print(f"{folder.name}: not here")
            continue
        labels, at = load_labels(folder), await create_place(database)
        keys, chunks, vectors = {}, [], np.eye(1, DIM)
        for start in range(0, len(labels.corpus), 50):
            some = labels.corpus[start : start + 50]
            texts = [f"{document.title} {document.text}" for document in some]
            id_ = await load_document(database, at, texts, np.repeat(vectors, len(texts), axis=0))
            own = list(cut(id_, "", texts))
            keys |= {c.id: document.id for c, document in zip(own, some, strict=True)}
            chunks += own
        memory = InMemoryIndex(chunks, np.repeat(vectors, len(chunks), axis=0))
        reference = bm25s.BM25(method="lucene", k1=K1, b=B)
        reference.index([analyse(c.embedded_text) for c in memory.chunks], show_progress=False)
        ours, theirs, differing = [], [], 0
        for question in (q for q in labels.questions if labels.qrels.get(q.id)):
            qrels, terms = labels.qrels[question.id], tuple(analyse(question.text))
            query = Query(question.text, tuple(map(float, vectors[0])), terms)
            options = {"candidates": 10, "k1": K1, "b": B}
            found = [
                s.chunk.id for s in (await at.index(database).search(query, **options)).lexical
            ]
            differing += found != [
                s.chunk.id for s in (await memory.search(query, **options)).lexical
            ]
            ours.append(ndcg_at_k([keys[id_] for id_ in found], qrels, k=10))
            ranked, _ = reference.retrieve([list(terms)], k=10, show_progress=False)
            theirs.append(ndcg_at_k([keys[memory.chunks[i].id] for i in ranked[0]], qrels, k=10))
        difference = np.array(ours) - np.array(theirs)
        print(
            f"{folder.name}: {len(chunks)} chunks, n={len(ours)} questions, nDCG@10 here "
            f"{np.mean(ours):.4f}, bm25s {np.mean(theirs):.4f}, largest difference of a question "
            f"{np.abs(difference).max():.4f}; rankings that differ from memory: {differing}"
        )
    await database.close()


@contextmanager
def graph_last(owner_url: str) -> Iterator[None]:
    "Load inside the block without the graph, which is built after it."
    with psycopg.connect(owner_url, autocommit=True) as owner:
        [[definition]] = owner.execute(
            "SELECT indexdef FROM pg_indexes WHERE indexname = 'chunks_hnsw_384'"
        ).fetchall()
        owner.execute("DROP INDEX chunks_hnsw_384")
        yield
        owner.execute("SET maintenance_work_mem = '512MB'")
        started = time.perf_counter()
        owner.execute(definition)
        owner.execute("ANALYZE chunks")
        print(f"graph built in {time.perf_counter() - started:.0f} s")


async def speed(running: Running, *sizes: int) -> None:
    database, source = create_database(running.app_url), Source(1)
    for n in sizes:
        at, first = await create_place(database), min(n, 1000)
        rates = [first / await load(database, at, source, first)]
        if n > first:
            with graph_last(running.owner_url):
                rest = (n - first) // 500 * 500
                rates.append(rest / await load(database, at, source, rest, size=500))
        async with database.tenant(at.tenant_id) as session:
            sizes_of = list(await session.scalars(store.sa.select(store.db.segments.c.n_chunks)))
        shown = ", then without the graph ".join(f"{rate:.0f} chunks/s" for rate in rates)
        print(f"{n} chunks in {len(sizes_of)} segments, loaded at {shown}")
        queries = source.queries(300)
        words = await timed(lambda query: search_words(database, at, query), queries)  # noqa: B023
        index = at.index(database)
        whole = await timed(
            lambda query: index.search(query, candidates=CANDIDATES, k1=K1, b=B),  # noqa: B023
            queries,
        )
        print(f"  lexical search  {spread(words)}\n  whole search    {spread(whole)}")
    await database.close()
    with psycopg.connect(running.owner_url) as owner:
        for table in ("chunks", "postings", "chunks_hnsw_384"):
            [size] = owner.execute(
                "SELECT pg_total_relation_size(%s::regclass)", [table]
            ).fetchone()
            print(f"  {table}: {size / 1e6:.0f} MB")


def write_alone(url: str, place: Place, seed: int, n: int) -> float:
    "Load n chunks in a process of its own; return the seconds."

    async def work() -> float:
        database = create_database(url)
        took = await load(database, place, Source(seed), n)
        await database.close()
        return took

    return asyncio.run(work())


async def writers(running: Running, n: int) -> None:
    database, source = create_database(running.app_url), Source(2)
    at = await create_place(database)
    await load(database, at, source, n)
    index, loop = at.index(database), asyncio.get_running_loop()
    queries = source.queries(2000)
    options = {"candidates": CANDIDATES, "k1": K1, "b": B}
    alone = await timed(lambda query: index.search(query, **options), queries[:300])
    print(f"{n} chunks, nobody writes: {spread(alone)}")
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for count in (1, 2):
            seconds = [
                loop.run_in_executor(pool, write_alone, running.app_url, at, seed, n // 4)
                for seed in range(3, 3 + count)
            ]
            everyone, taken = asyncio.gather(*seconds), []
            while not everyone.done():
                query = queries[len(taken) % len(queries)]
                started = time.perf_counter()
                await index.search(query, **options)
                taken.append(time.perf_counter() - started)
                await asyncio.sleep(0.05)
            rate = sum(n // 4 / took for took in await everyone)
            print(f"{count} writers at {rate:.0f} chunks/s together; a search {spread(taken)}")
    await database.close()


async def copy_vectors(database: Database, source: Source, n: int) -> Place:
    "Store n chunks without postings."
    at = await create_place(database)
    async with database.tenant(at.tenant_id) as session:
        document, _ = await store.accept_document(
            session, tenant_id=at.tenant_id, title="T", content_type="text/plain", content=b""
        )
    owner = tuple(map(uuid.UUID, (at.tenant_id, at.index_id, document.id)))
    for start in range(0, n, 5000):
        vectors = source.vectors(min(5000, n - start)).astype(np.float16)
        rows = (
            pgindex.as_row(
                Chunk(str(uuid.uuid4()), document.id, Span(0, 5), source.text()), start + i, 1,
                vector, owner=owner,
            )
            for i, vector in enumerate(vectors)
        )  # fmt: skip
        async with database.tenant(at.tenant_id) as session:
            await pgindex.copy_rows(session, rows)
    return at


def _mean8(ranking: dict[str, float]) -> float:
    return float(np.mean(list(ranking.values())[:8]))


async def crossover(running: Running, *sizes: int) -> None:
    database, source = create_database(running.app_url, statement_timeout_seconds=600), Source(4)
    await source.embed()
    with graph_last(running.owner_url):
        places = {n: await copy_vectors(database, source, n) for n in sizes}
    total = sum(sizes)
    queries = source.queries(100)
    widen = pgindex.WIDEN
    for n, at in places.items():
        place = {"tenant_id": at.tenant_id, "index_id": at.index_id}

        async def nearest(
            query: Query, n: int = n, place: dict[str, str] = place
        ) -> dict[str, float]:
            async with database.tenant(place["tenant_id"], snapshot=True) as session:
                found = await pgindex.dense_ranking(
                    session, query, place=place, n_chunks=n, candidates=CANDIDATES
                )
            return found

        pgindex.EXACT_UP_TO = total
        exact = [await nearest(query) for query in queries]
        print(f"{n} chunks of {total}: exact         {spread(await timed(nearest, queries))}")
        pgindex.EXACT_UP_TO = 0
        for width in ("100", "400", "1000"):
            pgindex.WIDEN = widen.replace("'400'", f"'{width}'")
            found = [await nearest(query) for query in queries]
            ids = [[list(one) for one in rankings] for rankings in (exact, found)]
            recalls = [
                np.mean([len({*a[:k]} & {*b[:k]}) / k for a, b in zip(*ids, strict=True)])
                for k in (8, CANDIDATES)
            ]
            lost = np.mean([_mean8(a) - _mean8(b) for a, b in zip(exact, found, strict=True)])
            print(
                f"    graph, ef_search {width}: {spread(await timed(nearest, queries))}, recall@8 "
                f"{recalls[0]:.3f}, recall@{CANDIDATES} {recalls[1]:.3f}, "
                f"mean cosine of the first 8 lower by {lost:.4f}"
            )
    await database.close()


def main() -> None:
    name, *numbers = sys.argv[1:] or ["help"]
    work = {"quality": quality, "speed": speed, "writers": writers, "crossover": crossover}
    if name not in work:
        sys.exit(__doc__)
    load_average = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, load {load_average}, "
          f"Python {platform.python_version()}")  # fmt: skip
    with local_servers() as running:
        migrate(running.owner_url, app_user=running.app_user)
        asyncio.run(work[name](running, *map(int, numbers)))


if __name__ == "__main__":
    main()
