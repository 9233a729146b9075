"""Write the reference from what it describes: routes, commands, settings, errors, public names."""

from __future__ import annotations

import ast
import configparser
import importlib
import inspect
import pkgutil
import re
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from notebooks import FOLDERS, Notebook

import support_rag


def cell(text: object) -> str:
    "Return text for one cell of a table."
    return " ".join(str(text).split()).replace("|", "\\|")


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    "Return a Markdown table without its empty columns; nothing where there are no rows."
    cells = [[cell(value) for value in row] for row in rows]
    used = [at for at in range(len(heads)) if any(row[at] for row in cells)]
    lines = [[heads[at] for at in used], ["---"] * len(used)]
    lines += [[row[at] for at in used] for row in cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if cells else ""


def anchor(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def heading(level: int, text: str) -> str:
    "Return a heading that is found by the anchor of its text."
    return f"{'#' * level} {text} {{ #{anchor(text)} }}"


def verbatim(text: object) -> str:
    "Return text as code, whatever it holds."
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", str(text))), default=0))
    return f"{fence}{text}{fence}" if fence == "`" else f"{fence} {text} {fence}"


def page(title: str, *parts: str) -> str:
    return "\n\n".join([f"# {title}", *(part for part in parts if part)]) + "\n"


# HTTP


def type_of(schema: Mapping[str, Any]) -> str:
    "Return a JSON schema in a few words, with links to the schemas it names."
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{anchor(name)})"
    for word in ("anyOf", "oneOf", "allOf"):
        if word in schema:
            return " or ".join(type_of(option) for option in schema[word])
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if schema.get("type") == "array":
        return f"list of {type_of(schema.get('items', {}))}"
    kind = schema.get("type", "anything")
    return f"{kind} ({schema['format']})" if "format" in schema else str(kind)


LIMITS = {"minimum": "≥", "maximum": "≤", "exclusiveMinimum": ">", "exclusiveMaximum": "<"}
SIZES = {"minLength": "≥ {} characters", "maxLength": "≤ {} characters",
         "minItems": "≥ {} items", "maxItems": "≤ {} items"}  # fmt: skip


def limits_of(schema: Mapping[str, Any]) -> str:
    told = [f"{sign} {schema[name]}" for name, sign in LIMITS.items() if name in schema]
    told += [form.format(schema[name]) for name, form in SIZES.items() if name in schema]
    if "pattern" in schema:
        told.append(verbatim(schema["pattern"]))
    if schema.get("default") is not None:
        told.append(f"default {verbatim(schema['default'])}")
    return ", ".join(told)


def field_rows(schema: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    for name, field in schema.get("properties", {}).items():
        told = f"`{name}`" + ("" if name in schema.get("required", ()) else " *optional*")
        yield told, type_of(field), limits_of(field), field.get("description", "")


def operation(path: str, method: str, told: Mapping[str, Any]) -> str:
    "Describe one route."
    parts = [heading(3, f"{method.upper()} {path}"), str(told.get("description", told["summary"]))]
    if not told.get("security"):
        parts.append("No sign-in is needed.")
    rows = [
        (f"`{p['name']}`", p["in"], type_of(p["schema"]), limits_of(p["schema"]),
         p.get("description", ""))
        for p in told.get("parameters", [])
    ]  # fmt: skip
    parts.append(table(("parameter", "in", "type", "limits", "meaning"), rows))
    bodies = told.get("requestBody", {}).get("content", {})
    for kind, body in bodies.items():
        schema = body.get("schema", {})
        parts.append(f"Body, `{kind}`: {type_of(schema)}")
        parts.append(table(("field", "type", "limits", "meaning"), field_rows(schema)))
    answers = []
    for status, answer in told["responses"].items():
        if status.startswith("2"):
            kinds = {k: type_of(v.get("schema", {})) for k, v in answer.get("content", {}).items()}
            bodies_told = "; ".join(f"`{kind}` {schema}" for kind, schema in kinds.items())
            answers.append((status, answer["description"], bodies_told))
    parts.append(table(("status", "meaning", "body"), answers))
    refused = [status for status in told["responses"] if status[0] in "45"]
    if refused:
        parts.append(f"Refusals, each a [Problem](#problem): {', '.join(refused)}.")
    return "\n\n".join(part for part in parts if part)


def api_page() -> str:
    "Describe every route and schema, from the application's own description."
    from support_rag.service.app import create_app
    from support_rag.state.settings import ServiceSettings

    told = create_app(ServiceSettings()).openapi()
    routes = [
        (path, method, op) for path, ops in told["paths"].items() for method, op in ops.items()
    ]
    rows = [
        (f"[`{method.upper()} {path}`](#{anchor(f'{method} {path}')})", op["summary"])
        for path, method, op in routes
    ]
    parts = [
        "The service describes itself at `/openapi.json`, and as a page at `/docs`. This page is "
        "made from the same description.",
        table(("route", "what it does"), rows),
    ]
    for tag in told["tags"]:
        parts.append(f"## {tag['name'].capitalize()}\n\n{tag['description']}")
        parts += [operation(*route) for route in routes if tag["name"] in route[2]["tags"]]
    parts.append("## Schemas")
    for name, schema in told["components"]["schemas"].items():
        fields = table(("field", "type", "limits", "meaning"), field_rows(schema))
        parts.append(f"{heading(3, name)}\n\n{schema.get('description', '')}\n\n{fields}")
    return page("HTTP API", *parts)


# The command line


def commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    "Yield every command below one, with all of its words."
    below = getattr(command, "commands", None)
    if not below:
        yield name, command
        return
    for word, sub in below.items():
        yield from commands(sub, f"{name} {word}")


def kind_of(annotation: Any) -> str:
    "Return a type as a reader of the command line or of `settings.ini` knows it."
    if typing.get_origin(annotation) is typing.Annotated:
        return kind_of(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) is typing.Literal:
        return " or ".join(f"`{choice}`" for choice in typing.get_args(annotation))
    if inside := [kind for kind in typing.get_args(annotation) if kind is not type(None)]:
        many = typing.get_origin(annotation) in (list, tuple)
        return " or ".join(kind_of(kind) for kind in inside) + (", several" if many else "")
    return {"str": "text", "Path": "path", "bool": "on or off"}.get(
        annotation.__name__, annotation.__name__
    )


def command_part(name: str, command: Any) -> str:
    "Describe one command."
    arguments, options = [], []
    for parameter in command.params:
        told = (kind_of(parameter.type_descriptor.annotation), getattr(parameter, "help", "") or "")
        if parameter.param_type_name == "argument":
            arguments.append((f"`{parameter.name.upper()}`", *told))
        else:
            default = parameter.default
            stated = "" if default in (None, False, (), "") or callable(default) else f"`{default}`"
            flags = ", ".join(f"`{word}`" for word in parameter.opts)
            options.append((flags, *told, stated))
    help_text = inspect.cleandoc(command.help or "").replace("\x0c", "")
    return "\n\n".join(
        part
        for part in (
            heading(3, name),
            help_text,
            table(("argument", "type", "meaning"), arguments),
            table(("option", "type", "meaning", "default"), options),
        )
        if part
    )


def cli_page() -> str:
    "Describe every command, from the commands themselves."
    import typer

    from support_rag.cli.main import app

    found = list(commands(typer.main.get_command(app), "support-rag"))
    groups: dict[str, list[tuple[str, Any]]] = {}
    for name, command in found:
        panel = getattr(command, "rich_help_panel", None)
        is_measuring = name.startswith("support-rag eval")
        title = panel if isinstance(panel, str) else "Measure" if is_measuring else "Run"
        groups.setdefault(title, []).append((name, command))
    parts = ["`support-rag --version` names the package; `-h` after any command explains it."]
    rows = [
        (f"[`{name}`](#{anchor(name)})", inspect.cleandoc(command.help or "").split("\n\n")[0])
        for name, command in found
    ]
    parts.append(table(("command", "what it does"), rows))
    for title, members in groups.items():
        parts.append(f"## {title}")
        parts += [command_part(name, command) for name, command in members]
    return page("Command line", *parts)


# Settings


def tuned_rows(section: Any, values: Mapping[str, str]) -> Iterator[tuple[str, str, str, str]]:
    for name, field in section.model_fields.items():
        limits = [f"{sign} {value}" for limit in field.metadata for sign, value in bounds(limit)]
        told = ", ".join([kind_of(field.annotation), *limits])
        yield f"`{name}`", f"`{values.get(name, field.default)}`", told, field.description or ""


def bounds(limit: Any) -> Iterator[tuple[str, Any]]:
    for name, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<")):
        if (value := getattr(limit, name, None)) is not None:
            yield sign, value


def settings_page(root: Path) -> str:
    "Describe the tuned parameters and the settings of a process, from their classes."
    from support_rag.release import Parameters
    from support_rag.state.settings import settings_table

    written = configparser.ConfigParser(interpolation=None)
    written.read(root / "settings.ini", encoding="utf-8")
    parts = [
        "Two kinds, kept apart: what is *tuned* decides the answers and is digested into the "
        "release id; what a *process* is told comes from the environment and decides no answer.",
        "## Tuned parameters",
        "They stand in `settings.ini` and nowhere else. `[chunk]` and `[embed]` shape the index: a "
        "change there needs a reindex. The rest acts on restart.",
    ]
    for name, field in Parameters.model_fields.items():
        section = field.annotation
        values = dict(written[name]) if written.has_section(name) else {}
        rows = tuned_rows(section, values)
        told = f"### [{name}]\n\n{inspect.cleandoc(section.__doc__ or '')}"
        parts += [told, table(("parameter", "value", "allowed", "meaning"), rows)]
    parts += ["## Process settings", "From the environment.", settings_table()]
    return page("Settings", *parts)


# Errors


def modules() -> Iterator[str]:
    "Yield the name of every exported module."
    for found in pkgutil.walk_packages(support_rag.__path__, "support_rag."):
        if not found.ispkg and ".migrations." not in found.name and "._" not in found.name:
            yield found.name


def errors_page() -> str:
    "List every error with its code and HTTP status, from the classes."
    from support_rag.service.catalogue import STATUS
    from support_rag.types import SupportRagError

    for name in modules():
        importlib.import_module(name)

    def below(error: type[SupportRagError], depth: int) -> Iterator[tuple[Any, int]]:
        yield error, depth
        for child in sorted(error.__subclasses__(), key=lambda c: c.__name__):
            yield from below(child, depth + 1)

    rows = [
        (f"`{error.code}`", STATUS.get(error.code, 500), f"{'– ' * depth}`{error.__name__}`",
         inspect.cleandoc(error.__doc__ or "").split("\n\n")[0])
        for error, depth in below(SupportRagError, 0)
    ]  # fmt: skip
    of_classes = {error.code for error, _ in below(SupportRagError, 0)}
    own = [(f"`{code}`", status) for code, status in STATUS.items() if code not in of_classes]
    return page(
        "Error codes",
        "Every refusal is `application/problem+json` (RFC 9457) with a `code` that does not "
        "change, a `detail` for people and a `request_id` that the log has too. Branch on `code`.",
        table(("code", "status", "class", "meaning"), rows),
        "## Codes of the HTTP layer",
        "What is refused before any of the code above runs.",
        table(("code", "status"), own),
    )


# Public names


def public_names(path: Path) -> Iterator[tuple[str, str, str]]:
    "Yield each name in `__all__` with its kind and the first sentence of its docstring."
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: dict[str, tuple[str, str]] = {}
    listed: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            kind = "class" if isinstance(node, ast.ClassDef) else "function"
            found[node.name] = (kind, (ast.get_docstring(node) or "").split("\n\n")[0])
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            listed = ast.literal_eval(node.value)
    for name in listed:
        yield name, *found.get(name, ("value", ""))


def names_page(root: Path, folder: str, notebooks: Sequence[Notebook]) -> str:
    "List the public names of one folder, each with a link to the cell that defines it."
    parts = []
    for notebook in notebooks:
        if notebook.folder != folder or not notebook.module:
            continue
        path = root / (notebook.module.replace(".", "/") + ".py")
        to = f"../../{notebook.page}"
        rows = [(f"[`{n}`]({to}#{n})", kind, told) for n, kind, told in public_names(path)]
        parts += [f"## {notebook.module}", f"{notebook.summary} [Notebook]({to})"]
        parts.append(table(("name", "kind", "what it is"), rows))
    return page(f"Python: {FOLDERS[folder]}", *parts)
