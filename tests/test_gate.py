"""The confidence lies in [0, 1]; better evidence never gives a weaker outcome."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from support_rag.gate import (
    DEPTH,
    confidence,
    contributions,
    decide,
    hit_score,
    must_abstain,
)
from support_rag.prompt import cite
from support_rag.release import GateParameters
from support_rag.types import Chunk, Hit, Outcome, Span

ORDER = [Outcome.ABSTAIN, Outcome.HAND_OFF, Outcome.ANSWER]
SHARE = st.floats(0, 1)
GATES = st.builds(
    lambda low, high, weight: GateParameters(
        abstain_threshold=min(low, high), answer_threshold=max(low, high), dense_weight=weight
    ),
    SHARE, SHARE, SHARE,
)  # fmt: skip


def hit_of(similarity: float | None, lexical_share: float | None, rank: int = 1) -> Hit:
    chunk = Chunk(f"chunk-{rank}", "d", Span(0, 1), "x", title="T")
    return Hit(chunk, 1 / rank, rank, similarity=similarity, lexical_share=lexical_share)


HITS = st.lists(
    st.builds(hit_of, st.none() | st.floats(-1, 1), st.none() | SHARE), max_size=6
)  # fmt: skip
CITED = (cite(hit_of(0.5, 0.5), number=1),)


@settings(deadline=None)
@given(HITS, GATES)
def test_the_confidence_is_a_share_and_its_contributions_sum_to_it(
    hits: list[Hit], gate: GateParameters
) -> None:
    value = confidence(hits, gate)
    parts = contributions(hits, gate)
    assert 0 <= value <= 1
    assert abs(value - sum(part["adds"] for part in parts)) < 1e-9
    assert len(parts) == min(DEPTH, len(hits))
    assert [part["chunk_id"] for part in parts] == [hit.chunk.id for hit in hits[:DEPTH]]
    assert confidence(hits[:DEPTH], gate) == value, "hits further down do not count"


@settings(deadline=None)
@given(HITS, GATES, st.integers(0, DEPTH - 1), st.floats(-1, 1), SHARE)
def test_a_better_hit_never_lowers_the_confidence(
    hits: list[Hit], gate: GateParameters, at: int, similarity: float, share: float
) -> None:
    if at >= len(hits):
        return
    hit = hits[at]
    better = replace(
        hit,
        similarity=max(similarity, -1.0 if hit.similarity is None else hit.similarity),
        lexical_share=max(share, hit.lexical_share or 0.0),
    )
    assert hit_score(better, gate) >= hit_score(hit, gate)
    improved = [*hits[:at], better, *hits[at + 1 :]]
    assert confidence(improved, gate) >= confidence(hits, gate) - 1e-12
    assert confidence([*hits[: at + 1], better], gate) >= confidence(hits[: at + 1], gate) - 1e-12


@settings(deadline=None)
@given(SHARE, SHARE, GATES, st.booleans())
def test_the_gate_is_monotone_in_confidence(
    first: float, second: float, gate: GateParameters, is_cited: bool
) -> None:
    citations = CITED if is_cited else ()
    low, high = sorted((first, second))
    outcomes = [decide(value, citations, parameters=gate).outcome for value in (low, high)]
    assert ORDER.index(outcomes[0]) <= ORDER.index(outcomes[1])


@settings(deadline=None)
@given(SHARE, GATES)
def test_outcomes_and_reasons(value: float, gate: GateParameters) -> None:
    cited = decide(value, CITED, parameters=gate)
    bare = decide(value, (), parameters=gate)
    assert cited.confidence == bare.confidence == value
    if value < gate.abstain_threshold:
        assert must_abstain(value, gate)
        assert cited == bare and cited.reason == "low_confidence"
        assert cited.outcome is Outcome.ABSTAIN
    else:
        assert not must_abstain(value, gate)
        assert (bare.outcome, bare.reason) == (Outcome.HAND_OFF, "no_citation")
        sure = value >= gate.answer_threshold
        expected = (Outcome.ANSWER, "confident") if sure else (Outcome.HAND_OFF, "uncertain")
        assert (cited.outcome, cited.reason) == expected


def test_no_hits_are_no_evidence() -> None:
    gate = GateParameters()
    assert confidence([], gate) == 0.0 and contributions([], gate) == []
    assert decide(0.0, CITED, parameters=gate).outcome is Outcome.ABSTAIN
    assert confidence([hit_of(None, None)], gate) == confidence([hit_of(-1.0, 0.0)], gate) == 0.0
    assert confidence([hit_of(1.0, 1.0, rank) for rank in (1, 2, 3)], gate) == 1.0
