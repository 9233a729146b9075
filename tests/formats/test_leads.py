"""Questions are found however they are written, and marking them loses no character."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support_rag.formats.blocks import trim
from support_rag.formats.leads import (
    bare_question,
    find_questions,
    is_asking,
    is_question,
    mark_questions,
    pair_columns,
)
from support_rag.parse import parse
from support_rag.types import Block, Span
from tests.timing import grows_linearly


def questions(text: str, kind: str = "text/plain") -> list[str]:
    document = parse(text.encode(), content_type=kind, document_id="d")
    return [b.span.of(document.text) for b in document.blocks if b.kind == "question"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Q: Where is the boat?\nA: In the shed.", ["Q: Where is the boat?"]),
        ("Q1. Where is it\nA1. There.\nQ2. And now\nA2. Here.", ["Q1. Where is it", "Q2. And now"]),
        ("Question: Where?\n\nAnswer: There.", ["Question: Where?"]),
        ("F: Wo steht das Boot?\nA: Im Schuppen.", ["F: Wo steht das Boot?"]),
        ("P: ¿Dónde está?\nR: Aquí.", ["P: ¿Dónde está?"]),
        ("Q : Où est le bateau ?\nR : Au hangar.", ["Q : Où est le bateau ?"]),
        ("В: Где лодка?\nО: В сарае.", ["В: Где лодка?"]),
        ("问：船在哪里？\n答：在棚里。", ["问：船在哪里？"]),
        ("質問：船はどこですか\n回答：小屋です。", ["質問：船はどこですか"]),
        ("Soru: Tekne nerede?\nCevap: Burada.", ["Soru: Tekne nerede?"]),
        ("**Q:** Where is it?\n**A:** There.", ["**Q:** Where is it?"]),
        ("Q: Where is it? A: There.", ["Q: Where is it?"]),
        ("**Where is it?** In the shed.", ["**Where is it?**"]),
        ("**Where is it?**\n\nIn the shed.", ["**Where is it?**"]),
        ("__How many?__\nNine.", ["__How many?__"]),
        ("Where is it?\nThere.\n\nHow many?\nNine.", ["Where is it?", "How many?"]),
        ("1. Where is it?\n\nThere.\n\n2. How many?\n\nNine.", ["1. Where is it?", "2. How many?"]),
        ("QUESTION\nWhere is it?\n\nANSWER\nThere.", ["QUESTION\nWhere is it?"]),
        ("T: 030 1234\nF: 030 1235", []),
        ("D: is the drive\nA: is the other", []),
        ("**Note:** it is open.", []),
        ("Why not? It is open.\n\nIt is. Really?\n\nYes.", []),
        ("Ready?\n\n" + "A paragraph that asks nothing.\n\n" * 8, []),
        ("Plan B: go home.\nA: no.", []),
    ],
)
def test_questions_of_a_plain_text(text: str, found: list[str]) -> None:
    assert questions(text) == found


def test_questions_of_markdown_and_a_page() -> None:
    text = "# FAQ\n\n**May I row?**\n\nYes.\n\n> Q: At night?\n> A: No.\n\n- **Alone?** Yes.\n"
    assert questions(text, "text/markdown") == ["> Q: At night?"], "a bold one is a heading"
    page = "<main><p>May I row?</p><p>Yes.</p><p>At night?</p><p>No.</p></main>"
    assert questions(page, "text/html") == ["May I row?", "At night?"]


@pytest.mark.parametrize(
    ("line", "asks"),
    [
        ("How?", True), ("How? (2)", False), ("Q: a lift", True), ("几点？", True), ("كيف؟", True),
        ("**How?**", True), ("v2.3.1", False), ("Q1 results", False), ("", False),
    ],
)  # fmt: skip
def test_a_line_that_asks(line: str, asks: bool) -> None:
    assert is_question(line) is asks


def test_columns() -> None:
    assert pair_columns(["ID", "Customer question", "Answers"]) == (1, 2)
    assert pair_columns(["Pregunta", "Respuesta"]) == (0, 1)
    assert pair_columns(["A", "Q"]) == (1, 0)
    assert pair_columns(["Question", "Status"]) is None
    assert is_asking("客户问题") and not is_asking("Questionnaire")


PART = st.sampled_from(
    [
        "Q: Where?",
        "A: There.",
        "**How?**",
        "**Bold**",
        "Why?",
        "It is so.",
        "F: x",
        "\n",
        "> ",
        "？",
    ]
)
PROSE = st.lists(PART, max_size=12).map(lambda parts: "\n".join(parts))


@settings(deadline=None)
@given(st.one_of(PROSE, st.text(max_size=200)))
def test_marking_keeps_every_character_in_order(text: str) -> None:
    stripped = [trim(text, 0, len(text))] if text.strip() else []
    blocks = mark_questions(text, [Block("paragraph", span) for span in stripped])
    edges = [Span(0, 0), *(b.span for b in blocks), Span(len(text), len(text))]
    for before, after in pairwise(edges):
        assert before.end <= after.start and not text[before.end : after.start].strip()
    assert all(b.span.of(text) == b.span.of(text).strip() for b in blocks)
    for span in find_questions(text):
        assert span.of(text).strip()
    first = bare_question(text)
    assert first is None or "?" in first.of(text) or "？" in first.of(text) or "؟" in first.of(text)


@pytest.mark.parametrize(
    "unit",
    ["Q: a?\nA: b\n", "**a?** ", "**", "Q:", "a? ", "?", "Q: ", "\n> ", "1. ", "a\n\n", "** \n"],
)
def test_hostile_prose_is_read_in_linear_time(unit: str) -> None:
    def work(n: int) -> None:
        text = unit * (n // len(unit))
        mark_questions(text, [Block("paragraph", Span(0, len(text)))])

    grows_linearly(work, 20_000)
