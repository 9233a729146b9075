"""A search that reads few documents finds in them what an exact search finds."""

import uuid
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from support_rag.state import pgindex, store
from support_rag.state.database import Database
from support_rag.state.pgindex import PgIndex, add_chunks
from support_rag.types import Chunk, Filter, Query, Span

DIM, DOCUMENTS, PER_DOCUMENT, K, CANDIDATES = 384, 200, 20, 8, 50
SHARES = {0.5: 100, 0.05: 10, 0.005: 1}  # selectivity → documents
WORDS = [f"word{n}" for n in range(300)]


def unit(vectors: NDArray[Any]) -> NDArray[Any]:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


async def fill(database: Database, tenant: str) -> tuple[PgIndex, dict[str, Any]]:
    "Store chunks whose documents say to which share they belong."
    random = np.random.default_rng(11)
    centres = random.normal(size=(60, DIM))
    async with database.tenant(tenant) as session:
        index = await store.create_index(
            session, tenant_id=tenant, digest="d", dim=DIM, model="m", parameters={}
        )
    found: dict[str, Any] = {"vectors": [], "chunks": [], "number": []}
    for number in random.permutation(DOCUMENTS):
        shares = [str(share) for share, n in SHARES.items() if number < n]
        said = {"shares": len(shares), "odd": bool(number % 2)}
        vectors = unit(
            centres[random.integers(60, size=PER_DOCUMENT)]
            + random.normal(size=(PER_DOCUMENT, DIM)) * 0.7
        )
        async with database.tenant(tenant) as session:
            document, _ = await store.accept_document(
                session, tenant_id=tenant, title="T", content_type="text/plain",
                content=str(number).encode(), tags=shares, metadata=said,
            )  # fmt: skip
            chunks = []
            for at in range(PER_DOCUMENT):
                text = " ".join(random.choice(WORDS, size=30))
                chunks.append(
                    Chunk(str(uuid.uuid4()), document.id, Span(at, at + 1), text, (), 30, at)
                )
            await add_chunks(
                session, tenant_id=tenant, index_id=index.id, document_id=document.id,
                chunks=chunks, vectors=vectors,
            )  # fmt: skip
        found["vectors"].append(vectors)
        found["chunks"] += [chunk.id for chunk in chunks]
        found["number"] += [number] * PER_DOCUMENT
    found["vectors"] = np.concatenate(found["vectors"])
    return PgIndex(database, tenant_id=tenant, index_id=index.id, dim=DIM), found


async def test_recall_under_filters_of_each_selectivity(
    database: Database, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pgindex, "EXACT_UP_TO", 500)  # so that the graph is used, too
    by_graph = list[int]()
    original = pgindex.approximate_ranking

    async def counted(*args: Any, **values: Any) -> Any:
        rows = await original(*args, **values)
        by_graph.append(len(rows))
        return rows

    monkeypatch.setattr(pgindex, "approximate_ranking", counted)
    everything, known = await fill(database, tenant)
    random, numbers = np.random.default_rng(5), np.array(known["number"])
    vectors = known["vectors"].astype(np.float16).astype(np.float64)
    for share, documents in SHARES.items():
        index = PgIndex(database, **everything.place, dim=DIM, chosen=Filter(tags=(str(share),)))
        allowed, recalls = np.flatnonzero(numbers < documents), list[float]()
        passing = {known["chunks"][n] for n in allowed}
        assert len(allowed) == share * DOCUMENTS * PER_DOCUMENT
        before = len(by_graph)
        for at in random.integers(len(vectors), size=30):
            vector = unit(vectors[at : at + 1] + random.normal(size=(1, DIM)) * 0.02)[0]
            query = Query("q", tuple(vector.tolist()), tuple(random.choice(WORDS, size=3)))
            best = allowed[np.argsort(-(unit(vectors)[allowed] @ vector))[:K]]
            exact = {known["chunks"][n] for n in best}
            ranked = await index.search(query, candidates=CANDIDATES, k1=1.2, b=0.75)
            assert {one.chunk.id for one in (*ranked.dense, *ranked.lexical)} <= passing
            assert len(ranked.dense) == min(CANDIDATES, len(allowed))
            recalls.append(len(exact & {one.chunk.id for one in ranked.dense[:K]}) / K)
        print(f"selectivity {share}: recall@{K} {np.mean(recalls):.3f}, n=30")
        assert np.mean(recalls) >= (0.95 if len(allowed) > 500 else 1.0)
        assert (len(by_graph) > before) == (len(allowed) > 500), "which way it went"


async def test_words_are_ranked_as_without_a_filter(database: Database, tenant: str) -> None:
    everything, known = await fill(database, tenant)
    where = {name: value for name, value in everything.place.items()}
    index = PgIndex(database, **where, dim=DIM, chosen=Filter({"odd": True}, ("0.05",)))
    query = Query("q", tuple(known["vectors"][0].tolist()), ("word1", "word2", "word3"))
    whole = await everything.search(query, candidates=5000, k1=1.2, b=0.75)
    some = await index.search(query, candidates=CANDIDATES, k1=1.2, b=0.75)
    numbers = dict(zip(known["chunks"], known["number"], strict=True))
    wanted = [one for one in whole.lexical if numbers[one.chunk.id] in (1, 3, 5, 7, 9)]
    assert len(wanted) > 10
    assert [(one.chunk.id, one.score) for one in some.lexical] == [
        (one.chunk.id, one.score) for one in wanted[:CANDIDATES]
    ]
