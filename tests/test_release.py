"""Whatever can change an answer changes the release id, and nothing else does."""

from __future__ import annotations

import ast
import configparser
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import support_rag
from support_rag.release import (
    ANSWER_MODULES,
    INDEX_MODULES,
    NUMERIC_LIBRARIES,
    Parameters,
    answer_digest,
    digest,
    index_digest,
    load_parameters,
    load_release,
    resource,
    source_digest,
)
from support_rag.types import SettingsInvalid

PACKAGE = Path(support_rag.__file__).parent
# on the path of an answer, and without influence on it: the digest itself, and the connection
NOT_DIGESTED = {"release", "db", "settings"}


def imports_of(module: str) -> set[str]:
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module)
    names = {node.module.removeprefix("support_rag.") for node in nodes}
    return {name for name in names if (PACKAGE / f"{name}.py").is_file()}


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
    on_the_way = reached_from("pipeline", "pgindex")
    assert on_the_way <= {*INDEX_MODULES, *ANSWER_MODULES}
    while_asking = on_the_way - {"parse", "draft", "html", "office"}
    assert while_asking == set(ANSWER_MODULES), "what runs for a question is in the answer digest"


def test_every_library_that_computes_numbers_or_text_is_digested() -> None:
    used: set[str] = set()
    for module in {*INDEX_MODULES, *ANSWER_MODULES}:
        for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
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
    sources = {name: (PACKAGE / f"{name}.py").read_text() for name in names}
    versions = {"numpy": "2"}

    def digests(changed: dict[str, str]) -> tuple[str, str]:
        found = {name: source_digest(text) for name, text in {**sources, **changed}.items()}
        pair = (index_digest, answer_digest)
        first, second = (make(parameters, found, versions) for make in pair)
        return first, second

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
            "k": 9, "candidates": 51, "fusion": "weighted", "rrf_k": 61, "dense_weight": 0.51,
            "bm25_k1": 1.3, "bm25_b": 0.7,
        },
        "prompt": {
            "version": "x", "context_tokens": 1601, "history_tokens": 601, "summary_every": 7,
        },
        "generate": {
            "generator": "openai", "model": "x", "max_tokens": 401, "temperature": 0.1,
            "max_sentences": 5,
        },
        "gate": {"answer_threshold": 0.61, "abstain_threshold": 0.39, "dense_weight": 0.51},
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
        ({"gate": {"abstain_threshold": 0.9}}, "above answer_threshold"),
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
