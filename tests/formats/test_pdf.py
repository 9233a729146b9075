"""A PDF is read as a person reads it: each kind of thing, its control, and hostile pages."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import pytest
from reportlab.lib import colors
from reportlab.lib.styles import ParagraphStyle, getSampleStyleSheet
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import (
    BaseDocTemplate,
    Frame,
    PageTemplate,
    Paragraph,
    SimpleDocTemplate,
    Spacer,
    Table,
    TableStyle,
)

from support_rag.formats.blocks import Parsed
from support_rag.formats.pdf import read_pdf, sensible_title
from tests.timing import grows_linearly, takes_at_most

Draw = Callable[[Canvas], None]
HOURS = [
    "The gate opens at seven on working days and",
    "closes at nine in the evening. Guests ring the",
    "bell at the side door after that time.",
]
STYLES = getSampleStyleSheet()
BODY = STYLES["BodyText"]


def write(
    canvas: Canvas,
    lines: Sequence[str],
    *,
    x: float = 60,
    y: float = 740,
    size: float = 10,
    step: float = 14,
    font: str = "Helvetica",
) -> None:
    canvas.setFont(font, size)
    for n, line in enumerate(lines):
        canvas.drawString(x, y - step * n, line)


def pages(*draws: Draw, title: str = "") -> Parsed:
    canvas = Canvas(stream := io.BytesIO(), pagesize=(595, 842))
    if title:
        canvas.setTitle(title)
    for draw in draws:
        draw(canvas)
        canvas.showPage()
    canvas.save()
    return read_pdf(stream.getvalue())


def lines(*texts: str, **where: float) -> Draw:
    return lambda canvas: write(canvas, texts, **where)  # type: ignore[arg-type]


def both(*draws: Draw) -> Draw:
    def draw_all(canvas: Canvas) -> None:
        for draw in draws:
            draw(canvas)

    return draw_all


def cells(*rows: Sequence[str], xs: Sequence[float] = (60, 180, 300), step: float = 16) -> Draw:
    def draw(canvas: Canvas) -> None:
        canvas.setFont("Helvetica", 10)
        for n, row in enumerate(rows):
            for x, text in zip(xs, row, strict=True):
                canvas.drawString(x, 700 - step * n, text)

    return draw


def headings(parsed: Parsed) -> list[tuple[int, str]]:
    found = (block for block in parsed.blocks if block.kind == "heading")
    return [(block.level, block.span.of(parsed.text).lstrip("# ")) for block in found]


def rows(parsed: Parsed) -> list[list[str]]:
    texts = [b.span.of(parsed.text) for b in parsed.blocks if b.kind == "table_row"]
    plain = (text.split("\n")[0] for text in texts)
    plain = (text[1:-1] if text.startswith("| ") else text for text in plain)
    return [[cell.strip() for cell in text.split("|")] for text in plain]


# ---------------------------------------------------------------- words and paragraphs


@pytest.mark.parametrize(
    ("above", "below", "found"),
    [
        ("The lamp blinks contin-", "uously until it is full.", "continuously until"),
        ("Die Anmel-", "dung ist kostenlos.", "Anmeldung ist"),
        ("Our self-", "service desk is open.", "self-service desk"),
        ("A well-known and long-term plan, a well-", "known one.", "a well-known one"),
        ("Print the PDF-", "file twice.", "PDF-file twice"),
        ("Read pages 12-", "14 of it.", "12-14 of it"),
        ("Alle Ein-", "und Ausgaben zählen.", "Ein- und Ausgaben"),
        ("It is open -", "always.", "open - always"),
    ],
)
def test_words_parted_at_a_line_end(above: str, below: str, found: str) -> None:
    assert found in pages(lines(above, below)).text


def test_lines_of_a_paragraph_are_one_line() -> None:
    parsed = pages(lines(*HOURS, "    Bikes stand in the yard."))
    assert [block.kind for block in parsed.blocks] == ["paragraph"] * 2, "an indent starts one"
    assert parsed.text.split("\n\n") == [" ".join(HOURS), "Bikes stand in the yard."]


def test_items_keep_their_marks_and_their_lines() -> None:
    bullets = lines("\u2022 a photo of the meter, taken on", "  the day of the reading")
    numbers = lines("3. Open the hatch.", "4. Rinse it at", "    once.", "a) with water", y=700)
    hanging = [lines("1.", y=600), lines("Hold the key", "for long.", x=78, y=600)]
    text = pages(both(bullets, numbers, *hanging)).text
    assert "- a photo of the meter, taken on the day of the reading\n" in text
    assert "3. Open the hatch.\n4. Rinse it at once.\na) with water\n" in text
    assert text.endswith("1. Hold the key for long.")


def test_a_bullet_may_be_a_drawn_dot() -> None:
    def dots(canvas: Canvas) -> None:
        for n in range(2):
            canvas.circle(64, 743.2 - 20 * n, 1.6, stroke=0, fill=1)
        write(canvas, ["Bring a towel.", "Leave the dog."], x=75, step=20)

    assert pages(dots).text == "- Bring a towel.\n- Leave the dog."


def test_scripts() -> None:
    def draw(canvas: Canvas) -> None:
        text = canvas.beginText(60, 700)
        for part, rise, size in (
            ("At most 10", 0, 10), ("8", 4, 6), (" rows, 40 m", 0, 10), ("2", 4, 6),
            (" of H", 0, 10), ("2", -2, 6), ("O on the 3", 0, 10), ("rd", 4, 6),
            (" day of delivery", 0, 10), ("1", 4, 6), (".", 0, 10),
        ):  # fmt: skip
            text.setFont("Helvetica", size)
            text.setRise(rise)
            text.textOut(part)
        canvas.drawText(text)
        note = canvas.beginText(60, 90)
        for part, rise, size in (("1", 3, 5), (" Sale items are final.", 0, 8)):
            note.setFont("Helvetica", size)
            note.setRise(rise)
            note.textOut(part)
        canvas.drawText(note)

    assert pages(draw).text.split("\n\n") == [
        "At most 10^8 rows, 40 m² of H2O on the 3rd day of delivery (1).",
        "(1) Sale items are final.",
    ]


# ---------------------------------------------------------------- headings and titles


def test_headings_by_size_and_by_weight() -> None:
    def draw(canvas: Canvas) -> None:
        write(canvas, ["House rules"], y=790, size=20)
        write(canvas, ["Opening"], y=750, size=13)
        write(canvas, HOURS, y=730)
        write(canvas, ["Lost keys"], y=660, font="Helvetica-Bold")
        write(canvas, ["Tell the desk at once."], y=646)
        write(canvas, ["Closed on Sundays, and on"], y=620)
        write(canvas, ["all feast days of the land."], y=606, font="Helvetica-Bold")

    parsed = pages(draw)
    assert headings(parsed) == [(1, "House rules"), (2, "Opening"), (3, "Lost keys")]
    assert parsed.text.endswith("and on all feast days of the land."), "bold words of a sentence"


def test_text_in_large_print_is_no_heading() -> None:
    large = lines(*HOURS * 4, size=12, step=15)
    small = lines(*HOURS * 8, y=500, size=8, step=10)
    assert headings(pages(both(large, small))) == []


@pytest.mark.parametrize(
    "title",
    ["", "untitled", "Microsoft Word - rules.docx", "rules_v3_final", "Document1", "(anonymous)",
     "C:\\desk\\rules.doc", "PowerPoint Presentation"],
)  # fmt: skip
def test_titles_of_programs_are_no_titles(title: str) -> None:
    assert sensible_title(title) == ""


def test_the_title_of_the_properties() -> None:
    draw = both(lines("1 Opening", size=18), lines(*HOURS, y=700))
    parsed = pages(draw, title="Guide for guests")
    assert parsed.title == "Guide for guests"
    assert headings(parsed) == [(2, "1 Opening")], "below the title"
    draw = both(lines("Guide for guests", size=18), lines(*HOURS, y=700))
    assert headings(pages(draw, title="Guide for guests")) == [(1, "Guide for guests")]
    assert sensible_title("Microsoft Word - House rules") == "House rules"


# ---------------------------------------------------------------- stamps


def turned(text: str, *, angle: float, size: float, grey: float = 0.0, alpha: float = 1.0) -> Draw:
    def draw(canvas: Canvas) -> None:
        canvas.saveState()
        canvas.setFillGray(grey)
        canvas.setFillAlpha(alpha)
        canvas.translate(150, 600)
        canvas.rotate(angle)
        write(canvas, [text], x=0, y=0, size=size)
        canvas.restoreState()

    return draw


@pytest.mark.parametrize(
    "stamp",
    [
        turned("SAMPLE", angle=45, size=60),
        turned("SAMPLE", angle=30, size=40, alpha=0.2),
        turned("SAMPLE", angle=15, size=20),
        turned("SAMPLE", angle=0, size=70, grey=0.85),
        turned("SAMPLE", angle=0, size=70, alpha=0.25),
        turned("SAMPLE", angle=90, size=70),
        both(lines(*HOURS * 4, y=690), turned("SAMPLE", angle=0, size=60)),
    ],
)
@pytest.mark.parametrize("is_first", [True, False])
def test_stamps_are_left_out(stamp: Draw, *, is_first: bool) -> None:
    text = both(lines("Return policy", size=14), lines(*HOURS, y=715))
    parsed = pages(both(stamp, text) if is_first else both(text, stamp))
    assert headings(parsed) == [(1, "Return policy")]
    assert "SAMPLE" not in parsed.text


def test_what_only_looks_like_a_stamp() -> None:
    text = lines(*HOURS, y=500)

    def dark(canvas: Canvas) -> None:
        canvas.setFillColor(colors.navy)
        canvas.rect(0, 560, 600, 200, fill=1, stroke=0)
        canvas.setFillColor(colors.white)
        write(canvas, ["House rules"], y=620, size=36)
        canvas.setFillColor(colors.black)

    for large in (turned("House rules", angle=0, size=36, grey=0.4), dark):
        assert headings(pages(both(large, text))) == [(1, "House rules")]
    side = turned("Form 77", angle=90, size=8)
    assert pages(both(text, side)).text.endswith("\n\nForm 77"), "small print at the edge"
    assert pages(turned("Only this", angle=30, size=40)).text == "Only this"


def test_a_page_on_its_side() -> None:
    def draw(canvas: Canvas) -> None:
        canvas.setPageRotation(90)
        canvas.rotate(90)
        write(canvas, ["Parking"], x=60, y=-80, size=16)
        write(canvas, HOURS, x=60, y=-110)

    assert pages(draw).text == f"# Parking\n\n{' '.join(HOURS)}"


# ---------------------------------------------------------------- margins


def paged(n_pages: int, *, first: str, number: str, sentences: Sequence[str]) -> list[Draw]:
    return [
        both(
            lines(first, y=812, size=8),
            lines(*sentences, y=740),
            lines(number.format(n, n_pages), x=480, y=28, size=8),
        )
        for n in range(1, n_pages + 1)
    ]


@pytest.mark.parametrize("n_pages", [2, 3, 7])
@pytest.mark.parametrize("number", ["{}", "Page {}", "- {} -", "{} / {}", "Seite {} von {}"])
def test_running_headers_and_page_numbers(n_pages: int, number: str) -> None:
    sentences = ["the key is kept at the desk and", "goes back when"]
    parsed = pages(*paged(n_pages, first="Desk manual", number=number, sentences=sentences))
    sentence = "the key is kept at the desk and goes back when"
    assert parsed.text == "Desk manual\n\n" + " ".join([sentence] * n_pages)


def test_headers_of_left_and_right_pages_and_footers_of_use() -> None:
    def page(n: int) -> Draw:
        head = "House of keys" if n % 2 else "All about keys"
        foot = f"Emergency line 0800 555 0177 | Page {n}"
        body = lines(f"Rule {n * n}. Keys are kept in", "the red box.", y=740)
        return both(lines(head, y=810, size=9), body, lines(foot, y=30, size=8))

    text = pages(*map(page, range(1, 6))).text
    for once in ("House of keys", "All about keys", "Emergency line 0800 555 0177"):
        assert text.count(once) == 1
    assert "Page" not in text
    assert text.count("Keys are kept in the red box.") == 5


def test_a_first_line_that_repeats_is_no_header() -> None:
    letters = [lines("Dear guest,", "thank you for your stay.", f"Key {n * 7}.") for n in (1, 2, 3)]
    assert pages(*letters).text.count("Dear guest,") == 3
    steps = [
        both(lines(f"Step {n}", y=760, size=14), lines(f"Turn it {n * n} times.", y=735))
        for n in (1, 2, 3)
    ]
    assert headings(pages(*steps)) == [(1, f"Step {n}") for n in (1, 2, 3)]
    orders = [both(lines(f"Order {n * 13}", y=800), lines("It is sent.")) for n in (1, 2, 3)]
    assert all(f"Order {n * 13}" in pages(*orders).text for n in (1, 2, 3)), "no page numbers"


def test_a_sentence_goes_on_past_the_notes() -> None:
    first = both(lines("The fee is due at the end of the"), lines("(1) Without tax.", y=60, size=7))
    text = pages(first, lines("month of the order.")).text
    assert "at the end of the month of the order." in text


# ---------------------------------------------------------------- columns and tables

LEFT = ["Guests may bring a dog", "into the garden as long", "as it is on a lead and", "is quiet."]
RIGHT = [
    "Bikes are kept in the",
    "yard behind the house,",
    "where a rack is free for",
    "all of them.",
]


@pytest.mark.parametrize("shift", [0, 5])
@pytest.mark.parametrize("by_rows", [True, False])
@pytest.mark.parametrize("n_columns", [2, 3])
def test_columns_are_read_in_order(n_columns: int, shift: int, *, by_rows: bool) -> None:
    columns = [LEFT, RIGHT, [line.replace("dog", "cat") for line in LEFT]][:n_columns]
    places = [
        (line, 50 + 170 * c, 700 - 14 * n - shift * c)
        for c, column in enumerate(columns)
        for n, line in enumerate(column)
    ]
    if by_rows:
        places.sort(key=lambda place: (-place[2], place[1]))
    parts = [lines(text, x=x, y=y) for text, x, y in places]
    parsed = pages(both(lines("Notices", y=760, size=18), *parts))
    assert parsed.text.split("\n\n") == ["# Notices", *(" ".join(column) for column in columns)]


def test_columns_above_a_table() -> None:
    columns = [lines(*LEFT, y=800), lines(*RIGHT, x=320, y=800)]
    table = cells(("Day", "Open", "Close"), ("Mon", "9", "17"), ("Sat", "", "14"))
    parsed = pages(both(*columns, table))
    assert parsed.text.split("\n\n")[:2] == [" ".join(LEFT), " ".join(RIGHT)]
    assert rows(parsed) == [["Day", "Open", "Close"], ["Mon", "9", "17"], ["Sat", "", "14"]]


def test_a_table_of_sentences_is_no_columns() -> None:
    def draw(canvas: Canvas) -> None:
        y = 740.0
        for question, answer in (
            ("Question", ["Answer"]),
            ("How do I book?", ["Write your name on the list", "beside the door."]),
            ("May I bring a dog?", ["Yes, on a lead, and only", "in the garden."]),
            ("When is it open?", ["From nine to five."]),
        ):
            write(canvas, [question], y=y)
            write(canvas, answer, x=220, y=y, step=12)
            y -= 12 * len(answer) + 8

    assert rows(pages(draw))[1:3] == [
        ["How do I book?", "Write your name on the list beside the door."],
        ["May I bring a dog?", "Yes, on a lead, and only in the garden."],
    ]


GAPPED = [
    ["Room", "Beds", "Rate"],
    ["Garden", "", "$80"],
    ["Attic", "2", ""],
    ["Hall", "4", "$120"],
]


@pytest.mark.parametrize("look", ["none", "grid", "lines", "zebra"])
def test_tables_keep_their_empty_cells(look: str) -> None:
    styles = {
        "none": [],
        "grid": [("GRID", (0, 0), (-1, -1), 0.5, colors.black)],
        "lines": [("LINEBELOW", (0, 0), (-1, 0), 1, colors.black)],
        "zebra": [("BACKGROUND", (0, n), (-1, n), colors.lightgrey) for n in (0, 2)],
    }
    table = Table(GAPPED, colWidths=[120, 80, 80], style=TableStyle(styles[look]))
    stream = io.BytesIO()
    SimpleDocTemplate(stream).build([Paragraph("Rooms", STYLES["Title"]), table])
    assert rows(read_pdf(stream.getvalue())) == GAPPED


def test_merged_and_wrapped_cells_of_a_drawn_table() -> None:
    long = Paragraph("a view of the lake from both of its windows", BODY)
    data = [["Plan", "Region", "Price"], ["Gold", "East", "20"], ["", "West", long]]
    style = [("GRID", (0, 0), (-1, -1), 0.5, colors.black), ("SPAN", (0, 1), (0, 2))]
    stream = io.BytesIO()
    SimpleDocTemplate(stream).build([Table(data, colWidths=[90] * 3, style=TableStyle(style))])
    text = "a view of the lake from both of its windows"
    assert rows(read_pdf(stream.getvalue()))[1:] == [["Gold", "East", "20"], ["Gold", "West", text]]


@pytest.mark.parametrize("repeats", [0, 1])
def test_a_table_over_pages_is_one_table(repeats: int) -> None:
    data = [["Code", "Meaning"], *([f"E-{n}", f"fault {n}"] for n in range(90))]
    style = TableStyle([("GRID", (0, 0), (-1, -1), 0.5, colors.black)])
    stream = io.BytesIO()
    SimpleDocTemplate(stream).build([Table(data, repeatRows=repeats, style=style)])
    parsed = read_pdf(stream.getvalue())
    assert rows(parsed) == data
    assert parsed.text.count("---") == 2, "one rule below one head"
    assert {block.page for block in parsed.blocks} == {1, 2, 3}


def test_a_frame_is_no_table_and_a_justified_text_neither() -> None:
    def frame(canvas: Canvas) -> None:
        canvas.rect(50, 690, 300, 70)
        write(canvas, HOURS)

    assert pages(frame).text == " ".join(HOURS)
    style = ParagraphStyle("j", parent=BODY, alignment=4)
    frames = [Frame(50 + 190 * n, 50, 170, 700) for n in range(2)]
    document = BaseDocTemplate(stream := io.BytesIO())
    document.addPageTemplates(PageTemplate(frames=frames))
    sentence = "The extraordinarily long-winded instructions of the municipal swimming baths. "
    document.build([Paragraph(sentence * 9, style), Spacer(1, 8), Paragraph(sentence * 40, style)])
    parsed = read_pdf(stream.getvalue())
    assert {block.kind for block in parsed.blocks} == {"paragraph"}
    assert parsed.text.count(sentence.strip()) == 49


def test_a_key_and_its_value_are_a_row() -> None:
    parsed = pages(cells(("Phone:", "555 0199"), ("Mail:", "desk@example.org"), xs=(60, 180)))
    assert rows(parsed) == [["Phone:", "555 0199"], ["Mail:", "desk@example.org"]]


# ---------------------------------------------------------------- links


def test_addresses_of_links() -> None:
    def draw(canvas: Canvas) -> None:
        texts = ["Order a badge on the badge form a day", "before, or write to desk@example.org.",
                 "The rules are on this page, which", "goes on here."]  # fmt: skip
        write(canvas, texts)

        def box(line: int, before: str, words: str, address: str) -> None:
            left = 60 + canvas.stringWidth(before)
            bottom = 737 - 14 * line
            canvas.linkURL(address, (left, bottom, left + canvas.stringWidth(words), bottom + 12))

        box(0, "Order a badge on the ", "badge form", "https://badges.example.org/new")
        box(1, "before, or write to ", "desk@example.org", "mailto:desk@example.org")
        box(2, "The rules are on ", "this page, which", "https://rules.example.org")
        box(3, "", "goes on here.", "https://rules.example.org")

    assert pages(draw).text == (
        "Order a badge on the badge form (https://badges.example.org/new) a day before, or write "
        "to desk@example.org. The rules are on this page, which goes on here "
        "(https://rules.example.org)."
    )


def test_addresses_that_no_browser_opens_are_left_out() -> None:
    def draw(canvas: Canvas) -> None:
        write(canvas, ["Press this."])
        canvas.linkURL("javascript:alert(1)", (60, 735, 120, 752))

    assert pages(draw).text == "Press this."


# ---------------------------------------------------------------- hostile pages


def drawn(draw: Draw, n: int) -> bytes:
    canvas = Canvas(stream := io.BytesIO(), pageCompression=0)
    for _ in range(n):
        draw(canvas)
    canvas.save()
    return stream.getvalue()


def test_a_page_takes_time_in_proportion_to_its_characters() -> None:
    state = {"n": 0}

    def scattered(canvas: Canvas) -> None:
        state["n"] += 1
        x, y = 37 * state["n"] % 560, 61 * state["n"] % 800
        write(canvas, ["abc de"], x=x, y=y, size=2)

    def packed(canvas: Canvas) -> None:
        state["n"] += 1
        write(canvas, ["w" * 40 + "-"], x=20, y=820 - state["n"] % 800, size=4)

    for draw in (scattered, packed):
        files = {n: drawn(draw, n) for n in (100, 1_000, 8_000)}
        grows_linearly(lambda n, files=files: read_pdf(files[n]), 1_000, times=8)


def test_drawings_and_links_without_end() -> None:
    def draw(canvas: Canvas) -> None:
        write(canvas, HOURS)
        for n in range(3_000):
            canvas.line(n % 500, n % 800, n % 500 + 90, n % 800)
            canvas.line(n % 500, n % 800, n % 500, n % 800 + 90)
        for n in range(3_000):
            canvas.linkURL(f"https://example.org/{n}", (0, 0, 595, 842))

    content = drawn(draw, 1)
    takes_at_most(lambda: read_pdf(content), 100)
    assert read_pdf(content).text.startswith(HOURS[0])


def test_the_same_file_reads_the_same() -> None:
    stream = io.BytesIO()
    table = Table(GAPPED, style=TableStyle([("GRID", (0, 0), (-1, -1), 0.5, colors.black)]))
    SimpleDocTemplate(stream).build([Paragraph("Rooms", STYLES["Title"]), table])
    assert read_pdf(stream.getvalue()) == read_pdf(stream.getvalue())


# ---------------------------------------------------------------- more of what pages hold


def test_items_within_items_and_what_follows_a_list() -> None:
    inner = lines("\u2022 clean the filter", "\u2022 change the hose", x=80, y=712)
    outer = lines("\u2022 Never run the pump dry", "\u2022 Unplug it before you", y=740)
    last = lines(
        "\u2022 Keep it upright", "All rights are reserved by the maker of the pump", y=684
    )
    assert pages(both(outer, inner, last)).text.split("\n") == [
        "- Never run the pump dry",
        "- Unplug it before you",
        "  - clean the filter",
        "  - change the hose",
        "- Keep it upright",
        "",
        "All rights are reserved by the maker of the pump",
    ]


def test_the_mark_of_an_item_may_touch_its_text() -> None:
    def draw(canvas: Canvas) -> None:
        write(canvas, ["10.", "11."])
        write(canvas, ["Open it.", "Close it."], x=60 + canvas.stringWidth("10."))

    assert pages(draw).text == "10. Open it.\n11. Close it."


def test_code_keeps_its_lines_and_is_not_the_body() -> None:
    code = lines("curl -X POST \\", "  -d '{}'", *["  -H 'a: b'"] * 6, font="Courier", size=8)
    parsed = pages(both(lines("Call it so:", y=780), code, lines("Then wait.", y=600)))
    assert [block.kind for block in parsed.blocks] == ["paragraph", "code", "paragraph"]
    assert "curl -X POST \\\n  -d '{}'" in parsed.text


def test_sections_of_terms_stand_apart() -> None:
    terms = lines("1.1 Terms hold for all.", "1.2 Others do not hold.", step=22)
    assert [block.kind for block in pages(terms).blocks] == ["paragraph"] * 2


def test_two_addresses_side_by_side_are_not_mixed() -> None:
    sender = lines("Acme Tools", "Mill Lane 5", "Bath", y=780)
    number = lines("Invoice 2024", "3 May", "Ada Brown", x=400, y=780)
    table = cells(("Item", "Count", "Price"), ("Drill", "2", "129"), ("Bits", "", "3"))
    parsed = pages(both(sender, number, lines("Invoice", y=730, size=18), table))
    assert "Acme Tools Mill Lane 5 Bath" in parsed.text
    assert rows(parsed) == [["Item", "Count", "Price"], ["Drill", "2", "129"], ["Bits", "", "3"]]


def test_letters_drawn_one_by_one_are_words() -> None:
    def draw(canvas: Canvas) -> None:
        canvas.setFont("Helvetica", 12)
        x = 60.0
        for letter in "Open the gate":
            if letter != " ":
                canvas.drawString(x, 740, letter)
            x += canvas.stringWidth(letter)

    assert pages(draw).text == "Open the gate"
