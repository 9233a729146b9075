"""What holds of every document that keeps a map to its file, whatever the format."""

import re
from itertools import pairwise

from support_rag.types import Document, Span, to_source


def shape(document: Document) -> list[tuple[str, str]]:
    return [(block.kind, block.span.of(document.text)) for block in document.blocks]


def check_blocks(document: Document) -> None:
    end = 0
    for block in document.blocks:
        assert block.span.start >= end, "blocks are in order and do not overlap"
        covered = block.span.of(document.text)
        assert covered.strip() == covered != "", "no block starts or ends with white space"
        assert (block.kind == "heading") == (block.level in range(1, 7))
        end = block.span.end
    assert end <= len(document.text)
    assert not re.search("[\x00-\x04\ud800-\udfff]", document.text)


def check_places(document: Document, file: str) -> None:
    "Every word of every block stands in the place that is said of it, and places are in order."
    before = Span(0, 0)
    for block in document.blocks:
        place = to_source(document.source_map, block.span)
        assert place is not None
        assert place.start >= before.start
        for word in re.findall(r"[^\W_]{2,}", block.span.of(document.text)):
            assert word in place.of(file), (word, place.of(file))
        before = place
    assert all(a[0] <= b[0] for a, b in pairwise(document.source_map))
