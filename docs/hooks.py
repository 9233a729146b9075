"""What MkDocs runs: it adds the pages that are made from notebooks, classes and commands."""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))

import reference
from notebooks import FOLDERS, Notebook, Pages, link_to, load_notebooks

ROOT = Path(__file__).parent.parent
WRITTEN = {  # file of the checkout → page; a link to the file becomes one to the page
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security.md",
    "data/README.md": "project/data.md",
}
ELSEWHERE = {
    "README.md": "index.md",
    "settings.ini": "reference/settings.md",
    "nbs": "nbs/all.md",
    "evals": "nbs/all.md#evaluations",
}
pages = Pages({})


def overview(notebooks: list[Notebook]) -> str:
    "Return the page that lists every notebook."
    parts = []
    for folder, title in FOLDERS.items():
        inside = [n for n in notebooks if n.folder == folder]
        links = (f"[{n.title}]({posixpath.relpath(n.page, 'nbs')})" for n in inside)
        exports = (f"`{n.module}`" if n.module else "" for n in inside)
        rows = zip(links, exports, (n.summary for n in inside), strict=True)
        parts += [f"## {title}", reference.table(("notebook", "exports", "what it is"), rows)]
    return reference.page("All notebooks", *parts)


def llms_txt(notebooks: list[Notebook], description: str) -> str:
    "Return the list of modules for readers that are programs."
    lines = [
        f"- [{n.module}]({n.page.removesuffix('.md')}.html): {n.summary}"
        for n in notebooks
        if n.module
    ]
    return "\n".join(["# support_rag", "", f"> {description}", "", "## Modules", "", *lines, ""])


def navigation(notebooks: list[Notebook]) -> list[Any]:
    "Return what the menu shows."
    sections: list[Any] = [{"Start here": "nbs/index.md"}, {"All notebooks": "nbs/all.md"}]
    for folder, title in FOLDERS.items():
        inside = [{n.title: n.page} for n in notebooks if n.folder == folder]
        inside = [entry for entry in inside if "nbs/index.md" not in entry.values()]
        if folder != "evals":
            sections.append({title: inside})
        else:
            evaluations = inside
    names = [{title: f"reference/python/{names_of(f)}.md"} for f, title in FOLDERS.items()][:-1]
    guide = ("tune", "publish", "operate", "call", "support", "webhooks")
    return [
        {"Home": "index.md"},
        {"Guide": [f"guide/{name}.md" for name in guide]},
        {"Notebooks": sections},
        {"Evaluations": evaluations},
        {
            "Reference": [
                {"HTTP API": "reference/api.md"},
                {"Command line": "reference/cli.md"},
                {"Settings": "reference/settings.md"},
                {"Error codes": "reference/errors.md"},
                {"Compared": "compared.md"},
                {"Python": names},
            ]
        },
        {"Project": list(WRITTEN.values())},
    ]


def names_of(folder: str) -> str:
    return folder.partition("/")[2] or "trunk"


def on_files(files: Files, config: Any) -> Files:
    "Add every page that is made, and the menu."
    notebooks = load_notebooks(ROOT)
    anchors = {f: f"nbs/all.md#{reference.anchor(title)}" for f, title in FOLDERS.items()}
    drawings = {p.relative_to(ROOT).as_posix(): p for p in (ROOT / "nbs").rglob("*.svg")}
    pages.pages = {
        **WRITTEN,
        **anchors,
        **ELSEWHERE,
        **{n.source: n.page for n in notebooks},
        **{name: name for name in drawings},
    }
    made = {n.page: pages.markdown(n) for n in notebooks}
    made["nbs/all.md"] = overview(notebooks)
    made["reference/api.md"] = reference.api_page()
    made["reference/cli.md"] = reference.cli_page()
    made["reference/settings.md"] = reference.settings_page(ROOT)
    made["reference/errors.md"] = reference.errors_page()
    for folder in FOLDERS:
        if folder != "evals":
            name = f"reference/python/{names_of(folder)}.md"
            made[name] = reference.names_page(ROOT, folder, notebooks)
    for source, page in WRITTEN.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        made[page] = link_to(text, source, page, pages.pages)
    made["llms.txt"] = llms_txt(notebooks, config.site_description)
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    for name, path in drawings.items():
        files.append(File.generated(config, name, content=path.read_bytes()))
    config.nav = navigation(notebooks)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    "Put the sections of the README where a page of the guide asks for them."

    def section(match: re.Match[str]) -> str:
        found = re.search(rf"^## {re.escape(match[1])}\n(.*?)(?=^## |\Z)", readme, re.M | re.S)
        if found is None:
            raise SystemExit(f"docs: {page.file.src_uri} asks for {match[1]!r} of the README")
        return link_to(found[1].strip(), "README.md", page.file.src_uri, pages.pages)

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.sub(r"<!-- README: (.+?) -->", section, markdown)


def on_post_page(output: str, **_: Any) -> str:
    "Put the outputs of notebooks in their places."
    return pages.with_outputs(output)
