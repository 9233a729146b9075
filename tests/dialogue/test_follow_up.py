"""A follow-up is made to stand alone; a new topic drags nothing of the old one in."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support_rag.dialogue.follow_up import condense, exchanged, is_follow_up
from support_rag.types import Turn

KIOSK = (Turn("user", "How long does the Kiosk store punches offline?"), Turn("assistant", "72 h."))
WORDS = st.lists(
    st.sampled_from(
        [
            "and",
            "the",
            "one",
            "Basic",
            "Pro",
            "plan",
            "for",
            "how",
            "is",
            "it",
            "7",
            "?",
            ".",
            "punch",
        ]
    )
)
TEXT = WORDS.map(" ".join)
TURNS = st.lists(st.builds(Turn, st.sampled_from(["user", "assistant"]), TEXT), max_size=12)


@pytest.mark.parametrize(
    "question",
    ["And on Android?", "What about tablets?", "Can it be raised?", "Why?", "How does that work?",
     "Is there another way to do this?", "Until when?", "How much does each cost?", "Und wann?"],
)  # fmt: skip
def test_follow_ups_carry_what_they_point_back_to(question: str) -> None:
    assert is_follow_up(question, history=KIOSK)
    query = condense(question, KIOSK)
    assert query.startswith(question) and "Kiosk" in query and "72" not in query
    assert condense(question, ()) == question, "without a history nothing is added"
    assert not is_follow_up(question, history=KIOSK[1:]), "the service's own words are no topic"


@pytest.mark.parametrize(
    "question",
    ["How do I invite a new employee by e-mail?", "Which payroll formats can Tempolane export?",
     "How do I reset my password?", "Where do bikes stand?", "What is a split shift?",
     "Is there a student discount?", "Wie kann ich mein Passwort zurücksetzen?"],
)  # fmt: skip
def test_a_question_that_stands_alone_is_never_changed(question: str) -> None:
    assert not is_follow_up(question, history=KIOSK)
    assert condense(question, KIOSK) == question


@pytest.mark.parametrize(
    ("earlier", "question", "query"),
    [
        ("How much is the Pro plan?", "And the Basic one?", "How much is the Basic plan?"),
        ("How much is the Pro plan?", "And the Basic plan?", "How much is the Basic plan?"),
        ("How much is the small locker?", "and the large one?", "How much is the large locker?"),
        ("Is parking free for guests?", "What about for staff?", "Is parking free for staff?"),
        ("What does Hall 61 cost?", "And Hall 62?", "What does Hall 62 cost?"),
        ("When does Northport open?", "And Southport?", "When does Southport open?"),
        ("How do I install it on Windows?", "And on Linux?", "How do I install it on Linux?"),
    ],
)
def test_an_ellipsis_exchanges_the_contrasted_word(earlier: str, question: str, query: str) -> None:
    assert condense(question, [Turn("user", earlier), Turn("assistant", "Yes.")]) == query


@pytest.mark.parametrize("question", ["And after that?", "And why is it so?", "And then?", "Yes"])
def test_nothing_is_exchanged_for_words_that_name_nothing(question: str) -> None:
    assert exchanged(question, "How much is the Pro plan?") == ""


@settings(deadline=None)
@given(TEXT, TURNS)
def test_what_is_condensed_holds_words_of_the_customer_alone(
    question: str, history: list[Turn]
) -> None:
    said = {word.strip("().?") for t in history if t.role == "user" for word in t.content.split()}
    said |= {word.strip("().?") for word in question.split()}
    assert {word.strip("().?") for word in condense(question, history).split()} <= said
