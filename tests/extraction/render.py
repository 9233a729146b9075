"""Write an article in each format as programs write it: with chrome, notes and merged cells."""

from __future__ import annotations

import csv
import html
import io
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from typing import Any

import docx
from docx.document import Document as WordDocument
from docx.oxml import parse_xml
from docx.oxml.ns import nsdecls
from docx.shared import Pt
from reportlab.lib.colors import black
from reportlab.lib.pagesizes import A5
from reportlab.lib.styles import ParagraphStyle, getSampleStyleSheet
from reportlab.pdfbase.pdfmetrics import stringWidth
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import BaseDocTemplate, Frame, PageTemplate, Paragraph, Preformatted, Table

from tests.extraction.articles import Article, Part, Words, filled

RELATION = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
HEADER, FOOTER = "Northlake Services, edition of May", "Northlake desk: 0800 555 0188"
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c6360606060000000050001a5f64540"
    "0000000049454e44ae426082"
)


def notes(article: Article) -> list[str]:
    "Return the footnotes, in order."
    return [w.text for part in article.parts for w in part.line if w.kind == "note"]


def address(words: Words) -> str:
    "Return where a link goes, as a person writes it."
    return re.sub("^(mailto|tel):", "", words.address)


# ---------------------------------------------------------------- Markdown and text


def markdown(article: Article) -> bytes:
    number = iter(range(1, 100))

    def said(line: tuple[Words, ...]) -> str:
        form: Mapping[str, Callable[[Words], str]] = {
            "": lambda w: w.text,
            "bold": lambda w: f"**{w.text}**",
            "link": lambda w: f"[{w.text}]({w.address})",
            "sup": lambda w: f"<sup>{w.text}</sup>",
            "sub": lambda w: f"<sub>{w.text}</sub>",
            "struck": lambda w: f"~~{w.text}~~",
            "hidden": lambda w: f"<!-- {w.text} -->",
            "pic": lambda w: f"![{w.text}](img/{len(w.text)}.png)",
            "note": lambda w: f"[^{next(number)}]",
        }
        return "".join(form[w.kind](w) for w in line)

    lines: list[str] = []
    for part in article.parts:
        is_item = part.kind == "item"
        if not (is_item and lines and lines[-1].lstrip()[:1] in "-0123456789abcdefixv"):
            lines.append("")
        if part.kind == "heading":
            lines.append(f"{'#' * part.level} {said(part.line)}")
        elif part.kind == "question":
            lines.append(f"**{said(part.line)}**")
        elif is_item:
            lines.append(f"{'   ' * part.level}{part.mark} {said(part.line)}")
        elif part.kind == "table":
            head, *rows = filled(part.rows)
            rule = ["---"] * len(head)
            lines += [f"| {' | '.join(row)} |" for row in (head, rule, *rows)]
        elif part.kind == "code":
            lines += ["```", *part.lines, "```"]
        else:
            lines.append(said(part.line))
    for n, text in enumerate(notes(article), 1):
        lines += ["", f"[^{n}]: {text}"]
    return "\n".join(lines).strip().encode() + b"\n"


def text(article: Article) -> bytes:
    number = iter(range(1, 100))

    def said(line: tuple[Words, ...]) -> str:
        form: Mapping[str, Callable[[Words], str]] = {
            "sup": lambda w: f"^{w.text}",
            "struck": lambda w: "",
            "hidden": lambda w: "",
            "note": lambda w: f" ({next(number)})",
            "link": lambda w: w.text if address(w) == w.text else f"{w.text} ({address(w)})",
        }
        return "".join(form.get(w.kind, lambda w: w.text)(w) for w in line)

    lines: list[str] = []
    for part in article.parts:
        lines += [] if part.kind == "item" else [""]
        if part.kind == "table":
            lines += ["\t".join(row) for row in filled(part.rows)]
        elif part.kind == "code":
            lines += part.lines
        else:
            lines.append(
                f"{'  ' * part.level * (part.kind == 'item')}{part.mark} {said(part.line)}".rstrip()
            )
    lines += ["", *(f"({n}) {note}" for n, note in enumerate(notes(article), 1))]
    return "\n".join(lines).strip().encode() + b"\n"


def table_csv(part: Part, delimiter: str) -> bytes:
    stream = io.StringIO()
    csv.writer(stream, delimiter=delimiter).writerows(filled(part.rows))
    return stream.getvalue().encode()


# ---------------------------------------------------------------- HTML

CHROME_ABOVE = """<nav><a href="/">Home</a> <a href="/help">Help</a> <a href="/in">Sign in</a></nav>
<div role="dialog" aria-hidden="true">We use cookies to improve your experience.</div>"""
CHROME_BELOW = """<footer>Copyright Northlake Services. <a href="/imprint">Imprint</a></footer>
<script>track("view")</script>"""


def html_line(line: tuple[Words, ...], number: Iterator[int]) -> str:
    form: Mapping[str, Callable[[str, Words], str]] = {
        "": lambda t, w: t,
        "bold": lambda t, w: f"<b>{t}</b>",
        "link": lambda t, w: f'<a href="{html.escape(w.address)}">{t}</a>',
        "sup": lambda t, w: f"<sup>{t}</sup>",
        "sub": lambda t, w: f"<sub>{t}</sub>",
        "struck": lambda t, w: f"<del>{t}</del>",
        "hidden": lambda t, w: f'<span style="display:none">{t}</span>',
        "pic": lambda t, w: f'<img src="i.svg" alt="{t}">',
        "note": lambda t, w: f'<sup><a href="#note-{(n := next(number))}">{n}</a></sup>',
    }
    return "".join(form[w.kind](html.escape(w.text), w) for w in line)


def html_table(rows: tuple[tuple[str, ...], ...]) -> str:
    "Return a table with its merged cells as `rowspan` and `colspan`."
    lines = []
    for y, row in enumerate(rows):
        cells = []
        for x, cell in enumerate(row):
            if cell in ("<", "^"):
                continue
            wide = next((n for n, c in enumerate(row[x + 1 :], 1) if c != "<"), len(row) - x)
            below = [r[x] for r in rows[y + 1 :]]
            tall = next((n for n, c in enumerate(below, 1) if c != "^"), len(below) + 1)
            spans = f' colspan="{wide}"' * (wide > 1) + f' rowspan="{tall}"' * (tall > 1)
            name = "td" if y else "th"
            cells.append(f"<{name}{spans}>{html.escape(cell)}</{name}>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table>{''.join(lines)}</table>"


def html_list(parts: list[Part], number: Iterator[int]) -> str:
    "Return items as lists within lists."
    out, is_open = "", list[str]()
    for part in parts:
        while len(is_open) > part.level + 1:
            out += f"</li></{is_open.pop()}>"
        if len(is_open) == part.level + 1:
            out += "</li>"
        else:
            name = "ul" if part.mark == "-" else "ol"
            mark = part.mark.rstrip(".)")
            kind = "1" if mark.isdigit() else "i" if mark in ("i", "v", "x") else "a"
            start = ord(mark) - 96 if kind == "a" and len(mark) == 1 else 1
            out += f'<ol type="{kind}" start="{start}">' if name == "ol" else "<ul>"
            is_open.append(name)
        out += f"<li>{html_line(part.line, number)}"
    return out + "".join(f"</li></{name}>" for name in reversed(is_open))


def web_page(article: Article, index: int) -> bytes:
    number, out, in_details = iter(range(1, 100)), "", False
    for is_item, group in groupby(article.parts, key=lambda part: part.kind == "item"):
        parts = list(group)
        if is_item:
            out += html_list(parts, number)
            continue
        for part in parts:
            line = html_line(part.line, number)
            if part.kind in ("heading", "question") and in_details:
                out, in_details = out + "</details>", False
            if part.kind == "heading":
                out += f"<h{part.level}>{line}</h{part.level}>"
            elif part.kind == "question":
                out += f"<details><summary>{line}</summary>"
                in_details = True
            elif part.kind == "table":
                out += html_table(part.rows)
            elif part.kind == "code":
                out += f"<pre><code>{html.escape(chr(10).join(part.lines))}</code></pre>"
            else:
                out += f"<p>{line}</p>"
    out += "</details>" * in_details
    for n, note in enumerate(notes(article), 1):
        out += f'<p id="note-{n}"><sup>{n}</sup> {html.escape(note)}</p>'
    name = "main" if index % 2 else "div"
    page = f"<title>{article.title} | Northlake</title></head><body>{CHROME_ABOVE}<{name}>{out}"
    return f"<!doctype html><html><head>{page}</{name}>{CHROME_BELOW}</body></html>".encode()


# ---------------------------------------------------------------- Word

LEVEL = (
    '<w:lvl w:ilvl="{}"><w:start w:val="{}"/><w:numFmt w:val="{}"/><w:lvlText w:val="{}"/></w:lvl>'
)


class WordFile:
    "A Word file that grows."

    def __init__(self, article: Article) -> None:
        self.document: WordDocument = docx.Document()
        self.article = article
        self.n_lists = 100
        self.notes: list[str] = []
        code = self.document.styles.add_style("Source Code", 1)
        code.font.name, code.font.size = "Consolas", Pt(9)
        self.headings = self.add_list([(1, "decimal", "%1"), (1, "decimal", "%1.%2")])

    def add_list(self, levels: list[tuple[int, str, str]]) -> int:
        "Define a list and return its number."
        self.n_lists += 1
        inner = "".join(LEVEL.format(n, *level) for n, level in enumerate(levels))
        root = self.document.part.numbering_part.element
        number, spaces = self.n_lists, nsdecls("w")
        definition = f'<w:abstractNum {spaces} w:abstractNumId="{number}">{inner}</w:abstractNum>'
        root.insert(0, parse_xml(definition))
        link = f'<w:abstractNumId w:val="{number}"/>'
        root.append(parse_xml(f'<w:num {spaces} w:numId="{number}">{link}</w:num>'))
        return number

    def number(self, paragraph: Any, number: int, level: int) -> None:
        inner = f'<w:ilvl w:val="{level}"/><w:numId w:val="{number}"/>'
        properties = paragraph._p.get_or_add_pPr()
        properties.append(parse_xml(f"<w:numPr {nsdecls('w')}>{inner}</w:numPr>"))

    def say(self, paragraph: Any, line: tuple[Words, ...]) -> None:
        "Add the words of a line to a paragraph."
        for words in line:
            if words.kind == "link":
                name = paragraph.part.relate_to(
                    words.address, f"{RELATION}/hyperlink", is_external=True
                )
                run = f"<w:r><w:t>{html.escape(words.text)}</w:t></w:r>"
                xml = f'<w:hyperlink {nsdecls("w", "r")} r:id="{name}">{run}</w:hyperlink>'
                paragraph._p.append(parse_xml(xml))
            elif words.kind == "note":
                self.notes.append(words.text)
                look = '<w:rPr><w:vertAlign w:val="superscript"/></w:rPr>'
                mark = f'{look}<w:footnoteReference w:id="{len(self.notes)}"/>'
                paragraph._p.append(parse_xml(f"<w:r {nsdecls('w')}>{mark}</w:r>"))
            elif words.kind == "pic":
                picture = paragraph.add_run().add_picture(io.BytesIO(PIXEL))
                picture._inline.docPr.set("descr", words.text)
            else:
                look = {"sup": "superscript", "sub": "subscript", "struck": "strike"}
                name = {"hidden": "hidden", "bold": "bold", **look}.get(words.kind)
                run = paragraph.add_run(words.text)
                if name is not None:
                    setattr(run.font, name, True)

    def heading(self, part: Part) -> None:
        first = part.line[0]
        numbered = re.match(r"([0-9.]+) ", first.text)
        paragraph = self.document.add_heading("", part.level)
        text = first.text[numbered.end() :] if numbered else first.text
        self.say(paragraph, (Words(first.kind, text), *part.line[1:]))
        if numbered:
            self.number(paragraph, self.headings, numbered[1].count("."))

    def items(self, parts: list[Part]) -> None:
        "Add a list; each level looks as its first item does."
        forms: dict[int, tuple[int, str, str]] = {}
        for part in parts:
            mark = part.mark.rstrip(".)")
            end = part.mark[len(mark) :]
            form = (
                (1, "bullet", "\uf0b7") if part.mark == "-"
                else (1, "decimal", f"%{part.level + 1}{end}") if mark.isdigit()
                else (1, "lowerRoman", f"%{part.level + 1}{end}") if mark == "i"
                else (ord(mark[0]) - 96, "lowerLetter", f"%{part.level + 1}{end}")
            )  # fmt: skip
            forms.setdefault(part.level, form)
        number = self.add_list([forms[n] for n in sorted(forms)])
        for part in parts:
            paragraph = self.document.add_paragraph()
            self.say(paragraph, part.line)
            self.number(paragraph, number, part.level)

    def table(self, rows: tuple[tuple[str, ...], ...]) -> None:
        table = self.document.add_table(len(rows), len(rows[0]), style="Table Grid")
        for y, row in enumerate(rows):
            for x, cell in enumerate(row):
                if cell == "<":
                    table.cell(y, x - 1).merge(table.cell(y, x))
                elif cell == "^":
                    table.cell(y - 1, x).merge(table.cell(y, x))
                else:
                    table.cell(y, x).text = cell

    def running(self) -> None:
        "Write a header, and a footer with the number of the page."
        section = self.document.sections[0]
        section.header.paragraphs[0].text = HEADER
        footer = section.footer.paragraphs[0]
        footer.text = f"{FOOTER}\tPage "
        field = (
            f'<w:fldSimple {nsdecls("w")} w:instr=" PAGE "><w:r><w:t>1</w:t></w:r></w:fldSimple>'
        )
        footer._p.append(parse_xml(field))

    def content(self) -> bytes:
        "Return the file, with its footnotes."
        self.document.core_properties.title = self.article.title
        self.document.save(stream := io.BytesIO())
        return with_footnotes(stream.getvalue(), self.notes) if self.notes else stream.getvalue()


def with_footnotes(content: bytes, texts: list[str]) -> bytes:
    "Add the part that holds footnotes."
    inner = "".join(
        f'<w:footnote w:id="{n}"><w:p><w:r><w:footnoteRef/></w:r>'
        f'<w:r><w:t xml:space="preserve"> {html.escape(text)}</w:t></w:r></w:p></w:footnote>'
        for n, text in enumerate(texts, 1)
    )
    part = f'<?xml version="1.0"?><w:footnotes {nsdecls("w")}>{inner}</w:footnotes>'
    kind = "application/vnd.openxmlformats-officedocument.wordprocessingml.footnotes+xml"
    link = f'<Relationship Id="notes" Type="{RELATION}/footnotes" Target="footnotes.xml"/>'
    override = f'<Override PartName="/word/footnotes.xml" ContentType="{kind}"/>'
    more = {
        "word/_rels/document.xml.rels": f"{link}</Relationships>",
        "[Content_Types].xml": f"{override}</Types>",
    }
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            data = old.read(name).decode("latin-1")
            end = more.get(name, "")
            ending = end[end.rfind("</") :]
            new.writestr(name, (data.replace(ending, end) if end else data).encode("latin-1"))
        new.writestr("word/footnotes.xml", part)
    return out.getvalue()


def word(article: Article) -> bytes:
    file = WordFile(article)
    file.running()
    for is_item, group in groupby(article.parts, key=lambda part: part.kind == "item"):
        parts = list(group)
        if is_item:
            file.items(parts)
            continue
        for part in parts:
            if part.kind == "heading":
                file.heading(part)
            elif part.kind == "table":
                file.table(part.rows)
            elif part.kind == "code":
                for line in part.lines:
                    file.document.add_paragraph(line, style="Source Code")
            else:
                paragraph = file.document.add_paragraph()
                file.say(paragraph, part.line)
                for run in paragraph.runs:
                    run.bold = True if part.kind == "question" else run.bold
    return file.content()


# ---------------------------------------------------------------- PDF

SHEET = getSampleStyleSheet()
BODY = ParagraphStyle("b", parent=SHEET["BodyText"], fontSize=9.5, leading=12.5)
SMALL = ParagraphStyle("s", parent=BODY, fontSize=7.5, leading=9.5)
CODE_STYLE = ParagraphStyle("c", parent=SHEET["Code"], fontSize=8)


def pdf_line(line: tuple[Words, ...], number: Iterator[int]) -> str:
    form: Mapping[str, Callable[[str, Words], str]] = {
        "bold": lambda t, w: f"<b>{t}</b>",
        "link": lambda t, w: f'<a href="{html.escape(w.address)}" color="blue">{t}</a>',
        "sup": lambda t, w: f"<super>{t}</super>",
        "sub": lambda t, w: f"<sub>{t}</sub>",
        "struck": lambda t, w: "",
        "hidden": lambda t, w: "",
        "pic": lambda t, w: t,
        "note": lambda t, w: f"<super>{next(number)}</super>",
    }
    return "".join(form.get(w.kind, lambda t, w: t)(html.escape(w.text), w) for w in line)


def hyphenated(text: str, width: float) -> str:
    "Break plain text into lines, and long words at the ends of lines."
    lines, line = list[str](), ""
    for word in text.split(" "):
        room = width - stringWidth(f"{line} ", BODY.fontName, BODY.fontSize)
        if line and stringWidth(word, BODY.fontName, BODY.fontSize) > room:
            half = len(word) // 2
            fits = stringWidth(f"{word[:half]}-", BODY.fontName, BODY.fontSize) <= room
            if word.isalpha() and len(word) > 8 and fits:
                lines.append(f"{line} {word[:half]}-")
                line = word[half:]
                continue
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}" if line else word
    return "<br/>".join([*lines, line])


def pdf_table(rows: tuple[tuple[str, ...], ...], *, is_ruled: bool, width: float) -> Table:
    style: list[tuple[Any, ...]] = [
        ("FONTSIZE", (0, 0), (-1, -1), 8),
        ("VALIGN", (0, 0), (-1, -1), "TOP"),
    ]
    style += [("GRID", (0, 0), (-1, -1), 0.5, black)] if is_ruled else []
    style += [("FONTNAME", (0, 0), (-1, 0), "Helvetica-Bold")]
    data = [["" if cell in ("<", "^") else cell for cell in row] for row in rows]
    for y, row in enumerate(rows):
        for x, cell in enumerate(row):
            if cell == "<" and (x + 1 == len(row) or row[x + 1] != "<"):
                start = max(n for n in range(x) if row[n] != "<")
                style.append(("SPAN", (start, y), (x, y)))
            if cell == "^" and (y + 1 == len(rows) or rows[y + 1][x] != "^"):
                start = max(n for n in range(y) if rows[n][x] != "^")
                style.append(("SPAN", (x, start), (x, y)))
    columns = len(rows[0])
    return Table(data, colWidths=[width / columns] * columns, style=style, hAlign="LEFT")


def pdf(article: Article, index: int) -> bytes:
    stream, (page_width, height), margin = io.BytesIO(), A5, 40
    is_double, is_hyphenated = index % 3 == 2, index % 4 == 1
    n_columns = 2 if is_double else 1
    width = (page_width - 2 * margin - 12 * (n_columns - 1)) / n_columns

    def running(canvas: Canvas, document: BaseDocTemplate) -> None:
        canvas.setFont("Helvetica", 7.5)
        canvas.drawString(margin, height - 24, HEADER)
        canvas.drawRightString(page_width - margin, 20, f"Page {document.page}")

    frames = [
        Frame(margin + n * (width + 12), 36, width, height - 72, 0, 0, 0, 0)
        for n in range(n_columns)
    ]
    document = BaseDocTemplate(stream, pagesize=A5, title=article.title)
    document.addPageTemplates([PageTemplate(frames=frames, onPage=running)])
    number, story = iter(range(1, 100)), list[Any]()
    for part in article.parts:
        line = pdf_line(part.line, number)
        if part.kind in ("heading", "question"):
            level = part.level or 3
            story.append(Paragraph(line, SHEET[f"Heading{min(level, 4)}"]))
        elif part.kind == "table":
            story.append(pdf_table(part.rows, is_ruled=index % 2 == 0, width=width))
        elif part.kind == "code":
            story.append(Preformatted("\n".join(part.lines), CODE_STYLE))
        elif part.kind == "item":
            indent = 12 * part.level
            style = ParagraphStyle("i", parent=BODY, leftIndent=indent + 14, bulletIndent=indent)
            mark = "•" if part.mark == "-" else part.mark
            story.append(Paragraph(line, style, bulletText=mark))
        elif line.strip():
            is_plain = is_hyphenated and "<" not in line
            story.append(Paragraph(hyphenated(line, width) if is_plain else line, BODY))
    story += [
        Paragraph(f"<super>{n}</super> {note}", SMALL) for n, note in enumerate(notes(article), 1)
    ]
    document.build(story)
    return stream.getvalue()


def renderings(article: Article, index: int) -> Iterator[tuple[str, bytes]]:
    "Yield (file name, content) in every format; a table apart for each one that the article has."
    yield f"{article.name}.md", markdown(article)
    yield f"{article.name}.txt", text(article)
    yield f"{article.name}.html", web_page(article, index)
    yield f"{article.name}.docx", word(article)
    yield f"{article.name}.pdf", pdf(article, index)
    for part in article.parts:
        if part.kind == "table":
            yield f"{article.name}.csv", table_csv(part, ";" if index % 2 else ",")
