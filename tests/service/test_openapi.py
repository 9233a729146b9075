"""The description of the API that is committed is that of the code."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def committed() -> dict[str, Any]:
    return dict(json.loads((DOCS / "openapi.json").read_text(encoding="utf-8")))


def test_the_committed_description_is_that_of_the_code(committed: dict[str, Any]) -> None:
    spec = importlib.util.spec_from_file_location("openapi", DOCS / "openapi.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    now = json.loads(module.described())
    for part in ("paths", "components"):
        for name in {**committed[part], **now[part]}:
            assert committed[part].get(name) == now[part].get(name), f"{name}: run make openapi"
    assert committed == now, "run make openapi"


def test_operation_ids_are_names_that_clients_can_use(committed: dict[str, Any]) -> None:
    ids = [o["operationId"] for methods in committed["paths"].values() for o in methods.values()]
    assert len(set(ids)) == len(ids) >= 45
    assert all(one.isidentifier() for one in ids)
