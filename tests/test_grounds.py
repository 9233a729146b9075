"""Grounds lie in their ranges, do not depend on far documents, and name what is missing."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support_rag.grounds import (
    FACTS,
    USUAL_LEAD,
    Grounds,
    code_found,
    grounds_of,
    hit_score,
    known,
    lead_of,
    type_found,
)
from support_rag.quote import quotation_of, terms_of
from support_rag.types import Chunk, Hit, Span

QUESTION = "How long does the kiosk keep punches?"
TEXTS = ("The kiosk keeps punches for 72 hours.", "Seats are counted daily.", "Punches are red.")


def hit_of(
    similarity: float | None,
    share: float | None,
    rank: int = 1,
    *,
    document: str = "",
    text: str = TEXTS[0],
) -> Hit:
    name = document or f"d{rank}"
    chunk = Chunk(f"c{rank}", name, Span(0, len(text)), text, (name,), title=name)
    return Hit(chunk, 1 / rank, rank, similarity=similarity, lexical_share=share)


def look(hits: list[Hit], question: str = QUESTION) -> Grounds | None:
    return grounds_of(question, hits, quotation_of(tuple(hits), question=question, n=4))


SHARES = st.none() | st.floats(0, 1)
HITS = st.lists(
    st.tuples(st.none() | st.floats(-1, 1), SHARES, st.sampled_from("abc"), st.sampled_from(TEXTS)),
    min_size=1, max_size=5,
).map(
    lambda rows: [
        hit_of(similarity, share, rank, document=document, text=text)
        for rank, (similarity, share, document, text) in enumerate(rows, 1)
    ]
)  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(HITS)
def test_every_fact_lies_in_its_range(hits: list[Hit]) -> None:
    grounds = look(hits)
    if grounds is None:
        return
    for name in FACTS:
        low = -1 if name in ("answer_type", "code") else 0
        assert low <= getattr(grounds, name) <= 1, name


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 12))
def test_far_documents_change_no_lead_place_or_words(n: int) -> None:
    pair = [hit_of(0.7, 0.5, 1), hit_of(0.3, 0.1, 2, text=TEXTS[1])]
    more = [hit_of(0.2, 0.05, 3 + i, text=TEXTS[1]) for i in range(n)]
    few, many = look(pair), look([*pair, *more])
    assert few is not None and many is not None
    for name in ("lead", "place", "similarity", "title", "words", "answer_type", "known"):
        assert getattr(few, name) == getattr(many, name), name


def test_one_article_is_enough() -> None:
    hit = hit_of(0.75, 0.6)
    passages = [hit_of(0.5, 0.2, rank, document=hit.chunk.document_id) for rank in (2, 3)]
    assert lead_of([hit], hit.chunk.document_id) == USUAL_LEAD
    assert lead_of([hit, *passages], hit.chunk.document_id) == USUAL_LEAD, "one article"
    grounds = look([hit])
    assert grounds is not None and grounds.place == 1 and grounds.known > 0.7


def test_a_document_behind_has_no_lead() -> None:
    hits = [hit_of(0.9, 0.9, 1), hit_of(0.5, 0.2, 2)]
    assert lead_of(hits, "d2") == 0.0 < lead_of(hits, "d1")
    assert hit_score(hit_of(None, None)) == 0.0 == hit_score(hit_of(-1.0, 0.0))


@pytest.mark.parametrize(
    ("question", "quoted", "expected"),
    [
        ("What does it cost?", "It costs 5 €.", 1),
        ("What does it cost?", "It is blue.", -1),
        ("How many people?", "At most eight.", 1),
        ("When does it end?", "It ends on Sunday.", 1),
        ("When does it end?", "It is blue.", -1),
        ("Who may do this?", "Managers may.", 1),
        ("How do I set it up?", "Open the settings.", 1),
        ("Is it nice?", "It is blue.", 0),
        ("Wann endet es?", "Am Sonntag.", 0),
    ],
)
def test_the_kind_of_answer(question: str, quoted: str, expected: int) -> None:
    assert type_found(question, quoted) == expected


@pytest.mark.parametrize(
    ("question", "expected"),
    [("What is TL-3301?", 1), ("What is TL-9999?", -1), ("TL-3301 and TL-9999?", 0), ("Why?", 0)],
)
def test_codes(question: str, expected: int) -> None:
    assert code_found(question, "See tl-3301.", "See TL-3301. And more.") == expected


def test_a_name_that_no_hit_has_is_unknown() -> None:
    held = terms_of(TEXTS[0])
    assert known("the kiosk keeps punches", held) == 1
    assert known("the Planday keeps punches", held) <= 0.2
    assert known("?!", held) == 1
