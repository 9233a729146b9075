"""A word that no chunk holds finds the nearest that some chunk holds; known words stay."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support_rag.embed import HashingEmbedder
from support_rag.language.analyse import analyse
from support_rag.language.spelling import (
    distance,
    doubtful_terms,
    meanings,
    nearest,
    ranges_of,
    reworded,
)
from support_rag.retrieve import InMemoryIndex, embed_question
from support_rag.types import Chunk, Rankings, Span
from tests.timing import takes_at_most

WORDS = st.text(st.sampled_from("abcdeü"), max_size=9)


def plain_distance(a: str, b: str) -> int:
    "Return the optimal string alignment of two words, from the definition."
    if not a or not b:
        return len(a) + len(b)
    ways = [
        plain_distance(a[:-1], b) + 1,
        plain_distance(a, b[:-1]) + 1,
        plain_distance(a[:-1], b[:-1]) + (a[-1] != b[-1]),
    ]
    if a[-2:] == b[-2:][::-1] and len(a) > 1 and len(b) > 1:
        ways.append(plain_distance(a[:-2], b[:-2]) + 1)
    return min(ways)


@settings(deadline=None, max_examples=150)
@given(st.text("abc", max_size=6), st.text("abc", max_size=6), st.integers(1, 2))
def test_distance_is_that_of_the_definition(a: str, b: str, limit: int) -> None:
    assert distance(a, b, limit=limit) == min(plain_distance(a, b), limit + 1)


@settings(deadline=None)
@given(st.lists(WORDS, max_size=6), st.lists(WORDS, max_size=12))
def test_known_terms_are_kept_and_new_ones_are_known(terms: list[str], known: list[str]) -> None:
    unknown = {term for term in terms if term not in known}
    ranges = ranges_of(terms, unknown=unknown, doubtful=terms)
    words = {word for word in known if any(low <= word < high for low, high in ranges)}
    meant = meanings(terms, words, unknown=unknown, doubtful=terms)
    assert meant.keys() <= unknown
    weights = reworded(terms, meant, dict.fromkeys(known, 1))
    for term in terms:
        assert weights.get(term, 0) >= terms.count(term) or term in meant
    assert set(weights) <= set(terms) | set(known)


@pytest.mark.parametrize(
    ("question", "doubtful"),
    [
        ("Where is my invioce?", ("invioc",)),
        ("Wo ist die Rechnugn für Dezember?", ("rechnugn", "dezemb")),
        ("error E-40122 in v2.3.11", ()),
        ("the morning after the storm", ()),
        ("teh cta", ()),
    ],
)
def test_common_words_codes_and_short_words_are_not_doubted(
    question: str, doubtful: tuple[str, ...]
) -> None:
    assert set(doubtful) <= set(doubtful_terms(question)) <= {*doubtful, "dezemb"}


# ---------------------------------------------------------------- in the index

ARTICLES = (
    "Refunds are paid within two weeks of the purchase.",
    "Hold the button until the wifi lamp blinks.",
    "Die Kuendigung des Vertrags ist zum Monatsende möglich.",
    "The stock room is open on Mondays.",
    "Candidates upload their certificate on the career page.",
    "Punches are kept for three days.",
    "Error K-3301 means that the cable is loose.",
)


async def ranked(question: str) -> Rankings:
    chunks = [
        Chunk(str(n), f"d{n}", Span(0, len(text)), text, (), len(text), n, "", f"s{n}")
        for n, text in enumerate(ARTICLES)
    ]
    embedder = HashingEmbedder()
    vectors = (await embedder.embed(ARTICLES)).vectors
    query = await embed_question(question, embedder=embedder)
    return await InMemoryIndex(chunks, vectors).search(query, candidates=5, k1=1.2, b=0.75)


@pytest.mark.parametrize(
    ("question", "article"),
    [
        ("how do i get a refudn", 0),
        ("refunnds?", 0),
        ("wi fi", 1),
        ("Kündigung", 2),
        ("Kundigung", 2),
        ("Kuendigungen", 2),
        ("stockroom", 3),
        ("the ecrtificate", 4),
        ("the certifacte upload", 4),
        ("K3301", 6),
    ],
)
async def test_other_spellings_find_the_article(question: str, article: int) -> None:
    found = await ranked(question)
    assert [s.chunk.document_id for s in found.lexical][:1] == [f"d{article}"]
    assert 0 < found.lexical[0].score < found.lexical_limit


@pytest.mark.parametrize("question", ["K-3302", "mourning", "morning", "zzqqxxyy", "12345"])
async def test_what_is_near_by_chance_finds_nothing(question: str) -> None:
    found = await ranked(question)
    assert not found.lexical
    assert found.unmatched_limit == pytest.approx(found.lexical_limit) != 0


async def test_unmatched_words_are_told_apart_in_the_limit() -> None:
    known, more = await ranked("refunds"), await ranked("refunds morning")
    assert known.unmatched_limit == 0
    assert more.lexical_limit - more.unmatched_limit == pytest.approx(known.lexical_limit)


async def test_a_corrected_word_counts_less() -> None:
    typed, corrected = await ranked("refund purchase"), await ranked("refudn purchase")
    assert corrected.lexical[0].score < typed.lexical[0].score


def test_looking_for_a_word_takes_little_time() -> None:
    chooser = random.Random(7)
    words = {
        "".join(chooser.choices("abcdefghij", k=chooser.randint(4, 10))) for _ in range(20_000)
    }
    takes_at_most(lambda: nearest("abcdefghij", words), 30)
    hostile = "x" * 100_000 + " " + "refudn " * 20_000
    assert len(doubtful_terms(hostile)) <= 8
    takes_at_most(lambda: doubtful_terms(hostile), 50)
    assert np.isfinite(distance("a" * 30, "b" * 30, limit=2)) and analyse("") == []
