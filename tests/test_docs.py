"""The README is checked: every command, setting, route and notebook it should name, it names."""

import re
from pathlib import Path

import pytest
import typer

from support_rag.cli.main import app as cli
from support_rag.service.app import create_app
from support_rag.state.settings import ServiceSettings, settings_table

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def command_names() -> list[str]:
    group = typer.main.get_command(cli)
    names = []
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        below = getattr(command, "commands", None)
        names += [f"{name} {sub}" for sub in below] if below else [name]
    return names


@pytest.mark.parametrize("name", command_names())
def test_every_command_is_in_the_readme(name: str) -> None:
    assert re.search(rf"`(support-rag )?{name}\b", README), f"README does not name `{name}`"


def test_the_table_of_settings_is_the_class() -> None:
    between = re.search(r"<!-- settings -->\n(.*?)<!-- /settings -->", README, re.S)
    assert between is not None
    assert between[1] == settings_table(), "paste what `support-rag settings --markdown` prints"


def test_every_route_is_in_the_readme() -> None:
    schema = create_app(ServiceSettings()).openapi()
    for path, methods in schema["paths"].items():
        for method in methods:
            shown = re.sub(r"\{\w+\}", "{id}", path)
            assert f"`{method.upper()} {shown}`" in README, (method, path)


def test_every_folder_is_on_the_map_and_every_link_leads_somewhere() -> None:
    for folder in {path.parent for path in (ROOT / "nbs").rglob("[0-9]*.ipynb")}:
        assert f"({folder.relative_to(ROOT).as_posix()}/)" in README, f"the map lacks {folder.name}"
    for notebook in (ROOT / "evals").glob("*.ipynb"):
        assert f"(evals/{notebook.name})" in README, f"the map lacks {notebook.name}"
    for target in re.findall(r"\]\((?!https?:|#)([^)]+)\)", README):
        assert (ROOT / target.partition("#")[0]).exists(), f"README links to {target}"


def test_the_two_commands_are_targets() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"\bmake ([a-z]+)\b", README)):
        assert re.search(rf"^{target}:", makefile, re.M), f"README names make {target}"


def test_top_level_is_the_fixed_one() -> None:
    fixed = {"nbs", "support_rag", "evals", "data", "settings.ini", "pyproject.toml",
             "docker-compose.yml", "README.md"}  # fmt: skip
    assert fixed <= {p.name for p in ROOT.iterdir()}
