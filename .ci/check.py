"""Run what the change since main can break: its export, lint, types, notebooks and tests.

    make check                  # ends what is far from the change after 55 s, and names it
    make check SECONDS=600      # leaves less

What changed is asked of git: everything since the commit where this branch left main, with what is
not committed and not tracked yet. Of a changed module those definitions count whose code differs,
and those of the same module that use them. A test runs when it changed, when it is the module's
own (`tests/state/test_store.py` for `state/store`), when it imports one of these definitions, or
when it names a changed file that is no module, or the folder at the top that holds it. A notebook
runs when it changed, or when it stands in the same folder and imports one of them. What depends on
the change only through other modules is left to `make test`.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from IPython.core.inputtransformer2 import TransformerManager

PACKAGE = "support_rag"
PATIENCE_SECONDS = 5.0  # for a command to end by itself; less is not worth beginning one
RUNNING: set[int] = set()  # process groups of the commands
EVERYTHING = "*"  # in a set of names: all of the module
BIN = Path(sys.executable).parent
Names = Mapping[str, set[str]]  # module → its definitions that changed


def git(root: Path, *words: str) -> str:
    "Return what git prints; empty where it refuses."
    return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True).stdout  # noqa: S607


def base_of(root: Path) -> str:
    "Return the commit where this branch left main."
    for name in ("origin/main", "main", "HEAD"):
        if found := git(root, "merge-base", "HEAD", name).strip():
            return found
    raise SystemExit(f"check: {root} is not a git checkout with a commit")


def changed_files(root: Path, base: str) -> list[str]:
    "Return the files that differ from a commit, untracked ones and removed ones included."
    differ = git(root, "diff", "--name-only", "--no-renames", "-z", base)
    untracked = git(root, "ls-files", "--others", "--exclude-standard", "-z")
    return sorted({name for name in (differ + untracked).split("\0") if name})


def names_in(node: ast.AST) -> set[str]:
    return {found.id for found in ast.walk(node) if isinstance(found, ast.Name)}


def bound_by(node: ast.stmt) -> set[str]:
    "Return the names that a top-level statement defines; none for one that only runs."
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign | ast.If | ast.Try | ast.With):
        stores = (found for found in ast.walk(node) if isinstance(found, ast.Name))
        return {found.id for found in stores if isinstance(found.ctx, ast.Store)}
    return set()


def definitions(source: str) -> tuple[dict[str, str], dict[str, set[str]]]:
    "Return the code of each definition, and the names that each uses. Comments do not count."
    code: dict[str, str] = {}
    uses: dict[str, set[str]] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue  # a docstring
        if isinstance(node, ast.Import | ast.ImportFrom):
            origin = getattr(node, "module", "")
            code |= {a.asname or a.name: f"{origin} {ast.dump(a)}" for a in node.names}
            continue
        names, used = bound_by(node) or {EVERYTHING}, names_in(node)
        for name in names - {"__all__"}:
            code[name] = code.get(name, "") + ast.dump(node)
            uses[name] = uses.get(name, set()) | used
        for decorator in getattr(node, "decorator_list", ()):  # `@app.command()` adds to `app`
            for name in names_in(decorator):
                uses[name] = uses.get(name, set()) | names
    return code, uses


def affected(before: str, after: str) -> set[str]:
    "Return the definitions of a module that differ, and those that use them."
    if not before or not after:
        return {EVERYTHING} if before != after else set()
    (old, _), (new, uses) = definitions(before), definitions(after)
    found = {name for name in old.keys() | new.keys() if old.get(name) != new.get(name)}
    while more := {name for name, used in uses.items() if used & found} - found:
        found |= more
    return found


def module_of(path: str) -> str:
    "Return the dotted name of a Python file."
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def reaches(source: str, names: Names) -> bool:
    "Tell whether code imports a definition that changed."

    def hit(module: str, name: str) -> bool:
        found = names.get(module, set())
        return bool(found) and (EVERYTHING in found or name in (EVERYTHING, *found))

    tree = compile(source, "", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and any(names.get(alias.name) for alias in node.names):
            return True
        if not isinstance(node, ast.ImportFrom) or not node.module:
            continue
        for alias in node.names:
            whole, known_as = f"{node.module}.{alias.name}", alias.asname or alias.name
            used = (a.attr for a in attributes if ast.unparse(a.value) == known_as)
            if hit(node.module, alias.name) or any(hit(whole, name) for name in used):
                return True
    return False


def code_of(notebook: Path) -> str:
    "Return the code of a notebook, its magics as calls."
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    plain = TransformerManager().transform_cell
    return "\n".join(plain("".join(c["source"])) for c in cells if c["cell_type"] == "code")


@dataclass
class Selection:
    "What to run. The value of an entry says why."

    lint: list[str] = field(default_factory=list)
    notebooks: dict[str, str] = field(default_factory=dict)
    tests: dict[str, str] = field(default_factory=dict)
    types: bool = False


def select(root: Path, changed: Sequence[str], names: Names) -> Selection:
    "Choose what the changed files and definitions reach."
    chosen = Selection(types=any(name.startswith(f"{PACKAGE}.") for name in names))
    there = [path for path in changed if (root / path).is_file()]
    chosen.lint = [path for path in there if path.endswith((".py", ".ipynb", ".pyi"))]
    chosen.notebooks = {
        path: "changed" for path in there if path.endswith(".ipynb") and path[:3] in ("nbs", "eva")
    }
    folders = {Path(path).parent for path in chosen.notebooks if path.startswith("nbs/")}
    for folder in sorted(folders):
        for notebook in sorted((root / folder).glob("*.ipynb")):
            name = notebook.relative_to(root).as_posix()
            if name not in chosen.notebooks and reaches(code_of(notebook), names):
                chosen.notebooks[name] = "imports what changed"
    modules = [name.removeprefix(f"{PACKAGE}.").split(".") for name in names]
    own = {"/".join(("tests", *parts[:-1], f"test_{parts[-1]}.py")) for parts in modules}
    modules_too = (".ci/", "docs/")  # nothing imports these
    others = [
        Path(path)
        for path in changed
        if path.startswith(modules_too) or not path.endswith((".py", ".ipynb"))
    ]
    words = {path.name for path in others} | {path.parts[0] for path in others}
    quoted = re.compile("|".join(rf"[\"'/]{re.escape(w)}[\"'/]" for w in words) or "(?!)")
    fixtures = [(root / path).parent for path in changed if Path(path).name == "conftest.py"]
    for test in sorted((root / "tests").rglob("test_*.py")):
        name, source = test.relative_to(root).as_posix(), test.read_text(encoding="utf-8")
        if name in there:
            chosen.tests[name] = "changed"
        elif name in own:
            chosen.tests[name] = "its own tests"
        elif reaches(source, names):
            chosen.tests[name] = "imports what changed"
        elif any(test.is_relative_to(folder) for folder in fixtures):
            chosen.tests[name] = "its conftest.py changed"
        elif quoted.search(source):
            chosen.tests[name] = "names what changed"
    return chosen


def export(notebooks: Iterable[str], root: Path) -> None:
    "Clean and export notebooks; stop where that fails."
    found = list(notebooks)
    exported = [name for name in found if name.startswith("nbs/")]
    commands = [
        [sys.executable, ".ci/exportable.py", *exported],
        [str(BIN / "ruff"), "check", "--fix", "-q", *found],
        [str(BIN / "ruff"), "format", "-q", *found],
        *([str(BIN / "nbdev-clean"), "--fname", name] for name in found),
        [str(BIN / "nbdev-export")],
    ]
    for command in commands:
        if subprocess.run(command, cwd=root).returncode:
            raise SystemExit(1)


@dataclass
class Step:
    "One command with its place in the report."

    name: str
    command: list[str]
    why: str = ""
    environ: dict[str, str] = field(default_factory=dict)
    always: bool = False  # is near the change and runs to its end however late it is


def steps_of(chosen: Selection) -> Iterator[Step]:
    "Yield the commands, the nearest to the change first."
    pytest = [sys.executable, "-m", "pytest", "-q", "--no-header"]
    if chosen.lint:
        for name, verb in (("lint", ["check"]), ("format", ["format", "--check"])):
            ruff = [str(BIN / "ruff"), *verb, "-q", "--force-exclude", *chosen.lint]
            yield Step(name, ruff, always=True)
    if chosen.types:
        yield Step("types", [str(BIN / "mypy")], always=True)
    near = ("changed", "its own tests")
    steps = []
    for name, why in chosen.notebooks.items():
        nbval = "--nbval" if name.startswith("nbs/") else "--nbval-lax"
        environ = {} if name.startswith("nbs/") else {"SUPPORT_RAG_EVAL": "reduced"}
        steps.append(Step(name, [*pytest, nbval, name], why, environ, why in near))
    for name, why in chosen.tests.items():
        steps.append(Step(name, [*pytest, name], why, always=why in near))
    yield from sorted(steps, key=lambda step: not step.always)


def finish(step: Step, root: Path, seconds: float | None) -> tuple[int | None, str]:
    "Run one command. Return its exit code and output; no code where the time was up."
    process = subprocess.Popen(
        step.command, cwd=root, env={**os.environ, **step.environ}, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    RUNNING.add(process.pid)
    try:
        for patience, number in ((seconds, signal.SIGINT), (PATIENCE_SECONDS, signal.SIGKILL)):
            try:
                said, _ = process.communicate(timeout=patience)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, number)
                continue
            return (process.returncode if number == signal.SIGINT else None), said
        return None, process.communicate()[0]
    finally:
        RUNNING.discard(process.pid)


def run(steps: Iterable[Step], root: Path, seconds: float) -> tuple[list[str], list[str]]:
    "Run steps two at a time. Return the names of those that failed and of those left out."
    failed: list[str] = []
    left: list[str] = []
    began = time.monotonic()

    def one(step: Step) -> None:
        started = time.monotonic()
        rest = seconds - (started - began)
        code, said = None, ""
        if step.always or rest > PATIENCE_SECONDS:
            code, said = finish(step, root, None if step.always else rest)
        if code is None:
            left.append(step.name)
            return
        if code:
            failed.append(step.name)
        sign, why = "FAILED" if code else "ok", f"  ({step.why})" if step.why else ""
        line = f"{sign:6} {time.monotonic() - started:5.1f} s  {step.name}{why}"
        print(f"{said.rstrip()}\n{line}" if code else line, flush=True)

    with ThreadPoolExecutor(2) as pool:
        try:
            list(pool.map(one, steps))
        except KeyboardInterrupt:  # which only this process got: each command leads a group
            pool.shutdown(wait=False, cancel_futures=True)
            for group in list(RUNNING):
                os.killpg(group, signal.SIGINT)
            raise
    return failed, left


def changed_names(root: Path, base: str, changed: Iterable[str]) -> dict[str, set[str]]:
    "Return the definitions that changed in each Python module of the package and of the tests."
    names = {}
    for path in changed:
        if path.endswith(".py") and path.startswith((f"{PACKAGE}/", "tests/")):
            now = (root / path).read_text(encoding="utf-8") if (root / path).exists() else ""
            if found := affected(git(root, "show", f"{base}:{path}"), now):
                names[module_of(path)] = found
    return {name: found for name, found in names.items() if not name.endswith("._modidx")}


def main(words: Sequence[str]) -> int:
    "Check the change; return 1 when something fails."
    parser = argparse.ArgumentParser(prog="make check", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=55, help="end what is far after this")
    seconds, began, root = parser.parse_args(words).seconds, time.monotonic(), Path.cwd()
    base = base_of(root)
    changed = changed_files(root, base)
    notebooks = [p for p in changed if p.endswith(".ipynb") and (root / p).is_file()]
    if notebooks:
        export(notebooks, root)
        changed = changed_files(root, base)
    if not changed:
        print(f"Nothing changed since main ({base[:7]}).")
        return 0
    names = changed_names(root, base, changed)
    for module in sorted(name for name in names if name.startswith(PACKAGE)):
        found = sorted(names[module])
        told = "everything" if EVERYTHING in found else ", ".join(found[:8])
        print(f"{module}: {told}{f' and {len(found) - 8} more' if len(found) > 8 else ''}")
    chosen = select(root, changed, names)
    failed, left = run(steps_of(chosen), root, seconds - (time.monotonic() - began))
    if left:
        print(f"Left after {seconds:.0f} s: {', '.join(sorted(left))}")
    print(
        f"{len(changed)} files changed since main ({base[:7]}): "
        + (f"{len(failed)} checks failed" if failed else "all that ran passed")
        + f" in {time.monotonic() - began:.0f} s. `make test` runs the rest."
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
