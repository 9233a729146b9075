"""A Word file is read as a person sees it: each kind of thing, its control, hostile ones."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from typing import Any

import docx
import pytest
from docx.document import Document as WordDocument
from docx.oxml import parse_xml
from docx.oxml.ns import nsdecls

from support_rag.formats.blocks import MAX_BLOCKS, Parsed
from support_rag.formats.characters import MATH
from support_rag.formats.entries import Entry
from support_rag.formats.inline import Part
from support_rag.formats.styles import Counting
from support_rag.formats.word import Word, add, read_word
from support_rag.types import DocumentUnreadable, TooLarge
from tests.timing import grows_linearly, takes_at_most

SPACES = {
    "w": "http://schemas.openxmlformats.org/wordprocessingml/2006/main",
    "r": "http://schemas.openxmlformats.org/officeDocument/2006/relationships",
    "m": MATH[1:-1],
    "mc": "http://schemas.openxmlformats.org/markup-compatibility/2006",
    "wp": "http://schemas.openxmlformats.org/drawingml/2006/wordprocessingDrawing",
    "wps": "http://schemas.microsoft.com/office/word/2010/wordprocessingShape",
    "w14": "http://schemas.microsoft.com/office/word/2010/wordml",
    "v": "urn:schemas-microsoft-com:vml",
    "adec": "http://schemas.microsoft.com/office/drawing/2017/decorative",
}
NAMES = " ".join(f'xmlns:{name}="{address}"' for name, address in SPACES.items())
RELATION = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"


def t(text: str, properties: str = "") -> str:
    "A run."
    return f'<w:r><w:rPr>{properties}</w:rPr><w:t xml:space="preserve">{text}</w:t></w:r>'


def p(*runs: str, properties: str = "") -> str:
    "A paragraph."
    return f"<w:p><w:pPr>{properties}</w:pPr>{''.join(runs)}</w:p>"


def tc(content: str, properties: str = "") -> str:
    "A cell; its content is paragraphs, or words."
    inner = content if content.startswith("<w:") else p(t(content))
    return f"<w:tc><w:tcPr>{properties}</w:tcPr>{inner}</w:tc>"


def tr(*cells: str, properties: str = "") -> str:
    return f"<w:tr><w:trPr>{properties}</w:trPr>{''.join(cells)}</w:tr>"


def tbl(*rows: str) -> str:
    return f"<w:tbl><w:tblPr/>{''.join(rows)}</w:tbl>"


def bold(text: str) -> str:
    return t(text, "<w:b/>")


def item(text: str, number: int, level: int = 0) -> str:
    "An item of a list."
    numbering = f'<w:numPr><w:ilvl w:val="{level}"/><w:numId w:val="{number}"/></w:numPr>'
    return p(t(text) if text else "", properties=numbering)


def styled(style: str, *runs: str) -> str:
    return p(*runs, properties=f'<w:pStyle w:val="{style}"/>')


def insert_body(document: WordDocument, xml: str) -> None:
    "Put paragraphs and tables before the end of the body."
    root = parse_xml(f"<w:body {NAMES}>{xml}</w:body>")
    for element in list(root):
        document.element.body.insert(-1, element)


def bytes_of(document: WordDocument) -> bytes:
    document.save(stream := io.BytesIO())
    return stream.getvalue()


def file_of(xml: str, build: Callable[[WordDocument], None] = lambda document: None) -> bytes:
    document = docx.Document()
    document.core_properties.title = ""
    build(document)
    insert_body(document, xml)
    return bytes_of(document)


def text_of(xml: str, build: Callable[[WordDocument], None] = lambda document: None) -> str:
    return read_word(file_of(xml, build)).text


def shape(parsed: Parsed) -> list[tuple[str, int, str]]:
    return [(block.kind, block.level, block.span.of(parsed.text)) for block in parsed.blocks]


def with_part(content: bytes, name: str, kind: str, xml: str, rels: str = "") -> bytes:
    "Add a part to a file, related to its body."
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w") as new:
        for entry in old.namelist():
            data = old.read(entry)
            if entry == "word/_rels/document.xml.rels":
                link = f'<Relationship Id="x{kind}" Type="{RELATION}/{kind}" Target="{name}"/>'
                data = data.replace(b"</Relationships>", link.encode() + b"</Relationships>")
            if entry == "[Content_Types].xml":
                kind_of = (
                    f"application/vnd.openxmlformats-officedocument.wordprocessingml.{kind}+xml"
                )
                override = f'<Override PartName="/word/{name}" ContentType="{kind_of}"/></Types>'
                data = data.replace(b"</Types>", override.encode())
            new.writestr(entry, data)
        new.writestr(f"word/{name}", xml)
        if rels:
            new.writestr(f"word/_rels/{name}.rels", rels)
    return out.getvalue()


# ---------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("before", "script", "raised", "expected"),
    [
        ("within 10", "superscript", "4", "within 10^4 days"),
        ("of 10", "superscript", "-9", "of 10^-9 days"),
        ("2", "superscript", "n+1", "2^(n+1) days"),
        ("an area of 30 m", "superscript", "2", "an area of 30 m² days"),
        ("a volume of 5 cm", "superscript", "3", "a volume of 5 cm³ days"),
        ("on the 5", "superscript", "th", "on the 5th days"),
        ("le 1", "superscript", "er", "le 1er days"),
        ("Acme", "superscript", "TM", "Acme™ days"),
        ("as noted", "superscript", "1", "as noted¹ days"),
        ("CO", "subscript", "2", "CO2 days"),
        ("the rate r", "subscript", "i", "the rate r_i days"),
        ("log", "subscript", "10", "log10 days"),
        ("plain ", "baseline", "7", "plain 7 days"),
    ],
)
def test_raised_and_lowered(before: str, script: str, raised: str, expected: str) -> None:
    look = f'<w:vertAlign w:val="{script}"/>'
    assert text_of(p(t(before), t(raised, look), t(" days"))) == expected
    if len(raised) > 1 and raised.isdigit():
        split = p(t(before), t(raised[0], look), t(raised[1:], look), t(" days"))
        assert text_of(split) == expected


def test_a_power_in_a_style_and_in_two_runs() -> None:
    def build(document: WordDocument) -> None:
        document.styles.add_style("Up", 2).font.superscript = True

    raised = '<w:rStyle w:val="Up"/>'
    assert text_of(p(t("10"), t("-", raised), t("6", raised), t(" m")), build) == "10^-6 m"


def test_struck_and_hidden_words_are_left_out() -> None:
    def build(document: WordDocument) -> None:
        document.styles.add_style("Secret", 2).font.hidden = True
        derived = document.styles.add_style("Secret Too", 2)
        derived.base_style = document.styles["Secret"]
        document.styles.add_style("Note to self", 1).font.hidden = True
        document.styles.add_style("Old", 2).font.strike = True

    words = p(
        t("It costs "), t("9", "<w:strike/>"), t(" "), t("8", "<w:dstrike/>"), t(" 12"),
        t(" never", '<w:rStyle w:val="Secret"/>'), t(" not", '<w:rStyle w:val="SecretToo"/>'),
        t(" gone", '<w:rStyle w:val="Old"/>'), t(" dollars"),
        t(" at most", '<w:strike w:val="0"/><w:vanish w:val="false"/>'),
        t(".", '<w:rStyle w:val="Secret"/><w:vanish w:val="0"/>'),
    )  # fmt: skip
    hidden = styled("Notetoself", t("Only for us."), t("Seen.", '<w:vanish w:val="off"/>'))
    assert text_of(words + hidden, build) == "It costs 12 dollars at most.\n\nSeen."


def test_a_toggle_in_two_styles_is_off() -> None:
    def build(document: WordDocument) -> None:
        document.styles.add_style("Quiet", 1).font.hidden = True
        document.styles.add_style("Loud", 2).font.hidden = True

    assert text_of(styled("Quiet", t("no"), t("yes", '<w:rStyle w:val="Loud"/>')), build) == "yes"


def test_the_default_style_counts_without_being_named() -> None:
    def build(document: WordDocument) -> None:
        document.styles["Normal"].font.strike = True

    assert text_of(p(t("out"), t("in", '<w:strike w:val="0"/>')), build) == "in"


def test_tracked_changes() -> None:
    "Deletions and moves away are left out, and a deleted end joins two paragraphs."
    change = '<w:{} w:id="1" w:author="a">'.format
    deleted = t("old").replace("w:t", "w:delText").replace("delTextxml", "delText xml")
    assert (
        text_of(
            p(change("ins"), t("new "), "</w:ins>", change("del"), deleted, "</w:del>", t("fee"))
        )
        == "new fee"
    )
    moved = p(change("moveFrom"), t("moved"), "</w:moveFrom>", t("stays"))
    moved += p(change("moveTo"), t("moved"), "</w:moveTo>")
    assert text_of(moved) == "stays\n\nmoved"
    joined = p(t("one "), properties='<w:rPr><w:del w:id="2" w:author="a"/></w:rPr>') + p(t("line"))
    assert text_of(joined) == "one line"
    last = p(t("the end"), properties='<w:rPr><w:del w:id="2" w:author="a"/></w:rPr>')
    assert text_of(last) == "the end"
    row = '<w:del w:id="3" w:author="a"/>'
    assert "gone" not in text_of(tbl(tr(tc("a"), tc("b")), tr(tc("gone"), tc("c"), properties=row)))


def test_characters_of_layout() -> None:
    words = p(t("Inter\u00adnational"), "<w:r><w:softHyphen/><w:tab/></w:r>", t("A"),
              "<w:r><w:noBreakHyphen/></w:r>", t("1"), "<w:r><w:br/></w:r>", t("next"),
              properties="<w:tabs><w:tab w:val='left' w:pos='9'/></w:tabs>")  # fmt: skip
    assert text_of(words) == "International\tA-1\nnext"
    drop = p(t("O"), properties='<w:framePr w:dropCap="drop"/>') + p(t("nce a day"))
    assert text_of(drop) == "Once a day"
    ruby = p(
        "<w:r><w:ruby><w:rt>",
        t("kan"),
        "</w:rt><w:rubyBase>",
        t("漢"),
        "</w:rubyBase></w:ruby></w:r>",
    )
    assert text_of(ruby) == "漢"


def test_symbols() -> None:
    sign = '<w:r><w:sym w:font="{}" w:char="{}"/></w:r>'.format
    assert text_of(p(sign("Wingdings", "F0FC"), t(" done"))) == "✓ done"
    assert text_of(p(t("5 "), sign("Symbol", "F0B3"), t(" 4"))) == "5 ≥ 4"
    assert text_of(p(t("a"), sign("Nobody", "F041"), sign("Symbol", "zz"), t("b"))) == "ab"
    assert text_of(p(t("D", '<w:rFonts w:ascii="Symbol"/>'), t("T"))) == "ΔT"


# ---------------------------------------------------------------- fields, links, controls


def mark(kind: str, inner: str = "") -> str:
    return f'<w:r><w:fldChar w:fldCharType="{kind}">{inner}</w:fldChar></w:r>'


def code(text: str) -> str:
    return f'<w:r><w:instrText xml:space="preserve">{text}</w:instrText></w:r>'


def shown(instruction: str, result: str) -> str:
    return mark("begin") + code(instruction) + mark("separate") + result + mark("end")


def test_fields_show_their_results() -> None:
    assert text_of(p(t("See "), shown(" REF _Ref1 \\h ", t("2.1")), t("."))) == "See 2.1."
    simple = '<w:fldSimple w:instr=" DATE ">' + t("5 May") + "</w:fldSimple>"
    assert text_of(p(t("As of "), simple)) == "As of 5 May"
    nested = mark("begin") + code("IF ") + shown("REF x", t("1")) + code("=1") + mark("separate")
    assert text_of(p(nested + t("yes") + mark("end"), t("!"))) == "yes!"


def test_links_show_their_addresses() -> None:
    link = shown('HYPERLINK "https://desk.example.org/new?a=1" \\o "tip"', t("the form "))
    assert text_of(p(t("Use "), link, t("now."))) == (
        "Use the form (https://desk.example.org/new?a=1) now."
    )
    inside = shown(' HYPERLINK \\l "_Toc1" ', t("below"))
    assert text_of(p(t("See "), inside)) == "See below"

    def build(document: WordDocument) -> None:
        kind = f"{RELATION}/hyperlink"
        for address in ("https://a.example/x", "mailto:desk@a.example", "javascript:alert(1)"):
            document.part.relate_to(address, kind, is_external=True)

    document = docx.Document()
    build(document)
    ids = {r.target_ref: name for name, r in document.part.rels.items() if r.is_external}

    def link_of(address: str, words: str, anchor: str = "") -> str:
        more = f' w:anchor="{anchor}"' if anchor else ""
        return f'<w:hyperlink r:id="{ids[address]}"{more}>{t(words)}</w:hyperlink>'

    first, mail, script = ids
    cases = {
        link_of(first, "Book", "hours"): "Book (https://a.example/x#hours)",
        link_of(first, "a.example/x"): "a.example/x",
        link_of(mail, "Write to us"): "Write to us (desk@a.example)",
        link_of(mail, "desk@a.example"): "desk@a.example",
        link_of(script, "Press"): "Press",
        f'<w:hyperlink w:anchor="top">{t("Up")}</w:hyperlink>': "Up",
    }
    for xml, expected in cases.items():
        assert text_of(p(xml), build) == expected


def test_page_numbers_and_contents_are_noise() -> None:
    contents = [
        p(
            mark("begin"),
            code(' TOC \\o "1-3" '),
            mark("separate"),
            t("Fees"),
            "<w:r><w:tab/></w:r>",
            t("3"),
        ),
        p(t("Hours 4")),
        p(mark("end"), t("")),
    ]
    page = p(t("Page "), shown(" PAGE ", t("1")), t(" of "), shown("NUMPAGES", t("9")))
    listed = styled("TOC1", t("Fees 3"))

    def build(document: WordDocument) -> None:
        document.styles.add_style("toc 1", 1).element.set(
            "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}styleId", "TOC1"
        )

    control = (
        '<w:sdt><w:sdtPr><w:docPartObj><w:docPartGallery w:val="Table of Contents"/></w:docPartObj>'
        f"</w:sdtPr><w:sdtContent>{p(t('Contents 7'))}</w:sdtContent></w:sdt>"
    )
    assert text_of("".join(contents) + page + listed + control + p(t("The fee is 4.")), build) == (
        "The fee is 4."
    )
    assert text_of(p(t("See page "), shown("PAGEREF x", t("12")))) == "See page 12"


def test_a_field_without_an_end_hides_little() -> None:
    broken = p(t("Before. "), mark("begin"), code(" TOC "), mark("separate"), t("words"))
    assert text_of(broken + p(t("After."))) == "Before. words\n\nAfter."
    assert text_of(p(mark("separate"), mark("end"), t("a"), mark("end")) + p(t("b"))) == "a\n\nb"


def test_controls() -> None:
    def control(properties: str, content: str) -> str:
        return (
            f"<w:sdt><w:sdtPr>{properties}</w:sdtPr><w:sdtContent>{content}</w:sdtContent></w:sdt>"
        )

    box = '<w14:checkbox><w14:checked w14:val="{}"/></w14:checkbox>'.format
    assert (
        text_of(p(control(box(1), t("☒")), t(" yes "), control(box(0), t("☐")), t(" no")))
        == "☑ yes ☐ no"
    )
    entries = "".join(
        f'<w:listItem w:displayText="{name}" w:value="{name}"/>' for name in ("Red", "Blue")
    )
    menu = f"<w:dropDownList>{entries}</w:dropDownList>"
    assert text_of(p(t("Colour: "), control(menu, t("Blue")))) == "Colour: Blue"
    prompt = control(f"{menu}<w:showingPlcHdr/>", t("Choose an item."))
    assert text_of(p(t("Colour: "), prompt)) == "Colour: Red / Blue"
    assert (
        text_of(p(t("Name: x"), control("<w:text/><w:showingPlcHdr/>", t("Click here"))))
        == "Name: x"
    )
    old_box = mark("begin", '<w:ffData><w:checkBox><w:default w:val="1"/></w:checkBox></w:ffData>')
    assert text_of(p(old_box, code("FORMCHECKBOX"), mark("end"), t(" agreed"))) == "☑ agreed"
    old_menu = mark(
        "begin",
        '<w:ffData><w:ddList><w:result w:val="1"/><w:listEntry w:val="A"/>'
        '<w:listEntry w:val="B"/></w:ddList></w:ffData>',
    )
    assert text_of(p(t("Plan "), old_menu, code("FORMDROPDOWN"), mark("end"))) == "Plan B"


# ---------------------------------------------------------------- notes, pictures, boxes


def notes_xml(kind: str, *notes: str) -> str:
    each = "".join(f'<w:{kind} w:id="{n}">{note}</w:{kind}>' for n, note in enumerate(notes, 1))
    return f"<w:{kind}s {NAMES}>{each}</w:{kind}s>"


def reference(kind: str, number: int) -> str:
    look = '<w:rPr><w:vertAlign w:val="superscript"/></w:rPr>'
    return f'<w:r>{look}<w:{kind}Reference w:id="{number}"/></w:r>'


def test_notes_stand_where_they_are_cited_once() -> None:
    body = p(
        t("Repairs are free"),
        reference("footnote", 1),
        t(" for a year"),
        reference("endnote", 1),
        t("."),
    )
    body += p(t("Again"), reference("footnote", 1))
    link = '<w:hyperlink r:id="f1">' + t("terms") + "</w:hyperlink>"
    rels = (
        '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
        f'<Relationship Id="f1" Type="{RELATION}/hyperlink" Target="https://a.example/terms"'
        ' TargetMode="External"/></Relationships>'
    )
    content = with_part(file_of(body), "footnotes.xml", "footnotes",
                        notes_xml("footnote", p(t("See our "), link, t("."))), rels)  # fmt: skip
    content = with_part(
        content, "endnotes.xml", "endnotes", notes_xml("endnote", p(t("From the day of sale.")))
    )
    assert read_word(content).text == (
        "Repairs are free (See our terms (https://a.example/terms).) for a year "
        "(From the day of sale.).\n\nAgain"
    )


def picture(kind: str, description: str, more: str = "") -> str:
    inner = f'<wp:docPr id="1" name="Picture 1" descr="{description}">{more}</wp:docPr>'
    return f"<w:r><w:drawing><wp:{kind}>{inner}</wp:{kind}></w:drawing></w:r>"


def test_pictures_are_their_descriptions() -> None:
    assert text_of(p(t("Tap the"), picture("inline", "gear icon"), t("."))) == "Tap the gear icon."
    assert (
        text_of(p(t("Look."), picture("anchor", "A map of the site")))
        == "Look.\n\nA map of the site"
    )
    for nothing in ("image12.png", ""):
        assert text_of(p(t("Tap"), picture("inline", nothing), t(" on it."))) == "Tap on it."
    quiet = '<a:extLst xmlns:a="a"><adec:decorative val="1"/></a:extLst>'
    assert text_of(p(t("Look."), picture("inline", "a line", quiet))) == "Look."
    guessed = picture("inline", "A red door&#10;&#10;Description automatically generated")
    assert text_of(p(t("Look:"), guessed)) == "Look: A red door"
    old = '<w:r><w:pict><v:shape alt="bell sign"/></w:pict></w:r>'
    assert text_of(p(t("Ring "), old, t(" twice"))) == "Ring bell sign twice"
    assert (
        text_of(
            p(
                t("No"),
                picture("inline", "hidden").replace("<w:r>", "<w:r><w:rPr><w:vanish/></w:rPr>"),
            )
        )
        == "No"
    )


def test_text_boxes_are_paragraphs_of_their_own_once() -> None:
    content = f"<w:txbxContent>{p(t('Danger: hot.'))}{item('Cool it.', 1)}</w:txbxContent>"
    shape = f"<wps:wsp><wps:txbx>{content}</wps:txbx></wps:wsp>"
    new = f"<w:drawing><wp:anchor>{shape}</wp:anchor></w:drawing>"
    old = f"<w:pict><v:textbox>{content}</v:textbox></w:pict>"
    choices = f"<mc:Choice Requires='wps'>{new}</mc:Choice><mc:Fallback>{old}</mc:Fallback>"
    both = f"<mc:AlternateContent>{choices}</mc:AlternateContent>"
    for box in (new, old, both):
        parsed = read_word(file_of(p(t("Open the lid."), f"<w:r>{box}</w:r>", t(" Wait."))))
        assert [block.span.of(parsed.text) for block in parsed.blocks][:2] == [
            "Open the lid. Wait.",
            "Danger: hot.",
        ]
        assert parsed.text.count("Cool it.") == 1


def test_equations_are_lines() -> None:
    def r(text: str) -> str:
        return f"<m:r><m:t>{text}</m:t></m:r>"

    ratio = f"<m:f><m:num>{r('a+b')}</m:num><m:den>{r('2')}</m:den></m:f>"
    power = f"<m:sSup><m:e>{r('x')}</m:e><m:sup>{r('10')}</m:sup></m:sSup>"
    index = f"<m:sSub><m:e>{r('t')}</m:e><m:sub>{r('max')}</m:sub></m:sSub>"
    third = f"<m:rad><m:deg>{r('3')}</m:deg><m:e>{r('V')}</m:e></m:rad>"
    limits = f"<m:sub>{r('i=1')}</m:sub><m:sup>{r('n')}</m:sup><m:e>{r('p')}</m:e>"
    total = f'<m:nary><m:naryPr><m:chr m:val="∑"/></m:naryPr>{limits}</m:nary>'
    cell = "<m:mr><m:e>{}</m:e><m:e>{}</m:e></m:mr>".format
    cells = cell(r("1"), r("0")) + cell(r("0"), r("1"))
    brackets = "<m:dPr><m:begChr m:val='['/><m:endChr m:val=']'/></m:dPr>"
    grid = f"<m:d>{brackets}<m:e><m:m>{cells}</m:m></m:e></m:d>"
    name = f"<m:limLow><m:e>{r('lim')}</m:e><m:lim>{r('x→0')}</m:lim></m:limLow>"
    limit = f"<m:func><m:fName>{name}</m:fName><m:e>{r('f')}</m:e></m:func>"
    for xml, expected in (
        (ratio, "(a+b)/2"), (power, "x^10"), (index, "t_max"), (third, "root_3(V)"),
        (total, "∑_(i=1)^n p"), (grid, "[1, 0; 0, 1]"), (limit, "lim_(x→0) f"),
        (f"<m:new>{r('kept')}</m:new>", "kept"),
    ):  # fmt: skip
        assert (
            text_of(p(t("It is "), f"<m:oMath>{xml}</m:oMath>", t(" euros.")))
            == f"It is {expected} euros."
        )
    alone = p(
        f"<m:oMathPara><m:oMath>{r('a=1')}</m:oMath><m:oMath>{r('b=2')}</m:oMath></m:oMathPara>"
    )
    assert text_of(alone) == "a=1; b=2"


# ---------------------------------------------------------------- lists and headings


def numbering(
    *levels: str, lists: str = '<w:num w:numId="90"><w:abstractNumId w:val="90"/></w:num>'
) -> Callable[[WordDocument], None]:
    "Add a definition with lists to a document."

    def build(document: WordDocument) -> None:
        root = document.part.numbering_part.element
        inner = "".join(f'<w:lvl w:ilvl="{n}">{level}</w:lvl>' for n, level in enumerate(levels))
        definition = f'<w:abstractNum w:abstractNumId="90">{inner}</w:abstractNum>'
        xml = f"<w:numbering {nsdecls('w')}>{definition}{lists}</w:numbering>"
        for element in list(parse_xml(xml)):
            root.append(element)

    return build


def level(form: str, pattern: str, start: int = 1, more: str = "") -> str:
    return (
        f'<w:start w:val="{start}"/><w:numFmt w:val="{form}"/>{more}<w:lvlText w:val="{pattern}"/>'
    )


@pytest.mark.parametrize(
    ("form", "pattern", "start", "expected"),
    [
        ("decimal", "%1.", 1, ["1.", "2."]),
        ("decimal", "%1)", 7, ["7)", "8)"]),
        ("lowerLetter", "(%1)", 26, ["(z)", "(aa)"]),
        ("upperLetter", "%1.", 3, ["C.", "D."]),
        ("lowerRoman", "%1.", 9, ["ix.", "x."]),
        ("upperRoman", "Article %1", 4, ["Article IV", "Article V"]),
        ("ordinal", "%1", 2, ["2nd", "3rd"]),
        ("ordinalText", "%1:", 1, ["First:", "Second:"]),
        ("decimalZero", "%1", 9, ["09", "10"]),
        ("decimal", "Step %1:", 1, ["Step 1:", "Step 2:"]),
        ("bullet", "\uf0b7", 1, ["-", "-"]),
        ("bullet", "✓", 1, ["- ✓", "- ✓"]),
        ("none", "", 1, ["", ""]),
        ("never heard of", "%1.", 5, ["5.", "6."]),
    ],
)
def test_marks_of_lists(form: str, pattern: str, start: int, expected: list[str]) -> None:
    xml = item("one", 90) + item("two", 90)
    lines = text_of(xml, numbering(level(form, pattern, start))).splitlines()
    assert lines == [
        f"{mark} {word}".strip() for mark, word in zip(expected, ("one", "two"), strict=True)
    ]


def test_levels_count_below_each_other() -> None:
    build = numbering(
        level("decimal", "%1."), level("lowerLetter", "%1.%2)"), level("lowerRoman", "%3.")
    )
    xml = "".join(item(f"x{n}", 90, depth) for n, depth in enumerate((0, 1, 1, 2, 0, 1, 2, 2)))
    assert text_of(xml, build).splitlines() == [
        "1. x0", "  1.a) x1", "  1.b) x2", "    i. x3",
        "2. x4", "  2.a) x5", "    i. x6", "    ii. x7",
    ]  # fmt: skip


def test_a_list_resumes_or_starts_anew() -> None:
    num = '<w:num w:numId="{}"><w:abstractNumId w:val="90"/>{}</w:num>'.format
    new = '<w:lvlOverride w:ilvl="0"><w:startOverride w:val="{}"/></w:lvlOverride>'.format
    build = numbering(
        level("decimal", "%1."), lists=num(90, "") + num(91, "") + num(92, new(1)) + num(93, new(6))
    )
    xml = (
        item("a", 90)
        + p(t("Break."))
        + item("b", 90)
        + item("c", 91)
        + item("d", 92)
        + item("e", 92)
        + item("f", 93)
    )
    items = [line for line in text_of(xml, build).splitlines() if line and line != "Break."]
    assert items == ["1. a", "2. b", "3. c", "1. d", "2. e", "6. f"]


def test_levels_that_do_not_restart_and_legal_numbers() -> None:
    goes_on = level("decimal", "%2.", more='<w:lvlRestart w:val="0"/>')
    xml = item("a", 90) + item("b", 90, 1) + item("c", 90) + item("d", 90, 1)
    assert text_of(xml, numbering(level("decimal", "%1."), goes_on)).split() == (
        ["1.", "a", "1.", "b", "2.", "c", "2.", "d"]
    )
    legal = level("decimal", "%1.%2", more="<w:isLgl/>")
    assert text_of(item("b", 90, 1), numbering(level("upperRoman", "%1."), legal)) == "  1.1 b"


def test_an_empty_item_counts_and_a_hidden_one_does_not() -> None:
    build = numbering(level("decimal", "%1."))
    assert text_of(item("a", 90) + item("", 90) + item("b", 90), build).split() == [
        "1.",
        "a",
        "3.",
        "b",
    ]
    hidden = item("", 90).replace("</w:numPr>", "</w:numPr><w:rPr><w:vanish/></w:rPr>")
    assert text_of(item("a", 90) + hidden + item("b", 90), build).split() == ["1.", "a", "2.", "b"]


def test_headings_have_their_numbers() -> None:
    definition = numbering(
        level("decimal", "%1"), level("decimal", "%1.%2", more='<w:pStyle w:val="Heading2"/>')
    )

    def build(document: WordDocument) -> None:
        definition(document)
        for name, more in (("Heading 1", '<w:ilvl w:val="0"/>'), ("Heading 2", "")):
            properties = document.styles[name].element.get_or_add_pPr()
            properties.append(
                parse_xml(f'<w:numPr {nsdecls("w")}>{more}<w:numId w:val="90"/></w:numPr>')
            )

    off = '<w:pStyle w:val="Heading1"/><w:numPr><w:numId w:val="0"/></w:numPr>'
    xml = (
        styled("Heading1", t("Fees"))
        + styled("Heading1", t("Staff"))
        + styled("Heading2", t("Sick leave"))
    )
    parsed = read_word(file_of(xml + p(t("Annex"), properties=off) + p(t("Text.")), build))
    assert shape(parsed) == [
        ("heading", 1, "# 1 Fees"), ("heading", 1, "# 2 Staff"),
        ("heading", 2, "## 2.1 Sick leave"), ("heading", 1, "# Annex"), ("paragraph", 0, "Text."),
    ]  # fmt: skip


def numbering_style(name: str, number: int) -> Any:
    "Return a style that stands for a list."
    inner = f'<w:pPr><w:numPr><w:numId w:val="{number}"/></w:numPr></w:pPr>'
    attributes = f'{nsdecls("w")} w:type="numbering" w:styleId="{name}"'
    return parse_xml(f'<w:style {attributes}><w:name w:val="{name}"/>{inner}</w:style>')


def test_a_definition_may_stand_behind_a_style() -> None:
    def build(document: WordDocument) -> None:
        num = '<w:num w:numId="{0}"><w:abstractNumId w:val="{0}"/></w:num>'.format
        numbering(level("upperLetter", "%1."), lists=num(90))(document)
        link = '<w:abstractNum w:abstractNumId="91"><w:numStyleLink w:val="Ours"/></w:abstractNum>'
        for element in list(
            parse_xml(f"<w:numbering {nsdecls('w')}>{link}{num(91)}</w:numbering>")
        ):
            document.part.numbering_part.element.append(element)
        document.styles.element.append(numbering_style("Ours", 90))

    assert text_of(item("a", 91) + item("b", 90), build).splitlines() == ["A. a", "B. b"]


def test_a_heading_by_its_outline_level() -> None:
    xml = p(t("Fees"), properties='<w:outlineLvl w:val="1"/>') + p(t("Text."))
    assert shape(read_word(file_of(xml)))[0] == ("heading", 2, "## Fees")
    body = p(t("Text."), properties='<w:pStyle w:val="Heading1"/><w:outlineLvl w:val="9"/>')
    assert shape(read_word(file_of(body))) == [("paragraph", 0, "Text.")]


def test_clauses_in_the_style_of_headings_are_text() -> None:
    clause = (
        "The customer shall return the goods within thirty days of the notice that ends the hire."
    )
    xml = (
        styled("Heading1", t("Hire"))
        + styled("Heading2", t(clause))
        + styled("Heading2", t("Goods."))
    )
    kinds = [kind for kind, _, _ in shape(read_word(file_of(xml)))]
    assert kinds == ["heading", "paragraph", "heading"]


def test_typed_lists_are_lists() -> None:
    typed = [
        p(t("Do this:")),
        p(t("1. Open it.")),
        p(t("2.\tWait.")),
        p(t("- red")),
        p(t("- blue")),
    ]
    assert [kind for kind, _, _ in shape(read_word(file_of("".join(typed))))] == (
        ["paragraph", *["list_item"] * 4]
    )
    assert text_of("".join(typed)).splitlines()[2:] == [
        "1. Open it.",
        "2. Wait.",
        "- red",
        "- blue",
    ]
    alone = p(t("3. March is a holiday.")) + p(t("7. April is none.")) + p(t("- said he"))
    assert {kind for kind, _, _ in shape(read_word(file_of(alone)))} == {"paragraph"}


# ---------------------------------------------------------------- tables


DOWN, ON = '<w:vMerge w:val="restart"/>', "<w:vMerge/>"


def wide(n: int) -> str:
    return f'<w:gridSpan w:val="{n}"/>'


def test_merged_cells_are_filled_in() -> None:
    xml = tbl(
        tr(tc("Plan"), tc("Zone"), tc("Price")),
        tr(tc("Gold", DOWN), tc("North"), tc("20")),
        tr(tc("", ON), tc("South"), tc("22")),
        tr(tc("Day", wide(2)), tc("4")),
        tr(tc("Block", f"{wide(2)}{DOWN}"), tc("5")),
        tr(tc("", f"{wide(2)}{ON}"), tc("6")),
        tr(tc("Closed in May", wide(3))),
    )
    assert text_of(xml).splitlines() == [
        "Plan | Zone | Price", "--- | --- | ---", "Gold | North | 20", "Gold | South | 22",
        "Day | Day | 4", "Block | Block | 5", "Block | Block | 6", "Closed in May",
    ]  # fmt: skip


def test_rows_that_start_late_keep_their_columns() -> None:
    late = tr(tc("b"), properties='<w:gridBefore w:val="1"/>')
    assert text_of(tbl(tr(tc("A"), tc("B")), late)).splitlines()[-1] == " | b"
    assert text_of(tbl(tr(tc("A"), tc("B")), tr(tc(""), tc("x")))).splitlines()[-1] == " | x"


def test_heads_of_several_rows_are_one() -> None:
    xml = tbl(
        tr(tc("Plan", DOWN), tc("Price", wide(2))),
        tr(tc("", ON), tc("EU"), tc("US")),
        tr(tc("Gold"), tc("20"), tc("22")),
    )
    assert text_of(xml).splitlines() == [
        "Plan | Price EU | Price US",
        "--- | --- | ---",
        "Gold | 20 | 22",
    ]
    head = "<w:tblHeader/>"
    marked = tbl(
        tr(tc("a"), tc("b"), properties=head),
        tr(tc("c"), tc("d"), properties=head),
        tr(tc("1"), tc("2")),
    )
    assert text_of(marked).splitlines()[0] == "a c | b d"
    titled = tbl(tr(tc("Prices", wide(2))), tr(tc("a"), tc("b")), tr(tc("1"), tc("2")))
    assert shape(read_word(file_of(titled)))[:2] == [
        ("paragraph", 0, "Prices"),
        ("table_row", 0, "a | b\n--- | ---"),
    ]


def test_lists_and_tables_in_cells_are_told_apart() -> None:
    steps = item("Open it", 90) + item("Wait.", 90) + item("Close it", 90)
    inner = tbl(tr(tc("drums"), tc("yes")), tr(tc("piano"), tc("no"))) + p()
    dots = item("red", 91) + item("blue", 91)
    num = '<w:num w:numId="91"><w:abstractNumId w:val="91"/></w:num>'
    dot = f'<w:lvl w:ilvl="0">{level("bullet", "•")}</w:lvl>'
    bullets = f'<w:abstractNum w:abstractNumId="91">{dot}</w:abstractNum>'

    def build(document: WordDocument) -> None:
        numbering(level("decimal", "%1."))(document)
        for element in list(parse_xml(f"<w:numbering {nsdecls('w')}>{bullets}{num}</w:numbering>")):
            document.part.numbering_part.element.append(element)

    xml = tbl(tr(tc("Who"), tc("What")), tr(tc("Clerk"), tc(steps)), tr(tc("Band"), tc(inner)),
              tr(tc("Pens"), tc(dots)),
              tr(tc(p(t("Mon")) + p(t("Tue"))), tc("9 to 17")))  # fmt: skip
    assert text_of(xml, build).splitlines()[2:] == [
        "Clerk | 1. Open it; 2. Wait. 3. Close it",
        "Band | drums: yes; piano: no",
        "Pens | • red; • blue",
        "Mon; Tue | 9 to 17",
    ]


def test_frames_and_layouts_are_text() -> None:
    frame = tbl(tr(tc(p(t("Note")) + p(t("Wear gloves.")))))
    assert shape(read_word(file_of(frame))) == [
        ("paragraph", 0, "Note"),
        ("paragraph", 0, "Wear gloves."),
    ]
    left = styled("Heading2", t("Fees")) + p(t("Four."))
    right = styled("Heading2", t("Hours")) + p(t("Nine."))
    kinds = [kind for kind, _, _ in shape(read_word(file_of(tbl(tr(tc(left), tc(right))))))]
    assert kinds == ["heading", "paragraph"] * 2


def test_a_table_of_questions_is_questions() -> None:
    xml = tbl(
        tr(tc("Question"), tc("Answer")),
        tr(tc("Is there a lift?"), tc("Yes, at the back.")),
        tr(tc("Who has a key?"), tc(p(t("The porter.")) + p(t("And the guard.")))),
    )
    assert shape(read_word(file_of(styled("Heading1", t("House")) + xml)))[1:] == [
        ("heading", 2, "## Is there a lift?"), ("paragraph", 0, "Yes, at the back."),
        ("heading", 2, "## Who has a key?"), ("paragraph", 0, "The porter."),
        ("paragraph", 0, "And the guard."),
    ]  # fmt: skip
    other = tbl(tr(tc("Is there a lift?"), tc("Yes")), tr(tc("Rooms"), tc("12")))
    assert {kind for kind, _, _ in shape(read_word(file_of(other)))} == {"table_row"}


# ---------------------------------------------------------------- bold lines


def test_bold_questions_are_headings_one_level_below() -> None:
    pairs = p(bold("Is it "), bold("free?")) + p(t("Yes.")) + p(bold("For whom?")) + p(t("All."))
    levels = [level for kind, level, _ in shape(read_word(file_of(pairs))) if kind == "heading"]
    assert levels == [2, 2], "a question is never the title"
    below = styled("Heading2", t("Fees")) + pairs + styled("Heading1", t("Other")) + pairs
    parsed = read_word(file_of(below))
    assert [level for kind, level, _ in shape(parsed) if kind == "heading"] == [2, 3, 3, 1, 2, 2]


def test_a_bold_question_on_the_line_of_its_answer() -> None:
    line = p(bold("Is it free? "), t("Yes, it is."))
    assert shape(read_word(file_of(line))) == [
        ("heading", 2, "## Is it free?"),
        ("paragraph", 0, "Yes, it is."),
    ]
    broken = p(bold("Is it free?"), "<w:r><w:br/></w:r>", t("Yes, it is."))
    assert shape(read_word(file_of(broken)))[1] == ("paragraph", 0, "Yes, it is.")


@pytest.mark.parametrize(
    "xml",
    [
        p(t("Is it free?")) + p(t("Yes.")),
        p(bold("Is it free?")),
        p(bold("Is it free?")) + p(bold("Call us.")),
        p(t("Ask: "), bold("Is it free?")) + p(t("Yes.")),
        p(bold("Never open the lid.")) + p(t("It is hot.")),
        p(t("Text.")) + p(bold("Wear gloves")) + p(t("It is hot.")),
    ],
)
def test_what_is_no_heading(xml: str) -> None:
    assert {kind for kind, _, _ in shape(read_word(file_of(xml)))} == {"paragraph"}


def test_bold_lines_are_headings_where_there_are_no_others() -> None:
    big = "<w:b/><w:sz w:val='40'/>"
    xml = (
        p(t("Pool rules", big)) + p(bold("Hours")) + p(t("Nine.")) + p(bold("Fees")) + p(t("Four."))
    )
    found = [
        (level, text) for kind, level, text in shape(read_word(file_of(xml))) if kind == "heading"
    ]
    assert found == [(1, "# Pool rules"), (2, "## Hours"), (2, "## Fees")]
    with_styles = styled("Heading1", t("Pool")) + xml
    assert [kind for kind, _, _ in shape(read_word(file_of(with_styles)))].count("heading") == 1


# ---------------------------------------------------------------- headers, titles


def test_headers_and_footers_are_read_once_without_page_numbers() -> None:
    def build(document: WordDocument) -> None:
        document.sections[0].header.paragraphs[0].text = "TX-9, edition of May"
        footer = document.sections[0].footer.paragraphs[0]
        runs = t("Desk: 555 0142") + "<w:r><w:tab/></w:r>" + t("Page ") + shown("PAGE", t("1"))
        for element in list(
            parse_xml(f"<w:p {NAMES}>{runs + t(' of ') + shown('NUMPAGES', t('9'))}</w:p>")
        ):
            footer._p.append(element)
        second = document.add_section()
        second.header.is_linked_to_previous = False
        second.header.paragraphs[0].text = "TX-9, edition of May"
        document.sections[0].different_first_page_header_footer = False
        document.sections[0].first_page_header.paragraphs[0].text = "Never shown"
        document.sections[0].even_page_footer.paragraphs[0].text = "Nor this"

    text = text_of(styled("Heading1", t("Scanner")) + p(t("Press.")), build)
    assert text == "TX-9, edition of May\n\nDesk: 555 0142\n\n# Scanner\n\nPress."


def test_a_first_page_and_even_pages_count_where_shown() -> None:
    def build(document: WordDocument) -> None:
        section = document.sections[0]
        section.different_first_page_header_footer = True
        document.settings.odd_and_even_pages_header_footer = True
        section.first_page_header.paragraphs[0].text = "Only in front"
        section.even_page_footer.paragraphs[0].text = "On the left"
        section.header.paragraphs[0].text = "Press."

    assert text_of(p(t("Press.")), build) == "Only in front\n\nOn the left\n\nPress."


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("Kiosk handbook", "Kiosk handbook"), ("Word Document", ""), ("Untitled", ""),
        ("Document1", ""), ("Microsoft Word - a.doc", ""), ("fees.docx", ""), ("", ""),
        ("Document retention policy", "Document retention policy"),
    ],
)  # fmt: skip
def test_the_title_of_the_properties(title: str, expected: str) -> None:
    def build(document: WordDocument) -> None:
        document.core_properties.title = title

    assert read_word(file_of(p(t("Text.")), build)).title == expected


def test_comments_are_not_read() -> None:
    document = docx.Document()
    paragraph = document.add_paragraph("The fee is 4.")
    document.add_comment(paragraph.runs, text="Raise it to 9?", author="Ines")
    assert read_word(bytes_of(document)).text == "The fee is 4."


# ---------------------------------------------------------------- hostile files


MATHS = "<m:r><m:t>deep</m:t></m:r>"


def nested(n: int, opening: str, closing: str, inner: str) -> str:
    return opening * n + inner + closing * n


@pytest.mark.parametrize(
    "xml",
    [
        nested(70, "<w:tbl><w:tr><w:tc>", "</w:tc></w:tr></w:tbl>", p(t("deep"))),
        nested(70, f"<w:tbl><w:tr>{tc('a')}<w:tc>", "</w:tc></w:tr></w:tbl>", p(t("deep"))),
        nested(100, "<w:sdt><w:sdtContent>", "</w:sdtContent></w:sdt>", p(t("deep"))),
        p(nested(220, "<w:hyperlink>", "</w:hyperlink>", t("deep"))),
        p("<m:oMath>", nested(100, "<m:sSup><m:e>", "</m:e></m:sSup>", MATHS), "</m:oMath>"),
        p(nested(25, "<w:r><w:pict><v:shape><v:textbox><w:txbxContent><w:p>",
                 "</w:p></w:txbxContent></v:textbox></v:shape></w:pict></w:r>", t("deep"))),
        p(mark("begin") * 20_000, t("deep")),
        p(mark("end") * 20_000, t("deep")),
        tbl(tr(*[tc("deep", wide(99_999_999))] * 500)),
        tbl(*[tr(tc("deep", DOWN), tc("x" * 200, f"{wide(63)}{ON}"))] * 500),
        item("deep", 77, 8) + item("deep", 90, 99_999),
    ],
)  # fmt: skip
def test_hostile_content_is_read_in_time(xml: str) -> None:
    build = numbering(level("lowerLetter", "%1." * 50, 999_999_999))
    text = text_of(xml, build)
    assert "deep" in text and len(text) < 20_000_000
    takes_at_most(lambda: text_of(xml, build), 50)


def test_a_deeper_tree_is_refused() -> None:
    with pytest.raises(DocumentUnreadable, match="damaged"):
        read_word(file_with_body(p(nested(400, "<w:hyperlink>", "</w:hyperlink>", t("deep")))))


def file_with_body(xml: str) -> bytes:
    "A file whose body is not parsed while it is made."
    out = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(file_of(p(t("HERE"))))) as old,
        zipfile.ZipFile(out, "w") as new,
    ):
        for entry in old.namelist():
            data = old.read(entry)
            if entry == "word/document.xml":
                data = (
                    f"<w:document {NAMES}><w:body>{xml}<w:sectPr/></w:body></w:document>".encode()
                )
            new.writestr(entry, data)
    return out.getvalue()


@pytest.mark.parametrize(
    "piece",
    [
        p(t("some words "), t("2", '<w:vertAlign w:val="superscript"/>'), t(" more")),
        item("some words", 1),
        tbl(tr(tc("a"), tc("b")), tr(tc("c", wide(2)))),
        shown('HYPERLINK "https://a.example/x"', t("some words")),
        shown(" PAGE ", t("7")) + t(" words"),
        p(bold("Is it free?")) + p(t("Yes.")),
        styled("Nowhere", t("words")) + p("<m:oMath><m:r><m:t>x</m:t></m:r></m:oMath>"),
        t(" " * 50),
    ],
)
def test_time_grows_with_the_file_and_not_with_its_square(piece: str) -> None:
    def content(n: int) -> bytes:
        return file_with_body(
            piece * n if piece.startswith(("<w:p>", "<w:tbl>")) else p(t("x"), piece * n)
        )

    files = {n: content(n) for n in (40, 400, 3_200)}
    grows_linearly(lambda n: read_word(files[n]), 400, times=8)


def test_nested_fields_take_linear_time() -> None:
    opening = mark("begin") + code('HYPERLINK "https://a.example/x"') + mark("separate")
    files = {
        n: file_with_body(p(opening * n, t("words"), mark("end") * n)) for n in (500, 5_000, 20_000)
    }
    grows_linearly(lambda n: read_word(files[n]), 5_000)


def test_circles_end() -> None:
    def build(document: WordDocument) -> None:
        one, two = (document.styles.add_style(name, 1) for name in ("One", "Two"))
        one.base_style, two.base_style = two, one
        root = document.part.numbering_part.element
        for number, other in ((91, 92), (92, 91)):
            link = f'<w:numStyleLink w:val="S{other}"/>'
            for xml in (
                f'<w:abstractNum {nsdecls("w")} w:abstractNumId="{number}">{link}</w:abstractNum>',
                f'<w:num {nsdecls("w")} w:numId="{number}">'
                f'<w:abstractNumId w:val="{number}"/></w:num>',
            ):
                root.append(parse_xml(xml))
            document.styles.element.append(numbering_style(f"S{number}", number))

    assert text_of(styled("One", t("a")) + item("b", 91), build).split() == ["a", "1.", "b"]
    note = notes_xml("footnote", p(t("see"), reference("footnote", 1)))
    content = with_part(
        file_of(p(t("a"), reference("footnote", 1))), "footnotes.xml", "footnotes", note
    )
    assert read_word(content).text == "a (see)"


def test_a_note_cited_often_is_written_once() -> None:
    body = p(t("a"), reference("footnote", 1) * 5_000)
    note = notes_xml("footnote", p(t("x" * 100_000)))
    assert (
        len(read_word(with_part(file_of(body), "footnotes.xml", "footnotes", note)).text) < 100_100
    )


@pytest.mark.parametrize("name", ["footnotes.xml", "endnotes.xml"])
def test_a_damaged_part_is_an_error(name: str) -> None:
    content = with_part(file_of(p(t("a"))), name, name.removesuffix(".xml"), "<w:footnotes")
    with pytest.raises(DocumentUnreadable, match="damaged"):
        read_word(content)


def test_more_entries_than_a_document_may_have() -> None:
    entry = Entry("paragraph", "a")
    word = Word(Part({}, {}), Counting({}), [entry] * MAX_BLOCKS)
    with pytest.raises(TooLarge, match="250,000 paragraphs"):
        add(word, entry)
