"""Whatever can change an answer changes the release id, and nothing else does."""

from __future__ import annotations

import ast
import configparser
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import support_rag
from support_rag.release import (
    ANSWER_MODULES,
    INDEX_MODULES,
    NUMERIC_LIBRARIES,
    GenerateParameters,
    Parameters,
    Writer,
    answer_digest,
    index_digest,
    load_parameters,
    load_release,
    read_facts,
    release_of,
    resource,
    writer_of,
)
from support_rag.sources import digest, read_learned, source_digest
from support_rag.types import SettingsInvalid

PACKAGE = Path(support_rag.__file__).parent
# on the path of an answer, and without influence on it: the digest itself, and the connection
NOT_DIGESTED = {"release", "sources", "state.tables", "state.database"}


def file_of(module: str) -> Path:
    return PACKAGE / f"{module.replace('.', '/')}.py"


def imports_of(module: str) -> set[str]:
    "Return the modules of the package that a module imports; `from .x` counts from its folder."
    tree = ast.parse(file_of(module).read_text())
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module)
    names = set()
    for node in nodes:
        above = module.split(".")[: -node.level] if node.level else []
        names.add(".".join([*above, node.module.removeprefix("support_rag.")]))
    return {name for name in names if file_of(name).is_file()}


def reached_from(*modules: str) -> set[str]:
    reached: set[str] = set()
    waiting = list(modules)
    while waiting:
        if (module := waiting.pop()) not in reached | NOT_DIGESTED:
            reached.add(module)
            waiting += imports_of(module)
    return reached


def test_every_module_that_makes_an_answer_is_digested() -> None:
    assert reached_from("parse", "chunk", "embed") == set(INDEX_MODULES)
    on_the_way = reached_from("pipeline", "state.pgindex")
    assert on_the_way <= {*INDEX_MODULES, *ANSWER_MODULES}
    formats = {name for name in on_the_way if name.startswith("formats.")}
    reading = {"parse"} | (formats - {"formats.leads"})
    while_asking = on_the_way - reading
    assert while_asking == set(ANSWER_MODULES), "what runs for a question is in the answer digest"


def test_every_library_that_computes_numbers_or_text_is_digested() -> None:
    used: set[str] = set()
    for module in {*INDEX_MODULES, *ANSWER_MODULES}:
        for node in ast.walk(ast.parse(file_of(module).read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                used.add(str(node.module).partition(".")[0])
            elif isinstance(node, ast.Import):
                used |= {name.name.partition(".")[0] for name in node.names}
    packages = {
        "Stemmer": "pystemmer", "docx": "python-docx", "markdown_it": "markdown-it-py",
        "charset_normalizer": "charset-normalizer",
    }  # fmt: skip
    no_numbers = {"openai", "pydantic", "sqlalchemy", "psycopg", "support_rag"}
    ours = {packages.get(name, name) for name in used - set(sys.stdlib_module_names) - no_numbers}
    assert ours == set(NUMERIC_LIBRARIES)


def test_one_edited_line_changes_the_id_and_a_comment_does_not() -> None:
    parameters = load_parameters()
    names = {*INDEX_MODULES, *ANSWER_MODULES}
    sources = {name: file_of(name).read_text() for name in names}
    versions = {"numpy": "2"}

    def digests(changed: dict[str, str]) -> tuple[str, str]:
        found = {name: source_digest(text) for name, text in {**sources, **changed}.items()}
        first = index_digest(parameters, found, versions)
        return first, answer_digest(parameters, found, versions, {})

    before = digests({})
    for name in names:
        assert digests({name: sources[name] + "\n# a comment\n\n"}) == before
        index, answer = digests({name: sources[name] + "\nx = 1\n"})
        assert (index != before[0]) == (name in INDEX_MODULES)
        assert (answer != before[1]) == (name in ANSWER_MODULES)


def test_every_parameter_changes_one_half() -> None:
    changes = {
        "chunk": {"mode": "fixed", "size_tokens": 300, "overlap_tokens": 1},
        "embed": {"model": "hashing-256"},
        "retrieve": {
            "k": 9, "candidates": 51, "fusion": "rrf", "rrf_k": 61, "dense_weight": 0.51,
            "bm25_k1": 1.3, "bm25_b": 0.7,
        },
        "prompt": {
            "version": "x", "context_tokens": 1601, "history_tokens": 601, "summary_every": 7,
        },
        "generate": {
            "generator": "openai", "model": "x", "max_tokens": 401, "temperature": 0.1,
            "max_sentences": 5,
        },
        "gate": {
            "answer_risk": 0.5, "answer_threshold": 0.61, "abstain_threshold": 0.39,
        },
    }  # fmt: skip
    parameters = Parameters()
    assert {name: set(values) for name, values in changes.items()} == {
        name: set(section) for name, section in parameters.model_dump().items()
    }
    before = load_release(parameters)
    for section, values in changes.items():
        for name, value in values.items():
            after = load_release(parameters.with_(**{section: {name: value}}))
            shapes_index = section in ("chunk", "embed")
            assert (after.index_digest != before.index_digest) == shapes_index, name
            assert (after.answer_digest != before.answer_digest) == (not shapes_index), name
            assert after.id != before.id


def test_settings_ini_writes_down_every_parameter() -> None:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string(resource("settings.ini").read_text())
    written = {section: set(parser[section]) for section in parser.sections()}
    assert written == {name: set(section) for name, section in Parameters().model_dump().items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chunk": {"size_tokens": 15}}, r"\[chunk\] size_tokens.*got 15"),
        ({"chunk": {"overlap_tokens": 101}}, "at most half of size_tokens"),
        ({"retrieve": {"k": 51}}, r"at least k \(51\)"),
        ({"gate": {"abstain_threshold": 0.9, "answer_threshold": 0.8}}, "above answer_threshold"),
        ({"gate": {"answer_threshold": float("nan")}}, "answer_threshold"),
        ({"generate": {"model_name": "x"}}, "model_name"),
        ({"chnk": {"size_tokens": 100}}, "chnk"),
    ],
)
def test_what_cannot_work_is_refused(change: dict[str, dict[str, object]], message: str) -> None:
    with pytest.raises(SettingsInvalid, match=message):
        Parameters().with_(**change)


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=5))
def test_digests_ignore_the_order_of_keys(content: dict[str, object]) -> None:
    assert digest(content) == digest(dict(reversed(content.items())))
    assert len(digest(content)) == 16


# --- each input in turn


def changed_inputs() -> dict[str, tuple[dict[str, Any], str]]:
    """Return name of the input → what to replace in `facts`, and which half it changes."""
    facts = read_facts()
    found: dict[str, tuple[dict[str, Any], str]] = {}
    for name in facts.sources:
        halves = {"index": name in INDEX_MODULES, "answer": name in ANSWER_MODULES}
        half = "both" if all(halves.values()) else next(h for h, is_in in halves.items() if is_in)
        found[f"code of {name}"] = ({"sources": {**facts.sources, name: "edited"}}, half)
    for name in facts.versions:
        found[f"version of {name}"] = ({"versions": {**facts.versions, name: "0"}}, "both")
    found["a calibration"] = ({"learned": {**facts.learned, "calibration.json": "0"}}, "answer")
    return found


@pytest.mark.parametrize("name", changed_inputs())
def test_each_input_changes_the_id(name: str) -> None:
    parameters, facts, writer = Parameters(), read_facts(), Writer()
    change, half = changed_inputs()[name]
    before = release_of(parameters, facts, writer=writer)
    after = release_of(parameters, replace(facts, **change), writer=writer)
    assert after.id != before.id
    assert (after.index_digest != before.index_digest) == (half in ("index", "both"))
    assert (after.answer_digest != before.answer_digest) == (half in ("answer", "both"))


def test_whoever_writes_has_an_id_of_its_own() -> None:
    auto, pinned = GenerateParameters(), GenerateParameters(generator="openai")
    writers = [
        writer_of(auto, has_endpoint=False),
        writer_of(auto, has_endpoint=True),
        writer_of(auto.model_copy(update={"model": "other"}), has_endpoint=True),
        writer_of(GenerateParameters(generator="replay"), has_endpoint=True),
        Writer("openai", auto.model, "the server's own name"),
        Writer("openai", auto.model, "the server's next name"),
        Writer("replay", "other recordings"),
    ]
    ids = {load_release(writer=writer).id for writer in writers}
    assert len(ids) == len(writers)
    assert writer_of(pinned, has_endpoint=False) == writer_of(pinned, has_endpoint=True)


def test_what_was_learned_changes_the_id_and_the_corpus_does_not(tmp_path: Path) -> None:
    (tmp_path / "help_centre").mkdir()
    (tmp_path / "releases" / "x").mkdir(parents=True)
    weights = tmp_path / "rankers" / "weights.npz"
    weights.parent.mkdir()
    weights.write_bytes(b"1")
    before = read_learned(tmp_path)
    assert list(before) == ["rankers/weights.npz"]
    for name in ("help_centre/qrels.tsv", "releases/x/entry.json", "README.md", ".hidden"):
        (tmp_path / name).write_text("anything")
        assert read_learned(tmp_path) == before
    weights.write_bytes(b"2")
    assert read_learned(tmp_path) != before


@pytest.mark.parametrize("module", sorted({*INDEX_MODULES, *ANSWER_MODULES}))
def test_prose_layout_and_order_do_not_matter(module: str) -> None:
    source = file_of(module).read_text()
    tree = ast.parse(source)
    same = ast.unparse(tree)  # other quotes, brackets and line breaks, and no comments
    assert source_digest(same) == source_digest(source)
    defined = [n for n in tree.body if isinstance(n, ast.FunctionDef) and not n.decorator_list]
    if len(defined) > 1:
        tree.body.remove(defined[0])
        tree.body.append(defined[0])
        defined[-1].body.insert(0, ast.Expr(ast.Constant("Another docstring.")))
        moved = ast.unparse(ast.fix_missing_locations(tree))
        assert source_digest(moved) == source_digest(source)


def test_an_order_that_may_matter_does() -> None:
    def differ(first: str, second: str) -> bool:
        return source_digest(f"{first}\n{second}\n") != source_digest(f"{second}\n{first}\n")

    assert differ("a = 1", "a = 2")
    assert differ("def f(): return 1", "def f(): return 2")
    assert differ("first()", "second()")
    assert differ("@rules.add\ndef f(): return 1", "@rules.add\ndef g(): return 2")
    assert not differ("def f(): return 1", "def g(): return f()")
    assert source_digest("class A:\n    x: int\n    y: int\n") != source_digest(
        "class A:\n    y: int\n    x: int\n"
    ), "the order of fields"


def test_no_sum_of_floats_depends_on_the_version_of_python() -> None:
    """From 3.12 on, `sum` of floats is compensated: digested code adds them with `fsum`."""
    for module in {*INDEX_MODULES, *ANSWER_MODULES}:
        for node in ast.walk(ast.parse(file_of(module).read_text())):
            called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            if called and node.func.id == "sum" and isinstance(node.args[0], ast.GeneratorExp):
                added = node.args[0].elt
                is_product = isinstance(added, ast.BinOp) and not isinstance(added.op, ast.Mod)
                weighs = {"weight", "worth", "idf", "score"} & {
                    n.id for n in ast.walk(added) if isinstance(n, ast.Name)
                }
                assert not is_product and not weighs, f"{module}:{node.lineno} adds floats"
