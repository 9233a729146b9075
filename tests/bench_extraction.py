"""Measure what is read of ten articles in six formats, beside other programs; run by hand.

    python -m tests.bench_extraction              one table
    python -m tests.bench_extraction keys.docx    what ours reads of one file

The truth is made from the source of the articles (`tests/extraction`), never by a parser of ours:
what a person sees in that format. A note counts where it is cited if the format links the two,
and at the end if it only stands there. Page chrome, page numbers, struck and hidden words and
comments are not seen. The head and the foot of all pages are seen once, before the text.

    words    F1 of the multisets of words; 10^6 is one word, and an address is several
    order    share of three-word runs, unique in truth and reading, that are in order
    cells    cells of table bodies that stand in their row and column, merged ones in each
    ms/page  of processor time, reading alone, median of `RUNS`; a page is one of the article's PDF

The others run with a Python of their own, so that none of their packages is one of ours:
SUPPORT_RAG_MARKITDOWN, SUPPORT_RAG_UNSTRUCTURED and SUPPORT_RAG_KREUZBERG name one that has the
package. One that is not named is left out, and the output says so.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pypdfium2

from support_rag.parse import content_type_of, parse
from tests.extraction.articles import Article, Part, articles, filled
from tests.extraction.render import FOOTER, HEADER, address, notes, renderings

RUNS = 5
FORMATS = ("md", "txt", "html", "docx", "pdf", "csv")
CITED = ("md", "html", "docx")  # formats that link a note to the place that cites it
PEERS = {
    "markitdown": """
from markitdown import MarkItDown
read = MarkItDown()
def text_of(path): return read.convert(path).text_content
""",
    "unstructured": """
from unstructured.partition.auto import partition
def text_of(path):
    if path.endswith(".pdf"): raise ImportError("its PDF reader downloads models")
    return "\\n\\n".join(e.metadata.text_as_html or e.text for e in partition(path))
""",
    "kreuzberg": """
from kreuzberg import ExtractionConfig, extract_file_sync
config = ExtractionConfig(output_format="markdown", use_cache=False)
def text_of(path): return extract_file_sync(path, config=config).content
""",
}
LOOP = """
import json, sys, time, warnings
warnings.filterwarnings("ignore")
found = {}
for path in sys.argv[2:]:
    try:
        text_of(path)
        taken = []
        for _ in range(int(sys.argv[1])):
            start = time.process_time()
            text = text_of(path)
            taken.append(time.process_time() - start)
        found[path] = [text, taken]
    except Exception as error:
        found[path] = [None, f"{type(error).__name__}: {error}"[:80]]
print("RESULT" + json.dumps(found))
"""


# ---------------------------------------------------------------- the truth


def seen_line(part: Part, form: str) -> str:
    "Return the words of a line as a person sees them."
    said = ""
    for words in part.line:
        if words.kind == "sup":
            said += f"^{words.text}"
        elif words.kind == "link":
            said += (
                words.text if address(words) == words.text else f"{words.text} ({address(words)})"
            )
        elif words.kind == "note":
            said += f" ({words.text})" if form in CITED else ""
        elif words.kind not in ("struck", "hidden"):
            said += words.text
    mark = part.mark if part.kind == "item" and part.mark != "-" else ""
    return f"{mark} {said}"


def truth(article: Article, form: str) -> str:
    "Return the text that a person sees of an article in a format."
    tables = [filled(part.rows) for part in article.parts if part.kind == "table"]
    if form == "csv":
        return "\n".join(" ".join(row) for row in tables[-1])
    lines = {"docx": [HEADER, FOOTER], "pdf": [HEADER]}.get(form, [])
    for part in article.parts:
        lines += part.lines or (" ".join(row) for row in filled(part.rows))
        lines.append(seen_line(part, form))
    return "\n".join([*lines, *([] if form in CITED else notes(article))])


def body_rows(article: Article, form: str) -> list[list[str]]:
    "Return the rows below the heads of all tables."
    tables = [filled(part.rows)[1:] for part in article.parts if part.kind == "table"]
    return tables[-1] if form == "csv" else [row for table in tables for row in table]


def heads(article: Article) -> list[tuple[str, ...]]:
    "Return the head of each table."
    return [part.rows[0] for part in article.parts if part.kind == "table"]


# ---------------------------------------------------------------- scores

POWERS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")
LOWERED = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")


def plain(text: str) -> str:
    "Return text with the marks of all programs written in one way."
    text = re.sub(r"<sup>(.*?)</sup>|\^([0-9]+)\^", lambda m: f"^{m[1] or m[2]}", text)
    text = re.sub(r"</?sub>", "", text.translate(LOWERED))
    text = re.sub(r"!\[([^\]\n]*)\]\([^)\n]*\)|\(#[^)\n]*\)", r"\1", text)
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹]+", lambda m: f"^{m[0].translate(POWERS)}", text)
    text = re.sub(r"</?(?:table|thead|tbody|tr|td|th)\b[^>]*>", " ", text)
    return re.sub(r"\bhttps?://|\bmailto:|\btel:", " ", text.lower())


def words_in(text: str) -> list[str]:
    return re.findall(r"\w+(?:\^\w+)?", plain(text).replace("_", " "))


def f1(expected: Sequence[str], found: Sequence[str]) -> float:
    both = sum((Counter(expected) & Counter(found)).values())
    return 2 * both / (len(expected) + len(found)) if expected or found else 1.0


def in_order(expected: Sequence[str], found: Sequence[str]) -> float:
    "Return the share of unique three-word runs that the longest ordered selection keeps."

    def runs(words: Sequence[str]) -> dict[tuple[str, ...], int]:
        grams = [tuple(words[n : n + 3]) for n in range(len(words) - 2)]
        count = Counter(grams)
        return {gram: n for n, gram in enumerate(grams) if count[gram] == 1}

    there = runs(found)
    places = [there[gram] for gram in runs(expected) if gram in there]
    tails: list[int] = []
    for place in places:
        at = bisect_left(tails, place)
        tails[at : at + 1] = [place]
    return len(tails) / len(places) if places else 0.0


NAME = re.compile(r"(?m)(?:^|(?<=\| ))([\w ]+): ")


def named(text: str, head: Sequence[str]) -> str:
    "Return a text whose rows name their columns as one whose head does."

    def row(line: str) -> str:
        parts = NAME.split(line)
        values = {
            name: value.strip(" |") for name, value in zip(parts[1::2], parts[2::2], strict=True)
        }
        return " | ".join(values.get(name, "") for name in head) if values else line

    lines = text.splitlines()
    is_named = bool(lines) and all(NAME.match(line) for line in lines)
    return "\n".join([" | ".join(head), *map(row, lines)]) if is_named else text


def rows_in(text: str) -> Iterator[list[str]]:
    "Yield the rows that a text shows, however its program writes tables."
    for row in re.findall(r"<tr>(.*?)</tr>", text, re.DOTALL):
        yield [
            re.sub("<[^>]+>", "", c).strip() for c in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row)
        ]
    for line in text.splitlines():
        if "|" in line or "\t" in line:
            is_framed = line.lstrip().startswith("| ") and line.rstrip().endswith(" |")
            cells = re.split(r"\||\t", line.strip(" ")[1:-1] if is_framed else line)
            yield [cell.strip() for cell in cells]
        elif "," in line and len(line) < 200:
            yield [cell.strip() for cell in line.split(",")]


def cells_right(expected: Sequence[Sequence[str]], text: str) -> tuple[int, int]:
    "Return how many cells stand in their row and column, and how many there are."
    rows, right = list(rows_in(text)), 0
    for row in expected:

        def score(other: list[str], row: Sequence[str] = row) -> int:
            return sum(a.lower() == b.lower() for a, b in zip(row, other, strict=False))

        best = max(rows, key=score, default=[])
        right += score(best)
    return right, sum(map(len, expected))


# ---------------------------------------------------------------- readers


@dataclass(frozen=True, slots=True)
class Reading:
    "What a program read of a file."

    text: str | None  # None: it did not read it
    seconds: list[float]
    reason: str = ""


def read_ours(paths: Sequence[Path]) -> dict[str, Reading]:
    found = {}
    for path in paths:
        content, taken, text = path.read_bytes(), [], ""
        for _ in range(RUNS + 1):
            start = time.process_time()
            kind = content_type_of(path.name)
            text = parse(content, content_type=kind, document_id="d", source=path.name).text
            taken.append(time.process_time() - start)
        found[path.name] = Reading(text, taken[1:])
    return found


def read_peer(name: str, python: str, paths: Sequence[Path]) -> dict[str, Reading]:
    command = [python, "-c", PEERS[name] + LOOP, str(RUNS), *map(str, paths)]
    environ = {**os.environ, "PYTHONPATH": "", "DO_NOT_TRACK": "true", "SCARF_NO_ANALYTICS": "true"}
    done = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
    if "RESULT" not in done.stdout:
        return {path.name: Reading(None, [], done.stderr.strip()[-120:]) for path in paths}
    found = json.loads(done.stdout.rpartition("RESULT")[2])
    return {
        Path(path).name: Reading(None, [], rest) if text is None else Reading(text, rest)
        for path, (text, rest) in found.items()
    }


# ---------------------------------------------------------------- the table


def n_pages(path: Path) -> int:
    with pypdfium2.PdfDocument(path.with_suffix(".pdf")) as document:
        return len(document)


def line_for(form: str, name: str, found: dict[str, Reading], folder: Path) -> str:
    "Return one line of the table."
    scores, orders, right, n_cells, taken, pages = list[float](), list[float](), 0, 0, 0.0, 0
    for article in articles():
        reading = found.get(f"{article.name}.{form}")
        if reading is None or reading.text is None:
            reason = reading.reason if reading else "not asked"
            return f"{form:5} {name:13} {'not read: ' + reason.splitlines()[-1][:60]}"
        expected = words_in(truth(article, form))
        said = named(reading.text, heads(article)[-1]) if form == "csv" else reading.text
        scores.append(f1(expected, words_in(said)))
        orders.append(in_order(expected, words_in(said)))
        good, of = cells_right(body_rows(article, form), said)
        right, n_cells = right + good, n_cells + of
        taken += statistics.median(reading.seconds)
        pages += n_pages(folder / f"{article.name}.pdf")
    middle, low, order = statistics.mean(scores), min(scores), statistics.mean(orders)
    return (
        f"{form:5} {name:13} {middle:5.3f} {low:5.3f}  {order:5.3f} {min(orders):5.3f}  "
        f"{right:3}/{n_cells:3}  {taken * 1000 / pages:7.1f}   n={len(scores)}"
    )


def write_all(folder: Path) -> list[Path]:
    "Write every article in every format."
    paths = []
    for index, article in enumerate(articles()):
        for name, content in renderings(article, index):
            (folder / name).write_bytes(content)
            paths.append(folder / name)
    return list(dict.fromkeys(paths))


def main(wanted: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_all(folder)
        if wanted:
            for path in paths:
                if path.name in wanted:
                    print(read_ours([path])[path.name].text)
            return
        readers = {"ours": read_ours(paths)}
        for peer in PEERS:
            if python := os.environ.get(f"SUPPORT_RAG_{peer.upper()}"):
                readers[peer] = read_peer(peer, python, paths)
            else:
                print(f"{peer}: not measured; SUPPORT_RAG_{peer.upper()} names no Python with it")
        print("format reader       words  (min)  order  (min)    cells  ms/page")
        for form in FORMATS:
            for reader, found in readers.items():
                print(line_for(form, reader, found, folder))


if __name__ == "__main__":
    main(sys.argv[1:])
