"""JupyterLab in a real browser: the notebooks run to their end, and their controls work."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from nbformat.v4 import new_code_cell, new_notebook
from playwright.sync_api import Browser, Locator, Page, expect

from support_rag.evaluation.labels import load_labels, sample
from support_rag.local.processes import spawn
from support_rag.local.wheels import free_port, secret
from support_rag.local.workbench import lab_answers, lab_process
from support_rag.release import resource
from tests.browser import chromium, is_expected
from tests.local.test_up import until

EVALS = Path(__file__).parents[2] / "evals"
NOTEBOOKS = ("01_chunking.ipynb", "06_look.ipynb", "07_replay.ipynb")
PATIENCE_MS = 240_000  # for a busy machine; every wait ends when what it waits for happens
FINISHED = """() => {
  const failed = document.querySelector('[data-mime-type="application/vnd.jupyter.error"]')
  const prompts = document.querySelectorAll('.jp-Notebook .jp-CodeCell .jp-InputPrompt')
  const last = prompts[prompts.length - 1]
  const is_idle = document.querySelector('#jp-main-statusbar').innerText.includes('| Idle')
  return failed !== null || (is_idle && /^\\[\\d+\\]:$/.test(last?.innerText ?? ''))
}"""


def write_labels(folder: Path, *, n: int, distractors: int) -> None:
    "Write a part of the sample help centre as a label folder of its own."
    source = resource("data/help_centre")
    part = sample(load_labels(source), n, distractors=distractors)
    asked, kept = {q.id for q in part.questions}, {d.id for d in part.corpus}
    for name in kept:
        (folder / "corpus" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / "corpus" / name, folder / "corpus" / name)
    for file, key in (("queries.jsonl", "id"), ("spans.jsonl", "query_id")):
        lines = (source / file).read_text().splitlines()
        own = [line for line in lines if json.loads(line)[key] in asked]
        (folder / file).write_text("\n".join(own) + "\n")
    grades = (source / "qrels.tsv").read_text().splitlines()
    own = [row for row in grades[1:] if row.split("\t")[0] in asked and row.split("\t")[1] in kept]
    (folder / "qrels.tsv").write_text("\n".join([grades[0], *own]) + "\n")


@dataclass(frozen=True)
class Lab:
    "A running JupyterLab."

    url: str
    token: str
    root: Path  # with copies of the notebooks, so that saving changes no file of the project
    scratch: Path  # where its kernels make temporary folders

    def open(self, page: Page, name: str) -> None:
        "Open a notebook and wait for its kernel."
        page.goto(f"{self.url}/lab/tree/{name}?token={self.token}&reset")
        status = page.get_by_text(re.compile(r"^Python 3.* \| Idle$"))
        status.wait_for(timeout=PATIENCE_MS)

    def run_all(self, page: Page, name: str) -> list[dict[str, Any]]:
        "Run all cells, save, and return the code cells as they are in the file."
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_text("Run All Cells", exact=True).click()
        page.wait_for_function(FINISHED, timeout=PATIENCE_MS)
        page.keyboard.press("Control+s")
        path = self.root / "evals" / name
        return until(lambda: saved_cells(path), what=f"{name} to be saved with its outputs")


def saved_cells(path: Path) -> list[dict[str, Any]]:
    "Return the code cells of a file once they all have run, or one has failed; else none."
    try:
        notebook = json.loads(path.read_text())
    except json.JSONDecodeError:  # it is being written
        return []
    cells = [c for c in notebook["cells"] if c["cell_type"] == "code"]
    n_run = sum(c["execution_count"] is not None for c in cells)
    return cells if n_run == len(cells) or errors_of(cells) else []


def write_notebook(path: Path, *cells: str) -> None:
    "Write a notebook of code cells."
    made = new_notebook(cells=[new_code_cell(text) for text in cells])
    made.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path.write_text(json.dumps(made))


def errors_of(cells: list[dict[str, Any]]) -> list[str]:
    outputs = [output for cell in cells for output in cell["outputs"]]
    return ["\n".join(o["traceback"]) for o in outputs if o["output_type"] == "error"]


def read_labels(folder: Path, question: str) -> list[dict[str, Any]]:
    "Return the spans that a label folder below a folder holds for a question that begins so."
    (queries,) = folder.glob("*/labels/queries.jsonl")
    rows = [json.loads(line) for line in queries.read_text().splitlines()]
    (asked,) = (row for row in rows if row["text"].startswith(question))
    spans = (queries.parent / "spans.jsonl").read_text().splitlines()
    return [row for line in spans if (row := json.loads(line))["query_id"] == asked["id"]]


def scroll_to(page: Page, wanted: Locator) -> Locator:
    "Scroll down the notebook, which draws only what is near, until something is there; show it."
    panel = page.locator(".jp-WindowedPanel-outer")
    panel.evaluate("panel => { panel.scrollTop = 0 }")

    def is_there() -> bool:
        if wanted.count() and wanted.first.is_visible():
            return True
        panel.evaluate("panel => { panel.scrollTop += panel.clientHeight / 2 }")
        return False

    until(is_there, what=f"{wanted} to be drawn")
    wanted.first.scroll_into_view_if_needed()
    return wanted.first


if is_expected():

    @pytest.fixture(scope="module")
    def browser() -> Iterator[Browser]:
        with chromium() as browser:
            yield browser

    @pytest.fixture(scope="module")
    def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
        "JupyterLab as `up` starts it, on copies of the notebooks and a few labels."
        folder = tmp_path_factory.mktemp("lab")
        home, root, port = folder / "home", folder / "root", free_port()
        (root / "evals").mkdir(parents=True)
        for name in NOTEBOOKS:
            shutil.copy(EVALS / name, root / "evals")
        (root / "nbs").mkdir()
        for path in ("index.ipynb", "flow.svg"):
            shutil.copy(EVALS.parent / "nbs" / path, root / "nbs")
        (scratch := folder / "scratch").mkdir()
        write_labels(folder / "labels", n=24, distractors=2)
        prefixes = ("SUPPORT_RAG_", "OPENAI_", "JUPYTER")
        environ = {k: v for k, v in os.environ.items() if not k.startswith(prefixes)}
        environ |= {"SUPPORT_RAG_HOME": str(home), "SUPPORT_RAG_EVAL": "reduced"}
        environ |= {"SUPPORT_RAG_LABELS": str(folder / "labels"), "TMPDIR": str(scratch)}
        process = lab_process(home, port=port, environ=environ)
        process.before()
        with (folder / "log").open("wb") as log:
            command = (*process.command, f"--ServerApp.root_dir={root}")
            child = spawn(
                command, output=log.fileno(), environ=process.environ, folder=root,
                death_signal=process.death_signal,
            )  # fmt: skip
            try:
                until(lambda: process.ready() or child.poll() is not None, what="JupyterLab")
                token = secret(home, "jupyter")
                assert lab_answers(port, token=token), (folder / "log").read_text()
                yield Lab(f"http://127.0.0.1:{port}", token, root, scratch)
            finally:
                child.terminate()
                try:
                    child.wait(timeout=300)
                except subprocess.TimeoutExpired:
                    child.kill()

    @pytest.fixture
    def page(browser: Browser) -> Iterator[Page]:
        page = browser.new_page(viewport={"width": 1300, "height": 1000})
        page.set_default_timeout(PATIENCE_MS)
        expect.set_options(timeout=PATIENCE_MS)
        yield page
        page.close()

    def test_the_first_page_is_rendered_and_opening_it_changes_nothing(
        lab: Lab, page: Page
    ) -> None:
        path = lab.root / "nbs/index.ipynb"
        committed, written = path.read_text(), path.stat().st_mtime_ns
        lab.open(page, "nbs/index.ipynb")
        expect(page.locator(".jp-RenderedMarkdown h1").first).to_have_text(re.compile("Start here"))
        expect(page.locator("#jp-main-dock-panel .lm-TabBar-tab")).to_have_text("index.ipynb")
        expect(page.locator("#jp-main-dock-panel .lm-TabBar-tab.jp-mod-dirty")).to_have_count(0)
        page.locator(".jp-RenderedMarkdown h1").first.click()
        page.keyboard.press("Control+s")
        until(lambda: path.stat().st_mtime_ns > written, what="the notebook to be saved")
        assert path.read_text() == committed

    def test_the_chunking_notebook_runs_to_its_end_and_shows_its_picture(
        lab: Lab, page: Page
    ) -> None:
        lab.open(page, "evals/01_chunking.ipynb")
        cells = lab.run_all(page, "01_chunking.ipynb")
        assert not errors_of(cells)
        outputs = [output.get("data", {}) for cell in cells for output in cell["outputs"]]
        assert any("image/png" in data for data in outputs)
        picture = scroll_to(page, page.locator(".jp-RenderedImage img"))
        box = picture.bounding_box()
        assert box is not None and box["width"] > 300 and box["height"] > 100
        assert picture.evaluate("image => image.complete && image.naturalWidth") > 300

    def test_sliders_move_the_chunks_and_a_question_shows_both_sides(lab: Lab, page: Page) -> None:
        complaints = list[str]()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        lab.open(page, "evals/06_look.ipynb")
        assert not errors_of(lab.run_all(page, "06_look.ipynb"))

        slider = page.locator(".widget-slider").filter(has_text="size")
        scroll_to(page, slider)
        n_chunks = page.locator(".jupyter-widgets .figures div", has_text="chunks").first.locator(
            "b"
        )
        before = n_chunks.inner_text()
        slider.locator(".noUi-handle").press("ArrowLeft")
        expect(slider).to_contain_text("196")
        slider.locator(".noUi-handle").press("Home")
        expect(slider).to_contain_text("16")
        expect(n_chunks).not_to_have_text(before)
        after = n_chunks.inner_text()
        drawn = page.locator(".jupyter-widgets .chunk")
        assert int(after) == drawn.count() > int(before)
        page.get_by_label("mode").select_option("fixed")
        expect(n_chunks).not_to_have_text(after)

        every = page.get_by_role("button", name=re.compile(r"^all \(\d+\)$"))
        scroll_to(page, every).click()
        listed = page.locator(".widget-select select:not([size='1']) option")
        expect(listed).to_have_count(int(re.findall(r"\d+", every.inner_text())[0]))
        chosen = listed.nth(1)
        name = chosen.inner_text().split()[0]
        page.locator(".widget-select select[size]").select_option(index=1)
        asked = page.locator(".jupyter-widgets .look li small").filter(has_text=name)
        expect(asked.first).to_be_visible()
        columns = page.locator(".jupyter-widgets .columns > div")
        expect(columns).to_have_count(2)
        left, right = (columns.nth(n).bounding_box() for n in (0, 1))
        assert left is not None and right is not None and left["y"] == right["y"]
        assert not complaints

    def test_a_ticked_passage_of_a_disagreement_becomes_a_label(lab: Lab, page: Page) -> None:
        complaints = list[str]()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        lab.open(page, "evals/07_replay.ipynb")
        assert not errors_of(lab.run_all(page, "07_replay.ipynb"))
        store = page.get_by_role("button", name="The ticked text answers it")
        scroll_to(page, store)
        view = page.locator(".jupyter-widgets.widget-vbox").filter(has=store).first
        list_ = view.locator("select")
        todo = list_.locator("option").filter(has_text="· ").first
        line = todo.get_attribute("value") or ""
        question = line.partition(": ")[2]
        list_.select_option(line)
        store.first.click()
        expect(view).to_contain_text("nothing is ticked")
        passage = view.locator(".widget-checkbox").first
        source = passage.inner_text().split(" (")[0].strip()
        passage.locator("input").check()
        store.first.click()
        expect(view).to_contain_text("labelled: ")
        expect(list_.locator(f'option[value="{line.replace("·", "✓")}"]')).to_contain_text("✓")
        labels = read_labels(lab.scratch, question)
        assert [span["doc_id"] for span in labels] == [source]
        assert all(span["text"] for span in labels)
        assert not complaints

    def test_the_page_of_runs_sorts_inside_a_notebook(lab: Lab, page: Page) -> None:
        write_notebook(
            lab.root / "evals/runs.ipynb",
            "from support_rag.evaluation.overview import overview",
            "overview()",
        )
        lab.open(page, "evals/runs.ipynb")
        assert not errors_of(lab.run_all(page, "runs.ipynb"))
        frame = page.frame_locator('iframe[title="Runs"]')
        table = frame.locator("table.sortable").first
        head = table.locator("th").nth(1)
        head.get_by_role("button").click()
        expect(head).to_have_attribute("aria-sort", re.compile("ascending|descending"))
        first = head.get_attribute("aria-sort")
        head.get_by_role("button").click()
        expect(head).not_to_have_attribute("aria-sort", first or "")
