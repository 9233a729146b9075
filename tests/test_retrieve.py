"""BM25 is Lucene's; rankings do not depend on order or scale; a hit knows where it came from."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Sequence

import bm25s
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support_rag.embed import Embeddings, HashingEmbedder
from support_rag.language.analyse import analyse
from support_rag.language.models import Kind
from support_rag.release import Parameters, RetrieveParameters
from support_rag.retrieve import (
    MAX_QUERY,
    InMemoryIndex,
    best_first,
    bm25_idf,
    build_postings,
    embed_question,
    fuse,
    half_unit,
    reciprocal_rank_fusion,
    retrieve,
)
from support_rag.types import (
    Chunk,
    EmbeddingFailed,
    Hit,
    InputInvalid,
    Query,
    Rankings,
    Scored,
    Span,
    chunk_id,
)

WORDS = ["kiosk", "offline", "punches", "hours", "invoice", "seat", "refund", "TL-3301"]
TEXTS = st.lists(
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join),
    min_size=1, max_size=12, unique=True,
)  # fmt: skip


def chunk_of(text: str) -> Chunk:
    span = Span(0, len(text))
    return Chunk(chunk_id("d", span, text), "d", span, text)


def index_of(texts: Sequence[str]) -> InMemoryIndex:
    vectors = asyncio.run(HashingEmbedder(32).embed(texts)).vectors
    return InMemoryIndex([chunk_of(text) for text in texts], vectors)


def find(texts: Sequence[str], question: str, **changes: object) -> tuple[Hit, ...]:
    parameters = Parameters().with_(retrieve=changes).retrieve
    return asyncio.run(
        retrieve(
            question, embedder=HashingEmbedder(32), index=index_of(texts), parameters=parameters
        )
    )


# ---------------------------------------------------------------- BM25


@settings(deadline=None)
@given(TEXTS, st.lists(st.sampled_from(WORDS), min_size=1, max_size=4))
def test_scores_are_those_of_bm25s(texts: list[str], question: list[str]) -> None:
    analysed = [analyse(text) for text in texts]
    terms = [term for word in question for term in analyse(word)]
    ours = build_postings(analysed).scores(terms, k1=1.2, b=0.75)
    other = bm25s.BM25(method="lucene", k1=1.2, b=0.75)
    other.index(analysed, show_progress=False)
    known = [term for term in terms if term in other.vocab_dict]
    theirs = other.get_scores(known) if known else np.zeros(len(texts))
    assert np.allclose(ours, theirs, atol=1e-4)


@settings(deadline=None)
@given(TEXTS, st.lists(st.sampled_from(WORDS), max_size=5), st.floats(0, 5), st.floats(0, 1))
def test_no_score_reaches_the_limit(
    texts: list[str], question: list[str], k1: float, b: float
) -> None:
    postings = build_postings(analyse(text) for text in texts)
    terms = analyse(" ".join(question))
    scores = postings.scores(terms, k1=k1, b=b)
    assert (scores >= 0).all()
    assert scores.max() <= postings.limit(terms) + 1e-9
    for score, text in zip(scores, texts, strict=True):
        assert (score > 0) == bool(set(terms) & set(analyse(text)))


def test_rarer_terms_tell_more() -> None:
    values = [bm25_idf(n, n_chunks=1000) for n in range(1001)]
    assert values == sorted(values, reverse=True) and values[-1] > 0


# ---------------------------------------------------------------- the index in memory


@settings(deadline=None, max_examples=50)
@given(TEXTS, st.integers(0, 1000))
def test_hits_do_not_depend_on_the_order_of_chunks(texts: list[str], seed: int) -> None:
    shuffled = random.Random(seed).sample(texts, len(texts))
    for fusion in ("convex", "rrf", "dense", "lexical"):
        hits = find(texts, "kiosk offline", fusion=fusion)
        again = find(shuffled, "kiosk offline", fusion=fusion)
        assert [hit.chunk.id for hit in hits] == [hit.chunk.id for hit in again]
        assert [hit.rank for hit in hits] == list(range(1, len(hits) + 1))


@settings(deadline=None)
@given(st.lists(st.floats(-1, 1), max_size=20), st.integers(0, 25))
def test_best_first(scores: list[float], n: int) -> None:
    found = best_first(np.array(scores, dtype=float), n=n)
    rounded = [round(score, 9) for score in scores]
    expected = sorted(range(len(scores)), key=lambda i: (-rounded[i], i))[:n]
    assert [rounded[i] for i in found] == [rounded[i] for i in expected]
    assert sorted(found) == sorted(set(found))


@settings(deadline=None)
@given(st.lists(st.lists(st.floats(-1, 1, width=16), min_size=3, max_size=3), min_size=1))
def test_half_precision_vectors_have_length_one_or_zero(rows: list[list[float]]) -> None:
    lengths = np.linalg.norm(half_unit(np.array(rows)), axis=1)
    assert all(math.isclose(n, 1, abs_tol=1e-9) or n == 0 for n in lengths)


def test_an_index_says_what_is_wrong() -> None:
    index = index_of(["kiosk offline"])
    query = Query("q", (1.0, 0.0))
    with pytest.raises(EmbeddingFailed, match="the query has 2 dimensions, the index 32"):
        asyncio.run(index.search(query, candidates=5, k1=1.2, b=0.75))
    with pytest.raises(ValueError, match="same id"):
        InMemoryIndex([chunk_of("a"), chunk_of("a")], np.eye(2))
    with pytest.raises(ValueError, match="2 chunks came with 1 vectors"):
        InMemoryIndex([chunk_of("a"), chunk_of("b")], np.eye(1))
    empty = InMemoryIndex([], np.zeros((0, 32)))
    found = asyncio.run(empty.search(query, candidates=5, k1=1.2, b=0.75))
    assert found == Rankings((), ())


@pytest.mark.parametrize("question", ["", " \n\t", "\u3000"])
def test_a_blank_question_is_an_error(question: str) -> None:
    with pytest.raises(InputInvalid, match="empty"):
        asyncio.run(embed_question(question, embedder=HashingEmbedder()))


def test_a_question_of_stop_words_still_has_a_dense_ranking() -> None:
    hits = find(["kiosk offline", "seat refund"], "how is it?")
    assert len(hits) == 2 and all(hit.lexical_rank is None for hit in hits)


# ---------------------------------------------------------------- fusion

SCORES = st.dictionaries(
    st.sampled_from("abcdefgh"), st.integers(-64, 64).map(lambda n: n / 64), max_size=8
)


def rankings_of(dense: dict[str, float], lexical: dict[str, float]) -> Rankings:
    def ordered(scores: dict[str, float]) -> tuple[Scored, ...]:
        names = sorted(scores, key=lambda name: (-scores[name], name))
        return tuple(Scored(Chunk(n, "d", Span(0, 1), n), scores[n]) for n in names)

    positive = {name: abs(score) + 0.1 for name, score in lexical.items()}
    return Rankings(ordered(dense), ordered(positive), 10.0)


@settings(deadline=None)
@given(SCORES, SCORES, st.sampled_from([0.25, 0.5, 2.0, 1024.0]), st.floats(0, 1))
def test_fusion_ignores_the_scale_of_scores(
    dense: dict[str, float], lexical: dict[str, float], scale: float, weight: float
) -> None:
    plain = rankings_of(dense, lexical)
    for fusion in ("convex", "rrf", "dense", "lexical"):
        dense_scale = 1.0 if fusion == "convex" else scale  # a cosine has a scale of its own
        louder = Rankings(
            tuple(Scored(s.chunk, s.score * dense_scale) for s in plain.dense),
            tuple(Scored(s.chunk, s.score * scale) for s in plain.lexical),
            plain.lexical_limit * scale,
        )
        parameters = RetrieveParameters(fusion=fusion, dense_weight=weight)
        before, after = fuse(plain, parameters), fuse(louder, parameters)
        assert [hit.chunk.id for hit in before] == [hit.chunk.id for hit in after]
        # powers of two: equal to the last bit
        assert [hit.lexical_share for hit in before] == [hit.lexical_share for hit in after]


@settings(deadline=None)
@given(SCORES, SCORES, st.integers(1, 8))
def test_a_hit_says_where_it_came_from(
    dense: dict[str, float], lexical: dict[str, float], k: int
) -> None:
    rankings = rankings_of(dense, lexical)
    hits = fuse(rankings, RetrieveParameters(k=k))
    assert len(hits) == min(k, len({*dense, *lexical}))
    assert [hit.rank for hit in hits] == list(range(1, len(hits) + 1))
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    for hit in hits:
        for ranking, rank, score in (
            (rankings.dense, hit.dense_rank, hit.similarity),
            (rankings.lexical, hit.lexical_rank, hit.bm25),
        ):
            listed = {s.chunk.id: (n, s.score) for n, s in enumerate(ranking, 1)}
            assert (rank, score) == listed.get(hit.chunk.id, (None, None))
        assert (hit.lexical_share is None) == (hit.bm25 is None)
        if hit.lexical_share is not None:
            assert 0 <= hit.lexical_share <= 1


@settings(deadline=None)
@given(st.lists(st.permutations("abcdef"), min_size=1, max_size=3), st.integers(1, 100))
def test_a_chunk_that_is_never_behind_is_not_behind_after_fusion(
    rankings: list[list[str]], k: int
) -> None:
    weights = [1 / len(rankings)] * len(rankings)
    fused = reciprocal_rank_fusion(rankings, weights=weights, k=k)
    for first in "abcdef":
        for second in "abcdef":
            if all(ids.index(first) < ids.index(second) for ids in rankings):
                assert fused[first] > fused[second]


def test_one_ranking_alone() -> None:
    rankings = rankings_of({"a": 0.9, "b": 0.1}, {"c": 0.5})
    only = {
        "dense": fuse(rankings, RetrieveParameters(fusion="dense")),
        "lexical": fuse(rankings, RetrieveParameters(fusion="lexical")),
        "rrf": fuse(rankings, RetrieveParameters(fusion="rrf", dense_weight=0.0)),
        "convex": fuse(rankings, RetrieveParameters(fusion="convex", dense_weight=1.0)),
    }
    assert {name: [hit.chunk.id for hit in hits] for name, hits in only.items()} == {
        "dense": ["a", "b"], "lexical": ["c"], "rrf": ["c"], "convex": ["a", "b"],
    }  # fmt: skip
    assert fuse(Rankings((), ()), RetrieveParameters()) == ()


def test_what_one_ranking_misses_is_scored_by_the_other() -> None:
    texts = ["kiosk offline mode", "seat refund rules", "the kiosk keeps punches", "payroll export"]
    narrow = find(texts, "kiosk offline", candidates=1, k=1)[0]
    wide = find(texts, "kiosk offline", candidates=4, k=4)
    assert (narrow.chunk.id, narrow.score) == (wide[0].chunk.id, wide[0].score)
    assert all(hit.similarity is not None for hit in wide)
    dense, lexical = texts[:1], texts[2:3]
    chunks = {t: Chunk(t, "d", Span(0, 1), t) for t in texts}
    rankings = Rankings(
        tuple(Scored(chunks[t], 0.9) for t in dense),
        tuple(Scored(chunks[t], 4.0) for t in lexical),
        8.0,
        tuple(Scored(chunks[t], 0.8) for t in lexical),
        tuple(Scored(chunks[t], 2.0) for t in dense),
    )
    first, second = fuse(rankings, RetrieveParameters(dense_weight=0.5))
    assert (first.score, second.score) == pytest.approx((0.65, 0.575))
    assert (first.dense_rank, first.similarity) == (None, 0.8), "scored, not ranked"
    assert (second.lexical_rank, second.bm25, second.lexical_share) == (None, 2.0, 0.25)


def test_equal_scores_are_ordered_alike_after_every_load() -> None:
    def loaded(salt: str) -> list[tuple[str, int]]:
        copies = [
            Chunk(f"{salt}{n * 7919 % 10}", f"d{n}", Span(0, 5), "kiosk", source=f"s{n}", ordinal=n)
            for n in range(10)
        ]
        index = InMemoryIndex(copies, np.ones((10, 2)))
        query = Query("kiosk", (1.0, 0.0), ("kiosk",))
        rankings = asyncio.run(index.search(query, candidates=5, k1=1.2, b=0.75))
        return [(h.chunk.source, h.chunk.ordinal) for h in fuse(rankings, RetrieveParameters(k=5))]

    assert loaded("a") == loaded("z") == [(f"s{n}", n) for n in range(5)]


def test_of_a_long_question_the_beginning_is_read() -> None:
    embedder = HashingEmbedder()
    long = asyncio.run(embed_question("kiosk " * 2000 + "refund", embedder=embedder))
    assert len(long.text) <= MAX_QUERY and set(long.terms) == {"kiosk"}


class Told(HashingEmbedder):
    """The hashing embedder, which notes what it was told about the texts."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds: list[Kind] = []

    async def embed(self, texts: Sequence[str], *, kind: Kind = "passage") -> Embeddings:
        self.kinds.append(kind)
        return await super().embed(texts, kind=kind)


def test_a_question_is_embedded_as_a_query() -> None:
    embedder = Told()
    asyncio.run(embed_question("How do I get a refund?", embedder=embedder))
    assert embedder.kinds == ["query"]
