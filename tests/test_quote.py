"""What is quoted stands in a hit, word for word, under that hit's number."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support_rag.parse import parse
from support_rag.prompt import cited_numbers, keep_known
from support_rag.quote import halves, quote
from support_rag.types import Chunk, Hit, Span
from support_rag.units import quotable_units

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
    return Hit(chunk, 1 - rank / 10, rank)


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


def one(text: str, question: str, n: int = 1) -> str:
    return "".join(quote([hit_of(text)], question=question, n=n))


@pytest.mark.parametrize(
    ("text", "question", "quoted"),
    [
        (
            TABLE,
            "What is TL-3301?",
            "| Time | Screen |\n|---|---|\n| 72 h | red `TL-3301` |\n\n[1]",
        ),
        (STEPS, "How do I choose reset?", f"{STEPS} [1]"),
        (ITEMS, "Does it take photos?", f"{ITEMS} [1]"),
        (CODE, "sync all", f"{CODE}\n\n[1]"),
        (PROSE, "How long?  72 hours", "The kiosk keeps punches for 72 hours. [1]"),
        ("It waits. See [2] for more kiosk.", "kiosk", r"See \[2] for more kiosk. [1]"),
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


def test_brackets_of_a_text_cite_nothing() -> None:
    text = "Press [1] or [2, 3] or 【4】 for the kiosk, see [5](https://a.io) and `[6]`."
    quoted = one(text, "kiosk")
    assert cited_numbers(quoted) == [1] and quoted.endswith(" [1]")
    assert quoted.count("[1]") == 2 and "[5](https://a.io)" in quoted and "`[6]`" in quoted
    assert keep_known(quoted, [hit_of(text)]) == quoted


@settings(deadline=None)
@given(st.text("kiosk [1]2,3\\\\`~【】.", max_size=40))
def test_no_text_cites_another_hit(text: str) -> None:
    quoted = one(f"The kiosk {text.replace('`', '').replace('~', '')} waits", "kiosk")
    assert set(cited_numbers(quoted)) <= {1}


HALLS = "| Hall | Seats | Rate |\n|---|---|---|\n| Hall 8 | 24 | 88 |\n| Hall 88 | 264 | 968 |"


@pytest.mark.parametrize(
    ("text", "question", "inside", "outside"),
    [
        (HALLS, "How many seats has Hall 88?", "Hall 88 | 264", "Hall 8 |"),
        (HALLS, "What is the rate of Hall 264?", "", "Hall"),
        (HALLS, "Which hall has 264 seats?", "Hall 88 | 264", "Hall 8 |"),
        ("| Code | Do |\n|---|---|\n| E-1 | wait |\n| E-2 | go |", "E-2", "go", "wait"),
        ("| Size | Fee |\n|---|---|\n| Group 5–9 | 70 |", "fee of group 7", "70", "zebra"),
        ("# Error E-7\n\nIt is cold. Warm it.", "What is E-7?", "It is cold. Warm it. [1]", "# E"),
        ("Q: May I row?\nA: By day.", "May I row?", "By day. [1]", "row"),
    ],
)
def test_what_is_meant_is_quoted(text: str, question: str, inside: str, outside: str) -> None:
    quoted = one(text, question)
    assert inside in quoted and outside not in quoted


def test_a_lead_is_quoted_with_its_row() -> None:
    hit = hit_of("| Hall 9 | 27 |")
    led = replace(hit, chunk=replace(hit.chunk, lead="| Hall | Seats |\n|---|---|\n"))
    quoted = "".join(quote([led], question="Seats of Hall 9?", n=1))
    assert quoted == "| Hall | Seats |\n|---|---|\n| Hall 9 | 27 |\n\n[1]"


def test_one_passage_of_one_document_answers() -> None:
    right = "Zebra badges open the south gate. They are made at the desk."
    near = "The south gate is painted. Badges of the south gate are blue."
    quoted = "".join(quote([hit_of(right, 1), hit_of(near, 2)], question="zebra badges", n=4))
    assert quoted == f"{right} [1]"


def test_a_code_is_answered_from_its_own_section() -> None:
    text = "# Fault B-210\n\nThe belt slipped. Tighten it.\n\n# Fault B-220\n\nThe belt is torn."
    assert one(text, "What does B-220 mean?") == "The belt is torn. [1]"
    assert one(text, "What does B-210 mean?").startswith("The belt slipped.")


def test_an_entry_does_not_run_into_the_next_code() -> None:
    text = "KX-20 – The lid is open. Close the lid. KX-30 – The lid is lost. Order a lid."
    assert one(text, "what is KX-20", n=4).endswith("Close the lid. [1]")


def test_the_steps_answer_how_and_the_remark_behind_them_does_not() -> None:
    text = (
        "# Change the filter\n\n1. Close the tap.\n2. Turn the cup.\n\nWait for the last drop.\n\n"
        "3. Lift the filter out.\n4. Close the cup.\n\nIf step 3 sticks, change the filter warm."
    )
    quoted = one(text, "How do I change the filter?")
    assert "1. Close the tap." in quoted and "4. Close the cup." in quoted


def test_a_technote_answers_with_its_answer() -> None:
    text = (
        "QUESTION\nThe pump stops after an hour and the pump is hot.\n\n"
        "ANSWER\nClean the inlet of the pump every week."
    )
    assert one(text, "The pump stops after an hour, what can I do?").startswith("Clean the inlet")


def test_a_lone_item_has_no_mark_of_a_list() -> None:
    text = "# Fees\n\n- Lockers cost 3 euros.\n- Towels are free."
    assert one(text, "How much is a locker?") == "Lockers cost 3 euros. [1]"


def test_other_words_of_the_same_meaning_are_enough() -> None:
    text = "Dogs sleep in the barn. The price is printed on the door. Boats leave at noon."
    assert one(text, "what does it cost?") == "The price is printed on the door. [1]"


def test_what_asks_is_hardly_an_answer() -> None:
    text = "Who feeds the zebra at night? Write to us. The zebra is fed by the night guard."
    assert one(text, "Who feeds the zebra at night?").startswith("The zebra is fed")


def test_a_passage_does_not_begin_with_what_points_back() -> None:
    text = "The lift has a brake. It holds the cabin with 80 springs."
    assert one(text, "springs") == "It holds the cabin with 80 springs. [1]"
    quoted = "".join(quote([hit_of(text)], question="springs", n=2))
    assert quoted == f"{text} [1]"


def test_a_passage_ends_at_its_heading_and_at_sixty_words() -> None:
    text = "## Boats\n\nA boat has two oars.\n\n## Bikes\n\nA bike has two wheels."
    assert "wheels" not in "".join(quote([hit_of(text)], question="oars of a boat", n=4))
    long = "A boat has two oars. " + "It is long and made of wood and it floats well. " * 20
    assert len("".join(quote([hit_of(long)], question="oars", n=20)).split()) < 80


@pytest.mark.parametrize(
    ("question", "n"),
    [
        ("How do I rent a boat and when is the harbour open?", 2),
        ("Where is the harbour? What does a boat cost?", 2),
        ("Can I bring bread and butter?", 1),
        ("And on Android? (kiosk offline punches)", 1),
        ("One thing? Two things? Three things?", 1),
    ],
)
def test_halves_of_a_question(question: str, n: int) -> None:
    assert len(halves(question)) == n


def test_both_halves_are_answered() -> None:
    hits = [hit_of("A boat costs 9 euros an hour."), hit_of("The harbour opens at 8.", 2)]
    question = "What does a boat cost and when does the harbour open?"
    assert cited_numbers("".join(quote(hits, question=question, n=4))) == [1, 2]
