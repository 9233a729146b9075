"""What is quoted stands in a hit, word for word, under that hit's number."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support_rag.parse import parse
from support_rag.quote import quotable_units, quote
from support_rag.types import Chunk, Hit, Span

TABLE = "| Time | Screen |\n|---|---|\n| 0–48 h | orange cloud |\n| 72 h | red `TL-3301` |"
STEPS = "To reset it:\n\n1. Hold the logo.\n   It blinks.\n   - Or not.\n2. Choose **Reset**."
ITEMS = "Works offline:\n\n- punches\n- photos of the kiosk"
CODE = "Run:\n\n```sh\nsync --now\n\nsync --all\n```"
PROSE = "The kiosk keeps punches for 72 hours. Then it\nstops. > no quote"
PART = st.sampled_from(
    [TABLE, STEPS, ITEMS, CODE, PROSE, "## Kiosk offline", "> Quoted kiosk.", ""]
)
CHUNK = st.lists(PART, min_size=1, max_size=5).map("\n\n".join)
QUESTION = st.sampled_from(
    ["How long does the kiosk keep punches?", "What is TL-3301?", "How do I reset it?", "sync", "?"]
)


def hit_of(text: str, rank: int = 1, *path: str) -> Hit:
    chunk = Chunk(f"chunk-{rank}", "d", Span(0, len(text)), text, path or ("Kiosk",), title="Kiosk")
    return Hit(chunk, 1 / rank, rank)


def squeezed(text: str) -> str:
    return " ".join(text.replace("> ", "").split())


@settings(deadline=None)
@given(st.lists(CHUNK, max_size=3), QUESTION, st.integers(1, 5))
def test_every_line_stands_in_the_hit_it_cites(texts: list[str], question: str, n: int) -> None:
    hits = [hit_of(text, rank) for rank, text in enumerate(texts, 1)]
    pieces = list(quote(hits, question=question, n=n))
    quoted = [piece for piece in pieces if piece.strip()]
    assert len(quoted) <= n
    for piece in quoted:
        found = re.search(r"\s\[(\d+)\]$", piece)
        assert found is not None, piece
        source = squeezed(hits[int(found[1]) - 1].chunk.text)
        for line in piece[: found.start()].splitlines():
            assert squeezed(line) in source


@settings(deadline=None)
@given(CHUNK)
def test_units_lose_no_statement(text: str) -> None:
    together = squeezed(" ".join(unit.text for unit in quotable_units(text)))
    for word in ("Hold the logo", "TL-3301", "sync --all", "72 hours", "photos of the kiosk"):
        assert (word in text) <= (word in together)


def one(text: str, question: str) -> str:
    return "".join(quote([hit_of(text)], question=question, n=1))


@pytest.mark.parametrize(
    ("text", "question", "quoted"),
    [
        (
            TABLE,
            "What is TL-3301?",
            "| Time | Screen |\n|---|---|\n| 72 h | red `TL-3301` |\n\n[1]",
        ),
        (STEPS, "How do I choose reset?", f"{STEPS} [1]"),
        (ITEMS, "Does it take photos?", "Works offline:\n\n- photos of the kiosk [1]"),
        (CODE, "sync all", f"{CODE}\n\n[1]"),
        (PROSE, "How long?  72 hours", "The kiosk keeps punches for 72 hours. [1]"),
        ("It waits. See [2] for more kiosk.", "kiosk", ""),
        (PROSE, "zebra", ""),
    ],
)
def test_units_are_quoted_whole(text: str, question: str, quoted: str) -> None:
    assert one(text, question) == quoted


def test_a_row_without_its_head_is_quoted_alone() -> None:
    rest = "| 72 h | red `TL-3301` |\n| 80 h | blue `TL-3309` |"
    assert one(rest, "TL-3309") == "| 80 h | blue `TL-3309` |\n\n[1]"
    assert one(rest, "TL-3301") == "| 72 h | red `TL-3301` |\n\n[1]", "a first row is no head"


def test_rows_of_a_csv_and_of_a_page_are_quoted_whole() -> None:
    table = parse(
        b"code,meaning\nTL-1,It is cold. Warm it.\nTL-2,It is hot.\n",
        content_type="text/csv", document_id="d",
    )  # fmt: skip
    assert one(table.text, "What is TL-1?") == "code: TL-1 | meaning: It is cold. Warm it. [1]"
    page = b"<table><tr><th>Code<th>Cause<tr><td>TL-1<td>Cold<tr><td>TL-2<td>Heat</table>"
    rows = parse(page, content_type="text/html", document_id="d")
    assert one(rows.text, "TL-2") == "Code | Cause\n--- | ---\nTL-2 | Heat [1]"


def test_an_amount_wants_a_figure_and_a_superseded_text_gives_way() -> None:
    text = "The kiosk keeps punches for a while. The kiosk keeps punches for 72 hours."
    assert "72 hours" in one(text, "How long does the kiosk keep punches?")
    old = hit_of("Superseded by the new article. It stores 24 hours of punches.", 1)
    new = hit_of("It stores 72 hours of punches.", 2)
    chosen = "".join(quote([old, new], question="How many hours of punches does it store?", n=1))
    assert chosen == "It stores 72 hours of punches. [2]"


def test_a_better_hit_wins_between_equals() -> None:
    hits = [hit_of("The kiosk keeps punches.", 1), hit_of("The kiosk keeps punches.", 2)]
    assert "".join(quote(hits, question="kiosk punches", n=1)).endswith("[1]")
    assert list(quote([], question="kiosk", n=3)) == []
