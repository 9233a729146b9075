"""The page of runs, in a real browser: it fits, sorts, filters, and nothing is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from support_rag.evaluation.overview import Overview, Source, groups_of, page
from support_rag.evaluation.regression import load_reference
from support_rag.evaluation.runs import Run, list_runs, load_run, save_run, summarise_rows
from tests.browser import chromium, is_expected

LONG = "How long may a kiosk be offline, <b>and</b> " + "what happens to its punches then? " * 9
SIZES, MODES = (64, 100, 200, 400), ("structure", "fixed")


def variant(run: Run, at: int, size: int, mode: str) -> Run:
    "The same run under other settings, with some figures lost."
    tuned: dict[str, Any] = {s: dict(values) for s, values in run.parameters.items()}
    tuned["chunk"] |= {"size_tokens": size, "mode": mode}
    rows = [
        {**row, "helped": 0.0} if row.get("helped") == 1 and (n * at) % 7 == 1 else dict(row)
        for n, row in enumerate(run.questions[:120])
    ]
    changed = {"release_id": f"{at:016x}", "questions": rows, "parameters": tuned}
    facts = {**run.facts, "chunks": 90_000 // size}
    return replace(run, **changed, facts=facts, summary=summarise_rows(rows, seed=0), name="")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, ...]:
    "Eight configurations of one experiment, and the reference."
    folder, reference = tmp_path_factory.mktemp("runs"), load_reference()
    made = [(size, mode) for size in SIZES for mode in MODES]
    for at, (size, mode) in enumerate(made):
        save_run(variant(reference, at, size, mode), folder / "sizes", name=f"{size}_{mode}")
    save_run(reference, folder, name="reference")
    assert load_run("sizes/64_f", folders=[folder]).id == "sizes/64_fixed"
    return list_runs([folder]).runs


def test_only_runs_of_the_same_questions_share_a_picture(runs: tuple[Run, ...]) -> None:
    other = replace(runs[0], data={**runs[0].data, "questions": "others"}, release_id="f" * 16)
    [group] = groups_of([*runs[:5], other], {})
    assert len(group.runs) == len({run.release_id for run in runs[:5]})
    assert groups_of([runs[0], other], {}) == []


if is_expected():

    @pytest.fixture(scope="module")
    def browser() -> Iterator[Browser]:
        with chromium() as running:
            yield running

    @pytest.fixture(scope="module")
    def path(runs: tuple[Run, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
        texts = {str(row["question"]): LONG for row in runs[0].questions}
        sources = {run.data["questions"]: Source("help_centre", texts) for run in runs}
        file = tmp_path_factory.mktemp("page") / "runs.html"
        html = page(runs, unreadable=["broken.json is no run"], sources=sources)
        file.write_text(html, encoding="utf-8")
        return file

    def opened(browser: Browser, path: Path, width: int, scheme: Any) -> Page:
        view = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        view.on("console", lambda said: pytest.fail(said.text))
        view.on("pageerror", lambda error: pytest.fail(str(error)))
        view.goto(path.as_uri())
        return view

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    @pytest.mark.parametrize("width", [1440, 390])
    def test_it_fits(browser: Browser, path: Path, width: int, scheme: str) -> None:
        view = opened(browser, path, width, scheme)
        assert view.evaluate("document.documentElement.scrollWidth") <= width
        wide = view.evaluate(
            "[...document.querySelectorAll('table.all,table.group,svg')].filter(e =>"
            " e.getBoundingClientRect().right > innerWidth).map(e => e.getAttribute('class'))"
        )
        assert width == 390 or wide == [], wide
        hidden = view.evaluate(
            "[...document.querySelectorAll('svg text')].filter(t => {const a=t.getBBox(),"
            "b=t.ownerSVGElement.viewBox.baseVal;return a.x<-1||a.x+a.width>b.width+1})"
            ".map(t => t.textContent)"
        )
        assert hidden == [], "text leaves its picture"
        over = view.evaluate(
            "[...document.querySelectorAll('svg.slice,svg.scatter')].flatMap(s => {const b="
            "[...s.querySelectorAll('text')].map(t=>[t.getBBox(),t.textContent]);return b.filter("
            "([a,x],i)=>b.some(([c,y],j)=>j>i&&a.x<c.x+c.width&&c.x<a.x+a.width&&"
            "a.y<c.y+c.height&&c.y<a.y+a.height)).map(([,x])=>x)})"
        )
        assert over == [], "labels lie on each other"
        view.close()

    def test_heads_sort_and_rows_are_filtered(browser: Browser, path: Path) -> None:
        view = opened(browser, path, 1440, "light")
        table = view.locator("table.all")
        for _ in range(2):
            table.get_by_role("button", name="chunks").click()
        column = [
            int(t.replace(",", "")) for t in table.locator("td:nth-child(14)").all_inner_texts()
        ]
        assert column == sorted(column) and len(set(column)) > 3
        view.get_by_label("filter").fill("mode fixed")
        assert table.locator("tbody tr:visible").count() == len(SIZES)
        view.locator("table.group tbody tr").first.hover()
        assert view.locator("polyline.lit").count() == 1
        assert view.locator("b", has_text="and").count() == 0, "a question is text"
        view.close()

    def test_a_notebook_shows_it_in_a_frame(browser: Browser, path: Path) -> None:
        view = opened(browser, path, 1440, "light")
        html = path.read_text(encoding="utf-8")
        view.set_content(Overview(html, 9)._repr_html_())
        frame = view.frame_locator("iframe")
        frame.locator("table.all").get_by_role("button", name="chunks").click()
        assert frame.locator("table.all th[aria-sort]").count() == 1
        view.close()
