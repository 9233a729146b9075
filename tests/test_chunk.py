"""Chunks cover the text exactly, in order, within the size, and cut where a reader would."""

from __future__ import annotations

import hashlib
import time
from itertools import pairwise

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from support_rag.chunk import (
    chunk,
    count_tokens,
    encoding,
    load_vocabulary,
    sentences,
    token_starts,
    windows,
)
from support_rag.parse import parse
from support_rag.release import ChunkParameters, resource
from support_rag.types import Chunk, Document, Span

WORDS = "The kiosk keeps punches offline until 72 hours TL-3301 v2.3.1 打卡机 🙂 Größe `sync`"
TEXT = st.lists(st.sampled_from(WORDS.split()), min_size=1, max_size=14).map(" ".join)
PARAGRAPH = st.lists(TEXT, min_size=1, max_size=4).map(lambda found: ". ".join(found) + ".")
BLOCK = st.one_of(
    st.builds(lambda level, text: f"{'#' * level} {text}", st.integers(1, 4), TEXT),
    PARAGRAPH,
    st.lists(TEXT, min_size=1, max_size=4).map(lambda items: "\n".join(f"- {i}" for i in items)),
    st.lists(TEXT, min_size=1, max_size=3).map(lambda found: "```\n" + "\n".join(found) + "\n```"),
    st.lists(TEXT, min_size=1, max_size=3).map(
        lambda rows: "| a | b |\n|---|---|\n" + "\n".join(f"| {row} | 1 |" for row in rows)
    ),
    st.just("***"),
)
MARKDOWN = st.lists(BLOCK, min_size=1, max_size=8).map("\n\n".join)
PARAMETERS = st.builds(
    lambda mode, size, part: ChunkParameters(
        mode=mode, size_tokens=size, overlap_tokens=int(size * part)
    ),
    st.sampled_from(["structure", "sentence", "fixed"]),
    st.integers(16, 120),
    st.sampled_from([0.0, 0.1, 0.3, 0.5]),
)


def document_of(text: str) -> Document:
    return parse(text.encode(), content_type="text/markdown", document_id="d", source="d.md")


def check(document: Document, parameters: ChunkParameters) -> tuple[Chunk, ...]:
    text, found = document.text, chunk(document, parameters)
    assert [c.ordinal for c in found] == list(range(len(found)))
    assert len({c.id for c in found}) == len(found)
    for c in found:
        assert c.text == c.span.of(text) == c.text.strip()
        assert c.n_tokens == count_tokens(c.text) <= parameters.size_tokens
    edges = [Span(0, 0), *(c.span for c in found), Span(len(text), len(text))]
    for before, after in pairwise(edges):
        assert not text[before.end : after.start].strip(), "only white space lies between chunks"
    for before, after in pairwise(edges[1:-1]):
        assert before.start < after.start and before.end < after.end, "each chunk adds something"
        shared = text[after.start : before.end]
        assert count_tokens(shared.strip()) <= parameters.overlap_tokens
    return found


@settings(max_examples=150, deadline=None)
@given(MARKDOWN, PARAMETERS)
def test_chunks_cover_the_text_in_order_within_the_size(
    text: str, parameters: ChunkParameters
) -> None:
    check(document_of(text), parameters)


@settings(max_examples=150, deadline=None)
@given(MARKDOWN, PARAMETERS)
def test_structure_is_cut_only_when_it_alone_exceeds_the_size(
    text: str, parameters: ChunkParameters
) -> None:
    document = document_of(text)
    found = chunk(document, parameters.model_copy(update={"mode": "structure"}))
    for block in document.blocks:
        whole = block.span.of(document.text)
        if block.kind == "paragraph" or count_tokens(whole) > parameters.size_tokens:
            continue
        touching = [c for c in found if c.span.overlap(block.span)]
        assert touching and all(whole in c.text for c in touching), (block.kind, whole)


@settings(max_examples=100, deadline=None)
@given(PARAGRAPH, st.integers(40, 80))
def test_sentences_are_cut_only_when_one_alone_exceeds_the_size(text: str, size: int) -> None:
    document = document_of(text)
    for mode in ("structure", "sentence"):
        found = chunk(document, ChunkParameters(mode=mode, size_tokens=size))
        for sentence in sentences(document.text, Span(0, len(document.text))):
            if count_tokens(sentence.of(document.text)) <= size:
                assert any(c.span.overlap(sentence) == len(sentence) for c in found)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=200), PARAMETERS)
def test_any_text_at_all(text: str, parameters: ChunkParameters) -> None:
    check(Document("d", "", text, "d"), parameters)


@settings(deadline=None)
@given(MARKDOWN)
def test_equal_documents_have_equal_chunks_and_others_have_other_ids(text: str) -> None:
    document, parameters = document_of(text), ChunkParameters()
    again = Document("e", document.title, document.text, "e", blocks=document.blocks)
    found = chunk(document, parameters)
    assert found == chunk(document_of(text), parameters)
    assert not {c.id for c in found} & {c.id for c in chunk(again, parameters)}


def test_the_whole_help_centre() -> None:
    corpus = resource("data/help_centre/corpus")
    for path in sorted(corpus.rglob("*.md")):
        document = document_of(path.read_text(encoding="utf-8"))
        for size, overlap in ((16, 8), (60, 0), (200, 40), (800, 0)):
            parameters = ChunkParameters(size_tokens=size, overlap_tokens=overlap)
            found = check(document, parameters)
            assert all(c.heading_path[0] == document.title for c in found)


# ---------------------------------------------------------------- where a reader would cut


def texts(text: str, size: int, **parameters: object) -> list[str]:
    found = chunk(document_of(text), ChunkParameters(size_tokens=size, **parameters))
    return [c.text for c in found]


def test_a_section_opens_a_chunk_and_small_sections_stay_together() -> None:
    long = "It keeps all punches. " * 6
    assert texts(f"# A\n\nShort.\n\n# B\n\nShort.\n\n# C\n\n{long}", 40) == [
        "# A\n\nShort.\n\n# B\n\nShort.",
        f"# C\n\n{long}".strip(),
    ]


def test_a_heading_never_ends_a_chunk() -> None:
    text = "Intro sentence of ten words or so stands here. " * 2 + "\n\n## Next\n\n" + "Word. " * 12
    for size in range(20, 60):
        for found in texts(text, size)[:-1]:
            assert not found.endswith("## Next")


def test_a_paragraph_that_fits_whole_into_the_next_chunk_is_not_cut() -> None:
    first, second = "One short sentence. " * 5, "Two short sentences. " * 5
    assert texts(f"{first}\n\n{second}", 30) == [first.strip(), second.strip()]


def test_overlap_repeats_whole_units_and_never_crosses_a_heading() -> None:
    text = "# A\n\n" + " ".join(f"Fact number {n} is here." for n in range(12))
    text += "\n\n# B\n\n" + "Another sentence stands here. " * 7
    found = texts(text, 40, overlap_tokens=15)
    for before, after in pairwise(c for c in found if "Fact" in c):
        shared = next(n for n in range(len(before), -1, -1) if before.endswith(after[:n]))
        assert after[:shared].startswith("Fact number") and after[:shared].endswith(".")
    assert found[-2].startswith("# B") or found[-1].startswith("# B")


def test_heading_paths() -> None:
    body = "A sentence of eight tokens is here. " * 2
    names = ["# Kiosk", "## Sync", "### Deep **x**", "## Reset `now` ##"]
    text = "\n\n".join(f"{name}\n\n{body}" for name in names)
    found = chunk(document_of(text), ChunkParameters(size_tokens=26))
    assert [c.heading_path for c in found] == [
        ("Kiosk",), ("Kiosk", "Sync"), ("Kiosk", "Sync", "Deep x"), ("Kiosk", "Reset now"),
    ]  # fmt: skip
    assert found[-1].embedded_text.startswith("Kiosk > Reset now\n## Reset")
    [together] = chunk(document_of(text), ChunkParameters(size_tokens=200))
    assert together.heading_path == ("Kiosk",), "what all of it is under"
    long = chunk(document_of("# " + "long " * 200), ChunkParameters())
    assert all(len(name) <= 120 for c in long for name in c.heading_path)


@pytest.mark.parametrize(
    ("text", "n"),
    [
        ("Open it. Then wait! Why? Done…", 4),
        ("See v2.3.1 at https://a.io/x.html?b=1. It costs 0.75 €.", 2),
        ("E.g. this, i.e. that, Dr. Ito and Fig. 3 by J. Doe vs. no. 5 of 3 Jan. 2026.", 1),
        ("Is it on? No. Try again.", 3),
        ("1. Hold it.\n2. Wait.", 2),
        ("It said “stop.” Then (it went on.) And on.", 3),
        ("打卡机离线工作。它保存72小时！真的吗？", 3),
        ("one line\nand the next\n\nanother paragraph", 2),
        ("iPhone. iOS. lower case follows.", 1),
    ],
)
def test_sentences(text: str, n: int) -> None:
    assert len(sentences(text, Span(0, len(text)))) == n


# ---------------------------------------------------------------- tokens


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> tiktoken.Encoding:
    """tiktoken's own encoding, from a cache that holds the same vocabulary."""
    folder = tmp_path_factory.mktemp("tiktoken")
    url = "https://openaipublic.blob.core.windows.net/encodings/cl100k_base.tiktoken"
    name = hashlib.sha1(url.encode(), usedforsecurity=False).hexdigest()
    (folder / name).write_bytes(load_vocabulary())
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TIKTOKEN_CACHE_DIR", str(folder))
        return tiktoken.get_encoding("cl100k_base")


@settings(deadline=None)
@given(st.text(max_size=100))
def test_tokens_are_those_of_tiktoken(stock: tiktoken.Encoding, text: str) -> None:
    assert encoding().encode_ordinary(text) == stock.encode_ordinary(text)


@settings(deadline=None)
@given(st.text(max_size=100))
def test_token_starts_agree_with_the_tokens(text: str) -> None:
    starts = token_starts(text)
    assert starts[0] == 0 and starts[-1] == len(text) and starts == sorted(starts)
    assert len(starts) - 1 == count_tokens(text)
    tokens = encoding().encode_ordinary(text)
    for n in range(len(tokens)):
        decoded = encoding().decode_bytes(tokens[:n]).decode("utf-8", errors="ignore")
        assert text.startswith(decoded) and len(decoded) <= starts[n]


@settings(deadline=None)
@given(st.text(min_size=1, max_size=200), st.integers(16, 40), st.integers(0, 8))
def test_windows(text: str, size: int, overlap: int) -> None:
    found = windows(text, Span(0, len(text)), size=size, overlap=overlap)
    assert all(count_tokens(span.of(text)) <= size for span in found)
    for before, after in pairwise([Span(0, 0), *found, Span(len(text), len(text))]):
        assert not text[before.end : after.start].strip()


# ---------------------------------------------------------------- time


@pytest.mark.parametrize(
    "unit",
    [
        "a",
        " ",
        "\n",
        "🙂",
        "a. ",
        "a\n\n",
        "- a\n",
        "# a\n",
        "word ",
        "...",
        "。",
        "`",
        "|a\n",
        "1. ",
    ],
)
def test_hostile_text_is_chunked_in_linear_time(unit: str) -> None:
    def seconds(n_characters: int, mode: str) -> float:
        text = unit * (n_characters // len(unit))
        started = time.process_time()
        chunk(Document("d", "", text, "d"), ChunkParameters(mode=mode))
        return time.process_time() - started

    for mode in ("structure", "fixed"):
        seconds(1_000, mode)
        first = max(seconds(8_000, mode) for _ in range(2))
        last = min(seconds(32_000, mode) for _ in range(2))
        assert last <= 10 * first + 0.05, "four times the text, at most ten times the work"
