"""What can be quoted stands in the text, makes sense alone, and is never a question."""

from __future__ import annotations

import pytest

from support_rag.units import quotable_units


def texts(text: str) -> list[str]:
    return [unit.text for unit in quotable_units(text)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Q: May I row?\nA: Yes, by day.", ["Yes, by day."]),
        ("**May I row?**\n\nYes. Take a vest.", ["Yes. Take a vest."]),
        (
            "## May I row?\n\nYes. Take a vest.\n\nNot at night.",
            ["Yes. Take a vest.", "Not at night."],
        ),
        ("May I row?\nYes.", ["Yes."]),
        ("F: Darf ich?\nA: Ja.\nF: Nachts?\nA: Nein.", ["Ja.", "Nein."]),
        ("| Question | Answer |\n|---|---|\n| May I? | Yes. |", ["Yes."]),
        ("id: 7 | Frage: Darf ich? | Antwort: Ja.", ["Ja."]),
        ("## May I row?\n\n- by day\n- with a vest", ["- by day\n- with a vest"]),
        ("- **May I row?** Yes.\n- **At night?** No.", ["Yes.", "No."]),
        ("- **May I row?**\n\n  Yes.\n\n- **At night?**\n\n  No.", ["Yes.", "No."]),
        ("1. May I row?\n   Yes.\n2. At night?\n   No.", ["Yes.", "No."]),
        ("May I row?", []),
    ],
)
def test_the_answer_is_quoted_and_never_its_question(text: str, found: list[str]) -> None:
    assert texts(text) == found
    assert all(u.own.startswith(u.heading) for u in quotable_units(text)), "it has to match"


def test_steps_that_go_on_after_a_remark_are_one_procedure() -> None:
    text = "To start:\n\n1. Turn.\n2. Push.\n\nWait.\n\n```sh\ngo\n```\n\n3. Pull.\n\nDone."
    first, *rest = texts(text)
    assert first == text.removesuffix("\n\nDone.") and rest == ["Done."]
    assert len(texts("1. A.\n2. B.\n\nOr else:\n\n1. C.\n2. D.")) == 2, "a list that starts anew"
    assert len(texts("## X\n\n1. A.\n\n## Y\n\n2. B.")) == 2, "a heading ends a procedure"


def test_an_introduction_has_all_its_items() -> None:
    assert texts("You need:\n\n- a vest\n- a rope") == ["You need:\n\n- a vest\n- a rope"]
    assert texts("- a vest\n- a rope") == ["a vest", "a rope"], (
        "no mark of a list that is not there"
    )
    long = "\n".join(f"- item {n} of a list that is too long to be quoted" for n in range(30))
    assert len(texts(f"You need:\n\n{long}")) == 30


def test_rows_know_their_head_and_their_key() -> None:
    two = "| Boat | Seats |\n|---|---|\n| 1 | Ann |\n| Oar | Price |\n|---|---|\n| long | 9 |"
    rows = list(quotable_units(two))
    assert [row.text for row in rows] == [
        "| Boat | Seats |\n|---|---|\n| 1 | Ann |", "| Oar | Price |\n|---|---|\n| long | 9 |",
    ]  # fmt: skip
    assert [row.key for row in rows] == ["Ann", "long"]


def test_the_start_of_a_section_knows_its_paragraph() -> None:
    units = list(quotable_units("# E-7\n\nIt is cold. Warm it.\n\nThen wait."))
    assert [unit.passage for unit in units] == ["It is cold. Warm it."] * 2 + [""]
