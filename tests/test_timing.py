"""The measures of time tell a square from a line, and long work from short."""

import pytest

from tests.timing import grows_linearly, loop, takes_at_most


def test_a_square_is_seen_and_a_line_is_not() -> None:
    grows_linearly(lambda n: sum(range(n)), 500_000)
    with pytest.raises(AssertionError, match="times the work for 4 times the input"):
        grows_linearly(lambda n: [sum(range(n)) for _ in range(n)], 1_500, spare_seconds=0)


def test_long_work_is_seen() -> None:
    takes_at_most(loop, 5)
    with pytest.raises(AssertionError, match="fixed loops, at most 1"):
        takes_at_most(lambda: [loop() for _ in range(5)], 1)
