"""Refuse what cannot be exported, before anything is written.

nbdev copies exported cells as they are. A magic or a top-level `await` runs in the notebook and
breaks the module, and the export that then fails has already deleted `_modidx.py`.

    .ci/exportable.py nbs/12_gate.ipynb    # or folders
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from nbdev.process import NBProcessor

EXPORTS = {"export", "exporti", "exports", "exportd"}


def notebooks(paths: list[Path]) -> Iterator[Path]:
    "Yield the notebooks that these paths are or hold, in order."
    for path in paths:
        found = sorted(path.rglob("*.ipynb")) if path.is_dir() else [path]
        yield from (p for p in found if ".ipynb_checkpoints" not in p.parts)


def faults(notebook: Path) -> Iterator[str]:
    "Yield a line for each exported cell of a notebook that is not plain Python."
    try:
        cells = NBProcessor(notebook).nb.cells
    except (ValueError, KeyError, AttributeError) as error:
        yield f"{notebook} is not a notebook: {error}"
        return
    for number, cell in enumerate(cells, 1):
        if cell.cell_type != "code" or not EXPORTS & set(cell.directives_):
            continue
        try:
            compile(cell.source, str(notebook), "exec", dont_inherit=True)
        except SyntaxError as error:
            lines = cell.source.splitlines()
            text = lines[(error.lineno or 1) - 1].strip() if lines else ""
            yield (
                f"{notebook}, cell {number} ({cell.get('id', 'no id')}): `{text}` cannot be "
                f"exported ({error.msg}): move it to a cell without `#| export`, or correct it"
            )


def main(paths: list[Path]) -> int:
    "Print every fault; return 1 when there is one."
    found = [fault for notebook in notebooks(paths) for fault in faults(notebook)]
    for fault in found:
        print(f"export: {fault}; nothing was exported", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main([Path(word) for word in sys.argv[1:]]))
