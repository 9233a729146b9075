"""`make export` refuses a cell that would break the module, before anything is written."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / ".ci" / "exportable.py"
REMEDY = "move it to a cell without `#| export`, or correct it; nothing was exported"


def notebook(path: Path, *cells: str) -> Path:
    "Write a notebook whose first cells name it and say where it exports to."
    cells = ("#| default_exp one", *cells)
    code = {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": []}
    made = [{**code, "id": f"c{at:03}", "source": text} for at, text in enumerate(cells)]
    path.parent.mkdir(parents=True, exist_ok=True)
    nb = {"cells": made, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(nb))
    return path


def refusal(*paths: Path) -> list[str]:
    "Run the script and return what it says; it succeeds where it says nothing."
    done = subprocess.run(
        [sys.executable, SCRIPT, *paths], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == bool(done.stderr), done
    return done.stderr.splitlines()


@pytest.mark.parametrize(
    ("cell", "line", "why"),
    [
        ("#| export\n%matplotlib inline\nx = 1", "%matplotlib inline", "invalid syntax"),
        ("#| export\nfiles = !ls", "files = !ls", "invalid syntax"),
        ("%%time\n#| export\nx = 1", "%%time", "invalid syntax"),
        ("#| exporti\nlen?", "len?", "invalid syntax"),
        ("#| export\nx = await f()", "x = await f()", "'await' outside function"),
        ("#| export\nx = (1,", "x = (1,", "'(' was never closed"),
    ],
    ids=["magic", "shell", "cell magic", "help", "await", "unfinished"],
)
def test_a_cell_that_is_not_plain_python_is_named(
    tmp_path: Path, cell: str, line: str, why: str
) -> None:
    path = notebook(tmp_path / "12_gate.ipynb", "x = 1", cell)
    assert refusal(path) == [
        f"export: {path}, cell 3 (c002): `{line}` cannot be exported ({why}): {REMEDY}"
    ]


def test_what_is_not_exported_may_hold_anything(tmp_path: Path) -> None:
    plain = "#| export\nasync def f():\n    return await g()  # %matplotlib and !ls in a comment"
    notebook(tmp_path / "a" / "00_one.ipynb", "%matplotlib inline", "x = await f()", plain)
    notebook(tmp_path / ".ipynb_checkpoints" / "00_one.ipynb", "#| export\n!ls")
    assert refusal(tmp_path) == []


def test_every_fault_of_a_folder_is_told_and_a_broken_file_is_one(tmp_path: Path) -> None:
    first = notebook(tmp_path / "a" / "00_one.ipynb", "#| export\n!ls", "#| export\n%time f()")
    second = tmp_path / "b" / "00_two.ipynb"
    second.parent.mkdir()
    second.write_text("<<<<<<< HEAD")
    said = refusal(tmp_path)
    assert [line.split(": `")[0] for line in said[:2]] == [
        f"export: {first}, cell 2 (c001)",
        f"export: {first}, cell 3 (c002)",
    ]
    assert said[2].startswith(f"export: {second} is not a notebook: ")


def test_make_export_leaves_the_package_as_it_was(tmp_path: Path) -> None:
    for name in (".ci", "nbs", "evals", "support_rag"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("Makefile", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".ci" / "environment").write_text("#!/bin/sh\n")
    gate = next((tmp_path / "nbs").glob("*_gate.ipynb"))
    nb = json.loads(gate.read_text())
    at = next(i for i, c in enumerate(nb["cells"]) if "#| export" in "".join(c["source"]))
    nb["cells"][at]["source"].insert(1, "%matplotlib inline\n")
    gate.write_text(json.dumps(nb))
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    done = subprocess.run(
        ["make", "export", f"BIN={Path(sys.executable).parent}"],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode != 0
    assert f"nbs/{gate.name}, cell {at + 1} (" in done.stderr.splitlines()[0]
    after = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert [p for p in before if after.get(p) != before[p]] == []
