"""The confidence lies in [0, 1]; better grounds never give a weaker outcome; small tenants work."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support_rag.chunk import chunk
from support_rag.embed import load_embedder
from support_rag.gate import (
    CALIBRATION,
    Calibration,
    StatedRisk,
    answer_from,
    confidence,
    contributions,
    decide,
    load_calibration,
    must_abstain,
    stated_risk,
)
from support_rag.generate import ExtractiveGenerator
from support_rag.grounds import FACTS, Grounds
from support_rag.parse import parse
from support_rag.pipeline import Pipeline
from support_rag.prompt import cite
from support_rag.release import GateParameters, Release, load_parameters, load_release, resource
from support_rag.retrieve import InMemoryIndex
from support_rag.types import Answer, Chunk, Hit, Outcome, SettingsInvalid, Span

ORDER = [Outcome.ABSTAIN, Outcome.HAND_OFF, Outcome.ANSWER]
SHARE = st.floats(0, 1)
GATES = st.builds(
    lambda low, high: GateParameters(
        abstain_threshold=min(low, high), answer_threshold=max(low, high)
    ),
    SHARE, SHARE,
)  # fmt: skip
GROUNDS = st.builds(
    Grounds, *[st.sampled_from((-1.0, 0.0, 1.0)) if n in ("answer_type", "code") else SHARE
               for n in FACTS]
)  # fmt: skip
HIT = Hit(Chunk("c", "kiosk", Span(0, 1), "x", title="T"), 1.0, 1, similarity=0.5)
CITED = (cite(HIT, number=1),)


@settings(deadline=None)
@given(GROUNDS)
def test_the_confidence_is_a_probability_and_its_contributions_sum_to_its_odds(
    grounds: Grounds,
) -> None:
    value, parts = confidence(grounds), contributions(grounds)
    assert 0 <= value <= 1
    assert [part["fact"] for part in parts] == ["bias", *FACTS]
    odds = math.fsum(part["adds"] for part in parts)
    assert abs(value - 1 / (1 + math.exp(-odds))) < 0.51e-4


@settings(deadline=None)
@given(GROUNDS, st.sampled_from(FACTS), SHARE)
def test_better_grounds_never_lower_the_confidence(
    grounds: Grounds, name: str, value: float
) -> None:
    better = replace(grounds, **{name: max(value, getattr(grounds, name))})
    assert confidence(better) >= confidence(grounds) - 1e-12


def test_no_grounds_are_no_confidence() -> None:
    gate = GateParameters()
    assert confidence(None) == 0.0 and contributions(None) == []
    assert decide(0.0, CITED, parameters=gate).outcome is Outcome.ABSTAIN


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
        sure = value >= answer_from(gate)
        expected = (Outcome.ANSWER, "confident") if sure else (Outcome.HAND_OFF, "uncertain")
        assert (cited.outcome, cited.reason) == expected


# ---------------------------------------------------------------- the stated risk

SHOWN = Calibration(
    0.0, {}, (StatedRisk(0.05, None), StatedRisk(0.2, 0.8, 300, 45, 0.19), StatedRisk(0.3, 0.6))
)


@pytest.mark.parametrize(("risk", "threshold"), [(0.2, 0.8), (0.25, 0.8), (0.3, 0.6), (1.0, 0.6)])
def test_the_threshold_is_that_of_the_next_lower_risk(risk: float, threshold: float) -> None:
    assert stated_risk(risk, SHOWN).threshold == threshold


def test_a_risk_that_was_not_kept_is_refused_with_the_one_that_was() -> None:
    with pytest.raises(SettingsInvalid, match=r"10%.*lowest that it can state: 20%"):
        stated_risk(0.1, SHOWN)
    with pytest.raises(SettingsInvalid, match="can state: none"):
        stated_risk(0.1, replace(SHOWN, risks=SHOWN.risks[:1]))


def test_a_release_with_a_risk_that_cannot_be_stated_makes_no_pipeline() -> None:
    release = load_release(load_parameters().with_(gate={"answer_risk": 0.001}))
    with pytest.raises(SettingsInvalid, match="kept no such risk"):
        Pipeline(release, None, None, None)  # type: ignore[arg-type]


def test_the_decision_follows_the_stated_risk() -> None:
    gate = load_parameters().gate
    threshold = answer_from(gate)
    assert threshold >= (stated_risk(gate.answer_risk).threshold or 0.0)
    below, above = threshold - 0.001, threshold + 0.001
    assert decide(below, CITED, parameters=gate).reason == "uncertain"
    assert decide(above, CITED, parameters=gate).reason == "confident"


def test_what_ships_keeps_what_it_states() -> None:
    learned = load_calibration()
    assert set(learned.weights) == set(FACTS)
    for stated in learned.risks:
        assert stated.threshold is None or stated.bound <= stated.risk
        assert stated.threshold is None or stated.wrong / stated.n <= stated.bound


@pytest.mark.parametrize(
    "change",
    [{"weights": {}}, {"bias": "x"}, {"risks": None}, {"weights": dict.fromkeys(FACTS, -1.0)}],
)
def test_a_broken_file_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    content = json.loads(resource(CALIBRATION).read_text())
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps({**content, **change}))
    with pytest.raises(SettingsInvalid, match="restore the file"):
        load_calibration(path)


def test_the_calibration_is_part_of_the_release() -> None:
    from support_rag.release import read_facts

    assert "calibration.json" in read_facts().learned


# ---------------------------------------------------------------- tenants of 1, 5 and 12 articles

ARTICLES = {
    "opening": "# Opening hours\n\nWe are open on weekdays from 8:00 to 17:30. On Saturday "
    "it opens at 9:00 and closes at noon. It is closed on Sunday.",
    "warranty": "# Warranty on repairs\n\nEvery repair has a warranty of 24 months. It covers the "
    "parts and the work. Wear, such as brake pads and tyres, is not covered.",
    "price": "# What a service costs\n\nA small service costs 59 €. A large one costs 119 € and "
    "takes a day. Parts are charged on top.",
    "loan": "# Loan bikes\n\nWhile your bike is with us you can borrow one for 5 € a day. Bring "
    "your identity card. Loan bikes must be reserved one day ahead.",
    "battery": "# E-bike batteries\n\nWe test a battery in 20 minutes and print its capacity. A "
    "battery below 60 % should be replaced. Store it at room temperature.",
    "pickup": "# Pick up your bike\n\nWe send a text message when it is ready. Show the repair "
    "number at the counter. After 14 days we charge 2 € a day for storage.",
    "lease": "# Lease bikes\n\nWe know three leasing companies. The yearly inspection is paid by "
    "the leasing company. Bring the inspection code.",
    "vouchers": "# Gift vouchers\n\nVouchers are sold at the counter in steps of 25 €. They are "
    "valid for three years and cannot be paid out.",
    "cargo": "# Cargo bikes\n\nFor a cargo bike, call before you come: there is one stand. "
    "A repair takes about a week.",
    "theft": "# After a theft\n\n1. Report the theft to the police.\n2. Send us the report.\n3. We "
    "print an invoice copy for your insurance.",
    "courses": "# Repair courses\n\nOnce a month we show how to mend a tyre. A course "
    "has at most 8 people and costs 35 €.",
    "cleaning": "# Cleaning\n\nA cleaning costs 25 € and takes two hours. We use no high pressure.",
}
PLAIN = {
    "opening": ("When do you open on Saturday?", "9:00"),
    "warranty": ("How long is the warranty on a repair?", "24 months"),
    "price": ("How much does a large service cost?", "119"),
    "loan": ("Can I borrow a bike while mine is with you?", "5 €"),
    "battery": ("How long does it take to test a battery?", "20 minutes"),
    "pickup": ("How do I know that my bike is ready?", "text message"),
    "lease": ("Who pays the yearly inspection of a lease bike?", "leasing company"),
    "vouchers": ("How long are gift vouchers valid?", "three years"),
    "cargo": ("How long does the repair of a cargo bike take?", "about a week"),
    "theft": ("What do I do after a theft?", "police"),
    "courses": ("How many people are in a repair course?", "at most 8"),
    "cleaning": ("What does a cleaning cost?", "25 €"),
}
STRANGE = (
    "Do you sell train tickets to Vienna?",
    "What is the capital of Australia?",
    "How do I reset the password of my email account?",
    "Which vaccine do I need for Brazil?",
    "Why was my credit card declined at the hotel?",
)


async def pipeline_over(*names: str) -> Pipeline:
    parameters = load_parameters()
    documents = [
        parse(ARTICLES[name].encode(), content_type="text/markdown", document_id=name)
        for name in names
    ]
    chunks = [c for d in documents for c in chunk(d, parameters.chunk)]
    embedder = load_embedder(parameters.embed)
    vectors = (await embedder.embed([c.embedded_text for c in chunks])).vectors
    release = Release(parameters, index_digest="", answer_digest="")
    return Pipeline(release, embedder, InMemoryIndex(chunks, vectors), ExtractiveGenerator())


def is_answered(answer: Answer, expected: str) -> bool:
    return answer.decision.reason in ("confident", "uncertain") and expected in answer.text


@pytest.mark.parametrize("size", [1, 5, 12])
async def test_a_small_tenant_answers_plain_questions_and_refuses_others(size: int) -> None:
    names = list(ARTICLES)
    tenants = [names[at : at + size] for at in range(0, len(names) - size + 1, size)]
    replies, strangers = [], []
    for tenant in tenants:
        pipeline = await pipeline_over(*tenant)
        for name in tenant:
            question, expected = PLAIN[name]
            answer = await pipeline.answer(question)
            replies.append((is_answered(answer, expected), question, answer.text))
        strangers += [await pipeline.answer(question) for question in STRANGE]
    wrong = [reply for reply in replies if not reply[0]]
    assert len(wrong) <= 0.1 * len(replies), wrong
    sent = [a for a in strangers if a.decision.outcome is not Outcome.ABSTAIN]
    assert len(sent) <= 0.1 * len(strangers), [(a.text, a.decision) for a in sent]
    assert not [a for a in strangers if a.decision.reason == "confident"]


async def test_the_trace_explains_the_confidence() -> None:
    pipeline = await pipeline_over("warranty")
    answer = await pipeline.answer(PLAIN["warranty"][0])
    parts = {part["fact"]: part["value"] for part in answer.trace["contributions"]}
    grounds = Grounds(**{name: parts[name] for name in FACTS})
    assert confidence(grounds) == pytest.approx(answer.decision.confidence)
    assert asdict(grounds)["answer_type"] == 1.0
