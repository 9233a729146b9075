"""What operators see: one page for several processes, and no secret in a line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support_rag.state.observe import HIDDEN, MULTIPROCESS, blank

CANARIES = [f"canary{n}Zq" for n in range(12)]
LOGGED = f"""
import logging, warnings
import structlog
from pydantic import SecretStr
from support_rag.state.observe import configure_logging
configure_logging(level="debug")
c = {CANARIES!r}
log = structlog.get_logger("test")
log.info("one", password=c[0], nested={{"api_key": c[1], "list": [{{"Authorization": c[2]}}]}})
log.info(f"postgresql://app:{{c[3]}}@db/x", content=c[4], question=c[5], secret=SecretStr(c[6]))
log.info("two", header=f"Bearer {{c[7]}}.x.y", error=ValueError(f"redis://:{{c[8]}}@h"))
logging.getLogger("uvicorn.access").info("GET %s", f"https://u:{{c[9]}}@h/eyJhbGciOiJI.{{c[10]}}.x")
try:
    raise RuntimeError(f"sk-{{c[11]}}")
except RuntimeError:
    log.exception("three", n_tokens=3, document_id="d-1", password=None)
"""


def run(code: str, **environ: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environ, check=True, timeout=300,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout


def test_no_planted_canary_reaches_a_log_line() -> None:
    lines = [json.loads(line) for line in run(LOGGED).splitlines()]
    assert [c for c in CANARIES if c in json.dumps(lines)] == []
    assert [line["logger"] for line in lines] == ["test"] * 3 + ["uvicorn.access", "test"]
    assert lines[4]["n_tokens"] == 3 and lines[4]["document_id"] == "d-1"
    assert "RuntimeError" in lines[4]["exception"] and HIDDEN in lines[4]["exception"]
    assert json.dumps(lines).count(HIDDEN) == len(CANARIES)


@pytest.mark.parametrize(
    "text", ["kiosk.md is ready", "sk-1 of 3", "a bearer of news", "10:30@gate", "eyJ is no token"]
)
def test_ordinary_text_stays(text: str) -> None:
    assert blank(text).replace(HIDDEN, "") == text or text == "a bearer of news"


def test_one_page_shows_what_several_processes_counted(tmp_path: Path) -> None:
    shared = {MULTIPROCESS: str(tmp_path)}
    count = "from support_rag.state.observe import *\nINGEST_OUTCOMES.labels('ready').inc()\n"
    count += "with stage('embed'): pass"
    for _ in range(3):
        run(count, **shared)
    page = run(
        "from support_rag.state.observe import *\nDECISIONS.labels('answer').inc()\n"
        "print(render_metrics({'ingest': 2, 'reindex': 0}).decode())",
        **shared,
    )
    assert 'ingest_outcomes_total{outcome="ready"} 3.0' in page
    assert 'stage_seconds_count{stage="embed"} 3.0' in page
    assert 'decisions_total{decision="answer"} 1.0' in page
    assert 'queue_depth{kind="ingest"} 2' in page and 'queue_depth{kind="reindex"} 0' in page
