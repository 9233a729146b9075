"""The documentation builds offline, has no dead link, and has a page for everything public."""

import ast
import json
import os
import posixpath
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import typer

from support_rag.cli.main import app as cli
from support_rag.release import Parameters
from support_rag.service.app import create_app
from support_rag.service.catalogue import STATUS
from support_rag.state.settings import ServiceSettings, variable

ROOT = Path(__file__).parent.parent
MKDOCS = Path(sys.executable).parent / "mkdocs"
LOADS = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}


CONFIG = ROOT / "docs" / "mkdocs.yml"


def build(to: Path, config: Path = CONFIG) -> subprocess.CompletedProcess[str]:
    "Build the site as `make docs` does."
    return subprocess.run(
        [MKDOCS, "build", "--strict", "-f", config, "-d", to],
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "no_proxy": "*"},
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip


class Page(HTMLParser):
    "What a page links to, loads and can be jumped to."

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        if "id" in told:
            self.ids.add(str(told["id"]))
        if tag == "a" and told.get("href"):
            self.links.append(str(told["href"]))
        if told.get("rel") not in ("canonical", "prev", "next") and told.get(LOADS.get(tag, "")):
            self.loads.append(str(told[LOADS[tag]]))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    found = site.rglob("*.html")
    return {p.relative_to(site).as_posix(): Page(p.read_text(encoding="utf-8")) for p in found}


def test_every_notebook_has_a_page(site: Path) -> None:
    notebooks = [p for top in ("nbs", "evals") for p in (ROOT / top).rglob("*.ipynb")]
    notebooks = [p.relative_to(ROOT) for p in notebooks if ".ipynb_checkpoints" not in p.parts]
    assert len(notebooks) > 50
    assert [n for n in notebooks if not (site / n.with_suffix(".html")).exists()] == []


def test_outputs_are_shown_as_committed(site: Path) -> None:
    text = "".join(p.read_text(encoding="utf-8") for p in (site / "nbs").glob("*.html"))
    assert "<!-- output" not in text and text.count('class="output"') > 50


def public_names() -> list[tuple[str, str]]:
    "Return the module and each name in its `__all__`."
    found = []
    for path in sorted((ROOT / "support_rag").rglob("*.py")):
        module = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                found += [(module, name) for name in ast.literal_eval(node.value)]
    return found


def test_every_public_name_is_listed_and_leads_to_its_cell(
    site: Path, pages: dict[str, Page]
) -> None:
    listed = {
        f"{link.rpartition('/nbs/')[2]}"
        for name, page in pages.items()
        if name.startswith("reference/python/")
        for link in page.links
    }
    exported_by = {}
    for notebook in (ROOT / "nbs").rglob("*.ipynb"):
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        for cell in cells:
            if match := re.match(r"#\|\s*default_exp\s+(\S+)", "".join(cell["source"])):
                page = notebook.relative_to(ROOT / "nbs").with_suffix(".html").as_posix()
                exported_by[f"support_rag.{match[1]}"] = page
    names = public_names()
    assert len(names) > 500
    without = [
        f"{module}.{name}"
        for module, name in names
        if f"{exported_by[module]}#{name}" not in listed
        or name not in pages[f"nbs/{exported_by[module]}"].ids
    ]
    assert without == []


def test_every_command_route_setting_and_error_is_described(site: Path) -> None:
    def text_of(name: str) -> str:
        return (site / "reference" / f"{name}.html").read_text(encoding="utf-8")

    api, commands = text_of("api"), text_of("cli")
    told = create_app(ServiceSettings()).openapi()
    for path, methods in told["paths"].items():
        for method in methods:
            assert f">{method.upper()} {path}<" in api, (method, path)
    for name in told["components"]["schemas"]:
        assert f'id="{re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")}"' in api, name
    group = typer.main.get_command(cli)
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        for words in [f"{name} {sub}" for sub in getattr(command, "commands", ())] or [name]:
            assert f">support-rag {words}<" in commands, words
    settings = text_of("settings")
    for name in ServiceSettings.model_fields:
        assert variable(name) in settings, name
    for section in Parameters.model_fields.values():
        for name in section.annotation.model_fields:  # type: ignore[union-attr]
            assert f"<code>{name}</code>" in settings, name
    assert [code for code in STATUS if f"<code>{code}</code>" not in text_of("errors")] == []


def test_nothing_is_loaded_from_the_network(site: Path, pages: dict[str, Page]) -> None:
    for name, page in pages.items():
        outside = [url for url in page.loads if urlsplit(url).scheme in ("http", "https")]
        assert not outside and not any(url.startswith("//") for url in page.loads), (name, outside)
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet


def test_every_link_leads_somewhere(site: Path, pages: dict[str, Page]) -> None:
    dead = set()
    for name, page in pages.items():
        if name == "404.html":
            continue  # its links are absolute: it is shown for any address
        for url in (*page.links, *page.loads):
            parts = urlsplit(url)
            if parts.scheme or not (parts.path or parts.fragment):
                continue
            to = posixpath.normpath(posixpath.join(posixpath.dirname(name), unquote(parts.path)))
            target = name if not parts.path else to
            anchor = unquote(parts.fragment)
            if not (site / target).exists():
                dead.add(f"{name}: {url}")
            elif anchor and target in pages and anchor not in pages[target].ids:
                dead.add(f"{name}: {url} (no such place)")
    assert sorted(dead) == []


def test_programs_find_every_module(site: Path) -> None:
    listed = (site / "llms.txt").read_text(encoding="utf-8")
    assert {m for m, _ in public_names() if f"[{m}](" not in listed} == set()


def test_a_planted_dead_link_fails_the_build(tmp_path: Path) -> None:
    (tmp_path / "pages").mkdir()
    text = CONFIG.read_text(encoding="utf-8")
    (tmp_path / "mkdocs.yml").write_text(text.replace("hooks: [hooks.py]\n", ""))
    (tmp_path / "pages" / "index.md").write_text("[there](nowhere.md)")
    done = build(tmp_path / "site", tmp_path / "mkdocs.yml")
    assert done.returncode == 1 and "nowhere.md" in done.stdout + done.stderr
    (tmp_path / "pages" / "index.md").write_text("[there](#nowhere)")
    assert build(tmp_path / "site", tmp_path / "mkdocs.yml").returncode == 1
    (tmp_path / "pages" / "index.md").write_text("# Here\n\n[here](#here)")
    assert build(tmp_path / "site", tmp_path / "mkdocs.yml").returncode == 0
