"""The report of a release, in a real browser: it fits, nothing overlaps, and nothing is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from playwright.sync_api import Browser, Page

from support_rag.evaluation.candidate import load_candidate
from support_rag.evaluation.chapters import ENDS, Spoken, ends_of, spoken_before
from support_rag.evaluation.dossier import junit, page
from support_rag.evaluation.publishing import Proposal, changes_between, compare_with
from support_rag.evaluation.regression import load_reference
from support_rag.evaluation.runs import Run, as_text, summarise_rows
from support_rag.registry import Entry, Registry, append, canonical, describe, entry_of
from support_rag.release import Writer, read_facts, release_of
from tests.browser import chromium, is_expected

LONG = "A" * 120 + " <script>alert(1)</script>\n| Field | Value |\n" + "one of many words " * 40


def worsened(run: Run) -> Run:
    "The same run with a third of its helped questions answered wrongly, and some more helped."
    rows: list[dict[str, Any]] = []
    for at, row in enumerate(map(dict, run.questions)):
        if row.get("helped") == 1 and at % 3 == 0:
            row |= {"helped": 0.0, "wrong": 1.0, "recall": 0.0, "supported": False}
        elif row.get("wrong") == 1 and row["answerable"] and at % 5 == 0:
            row |= {"helped": 1.0, "wrong": 0.0}
        rows.append(row)
    return replace(run, questions=rows, summary=summarise_rows(rows, seed=0))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Proposal, Entry, Spoken]:
    "A release that is worse than the one before, and was published nevertheless."
    registry, facts = Registry(tmp_path_factory.mktemp("releases")), read_facts()
    reference = load_reference()
    splits = {s: replace(reference, data={**reference.data, "split": s})
              for s in ("tune", "calibrate")}  # fmt: skip
    candidate = load_candidate()
    tuned = candidate.release.parameters.with_(chunk={"size_tokens": 77})
    old = release_of(tuned, facts, writer=Writer())
    said = {str(row["question"]): LONG for row in reference.questions}
    kept = {f"{split}.json": as_text(run).encode() for split, run in splits.items()}
    kept |= {"answers.json": canonical(said)}
    kept |= {"latency.json": canonical({"latency": {"embed": [0.1, 0.2]}, "asked": 9,
                                        "embedding": 1.0})}  # fmt: skip
    first = append(registry, entry_of(old, facts, "publish", who="Ada", why="first"), kept)
    runs = {split: worsened(run) for split, run in splits.items()}
    verdicts, refusals = compare_with(registry, first, runs)
    changes = tuple(changes_between(first.description, describe(candidate.release, facts)))
    measured = Proposal(candidate, registry, first, changes, runs, verdicts, tuple(refusals), 1)
    given = {"who": "Ada", "why": LONG, "override": "a <b>test</b>", "refusals": refusals}
    entry = entry_of(candidate.release, facts, "publish", **given)
    now = Spoken({name: text[60:] for name, text in said.items()}, {"embed": [0.01, 0.02]}, 9, 10.0)
    return measured, entry, now


def test_the_page_says_what_became_worse_first(published: tuple[Proposal, Entry, Spoken]) -> None:
    measured, _, _ = published
    html = page(*published)
    assert "Unproven, published because: a &lt;b&gt;test" in html
    assert html.index("Shown worse: ") < html.index("What changed") < html.index("Quality")
    assert "[chunk] size_tokens 77 →" in html and "It needs a new index" in html
    assert html.index(">regressed<") < html.index(">fixed<")
    assert "<script" not in html and "100 ms before" in html
    assert spoken_before(measured).latency == {"embed": [0.1, 0.2]}


def test_every_question_ends_in_one_way(published: tuple[Proposal, Entry, Spoken]) -> None:
    for run in published[0].runs.values():
        ends = ends_of(run)
        assert list(ends) == list(ENDS)
        assert sum(ends.values()) == pytest.approx(1)
        wrong = sum(row["wrong"] for row in run.questions) / len(run.questions)
        assert ends["wrong reply"] == pytest.approx(wrong)


def test_junit_counts_what_it_holds(published: tuple[Proposal, Entry, Spoken]) -> None:
    measured, entry, _ = published
    suites = ET.fromstring(junit(measured, entry))
    (suite,) = suites
    cases = suite.findall("testcase")
    assert (suites.tag, suite.tag) == ("testsuites", "testsuite")
    assert int(suite.attrib["tests"]) == len(cases) == len({
        (case.attrib["classname"], case.attrib["name"]) for case in cases
    })  # fmt: skip
    failed = [case for case in cases if case.find("failure") is not None]
    assert int(suite.attrib["failures"]) == len(failed) > 1
    assert all(case.find("failure").attrib["message"] for case in failed)  # type: ignore[union-attr]
    assert {"errors", "skipped", "timestamp"} <= suite.attrib.keys()


TOO_WIDE = """() => [document.documentElement, ...document.querySelectorAll('.scroll')]
  .filter(e => e.scrollWidth > e.clientWidth + 1)
  .map(e => `${e.parentElement?.innerText.slice(0, 30)} ${e.scrollWidth} > ${e.clientWidth}`)"""
OVERLAPS = """() => [...document.querySelectorAll('svg')].flatMap(svg => {
  const boxes = [...svg.querySelectorAll('text')]
    .map(t => [t.textContent, t.getBoundingClientRect()])
  return boxes.flatMap(([a, p], i) => boxes.slice(i + 1)
    .filter(([b, q]) => p.left < q.right - 1 && q.left < p.right - 1
      && p.top < q.bottom - 3 && q.top < p.bottom - 3)
    .map(([b]) => `${a} on ${b}`))
})"""
CUT = """() => [...document.querySelectorAll('.stack span')]
  .filter(s => s.innerText && s.scrollWidth > s.clientWidth + 1).map(s => s.innerText)"""


if is_expected():

    @pytest.fixture(scope="module")
    def browser() -> Iterator[Browser]:
        with chromium() as browser:
            yield browser

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    @pytest.mark.parametrize("width", [1440, 390])
    def test_it_fits_and_nothing_overlaps(
        browser: Browser,
        published: tuple[Proposal, Entry, Spoken],
        tmp_path: Path,
        width: int,
        scheme: Any,
    ) -> None:
        path = tmp_path / "report.html"
        path.write_text(page(*published))
        view = {"width": width, "height": 900}
        context = browser.new_context(viewport=view, color_scheme=scheme)  # type: ignore[arg-type]
        shown: Page = context.new_page()
        loaded, faults = list[str](), list[str]()
        shown.on("request", lambda request: loaded.append(request.url))
        shown.on("console", lambda message: faults.append(message.text))
        shown.goto(path.as_uri())
        assert shown.evaluate(TOO_WIDE) == []
        assert shown.evaluate(OVERLAPS) == []
        assert shown.evaluate(CUT) == []
        ink, paper = (json.loads(shown.evaluate(
            f"JSON.stringify(getComputedStyle(document.body).{name}.match(/\\d+/g).map(Number))"
        )) for name in ("color", "backgroundColor"))  # fmt: skip
        assert (sum(ink) > sum(paper)) is (scheme == "dark")
        assert loaded == [path.as_uri()] and faults == []
        context.close()
