"""`make check` runs what a change reaches: by definitions, not by files."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parent.parent / ".ci" / "check.py"


@pytest.fixture(scope="module")
def check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["check"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


MODULE = '''"""A gate."""
import math
from .types import Answer, Decision

LEAST = 0.5

# %% a comment
def confident(x: float) -> bool:
    return x > LEAST

def decide(answer: Answer) -> Decision:
    return Decision(confident(answer.score))

def other() -> float:
    return math.pi

app = make()

@app.command("gate")
def gate() -> None:
    pass
'''


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        ("A gate", "The gate", set()),
        ("# %% a comment", "# %% another", set()),
        ("LEAST = 0.5", "LEAST = 0.6", {"LEAST", "confident", "decide"}),
        ("Decision(", "Decision(not ", {"decide"}),
        ("Answer, Decision", "Answer, Decision, Hit", {"Hit"}),
        ("import math", "import cmath as math", {"math", "other"}),
        ('"gate"', '"door"', {"gate", "app"}),
        ("    pass\n", "    pass\n\n\nprint()\n", {"*"}),
    ],
    ids=["docstring", "comment", "constant", "body", "import", "renamed", "command", "statement"],
)
def test_a_definition_is_affected_by_what_it_uses(
    check: ModuleType, old: str, new: str, names: set[str]
) -> None:
    assert old in MODULE
    assert check.affected(MODULE, MODULE.replace(old, new)) == names


def test_a_new_or_a_removed_module_is_affected_as_a_whole(check: ModuleType) -> None:
    assert check.affected("", MODULE) == check.affected(MODULE, "") == {"*"}
    assert check.affected(MODULE, MODULE) == check.affected("", "") == set()


@pytest.mark.parametrize(
    ("code", "hit"),
    [
        ("from support_rag.gate import decide", True),
        ("from support_rag.gate import other, decide as d", True),
        ("from support_rag.gate import other", False),
        ("from support_rag.gate import *", True),
        ("import support_rag.gate", True),
        ("import support_rag", False),
        ("from support_rag import gate as g\ng.decide(1)", True),
        ("from support_rag import gate\ngate.other()", False),
        ("from support_rag.state.store import anything", True),
        ("def f():\n    from support_rag.gate import decide", True),
        ("x = await f()", False),
    ],
)
def test_an_import_reaches_what_it_names(check: ModuleType, code: str, hit: bool) -> None:
    names = {"support_rag.gate": {"decide"}, "support_rag.state.store": {"*"}}
    assert check.reaches(code, names) is hit


class Project:
    "A small checkout with a trunk, a wing and tests."

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("support_rag/gate.py", MODULE)
        self.write("support_rag/state/store.py", "def get():\n    return 1\n")
        self.notebook("nbs/12_gate.ipynb", "#| export\nx = 1")
        self.notebook("nbs/14_pipeline.ipynb", "%time\nfrom support_rag.gate import decide")
        self.notebook("nbs/state/00_store.ipynb", "from support_rag.gate import decide")
        self.write("tests/test_gate.py", "")
        self.write("tests/test_pipeline.py", "from support_rag.gate import decide")
        self.write("tests/test_other.py", "from support_rag.gate import other")
        self.write("tests/state/test_store.py", "import subprocess")
        self.write("tests/test_lock.py", 'open(ROOT / "settings.ini")')
        self.write("settings.ini", "")
        self.git("init", "-q", "-b", "main")
        self.commit()

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def notebook(self, name: str, *cells: str) -> None:
        made = [{"cell_type": "code", "source": [text]} for text in cells]
        self.write(name, json.dumps({"cells": made}))

    def git(self, *words: str) -> None:
        who = ("-c", "user.name=T", "-c", "user.email=t@example.org")
        subprocess.run(["git", *who, *words], cwd=self.root, check=True, capture_output=True)

    def commit(self) -> None:
        self.git("add", "-A")
        self.git("commit", "-q", "-m", "one")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_the_change_is_what_main_does_not_have(check: ModuleType, project: Project) -> None:
    base = check.base_of(project.root)
    assert check.changed_files(project.root, base) == []
    project.git("checkout", "-q", "-b", "topic")
    project.write("settings.ini", "committed")
    project.commit()
    project.write("support_rag/gate.py", "not committed")
    project.write("a new file.py", "")
    (project.root / "tests" / "test_other.py").unlink()
    assert check.base_of(project.root) == base
    expected = ["a new file.py", "settings.ini", "support_rag/gate.py", "tests/test_other.py"]
    assert check.changed_files(project.root, base) == expected


def test_one_definition_reaches_its_own_tests_and_its_importers(
    check: ModuleType, project: Project
) -> None:
    base = check.base_of(project.root)
    project.write("support_rag/gate.py", MODULE.replace("0.5", "0.6"))
    project.notebook("nbs/12_gate.ipynb", "#| export\nx = 2")
    changed = check.changed_files(project.root, base)
    names = check.changed_names(project.root, base, changed)
    assert names == {"support_rag.gate": {"LEAST", "confident", "decide"}}
    chosen = check.select(project.root, changed, names)
    assert chosen.types
    assert chosen.lint == ["nbs/12_gate.ipynb", "support_rag/gate.py"]
    assert chosen.notebooks == {
        "nbs/12_gate.ipynb": "changed",
        "nbs/14_pipeline.ipynb": "imports what changed",
    }
    assert chosen.tests == {
        "tests/test_gate.py": "its own tests",
        "tests/test_pipeline.py": "imports what changed",
    }


def test_a_wing_has_its_tests_in_the_same_folder(check: ModuleType, project: Project) -> None:
    names = {"support_rag.state.store": {"get"}}
    chosen = check.select(project.root, ["support_rag/state/store.py"], names)
    assert chosen.tests == {"tests/state/test_store.py": "its own tests"}
    assert chosen.notebooks == {}


def test_a_changed_output_runs_the_notebook_alone(check: ModuleType, project: Project) -> None:
    chosen = check.select(project.root, ["nbs/state/00_store.ipynb"], {})
    assert chosen.notebooks == {"nbs/state/00_store.ipynb": "changed"}
    assert not chosen.tests and not chosen.types


def test_other_files_reach_the_tests_that_name_them(check: ModuleType, project: Project) -> None:
    project.write("tests/test_data.py", 'resource("data/help_centre")')
    chosen = check.select(project.root, ["settings.ini", "data/gone.tsv"], {})
    assert chosen.tests == {
        "tests/test_data.py": "names what changed",
        "tests/test_lock.py": "names what changed",
    }
    chosen = check.select(project.root, ["tests/state/conftest.py"], {})
    assert chosen.tests == {"tests/state/test_store.py": "its conftest.py changed"}


def test_what_is_far_ends_when_the_time_is_up(
    check: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def step(name: str, code: str, always: bool) -> object:
        return check.Step(name, [sys.executable, "-c", code], always=always)

    steps = [
        step("near", "pass", True),
        step("broken", "print('the reason'); raise SystemExit(1)", True),
        step("far", "pass", False),
    ]
    assert check.run(steps, tmp_path, 60) == (["broken"], [])
    said = capfd.readouterr().out
    assert "the reason\nFAILED" in said and "ok" in said
    assert check.run(steps, tmp_path, 0) == (["broken"], ["far"])
    deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)"
    endless = [step("far", "import time; time.sleep(60)", False), step("deaf", deaf, False)]
    failed, left = check.run(endless, tmp_path, check.PATIENCE_SECONDS + 1)
    assert (failed, sorted(left)) == ([], ["deaf", "far"])


def test_the_notebook_is_run_before_what_imports_it(check: ModuleType) -> None:
    chosen = check.Selection(
        lint=["nbs/12_gate.ipynb"],
        notebooks={"nbs/14_pipeline.ipynb": "imports what changed", "evals/04.ipynb": "changed"},
        tests={"tests/test_gate.py": "its own tests"},
        types=True,
    )
    steps = list(check.steps_of(chosen))
    assert [step.name for step in steps] == [
        "lint", "format", "types", "evals/04.ipynb", "tests/test_gate.py", "nbs/14_pipeline.ipynb",
    ]  # fmt: skip
    assert [step.name for step in steps if not step.always] == ["nbs/14_pipeline.ipynb"]
    assert "--nbval-lax" in steps[3].command and steps[3].environ == {"SUPPORT_RAG_EVAL": "reduced"}
