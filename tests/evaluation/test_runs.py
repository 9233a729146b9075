"""Runs read back as they were written; the gate fails on what is certainly worse and only then."""

from __future__ import annotations

import re
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from nbdev.export import nb_export
from scipy.stats import binomtest

from support_rag.evaluation.cache import FILE, Cache, cache_folder, silent
from support_rag.evaluation.labels import load_labels, sample
from support_rag.evaluation.metrics import paired_bootstrap
from support_rag.evaluation.outcomes import risk_bound
from support_rag.evaluation.regression import (
    GATED,
    compare_runs,
    finding_of,
    gate_run,
    load_reference,
    n_needed,
)
from support_rag.evaluation.runs import (
    Run,
    RunInvalid,
    list_runs,
    load_run,
    read_run,
    run_release,
    save_run,
)
from support_rag.release import Parameters, resource
from support_rag.types import InputInvalid

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run() -> Run:
    labels = sample(load_labels(resource("data/help_centre")), 100, distractors=10)
    hashing = Parameters().with_(embed={"model": "hashing-256"})
    with ThreadPoolExecutor(1) as threads:
        return run_release(
            labels, parameters=hashing, cache=Cache(None), progress=silent, executor=threads
        )


def altered(run: Run, metric: str, values: np.ndarray) -> Run:
    "Return a run whose answerable questions have other values of a metric."
    new = iter(values)
    rows = [{**r, metric: float(next(new))} if metric in r else r for r in run.questions]
    return replace(run, questions=rows)


def test_a_run_reads_back_equal(run: Run, tmp_path: Path) -> None:
    path = save_run(run, tmp_path)
    again = read_run(path)
    assert again.as_dict() == run.as_dict() and again.digest == run.digest
    assert load_run(run.id[:15], folders=[tmp_path]).id == path.stem
    assert [r.id for r in list_runs([tmp_path]).runs] == [path.stem]
    assert not list(tmp_path.glob(".*")), "no draft is left"


def test_equal_results_of_another_day_change_no_file(run: Run, tmp_path: Path) -> None:
    path = save_run(run, tmp_path, name="kept")
    content = path.read_bytes()
    save_run(replace(run, created_at="2030-01-01T00:00:00Z", commit="x"), tmp_path, name="kept")
    assert path.read_bytes() == content


def test_runs_of_other_data_are_not_compared(run: Run) -> None:
    other = replace(run, data={**run.data, "corpus": "0" * 16})
    with pytest.raises(InputInvalid, match="differ in the corpus"):
        compare_runs(run, other)


def test_the_gate_passes_equal_runs_and_fails_lost_recall(run: Run) -> None:
    recalls = np.array([r["recall"] for r in run.questions if "recall" in r])
    assert gate_run(run, run).passed
    worse = altered(run, "recall", np.maximum(recalls - 0.3, 0))
    verdict = gate_run(run, worse)
    assert not verdict.passed and "recall" in verdict.sentence
    assert gate_run(run, worse, margin=0.5).passed
    assert gate_run(worse, run).passed


def test_the_gate_knows_three_findings() -> None:
    "Of changes that lose the margin exactly, at most one in twenty is called worse or not worse."
    generator = np.random.default_rng(1)
    base, margin, called = np.full(400, 0.7), 0.02, Counter[str]()
    for _ in range(60):
        changed = base - margin + generator.normal(0, 0.15, base.size)
        called[finding_of(paired_bootstrap(changed, base), margin=margin)] += 1
    assert called["not worse"] <= 6 and called["cannot tell"] >= 25
    lost = paired_bootstrap(base - 0.1 + generator.normal(0, 0.15, 400), base)
    assert finding_of(lost, margin=margin) == "worse"
    assert finding_of(paired_bootstrap(base, base), margin=margin) == "not worse"


def test_the_number_that_would_tell_would() -> None:
    generator = np.random.default_rng(2)
    base, changes = np.full(4000, 0.5), generator.normal(0, 0.2, 4000)
    changes -= changes.mean()
    few = paired_bootstrap(base[:100] + changes[:100] - changes[:100].mean(), base[:100])
    assert finding_of(few, margin=0.01) == "cannot tell"
    n = n_needed(few, margin=0.01)
    assert 800 < n < 4000
    assert finding_of(paired_bootstrap(base + changes, base), margin=0.01) == "not worse"


def test_five_questions_prove_nothing(run: Run) -> None:
    five = replace(run, questions=[r for r in run.questions if "recall" in r][:5])
    verdict = gate_run(five, five)
    assert "cannot tell" in verdict.sentence and "Shown not worse" not in verdict.sentence
    lost = altered(five, "recall", np.zeros(5))
    assert not gate_run(altered(five, "recall", np.ones(5)), lost).passed


def test_figures_that_are_gone_refuse(run: Run) -> None:
    holes = [{k: v for k, v in r.items() if k != "recall"} for r in run.questions]
    half = [*holes[: len(holes) // 2], *run.questions[len(holes) // 2 :]]
    for questions in (holes, half):
        verdict = gate_run(run, replace(run, questions=questions))
        assert not verdict.passed and "no figure any more" in verdict.sentence


def test_a_figure_that_is_no_number_is_named(run: Run, tmp_path: Path) -> None:
    rows = [dict(r) for r in run.questions]
    rows[3]["recall"] = float("nan")
    with pytest.raises(RunInvalid, match=f"recall of question '{rows[3]['question']}' is nan"):
        save_run(replace(run, questions=rows), tmp_path)


def test_the_risk_bound_is_wilsons() -> None:
    for wrong, n in ((0, 10), (3, 20), (50, 500), (10, 10)):
        expected = binomtest(wrong, n, alternative="less").proportion_ci(0.9, method="wilson").high
        assert risk_bound(wrong, n) == pytest.approx(expected)


# ---------------------------------------------------------------- the working tree

GATE = """
import sys
from support_rag.evaluation.regression import gate_working_tree, show_verdict
from support_rag.evaluation.cache import silent
verdict = gate_working_tree(progress=silent)
print(show_verdict(verdict))
sys.exit(not verdict.passed)
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A state folder that all gates of this module share; what `make gate` measured is in it."
    home = tmp_path_factory.mktemp("home")
    if (known := cache_folder() / FILE).is_file():  # its keys are digests of code and data
        (home / "cache").mkdir()
        own = closing(sqlite3.connect(home / "cache" / FILE))
        with closing(sqlite3.connect(known)) as of_gate, own as copy:
            of_gate.backup(copy)
    return home


def gate_of(project: Path, home: Path) -> subprocess.CompletedProcess[str]:
    "Run the gate with the package of a project folder, in a process of its own."
    environment = {"PYTHONPATH": str(project), "SUPPORT_RAG_HOME": str(home), "PATH": "/usr/bin"}
    return subprocess.run(
        [sys.executable, "-c", GATE],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )


def copy_project(folder: Path) -> Path:
    "Copy what the gate needs, the notebooks included."
    for name in ("support_rag", "nbs", "evals/results"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "settings.ini"):
        shutil.copy(ROOT / name, folder)
    (folder / "data").symlink_to(ROOT / "data")
    return folder


def test_the_working_tree_is_no_worse_than_the_reference(tmp_path: Path, home: Path) -> None:
    done = gate_of(copy_project(tmp_path), home)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {metric for metric in GATED if metric in done.stdout} == set(GATED)


def test_a_notebook_made_worse_fails(tmp_path: Path, home: Path) -> None:
    "One sign in one line of the retrieval notebook: the worst chunks come first."
    project = copy_project(tmp_path)
    notebook = project / "nbs" / "06_retrieve.ipynb"
    line, worse = "(-round(fused[i], 9), place_of", "(round(fused[i], 9), place_of"
    text = notebook.read_text(encoding="utf-8")
    assert text.count(line) == 1
    notebook.write_text(text.replace(line, worse), encoding="utf-8")
    nb_export(notebook, project / "support_rag")
    done = gate_of(project, home)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAILED" in done.stdout and "regressed" in done.stdout


def test_losing_the_dense_ranking_fails(tmp_path: Path, home: Path) -> None:
    project = copy_project(tmp_path)
    settings = project / "settings.ini"
    text = settings.read_text(encoding="utf-8")
    changed = re.sub(r"(?m)^fusion = .*$", "fusion = lexical", text)
    assert changed != text
    settings.write_text(changed, encoding="utf-8")
    done = gate_of(project, home)
    assert done.returncode == 1 and "FAILED" in done.stdout, done.stdout + done.stderr


def test_the_reference_measures_the_committed_labels() -> None:
    reference = load_reference()
    assert reference.data["split"] == "tune" and reference.depth == "answers"
    assert {row["question"] for row in reference.questions} < {
        question.id for question in load_labels(resource("data/help_centre")).questions
    }
