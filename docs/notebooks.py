"""Turn notebooks into pages: prose as it is, code with anchors, outputs as they were committed."""

from __future__ import annotations

import ast
import html
import json
import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

FOLDERS = {  # in the order of reading
    "nbs": "Trunk",
    "nbs/language": "Language",
    "nbs/formats": "Formats",
    "nbs/dialogue": "Dialogue",
    "nbs/evaluation": "Evaluation",
    "nbs/state": "State",
    "nbs/service": "Service",
    "nbs/client": "Client",
    "nbs/local": "Local",
    "nbs/cli": "Command line",
    "evals": "Evaluations",
}
CODE_OR_FORMULA = re.compile(
    r"(?P<code>^```.*?^```|`[^`\n]+`)|\$\$(?P<block>.+?)\$\$|(?<!\$)\$(?P<inline>[^\s$][^$\n]*?)\$(?!\w)",
    re.M | re.S,
)
LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)\s#]+)(#[^)\s]*)?\)")
ANSI = re.compile(r"\x1b\[[0-9;]*m")
DIRECTIVE = re.compile(r"^#\|.*\n?|^# NBVAL_\w+\n?", re.M)


@dataclass(frozen=True)
class Notebook:
    "A notebook and the page it becomes."

    path: Path
    source: str  # from the top of the checkout, as `nbs/12_gate.ipynb`
    cells: list[dict[str, Any]]

    @property
    def page(self) -> str:
        return self.source.removesuffix(".ipynb") + ".md"

    @property
    def folder(self) -> str:
        return posixpath.dirname(self.source)

    @property
    def module(self) -> str:
        "The module that it exports; empty for one that exports nothing."
        found = (re.match(r"#\|\s*default_exp\s+(\S+)", text_of(cell)) for cell in self.cells)
        return next((f"support_rag.{match[1]}" for match in found if match), "")

    @property
    def title(self) -> str:
        found = (re.match(r"# (.+)", text_of(cell)) for cell in self.cells)
        title = next((match[1].strip() for match in found if match), self.path.stem)
        number = re.match(r"\d+", self.path.stem)
        return f"{number[0]} {title}" if number else title

    @property
    def summary(self) -> str:
        found = (re.search(r"^> (.+)", text_of(cell), re.M) for cell in self.cells)
        return next((match[1].strip() for match in found if match), "")


def text_of(cell: Mapping[str, Any]) -> str:
    return "".join(cell["source"])


def load_notebooks(root: Path) -> list[Notebook]:
    "Return every notebook, folder by folder in the order of reading."
    found = []
    for top in ("nbs", "evals"):
        for path in sorted((root / top).rglob("*.ipynb")):
            if ".ipynb_checkpoints" not in path.parts:
                cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
                found.append(Notebook(path, path.relative_to(root).as_posix(), cells))
    order = list(FOLDERS)
    missing = {notebook.folder for notebook in found} - set(order)
    if missing:
        raise SystemExit(f"docs/notebooks.py: name the folders {sorted(missing)} in FOLDERS")
    return sorted(found, key=lambda n: (order.index(n.folder), n.path.stem != "index", n.path.stem))


def link_to(text: str, source: str, page: str, pages: Mapping[str, str]) -> str:
    "Rewrite links between files of the checkout as links between pages."

    def rewrite(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[1]))
        if target not in pages:
            return match[0]
        to, _, anchor = pages[target].partition("#")
        anchor = match[2] or (f"#{anchor}" if anchor else "")
        return f"]({posixpath.relpath(to, posixpath.dirname(page) or '.')}{anchor})"

    return LINK.sub(rewrite, text)


def parsed(code: str) -> ast.Module:
    "Return the syntax of a cell; empty for one with magics."
    try:
        flags = ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        return compile(code, "cell", "exec", flags)
    except SyntaxError:
        return ast.Module([ast.Pass()], [])


def defined_in(code: str) -> Iterator[str]:
    "Yield the names that a cell defines at its top."
    for node in parsed(code).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                yield from (n.id for n in ast.walk(target) if isinstance(n, ast.Name))
                if ast.unparse(target) == "_all_":  # what nbdev adds to `__all__` from elsewhere
                    yield from (ast.unparse(item).strip("'") for item in node.value.elts)


def fenced(code: str, kind: str) -> str:
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall(r"`+", code) or [""]))
    return f"{fence}{{ {kind} }}\n{code.strip()}\n{fence}"


def shown(output: Mapping[str, Any]) -> tuple[str, str]:
    "Return an output as HTML, or as Markdown where it is that."
    data = output.get("data", {})
    if "text/markdown" in data:
        return "", "".join(data["text/markdown"])
    if "image/png" in data:
        image = "".join(data["image/png"]).strip()
        return f'<img class="drawn" alt="A drawing" src="data:image/png;base64,{image}">', ""
    for kind in ("image/svg+xml", "text/html"):
        if kind in data:
            return "".join(data[kind]), ""
    text = "".join(output.get("text", data.get("text/plain", output.get("traceback", ""))))
    text = ANSI.sub("", text).rstrip()
    kind = "" if re.search(r" {3}|[│├─]", text) else ' class="prose"'  # columns are kept
    return (f"<pre{kind}><code>{html.escape(text)}</code></pre>" if text else ""), ""


class Pages:
    "Makes the Markdown of notebooks, and keeps their outputs until the page is HTML."

    def __init__(self, pages: Mapping[str, str]) -> None:
        self.pages = pages  # file of the checkout → page
        self.outputs: list[str] = []

    def keep(self, text: str) -> str:
        "Put HTML aside, and return the comment that stands for it."
        self.outputs.append(text)
        return f"<!-- output {len(self.outputs) - 1} -->"

    def _formula(self, match: re.Match[str]) -> str:
        "Return a formula as MathML, which browsers draw by themselves; code stays."
        if match["code"]:
            return match[0]
        display = "block" if match["block"] else "inline"
        return self.keep(convert(match["block"] or match["inline"], display=display))

    def markdown(self, notebook: Notebook) -> str:
        "Return a notebook as Markdown."
        return "\n\n".join(part for cell in notebook.cells for part in self._cell(notebook, cell))

    def _cell(self, notebook: Notebook, cell: Mapping[str, Any]) -> Iterator[str]:
        text = text_of(cell)
        if cell["cell_type"] != "code":
            text = CODE_OR_FORMULA.sub(self._formula, text)
            yield link_to(text, notebook.source, notebook.page, self.pages)
            if text.startswith("# ") and notebook.module:
                yield f"Exports `{notebook.module}`."
            return
        if re.match(r"#\|\s*(default_exp|hide)\b", text) or not text.strip():
            return
        is_exported = bool(re.match(r"#\|\s*export", text))
        code = DIRECTIVE.sub("", text).strip()
        if is_exported and (names := sorted(set(defined_in(code)))):
            anchors = "".join(f'<a id="{name}"></a>' for name in names)
            yield f'<div class="names">{anchors}</div>'
        block = fenced(code, ".python .exported" if is_exported else ".python")
        only_imports = code and all(
            isinstance(node, ast.Import | ast.ImportFrom) for node in parsed(code).body
        )
        if only_imports:
            kind = "Imports" if is_exported else "Imports of the examples"
            block = f"<details markdown>\n<summary>{kind}</summary>\n\n{block}\n\n</details>"
        yield block
        for output in cell.get("outputs", []):
            as_html, as_markdown = shown(output)
            if as_html:
                yield self.keep(f'<div class="output">{as_html}</div>')
            if as_markdown:
                yield f'<div class="output" markdown>\n\n{as_markdown}\n\n</div>'

    def with_outputs(self, page: str) -> str:
        "Return the HTML of a page with its outputs in their places. The search knows none of them."
        return re.sub(r"<!-- output (\d+) -->", lambda match: self.outputs[int(match[1])], page)
