"""A table is read whatever its dialect, and none of its values is lost."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support_rag.formats.csv import csv_rows, read_csv, sniff_delimiter
from tests.timing import grows_linearly


def lines(text: str) -> list[str]:
    parsed = read_csv(text.encode())
    return [block.span.of(parsed.text) for block in parsed.blocks]


# ---------------------------------------------------------------- dialects


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gb18030"])
def test_delimiters_and_encodings(delimiter: str, encoding: str) -> None:
    rows = [
        "型号,价格,说明",
        "甲型,十二元,适用于大多数仓库和商店的离线打卡设备",
        "乙型,九元,没有电池的型号",
    ]
    text = "\n".join(row.replace(",", delimiter) for row in rows)
    parsed = read_csv(text.encode(encoding))
    assert parsed.text.splitlines()[1] == "型号: 乙型 | 价格: 九元 | 说明: 没有电池的型号"


@pytest.mark.parametrize("line", ["sep=|", "SEP=|", '"sep=|"', "sep=|\r"])
def test_a_line_that_names_the_delimiter_is_no_row(line: str) -> None:
    assert lines(f"{line}\nTopic|Note, in short\nLocks|Oil them, twice") == [
        "Topic: Locks | Note, in short: Oil them, twice"
    ]


def test_spaces_around_quotes_and_line_ends_inside_them() -> None:
    text = 'area , "opening hours"\n "North, upper" ,\t"8 to 5,\r\nSundays off" \nSouth,"""late"""'
    assert lines(text) == [
        "area: North, upper | opening hours: 8 to 5, Sundays off",
        'area: South | opening hours: "late"',
    ]


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.lists(st.text(st.sampled_from("ab\",;\n 'é"), max_size=6), min_size=3, max_size=3)),
    st.sampled_from(",;"),
)
def test_what_the_standard_library_writes_is_read(rows: list[list[str]], delimiter: str) -> None:
    target = io.StringIO(newline="")
    csv.writer(target, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerows(rows)
    assert [row.cells for row in csv_rows(target.getvalue(), delimiter)] == rows


# ---------------------------------------------------------------- quotes that do not fit


@pytest.mark.parametrize(
    ("line", "row"),
    [
        ('pipe,"2" wide", 7', 'part: pipe | size: 2" wide | price: 7'),
        ('pipe,"half" open,7', 'part: pipe | size: "half" open | price: 7'),
        ('"pipe" one,"a, b",7', 'part: "pipe" one | size: a, b | price: 7'),
        ('pipe,"open,7', 'part: pipe | size: "open | price: 7'),
        ('pipe,5",7', 'part: pipe | size: 5" | price: 7'),
        ('pipe,"open, and, more, cells,7', 'pipe,"open, and, more, cells,7'),
    ],
)
def test_a_bad_quote_costs_no_other_row(line: str, row: str) -> None:
    before, after = 'hose,"3 m, black",1', 'tap,"brass ""old""",2'
    assert lines(f"part,size,price\n{before}\n{line}\n{after}\n") == [
        "part: hose | size: 3 m, black | price: 1",
        row,
        'part: tap | size: brass "old" | price: 2',
    ]


@settings(deadline=None, max_examples=200)
@given(st.text(st.sampled_from('ab",\n x'), max_size=60))
def test_no_letter_is_lost_whatever_the_quotes(text: str) -> None:
    found = "\n".join(cell for row in csv_rows(text, ",") for cell in row.cells)
    for letter in "abx":
        assert found.count(letter) == text.count(letter)


def test_a_cell_may_be_as_long_as_a_document() -> None:
    long = "It holds for a year. " * 20_000
    first, last = lines(f'clause,text\n7,"{long}"\n8,End of the terms')
    assert len(first) > 400_000 and last == "clause: 8 | text: End of the terms"


# ---------------------------------------------------------------- heads, titles and remarks


def test_titles_above_and_remarks_below() -> None:
    text = (
        "Price list of the yard,,\nAs of,May,\n,,\nBoat,Length,Price\nSkiff,4 m,90\n"
        "Larger boats,,\nKetch,12 m,\n,,\nPrices are without tax.,,\n"
    )
    assert lines(text) == [
        "Price list of the yard",
        "As of | May",
        "Boat: Skiff | Length: 4 m | Price: 90",
        "Larger boats",
        "Boat: Ketch | Length: 12 m",
        "Prices are without tax.",
    ]


def test_names_that_are_missing_or_the_same() -> None:
    assert lines("lamp,,watts,watts\nA,new,5,6,7") == [
        "lamp: A | column 2: new | watts: 5 | watts (2): 6 | column 5: 7"
    ]


def test_a_first_row_of_sentences_names_nothing() -> None:
    sentence = "We open at nine and close at five, on all days but Sundays and holidays. " * 2
    assert (
        lines(f'"{sentence}",yes\nshort,no')[0] == f"column 1: {sentence.strip()} | column 2: yes"
    )


@pytest.mark.parametrize(
    ("head", "first", "second"),
    [
        ("id,Answer,Question", "Question", "Answer"),
        ("Antwort,Frage,Team", "Frage", "Antwort"),
        ("faq_answer_html,faq_question,n", "faq_question", "faq_answer_html"),
        ("Respuesta,x,Pregunta", "Pregunta", "Respuesta"),
        ("答案,编号,问题", "问题", "答案"),
        ("A,n,Q", "Q", "A"),
    ],
)
def test_a_question_and_its_answer_come_first(head: str, first: str, second: str) -> None:
    names = head.split(",")
    [row] = lines(f"{head}\n" + ",".join(f"v{name}" for name in names))
    assert row.startswith(f"{first}: v{first} | {second}: v{second} | ")


def test_one_column_and_its_commas() -> None:
    text = "remark\nWe open at nine.\nDogs, cats and birds are welcome.\nCall first.\n"
    assert lines(text)[1] == "remark: Dogs, cats and birds are welcome."
    assert lines("only a head") == ["only a head"]
    assert lines(",,\n\n") == []


# ---------------------------------------------------------------- HTML in cells


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        ("<div>Turn it <b>off</b>.</div><div>Wait.</div>", "Turn it off. Wait."),
        ("<ol><li>Lift</li><li>Pull</li></ol>", "1. Lift 2. Pull"),
        ("Tom &amp; Co&#46; &mdash; ahoi", "Tom & Co. — ahoi"),
        ("<!-- internal -->Open to all", "Open to all"),
        ("enter <name> or <b>all</b>", "enter <name> or all"),
        ("a < b and b > c", "a < b and b > c"),
        ("/find?x=1&lt=2", "/find?x=1&lt=2"),
    ],
)
def test_cells_read_as_a_page_does(cell: str, text: str) -> None:
    assert lines(f"topic,body\nHelp,{cell}") == [f"topic: Help | body: {text}"]


# ---------------------------------------------------------------- time


@pytest.mark.parametrize(
    "unit",
    ['"', '"a,', '"a\n', '"""\n', ',""a\n', 'a"\n', '"a"b"\n', "<p>", "<p", "&amp;", "<b>x</b>,"],
)  # fmt: skip
def test_hostile_tables_are_read_in_linear_time(unit: str) -> None:
    grows_linearly(lambda n: read_csv((unit * (n // len(unit))).encode()), 40_000)


def test_a_wide_head_and_many_narrow_rows_take_linear_time() -> None:
    def work(n: int) -> None:
        read_csv((",".join(["a"] * n) + "\n" + "b\n" * n).encode())

    grows_linearly(work, 12_500)
    assert sniff_delimiter("," * 1_000_000) == ","
