"""Let nbval compare the outputs of notebooks that nbdev cleaned.

`nbdev-clean` sets every execution count to null, so that commits show changes of content only.
nbval takes a cell without a count for one that never ran and fails it when it has an output.
"""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        cell = getattr(item, "cell", None)
        if cell is not None and cell.get("execution_count") is None:
            cell["execution_count"] = 1
