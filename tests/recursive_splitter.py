"""A recursive splitter over spans, as the published chunking figures were computed with.

Text is cut at the first separator that occurs in it, the separator stays in front of what follows,
and pieces are merged greedily up to a size in tokens. A piece that is too long is cut again at the
next separator. Source: LangChain's RecursiveCharacterTextSplitter, with the separators of
`brandonstarxel/chunking_evaluation`. `test_measure.py` holds it equal to LangChain's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from support_rag.language.segmentation import count_tokens
from support_rag.types import Chunk, Document, Span, chunk_id

SEPARATORS = ("\n\n", "\n", ".", "?", "!", " ", "")


def stripped(text: str, span: Span) -> list[Span]:
    "The span without white space at its ends; nothing if that is all it has."
    part = span.of(text)
    if not (kept := part.strip()):
        return []
    start = span.start + len(part) - len(part.lstrip())
    return [Span(start, start + len(kept))]


def cut(text: str, span: Span, separator: str) -> list[Span]:
    "The span cut in front of each separator; at each character for the empty one."
    if not separator:
        return [Span(i, i + 1) for i in range(span.start, span.end)]
    cuts = [m.start() for m in re.finditer(re.escape(separator), span.of(text))]
    edges = [span.start, *(span.start + at for at in cuts), span.end]
    return [Span(a, b) for a, b in pairwise(edges) if b > a]


def merged(text: str, pieces: Sequence[Span], *, size: int, overlap: int) -> list[Span]:
    "Neighbouring pieces joined up to `size` tokens; each repeats up to `overlap` of the last."
    found: list[Span] = []
    held: list[tuple[Span, int]] = []
    total = 0
    for piece in pieces:
        n = count_tokens(piece.of(text))
        if held and total + n > size:
            found += stripped(text, Span(held[0][0].start, held[-1][0].end))
            while total > overlap or (total + n > size and total > 0):
                total -= held.pop(0)[1]
        held.append((piece, n))
        total += n
    return found + (stripped(text, Span(held[0][0].start, held[-1][0].end)) if held else [])


def split(
    text: str, span: Span, *, size: int, overlap: int, separators: Sequence[str] = SEPARATORS
) -> list[Span]:
    "The spans of the chunks, in order."
    first = next(i for i, s in enumerate(separators) if not s or s in span.of(text))
    rest = separators[first + 1 :]
    found: list[Span] = []
    small: list[Span] = []
    for piece in cut(text, span, separators[first]):
        if count_tokens(piece.of(text)) < size:
            small.append(piece)
            continue
        found += merged(text, small, size=size, overlap=overlap)
        small = []
        if rest:
            found += split(text, piece, size=size, overlap=overlap, separators=rest)
        else:
            found.append(piece)
    return found + merged(text, small, size=size, overlap=overlap)


def recursive_chunks(document: Document, *, size: int, overlap: int) -> list[Chunk]:
    "The document's chunks."
    text = document.text
    spans = split(text, Span(0, len(text)), size=size, overlap=overlap)
    return [
        Chunk(
            id=chunk_id(document.id, span, span.of(text)),
            document_id=document.id,
            span=span,
            text=span.of(text),
            n_tokens=count_tokens(span.of(text)),
            ordinal=ordinal,
        )
        for ordinal, span in enumerate(spans)
    ]
