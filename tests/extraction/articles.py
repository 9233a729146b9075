"""The source texts of the extraction benchmark, and the structure they stand for.

In `sources`, a line says what it is: `#` a heading, `?` a question, `|` a row, four spaces code,
`1.`, `c)` or `-` an item, and two spaces before it a deeper one. In a row, `<` is the cell to the
left and `^` the cell above, merged. Inside braces stands what a plain text cannot say, as in
`{sup:6}` or `{link:words:address}`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

SOURCES = Path(__file__).parent / "sources"


@dataclass(frozen=True, slots=True)
class Words:
    "A piece of a line. Its kind is empty for plain words."

    kind: str
    text: str
    address: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    "A heading, question, paragraph, item, table or code."

    kind: str
    line: tuple[Words, ...] = ()
    level: int = 0  # of a heading or an item
    mark: str = ""  # of an item; `-` for a bullet
    rows: tuple[tuple[str, ...], ...] = ()  # with `<` and `^` for merged cells
    lines: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Article:
    "One document."

    name: str
    parts: tuple[Part, ...] = field(repr=False)

    @property
    def title(self) -> str:
        return "".join(words.text for words in self.parts[0].line)


def words_of(line: str) -> tuple[Words, ...]:
    "Return the pieces of a line."
    found: list[Words] = []
    for n, piece in enumerate(re.split(r"\{([^{}]*)\}", line)):
        if n % 2 == 0:
            found += [Words("", piece)] if piece else []
            continue
        kind, text, *address = piece.split(":", 2)
        found.append(Words(kind, text if kind == "link" else ":".join([text, *address]),
                           address[0] if kind == "link" and address else ""))  # fmt: skip
    return tuple(found)


def part_of(line: str) -> Part:
    "Return what one line is."
    if heading := re.fullmatch(r"(#+) (.*)", line):
        return Part("heading", words_of(heading[2]), len(heading[1]))
    if line.startswith("? "):
        return Part("question", words_of(line[2:]))
    if item := re.fullmatch(r"( *)(-|[0-9]+\.|[a-z]\)|[ivx]+\.) (.*)", line):
        return Part("item", words_of(item[3]), len(item[1]) // 2, item[2])
    return Part("paragraph", words_of(line))


def article(name: str, source: str) -> Article:
    "Return the structure of a source text."
    parts: list[Part] = []

    def kind(line: str) -> str:
        return "row" if line.startswith("|") else "code" if line.startswith("    ") else ""

    for what, group in groupby(source.strip("\n").splitlines(), key=kind):
        lines = list(group)
        if what == "row":
            rows = (line.strip("|").split("|") for line in lines)
            parts.append(Part("table", rows=tuple(tuple(c.strip() for c in row) for row in rows)))
        elif what == "code":
            parts.append(Part("code", lines=tuple(line[4:] for line in lines)))
        else:
            parts += [part_of(line) for line in lines]
    return Article(name, tuple(parts))


def articles() -> Iterator[Article]:
    "Yield the documents of the benchmark, by name."
    for path in sorted(SOURCES.glob("*.txt")):
        yield article(path.stem, path.read_text(encoding="utf-8"))


def filled(rows: tuple[tuple[str, ...], ...]) -> list[list[str]]:
    "Return rows with the text of merged cells wherever they reach."
    done: list[list[str]] = []
    for row in rows:
        line: list[str] = []
        for column, cell in enumerate(row):
            line.append(line[-1] if cell == "<" else done[-1][column] if cell == "^" else cell)
        done.append(line)
    return done
