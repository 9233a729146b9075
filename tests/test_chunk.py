"""Chunks cover the text exactly, in order, within the size, and cut where a reader would."""

from __future__ import annotations

import hashlib
from itertools import pairwise

import pytest
import tiktoken
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from support_rag.chunk import chunk, windows
from support_rag.language.segmentation import (
    count_tokens,
    encoding,
    load_vocabulary,
    sentences,
    token_starts,
)
from support_rag.parse import parse
from support_rag.release import ChunkParameters, resource
from support_rag.types import Chunk, Document, DocumentUnreadable, Span
from tests.timing import grows_linearly

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
    try:
        return parse(text.encode(), content_type="text/markdown", document_id="d", source="d.md")
    except DocumentUnreadable:  # marks of lists and rules, and no word
        reject()


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
    for mode in ("structure", "fixed"):
        parameters = ChunkParameters(mode=mode)

        def work(n_characters: int, parameters: ChunkParameters = parameters) -> None:
            chunk(Document("d", "", unit * (n_characters // len(unit)), "d"), parameters)

        grows_linearly(work, 8_000)


# ---------------------------------------------------------------- leads and pairs

CELL = st.sampled_from(["Hall", "72 hours", "Größe", "v2.3.1", "a long cell of several words"])
ROWS = st.lists(st.lists(CELL, min_size=2, max_size=2), min_size=1, max_size=12).map(
    lambda rows: "\n".join(f"| {a} | {b} |" for a, b in rows)
)
LED = st.lists(
    st.one_of(
        ROWS.map(lambda rows: f"| Name | Value |\n|---|---|\n{rows}"),
        TEXT.map(lambda text: f"Q: {text}?\nA: {text}. {text}."),
        TEXT.map(lambda text: f"**{text}?**\n\n{text}. " + "It is so. " * 9),
        TEXT.map(lambda text: f"## {text}?\n\n{text}. " + "It is so. " * 9),
        st.lists(TEXT, min_size=2, max_size=9).map(
            lambda items: "Do this:\n\n" + "\n".join(f"{n}. {i}" for n, i in enumerate(items, 1))
        ),
        st.lists(TEXT, min_size=2, max_size=9).map(lambda x: "```sh\n" + "\n".join(x) + "\n```"),
        BLOCK,
    ),
    min_size=1,
    max_size=6,
).map("\n\n".join)


def flat(text: str) -> str:
    return "".join(c for c in text if c.isalnum())


@settings(max_examples=150, deadline=None)
@given(LED, PARAMETERS)
def test_a_lead_fits_the_size_stands_above_and_is_in_no_span(
    text: str, parameters: ChunkParameters
) -> None:
    document = document_of(text)
    for c in check(document, parameters):
        assert count_tokens(c.lead + c.text) <= parameters.size_tokens
        assert count_tokens(c.lead) <= parameters.size_tokens // 3
        assert not c.lead or c.lead.endswith("\n")
        assert c.shown_text.startswith(c.lead + c.text)
        assert c.embedded_text.endswith(c.lead + c.text)
        above = flat(document.text[: c.span.start])
        words = [flat(word) for word in c.lead.replace("…", "").split()]
        assert all(word in above for word in words), "a lead invents nothing"
        assert c.lead == "" or parameters.mode == "structure"


@settings(max_examples=100, deadline=None)
@given(LED, st.integers(16, 120))
def test_no_chunk_ends_with_a_question_that_the_next_one_answers(text: str, size: int) -> None:
    document = document_of(text)
    found = chunk(document, ChunkParameters(size_tokens=size))
    questions = [b.span for b in document.blocks if b.kind == "question"]
    for before, after in pairwise(found):
        ending = [q for q in questions if before.span.end == q.end]
        follows = document.text[before.span.end : after.span.start + 1].strip()
        answered = ending and not any(q.start == after.span.start for q in questions)
        is_heading = follows.startswith("#")
        if answered and not is_heading and count_tokens(ending[0].of(text)) <= size // 2:
            headings = before.text[: -len(ending[0])]
            assert count_tokens(headings) > size // 6, (before.text, after.text)


def led(text: str, size: int, kind: str = "text/markdown") -> list[str]:
    document = parse(text.encode(), content_type=kind, document_id="d", title="t")
    return [c.shown_text for c in chunk(document, ChunkParameters(size_tokens=size))]


def test_every_part_of_a_table_stands_below_its_head() -> None:
    rows = "\n".join(f"| boat {n} | {n} seats | {n * 7} crowns |" for n in range(40))
    parts = led(f"| Boat | Room | Fee |\n|---|---|---|\n{rows}\n\nPaid in cash.", 80)
    assert len(parts) > 3 and all(
        p.startswith("| Boat | Room | Fee |\n| --- | --- | --- |\n") for p in parts
    )
    page = "<table><tr><th>Boat<th>Fee" + "".join(f"<tr><td>b{n}<td>{n}" for n in range(60))
    assert all(p.startswith("Boat | Fee\n--- | ---\n") for p in led(page, 60, "text/html"))


def test_a_wide_head_keeps_its_columns() -> None:
    names = [f"A very long name of column {n}" for n in range(6)]
    head = f"| {' | '.join(names)} |\n|{'---|' * 6}"
    rows = "\n".join("| " + " | ".join(str(n + c) for c in range(6)) + " |" for n in range(40))
    parts = led(f"{head}\n{rows}", 120)
    assert len(parts) > 2
    for part in parts[1:]:
        assert part.splitlines()[0].count("|") == 7 and part.splitlines()[1] == "|" + "---|" * 6


def test_every_part_of_code_is_opened_and_closed() -> None:
    parts = led("~~~python\n" + "\n".join(f"row({n}, width={n})" for n in range(60)) + "\n~~~", 80)
    assert len(parts) > 3
    assert all(p.startswith("```python\n") and p.endswith("\n```") for p in parts)


def test_the_rest_of_a_list_keeps_its_first_words() -> None:
    steps = "\n".join(f"{n}. Turn the wheel number {n} by one notch." for n in range(1, 20))
    parts = led(f"Some words.\n\nStop first. To set the clock:\n\n{steps}\n\nDone.", 70)
    assert len(parts) > 3
    assert all("To set the clock:\n\n" in p for p in parts if "wheel" in p)
    assert "To set the clock" not in parts[-1] or "wheel" in parts[-1]


@pytest.mark.parametrize(
    ("text", "kind", "mark"),
    [
        ("Q: How do I row?\nA: {0}", "text/plain", "Q: How do I row?"),
        ("id,question,answer\n7,How do I row?,{0}\n", "text/csv", "question: How do I row?"),
        (
            "| Frage | Antwort |\n|---|---|\n| Wie rudert man? | {0} |",
            "text/markdown",
            "Wie rudert",
        ),
        ("name,notes\nOar,{0}\n", "text/csv", "name: Oar"),
    ],
)
def test_every_part_of_an_answer_carries_its_question(text: str, kind: str, mark: str) -> None:
    answer = " ".join(f"Pull the oar {n} times and look ahead." for n in range(40))
    parts = led(text.format(answer), 90, kind)
    assert len(parts) > 3 and all(mark in part for part in parts)
    assert all("Pull" in part for part in parts), "no part is the question alone"


@pytest.mark.parametrize("asked", ["## How do I row?", "**How do I row?**"])
def test_a_heading_that_asks_is_in_the_path_of_its_whole_answer(asked: str) -> None:
    answer = " ".join(f"Pull the oar {n} times and look ahead." for n in range(30))
    text = f"# Boats\n\n{asked}\n\n{answer}\n\n## Is it safe?\n\nYes."
    found = chunk(document_of(text), ChunkParameters(size_tokens=90))
    parts = [c.embedded_text for c in found if "Pull" in c.text]
    assert len(parts) > 2 and all("How do I row?" in part for part in parts)
    assert all("Pull" not in c.text for c in found if "Yes." in c.text)


def test_pairs_that_fit_are_never_torn() -> None:
    pairs = [f"Q: What is part {n}?\nA: {'It is a part. ' * (n % 6 + 1)}" for n in range(30)]
    for size in (60, 75, 100):
        parts = led("\n\n".join(pairs), size, "text/plain")
        for pair in pairs:
            assert any(pair.strip() in part for part in parts)


def test_a_window_of_nothing_new_is_left_out() -> None:
    text = "It is so. " * 9
    for size in (16, 17, 51):
        parameters = ChunkParameters(mode="fixed", size_tokens=size, overlap_tokens=8)
        check(Document("d", "", text, "d"), parameters)


def test_short_documents_have_no_leads() -> None:
    for path in sorted(resource("data/help_centre/corpus").rglob("*.md"))[:40]:
        text = path.read_text(encoding="utf-8")
        assert not any(c.lead for c in chunk(document_of(text), ChunkParameters(size_tokens=2000)))


@pytest.mark.parametrize(
    "unit", ["| a | b |\n", "Q: a?\n", "**a?** b\n\n", "a:\n\n- b\n\n", "a | b\n--- | ---\n"]
)
def test_hostile_leads_are_built_in_linear_time(unit: str) -> None:
    def document(n_characters: int) -> Document:
        return document_of("| a | b |\n|---|---|\n" + unit * (n_characters // len(unit)))

    documents = {n: document(n) for n in (800, 8_000, 32_000)}
    grows_linearly(lambda n: chunk(documents[n], ChunkParameters()), 8_000)
