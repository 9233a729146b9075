"""What is read of the articles of the extraction benchmark stays as good as it was measured."""

from __future__ import annotations

import pytest

from support_rag.parse import content_type_of, parse
from tests.bench_extraction import (
    body_rows,
    cells_right,
    f1,
    heads,
    in_order,
    named,
    truth,
    words_in,
)  # fmt: skip
from tests.extraction.articles import article, articles, filled
from tests.extraction.render import renderings

FLOORS = {  # format → least F1 of words, least share in order, least share of cells
    "md": (0.99, 0.99, 1.0),
    "txt": (0.98, 1.0, 0.0),
    "html": (0.98, 0.99, 1.0),
    "docx": (0.99, 0.99, 1.0),
    "pdf": (0.95, 0.98, 0.0),
    "csv": (0.99, 0.99, 1.0),
}


@pytest.mark.parametrize("index", range(10))
def test_articles_are_read(index: int) -> None:
    source = list(articles())[index]
    for name, content in renderings(source, index):
        form = name.rpartition(".")[2]
        kind = content_type_of(name)
        said = parse(content, content_type=kind, document_id="d", source=name).text
        said = named(said, heads(source)[-1]) if form == "csv" else said
        expected = words_in(truth(source, form))
        words, order, cells = FLOORS[form]
        assert f1(expected, words_in(said)) >= words, name
        assert in_order(expected, words_in(said)) >= order, name
        right, n = cells_right(body_rows(source, form), said)
        assert right >= cells * n, f"{name}: {right} of {n} cells"


def test_the_scores_tell_good_from_bad() -> None:
    "Controls: a lost digit, a torn order and a shifted cell cost something."
    assert f1(words_in("10^6 rows"), words_in("10<sup>6</sup> rows")) == 1
    assert f1(words_in("10^6 rows"), words_in("106 rows")) == 0.5
    words = [str(n) for n in range(40)]
    assert in_order(words, words) == 1 and in_order(words, words[20:] + words[:20]) < 0.6
    rows = [["Gold", "West", "22"]]
    assert cells_right(rows, "Gold | West | 22") == (3, 3)
    assert cells_right(rows, "| West | 22 |") == (0, 3)


def test_merged_cells_of_the_truth() -> None:
    part = article("a", "| A | B |\n| x | 1 |\n| ^ | 2 |\n| y | < |").parts[0]
    assert filled(part.rows) == [["A", "B"], ["x", "1"], ["x", "2"], ["y", "y"]]
