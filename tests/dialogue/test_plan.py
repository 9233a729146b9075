"""A message becomes parts, one for each question; what says too little is asked back once."""

from __future__ import annotations

import json

import numpy as np
import pytest

from support_rag.chunk import chunk
from support_rag.dialogue.clarify import ask_back, choice, offered_in, says_too_little
from support_rag.dialogue.intent import questions_of, understand
from support_rag.dialogue.plan import accepts_person, meant_turns, plan
from support_rag.dialogue.replies import ENGLISH, GERMAN, REPLIES
from support_rag.embed import HashingEmbedder
from support_rag.generate import ExtractiveGenerator
from support_rag.parse import parse
from support_rag.pipeline import Pipeline
from support_rag.release import Parameters, load_release, resource
from support_rag.retrieve import InMemoryIndex
from support_rag.types import Answer, Outcome, Turn

UNCLEAR = [
    "It doesn't work", "help", "help!!", "problem with my order", "I have a problem with the door",
    "my badge", "it's about my invoice", "Can I undo that?", "Es funktioniert nicht", "Hilfe",
    "Ich habe ein Problem mit dem Kiosk", "ça ne marche pas", "no funciona", "não funciona",
    "non funziona", "het werkt niet", "не работает", "動きません", "有问题",
]  # fmt: skip
OFFERED = ("Pairing a kiosk", "What happens when the kiosk is offline", "Kiosk PINs")
ASKED_BACK = Turn("assistant", ask_back(OFFERED, ENGLISH))


@pytest.mark.parametrize("text", UNCLEAR)
def test_a_message_that_names_nothing_says_too_little(text: str) -> None:
    assert says_too_little(text)


def test_hardly_a_labelled_question_says_too_little() -> None:
    lines = (resource("data/help_centre") / "queries.jsonl").read_text(encoding="utf-8")
    asked = [q for q in map(json.loads, lines.splitlines()) if not q.get("history")]
    vague = {q["id"] for q in asked if says_too_little(q["text"])}
    clear = [q["id"] for q in asked if q["answerable"]]
    under = [q["id"] for q in asked if q["type"] == "underspecified"]
    assert len(vague & set(clear)) <= 2, "of more than a thousand"
    assert len(vague & set(under)) >= len(under) / 2


@pytest.mark.parametrize(
    ("message", "at"),
    [
        ("1", 0), ("2.", 1), ("the second one", 1), ("number 3 please", 2), ("the last one", 2),
        ("yes", 0), ("Ja", 0), ("die zweite", 1), ("le deuxième", 1), ("la tercera", 2),
        ("PINs", 2), ("it's about pairing", 0), ("offline", 1), ("второй", 1), ("第二个", 1),
    ],
)  # fmt: skip
def test_a_choice_is_understood(message: str, at: int) -> None:
    assert choice(message, offered_in(ASKED_BACK)) == OFFERED[at]


@pytest.mark.parametrize("message", ["no", "none of these", "nein", "どれでもない"])
def test_all_can_be_declined(message: str) -> None:
    assert choice(message, OFFERED) == ""


@pytest.mark.parametrize("message", ["7", "How much is the Pro plan?", "kiosk", "0", "second hand"])
def test_another_message_is_no_choice(message: str) -> None:
    assert choice(message, OFFERED) is None


def test_a_clarifying_question_is_known_in_every_language() -> None:
    for texts in REPLIES.values():
        assert offered_in(Turn("assistant", ask_back(OFFERED, texts))) == OFFERED
    assert offered_in(Turn("user", ASKED_BACK.content)) == ()
    assert offered_in(Turn("assistant", "1. Open it.\n2. Close it.")) == ()


def test_a_later_turn_is_about_what_was_chosen() -> None:
    past = [Turn("user", "my kiosk"), ASKED_BACK, Turn("user", "the last one")]
    assert [t.content for t in meant_turns(past) if t.role == "user"][-1] == "Kiosk PINs"
    [part] = plan(understand("Until when?"), "Until when?", past)
    assert "PINs" in part.question


def test_yes_to_the_offer_of_a_person_accepts_it() -> None:
    offer = (Turn("user", "Why?"), Turn("assistant", f"Because.\n\n{GERMAN.disclaimer}"))
    assert accepts_person("ja bitte", offer)
    assert not accepts_person("yes, but why?", offer) and not accepts_person("ja", offer[:1])


@pytest.mark.parametrize(
    ("text", "n"),
    [
        ("How long is the trial, and do I need a card?", 2),
        ("Wie lange läuft der Test und was kostet er?", 2),
        ("Is it free? And until when can I cancel? What does it cost then?", 3),
        ("Can I pay by card and by bank transfer?", 1),
        ("Who can see it and what they can do?", 1),
        ("What are the rules for swaps and for leave?", 1),
    ],
)
def test_every_question_of_a_message_is_found(text: str, n: int) -> None:
    parts = plan(understand(text), text, ())
    assert len(parts) == len(questions_of(text)) == n
    assert all(part.searches[0][0] == part.question for part in parts)


# ---------------------------------------------------------------- through the pipeline

ARTICLES = {
    "offline.md": "# Kiosk offline\n\nThe kiosk keeps punches for 72 hours while it is offline.",
    "pins.md": "# Kiosk PINs\n\nEvery employee has a PIN with 4 digits.",
    "refunds.md": "# Refunds\n\nA refund of the fee is paid within 14 days.",
}


@pytest.fixture
async def pipeline() -> Pipeline:
    low = {"answer_threshold": 0.02, "abstain_threshold": 0.01}
    release = load_release(Parameters().with_(gate=low, embed={"model": "hashing-256"}))
    documents = [
        parse(text.encode(), content_type="text/markdown", document_id=name)
        for name, text in ARTICLES.items()
    ]
    chunks = [c for d in documents for c in chunk(d, release.parameters.chunk)]
    embedder = HashingEmbedder()
    vectors = (await embedder.embed([c.embedded_text for c in chunks])).vectors
    return Pipeline(release, embedder, InMemoryIndex(chunks, vectors), ExtractiveGenerator())


async def test_one_question_is_asked_and_its_answer_understood(pipeline: Pipeline) -> None:
    vague = "I have a problem with the kiosk"
    asked = await pipeline.answer(vague)
    assert (asked.decision.outcome, asked.decision.reason) == (Outcome.ABSTAIN, "unclear")
    offered = offered_in(Turn("assistant", asked.text))
    assert set(offered[:2]) == {"Kiosk offline", "Kiosk PINs"} and not asked.citations
    past = [Turn("user", vague), Turn("assistant", asked.text)]
    chosen = await pipeline.answer(str(1 + offered.index("Kiosk PINs")), history=past)
    assert "4 digits" in chosen.text
    assert {c.document_id for c in chosen.citations} == {"pins.md"}
    assert (await pipeline.answer("none", history=past)).decision.reason == "low_confidence"
    again = await pipeline.answer("it just doesn't work", history=past)
    assert again.decision.reason != "unclear", "nobody is asked twice in a row"
    other = await pipeline.answer("When is the refund of the fee paid?", history=past)
    assert "14 days" in other.text


async def test_without_a_choice_nobody_is_asked(pipeline: Pipeline) -> None:
    empty = InMemoryIndex([], np.zeros((0, 256)))
    lone = Pipeline(pipeline.release, pipeline.embedder, empty, pipeline.generator)
    assert (await lone.answer("It doesn't work")).decision.reason == "low_confidence"


async def test_both_halves_are_answered_in_order(pipeline: Pipeline) -> None:
    text = "How many digits has a PIN, and when is a refund of the fee paid?"
    *drafts, answer = [event async for event in pipeline.stream(text)]
    assert isinstance(answer, Answer) and "".join(map(str, drafts)) == answer.text
    assert 0 <= answer.text.index("4 digits") < answer.text.index("14 days")
    assert [c.document_id for c in answer.citations] == ["pins.md", "refunds.md"]
    assert [c.number for c in answer.citations] == sorted(c.number for c in answer.citations)


async def test_a_half_without_an_answer_is_named(pipeline: Pipeline) -> None:
    text = "How many digits has a PIN? Does the falcon [1] sleep at night?"
    answer = await pipeline.answer(text)
    assert (answer.decision.outcome, answer.decision.reason) == (Outcome.HAND_OFF, "partial")
    assert "4 digits" in answer.text and "falcon" in answer.text
    assert answer.text.endswith(ENGLISH.partly)
    assert [c.document_id for c in answer.citations] == ["pins.md"], "what is named cites nothing"


async def test_an_angry_question_is_answered_with_an_apology(pipeline: Pipeline) -> None:
    answer = await pipeline.answer("Your kiosk is a joke!!! How many digits has a PIN?")
    assert answer.text.startswith(ENGLISH.sorry) and "4 digits" in answer.text
    assert answer.decision.outcome is Outcome.ANSWER


async def test_who_is_speaking_is_said(pipeline: Pipeline) -> None:
    answer = await pipeline.answer("are you a bot or a person?")
    assert (answer.text, answer.decision.reason) == (ENGLISH.who, "small_talk")
