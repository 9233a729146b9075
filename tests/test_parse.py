"""Every format gives text with exact spans; every file that cannot be used says why."""

from __future__ import annotations

import contextlib
import io
import zipfile
from collections.abc import Callable
from functools import partial

import docx
import pytest
from docx.oxml import parse_xml
from docx.oxml.ns import nsdecls
from hypothesis import given, settings
from hypothesis import strategies as st
from reportlab.lib import pdfencrypt
from reportlab.lib.styles import getSampleStyleSheet
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import PageBreak, Paragraph, Preformatted, SimpleDocTemplate

from support_rag.formats.blocks import MAX_BLOCKS, UNSTORABLE, Draft, decode
from support_rag.formats.pdf import MAX_PAGES
from support_rag.parse import CONTENT_TYPES, PARSERS, WORD, content_type_of, parse
from support_rag.types import (
    Block,
    Document,
    DocumentUnreadable,
    SupportRagError,
    TooLarge,
    UnsupportedType,
    to_source,
)
from tests.timing import grows_linearly

MD, HTML, CSV, TXT, PDF = "text/markdown", "text/html", "text/csv", "text/plain", "application/pdf"


def read(content: bytes | str, content_type: str = MD, **names: str) -> Document:
    content = content.encode() if isinstance(content, str) else content
    return parse(content, content_type=content_type, document_id="d", **names)


def shape(document: Document) -> list[tuple[str, str]]:
    return [(block.kind, block.span.of(document.text)) for block in document.blocks]


def check_blocks(text: str, blocks: tuple[Block, ...]) -> None:
    end = 0
    for block in blocks:
        assert block.span.start >= end, "blocks are in order and do not overlap"
        covered = block.span.of(text)
        assert covered.strip() == covered != "", "no block starts or ends with white space"
        assert (block.kind == "heading") == (block.level in range(1, 7))
        end = block.span.end
    assert end <= len(text)
    assert not UNSTORABLE.search(text)


# ---------------------------------------------------------------- text


@settings(deadline=None)
@given(
    st.text(st.sampled_from("ab #-*>|`~=1.\\\t \n\r[]()<!é打\u2028\x85\ufeff\x0b"), max_size=120)
)
def test_plain_text_keeps_every_character(text: str) -> None:
    if not text.strip() or text.startswith("\ufeff"):
        return
    document = read(text, TXT)
    assert document.text == text
    check_blocks(document.text, document.blocks)
    for block in document.blocks:
        assert block.kind == "paragraph"
        assert to_source(document.source_map, block.span) == block.span


def test_plain_text_has_paragraphs_whatever_ends_its_lines() -> None:
    for newline in ("\n", "\r\n", "\r"):
        text = newline.join(["One", "two.", "", " \t", "Three.", ""])
        document = read(text, TXT)
        assert [s for _, s in shape(document)] == [f"One{newline}two.", "Three."]


# ---------------------------------------------------------------- encodings


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("utf-8-sig", "Größe"),
        ("utf-16", "Größe 打刻機"),
        ("utf-32", "Größe 打刻機"),
        ("cp1252", "Öffnungszeiten für Müller – “täglich” für 5 €."),
        ("cp1250", "Zażółć gęślą jaźń, proszę. Kiosk działa bez sieci przez 72 godziny."),
        ("cp1251", "Киоск хранит отметки семьдесят два часа, пока нет сети."),
        ("cp932", "打刻機はオフラインで動作します。七十二時間保存します。"),
        ("gb18030", "打卡机离线工作。它保存72小时。"),
    ],
)
def test_encodings(encoding: str, text: str) -> None:
    assert read(text.encode(encoding), TXT).text == text


@pytest.mark.parametrize(
    "content",
    [b"a\x00b", b"\xef\xbb\xbfa\xff", b"\xff\xfea", b"\x00\x01\x02\x03" * 50, b"\xff\xfe\x00\xd8"],
)
def test_what_is_no_text(content: bytes) -> None:
    with pytest.raises(DocumentUnreadable, match="UTF-8"):
        read(content, TXT)


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_bytes_are_text_or_an_error_of_ours(content: bytes) -> None:
    try:
        text = decode(content)
    except DocumentUnreadable as error:
        assert "UTF-8" in str(error)
    else:
        assert not UNSTORABLE.search(text)


# ---------------------------------------------------------------- CSV


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_csv_rows_name_their_columns(delimiter: str) -> None:
    rows = ["code;meaning;;note", 'TL-1;"a, b; c|d\te\nsecond";x;', ";;;", "TL-2;only"]
    text = "\r\n".join(row.replace(";", delimiter) if row[:4] != "TL-1" else row for row in rows)
    text = text.replace('TL-1;"', f'TL-1{delimiter}"').replace('";x;', f'"{delimiter}x{delimiter}')
    document = read(text, CSV, source="api/error_codes.csv")
    assert document.title == "error codes"
    assert shape(document) == [
        ("table_row", "code: TL-1 | meaning: a, b; c|d e second | column 3: x"),
        ("table_row", "code: TL-2 | meaning: only"),
    ]


def test_csv_of_one_column_or_one_row() -> None:
    assert read("question\nHow?\nWhy?\n", CSV).text == "question: How?\nquestion: Why?"
    assert read("a,b\n", CSV).text == "a | b"
    assert read("a,b\n1,2,3\n", CSV).text == "a: 1 | b: 2 | column 3: 3"


def test_csv_that_grows_too_large() -> None:
    wide = ",".join("n" * 100 for _ in range(20))
    with pytest.raises(TooLarge, match="50,000,000 characters"):
        read(f"{wide}\n" + f"{','.join('1' * 20)}\n" * 25_000, CSV)


# ---------------------------------------------------------------- Word


def word_of(build: Callable[[docx.document.Document], None]) -> bytes:
    document = docx.Document()
    build(document)
    document.save(stream := io.BytesIO())
    return stream.getvalue()


def test_word_structure_in_order() -> None:
    def build(document: docx.document.Document) -> None:
        document.add_paragraph("Manual", style="Title")
        document.add_heading("Sync", 2)
        paragraph = document.add_paragraph("Kiosks ")
        paragraph.add_run("keep").bold = True
        paragraph.add_run(" 72\thours.")
        for style in ("List Number", "List Number", "List Bullet", "List Bullet 2"):
            document.add_paragraph(f"in {style}", style=style)
        table = document.add_table(2, 2)
        for n, cell in enumerate(table._cells):
            cell.text = f"cell\n{n}"
        frame = document.add_table(1, 1).cell(0, 0)
        frame.text = "A framed note."
        document.styles.add_style("Source Code", 1)
        document.add_paragraph("if x:", style="Source Code")
        document.add_paragraph("    y", style="Source Code")
        document.add_paragraph("")
        document.add_paragraph("End.")

    document = read(word_of(build), WORD)
    assert document.title == "Manual"
    assert shape(document) == [
        ("heading", "# Manual"),
        ("heading", "## Sync"),
        ("paragraph", "Kiosks keep 72\thours."),
        ("list_item", "1. in List Number"),
        ("list_item", "2. in List Number"),
        ("list_item", "- in List Bullet"),
        ("list_item", "- in List Bullet 2"),
        ("table_row", "cell 0 | cell 1\n--- | ---"),
        ("table_row", "cell 2 | cell 3"),
        ("paragraph", "A framed note."),
        ("code", "```\nif x:\n    y\n```"),
        ("paragraph", "End."),
    ]
    check_blocks(document.text, document.blocks)


def test_word_content_controls_and_tracked_changes() -> None:
    def build(document: docx.document.Document) -> None:
        run = "<w:r><w:t>{}</w:t></w:r>"
        body = document.element.body
        inner = f"<w:p><w:ins>{run.format('new')}</w:ins><w:del><w:r><w:delText>old</w:delText>"
        inner += f"</w:r></w:del><w:moveFrom>{run.format('moved')}</w:moveFrom></w:p>"
        sdt = f"<w:sdt {nsdecls('w')}><w:sdtContent>{inner}</w:sdtContent></w:sdt>"
        body.insert(0, parse_xml(sdt))

    assert read(word_of(build), WORD).text == "new"


def test_word_styles_inherit_and_a_circle_ends() -> None:
    def build(document: docx.document.Document) -> None:
        base = document.styles["Heading 3"]
        derived = document.styles.add_style("Ours", 1)
        derived.base_style = base
        document.add_paragraph("Derived", style="Ours")
        one, two = (document.styles.add_style(name, 1) for name in ("One", "Two"))
        one.base_style, two.base_style = two, one
        document.add_paragraph("Circle", style="One")

    assert shape(read(word_of(build), WORD)) == [
        ("heading", "### Derived"),
        ("paragraph", "Circle"),
    ]


def zip_of(**entries: bytes) -> bytes:
    with zipfile.ZipFile(stream := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return stream.getvalue()


GOOD_WORD = word_of(lambda document: document.add_paragraph("Text."))


def lying_bomb() -> bytes:
    "An archive whose directory states one byte for sixty million."
    bomb = bytearray(zip_of(**{"word/document.xml": b" " * 60_000_000}))
    for signature, offset in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):
        at = bomb.rindex(signature) + offset
        bomb[at : at + 4] = (1).to_bytes(4, "little")
    return bytes(bomb)


def broken_zip(part: str) -> bytes:
    "A Word file with one part replaced by something else."
    with zipfile.ZipFile(io.BytesIO(GOOD_WORD)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    return zip_of(**(entries | {part: b"<x>not what it was"}))


@pytest.mark.parametrize(
    ("content", "error", "reason"),
    [
        (GOOD_WORD[: len(GOOD_WORD) // 2], DocumentUnreadable, "damaged or was cut off"),
        (zip_of(**{"word/document.xml": b" " * 60_000_000}), TooLarge, "unpacks to 60,000,000"),
        (lying_bomb(), DocumentUnreadable, "damaged"),
        (zip_of(**{"xl/workbook.xml": b"<x/>"}), DocumentUnreadable, "no Word document"),
        (zip_of(**{"word/document.xml": b"<x/>"}), DocumentUnreadable, "damaged"),
        (broken_zip("word/document.xml"), DocumentUnreadable, "damaged"),
        (broken_zip("word/styles.xml"), DocumentUnreadable, "damaged"),
        (broken_zip("[Content_Types].xml"), DocumentUnreadable, "damaged"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"x" * 500, DocumentUnreadable, "encrypted Word"),
        (b"plain text", DocumentUnreadable, "looks like text"),
        (word_of(lambda document: None), DocumentUnreadable, "holds no text"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_word_files_that_cannot_be_used(content: bytes, error: type, reason: str) -> None:
    with pytest.raises(error, match=reason):
        read(content, WORD)


def test_word_entities_are_not_resolved() -> None:
    def build(document: docx.document.Document) -> None:
        document.add_paragraph("MARK")

    with zipfile.ZipFile(io.BytesIO(word_of(build))) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    levels = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 10))
    entities = f'<!DOCTYPE w [<!ENTITY e0 "{"a" * 10}">{levels}]>'
    xml = entries["word/document.xml"].decode().replace("MARK", "&e9;")
    head, _, rest = xml.partition("?>")
    entries["word/document.xml"] = f"{head}?>{entities}{rest}".encode()
    with contextlib.suppress(DocumentUnreadable):
        assert "aaaa" not in read(zip_of(**entries), WORD).text


# ---------------------------------------------------------------- PDF


def pdf_of(*story: object, **options: object) -> bytes:
    stream = io.BytesIO()
    SimpleDocTemplate(stream, **options).build(list(story))
    return stream.getvalue()


STYLES = getSampleStyleSheet()
SENTENCE = "The Kiosk stores punches for up to 72 hours or 5,000 punches, whichever comes first. "


def test_pdf_structure_and_pages() -> None:
    document = read(
        pdf_of(
            Paragraph("Kiosk", STYLES["Title"]),
            Paragraph("Offline", STYLES["Heading2"]),
            Paragraph(SENTENCE * 4, STYLES["Normal"]),
            Paragraph("A second paragraph about Größe & 5 €.", STYLES["BodyText"]),
            Preformatted("1. Hold the logo.\n2. Wait.", STYLES["Normal"]),
            PageBreak(),
            Paragraph("Reset", STYLES["Heading2"]),
            Paragraph(SENTENCE, STYLES["Normal"]),
        ),
        PDF,
    )
    assert document.title == "Kiosk"
    kinds = [(block.kind, block.level, block.page) for block in document.blocks]
    assert kinds == [
        ("heading", 1, 1), ("heading", 2, 1), ("paragraph", 0, 1), ("paragraph", 0, 1),
        ("list_item", 0, 1), ("list_item", 0, 1), ("heading", 2, 2), ("paragraph", 0, 2),
    ]  # fmt: skip
    texts = [" ".join(text.split()) for _, text in shape(document)]
    assert texts[2] == (SENTENCE * 4).strip()
    assert texts[3] == "A second paragraph about Größe & 5 €."
    check_blocks(document.text, document.blocks)


def canvas_pdf(n_pages: int, draw: Callable[[Canvas], None], **options: object) -> bytes:
    canvas = Canvas(stream := io.BytesIO(), **options)
    for _ in range(n_pages):
        draw(canvas)
        canvas.showPage()
    canvas.save()
    return stream.getvalue()


def words(canvas: Canvas) -> None:
    canvas.drawString(72, 720, "Text on a page.")


def picture(canvas: Canvas) -> None:
    canvas.rect(100, 100, 50, 50, fill=1)


GOOD_PDF = canvas_pdf(2, words)
LOCKED = pdfencrypt.StandardEncryption("secret", ownerPassword="other", strength=128)
OPEN = pdfencrypt.StandardEncryption("", ownerPassword="other", strength=128)


@pytest.mark.parametrize(
    ("content", "error", "reason"),
    [
        (canvas_pdf(1, words, encrypt=LOCKED), DocumentUnreadable, "encrypted: save it without"),
        (canvas_pdf(2, picture), DocumentUnreadable, "holds no text"),
        (GOOD_PDF[: len(GOOD_PDF) * 2 // 3], DocumentUnreadable, "cut off before its end"),
        (b"%PDF-1.4 broken", DocumentUnreadable, "cut off before its end"),
        (b"%PDF-1.4 broken %%EOF", DocumentUnreadable, "damaged"),
        (b"<html>", DocumentUnreadable, "looks like text"),
        (canvas_pdf(MAX_PAGES + 1, words), TooLarge, "501 pages; at most 500"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_pdf_files_that_cannot_be_used(content: bytes, error: type, reason: str) -> None:
    with pytest.raises(error, match=reason):
        read(content, PDF)


def test_pdf_files_that_can() -> None:
    for content in (GOOD_PDF, b"\n" * 20 + GOOD_PDF, canvas_pdf(2, words, encrypt=OPEN)):
        assert read(content, PDF).text == "Text on a page.\n\nText on a page."
    limit = read(canvas_pdf(MAX_PAGES, words), PDF)
    assert limit.blocks[-1].page == MAX_PAGES


@pytest.mark.parametrize("name", ["pdf", "docx"])
def test_damaged_files_give_errors_of_ours(name: str) -> None:
    content = {"pdf": GOOD_PDF, "docx": GOOD_WORD}[name]
    for seed in range(60):
        spoilt = bytearray(content)
        for n in range(8):
            spoilt[(seed * 7919 + n * 104729) % len(spoilt)] ^= 1 << (seed + n) % 8
        try:
            document = read(bytes(spoilt), content_type_of(f"a.{name}"))
        except SupportRagError as error:
            assert error.code in ("document_unreadable", "too_large")
        else:
            check_blocks(document.text, document.blocks)


# ---------------------------------------------------------------- types and titles


def test_each_type_has_a_reader_and_a_name() -> None:
    assert set(CONTENT_TYPES.values()) == set(PARSERS)
    assert content_type_of("A.HTM") == HTML
    for name in ("photo.png", "README", "archive.tar.gz", ".md", "x" * 500):
        with pytest.raises(UnsupportedType, match="use one of"):
            content_type_of(name)


def test_parameters_and_case_of_the_type_do_not_matter() -> None:
    document = read("a", " Text/Markdown; charset=latin-1")
    assert document.content_type == MD
    with pytest.raises(UnsupportedType, match="'application/zip' is not read"):
        read("a", "application/zip")


@pytest.mark.parametrize("content_type", PARSERS)
def test_nothing_is_no_document(content_type: str) -> None:
    for content in (b"", b" \r\n\t"):
        with pytest.raises(DocumentUnreadable, match="empty"):
            read(content, content_type)


@pytest.mark.parametrize(
    ("content", "content_type", "looks"),
    [
        (GOOD_PDF, TXT, "application/pdf"),
        (GOOD_PDF, WORD, "application/pdf"),
        (GOOD_WORD, PDF, "wordprocessingml"),
        (GOOD_WORD, MD, "wordprocessingml"),
        (b"\x89PNG\r\n\x1a\n", HTML, "a picture"),
        (b"\xff\xd8\xff\xe0", CSV, "a picture"),
    ],
)
def test_mislabelled_files(content: bytes, content_type: str, looks: str) -> None:
    with pytest.raises(DocumentUnreadable, match=looks):
        read(content, content_type)


def test_titles() -> None:
    assert read("# One *two* `three` ##\n\ntext", title=" Given\nname ").title == "Given name"
    assert read("## Second\n\n# **First** `code` #").title == "First code"
    assert read("text", source="https://help.example/kiosk-offline_mode.md?x#y").title != ""
    assert read("just text, long. And more.", source="a/kiosk-offline_mode.txt").title == (
        "kiosk offline mode"
    )
    assert read("Kiosk notes\n\nText.", TXT).title == "Kiosk notes"
    assert len(read("# " + "long " * 1000).title) <= 200
    assert read("text").source == "d"


# ---------------------------------------------------------------- time and size


def read_or_refuse(content: bytes, content_type: str) -> None:
    with contextlib.suppress(SupportRagError):
        read(content, content_type)


HOSTILE = [
    "[", "*", "<div>", "> ", "- ", "`", "|", "\\", "a\n", "- a\n", "> a\n", "a\n\n", "[a]: b\n",
    "a|b\n-|-\n", "```\n", "<!--", "<p>", "<p><b a=x>", "<i></x>", '<a "', '<a b="', "<tr><td>",
    "&", '"', '"a",', "a,", "\r", "    a\n", "***\n", "<li>", "--- ", " " * 99 + "x",
]  # fmt: skip


@pytest.mark.parametrize("content_type", [MD, HTML, TXT, CSV])
def test_hostile_text_takes_linear_time(content_type: str) -> None:
    def work(n: int, unit: str) -> None:
        read_or_refuse(unit.encode() * (n // len(unit)), content_type)

    for unit in HOSTILE:
        grows_linearly(partial(work, unit=unit), 10_000)


def test_ten_megabytes_of_open_elements_are_refused_at_once() -> None:
    grows_linearly(lambda n: read_or_refuse(b"<div>" * n, HTML), 20_000, times=100, slack=1)


def test_limits_on_structure() -> None:
    with pytest.raises(TooLarge, match="paragraphs, items and rows"):
        read("a\n\n" * (MAX_BLOCKS + 1), TXT)
    draft = Draft()
    with pytest.raises(TooLarge, match="50,000,000 characters"):
        for _ in range(6):
            draft.add("paragraph", "x" * 9_000_000)
