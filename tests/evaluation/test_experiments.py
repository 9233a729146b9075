"""A sweep goes on in its kernel when nobody listens, and is opened again elsewhere."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from jupyter_client.manager import KernelManager

from support_rag.evaluation.experiments import read_states, reopen
from support_rag.evaluation.labels import load_labels, sample
from support_rag.evaluation.runs import list_runs
from support_rag.release import resource
from support_rag.types import NotFound
from tests.local.test_up import until

CELL = """
from concurrent.futures import ThreadPoolExecutor
from support_rag.evaluation.cache import silent
from support_rag.evaluation.experiments import experiment
from support_rag.evaluation.labels import load_labels, sample
from support_rag.release import Parameters, resource
labels = sample(load_labels(resource("data/help_centre")), 40, distractors=6)
base = Parameters().with_(embed={"model": "hashing-64"})
found = experiment({"chunk.size_tokens": [64, 100]}, labels, name="sizes", base=base,
                   executor=ThreadPoolExecutor(1), progress=silent)
"""


def test_a_closed_tab_loses_nothing(tmp_path: Path) -> None:
    kernel = KernelManager(kernel_name="python3")
    kernel.start_kernel(env={**os.environ, "SUPPORT_RAG_HOME": str(tmp_path)})
    try:
        tab = kernel.blocking_client()
        tab.start_channels()
        tab.wait_for_ready(timeout=120)
        tab.execute(CELL)
        tab.stop_channels()
        runs = tmp_path / "runs"
        until(lambda: [s for s in read_states(runs) if s.state != "running"], what="the sweep")
    finally:
        kernel.shutdown_kernel(now=True)
    [state] = read_states(runs)
    assert (state.state, state.error) == ("finished", ""), state
    labels = sample(load_labels(resource("data/help_centre")), 40, distractors=6)
    found = reopen("sizes", labels, folder=runs)
    assert [m.name for m in found.measured] == [
        "present", "chunk.size_tokens=64", "chunk.size_tokens=100",
    ]  # fmt: skip
    assert len(list_runs([runs]).runs) == 3 and found.frame["recall"].notna().any()

    path = runs / "sizes/.experiment.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"state": "running"}))
    with pytest.raises(NotFound, match="no result yet: sizes is running"):
        reopen("sizes", labels, folder=runs)
