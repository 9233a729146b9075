"""The command line does what the API does, over the same tables and the same queue."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from support_rag.cli.main import app
from support_rag.local.processes import spawn

BIN = Path(sys.executable).parent
PASSWORD = "correct horse battery"


class Terminal:
    "Runs `support-rag` as a user would, against the servers of the tests."

    def __init__(self, environ: dict[str, str], home: Path, email: str) -> None:
        self.environ, self.home, self.email = environ, home, email

    def run(self, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [BIN / "support-rag", *words], env=self.environ, cwd=self.home, input=stdin,
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    def ok(self, *words: str, stdin: str = "") -> str:
        done = self.run(*words, stdin=stdin)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def environ(servers: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    home = tmp_path_factory.mktemp("cli")
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SUPPORT_RAG_")}
    return clean | {
        "SUPPORT_RAG_HOME": str(home),
        "SUPPORT_RAG_DATABASE_URL": servers.app_url,
        "SUPPORT_RAG_REDIS_URL": servers.redis_url,
        "COLUMNS": "160",
        "TERM": "dumb",
    }


@pytest.fixture(scope="module")
def terminal(
    environ: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Terminal]:
    "A tenant of its own, and a worker that serves it."
    home = Path(environ["SUPPORT_RAG_HOME"])
    log = (home / "worker.log").open("wb")
    worker = spawn([str(BIN / "support-rag"), "worker"], output=log.fileno(), environ=environ)
    terminal = Terminal(environ, home, "cli@acme.example")
    said = terminal.ok("register", "Acme", terminal.email, "--password", PASSWORD)
    assert re.search(r"tenant [0-9a-f-]{36}: sign in as cli@acme.example", said)
    yield terminal
    worker.terminate()
    worker.wait(300)


@pytest.fixture(scope="module")
def ingested(terminal: Terminal) -> str:
    folder = terminal.home / "docs"
    (folder / "kiosk").mkdir(parents=True)
    (folder / "kiosk/offline.md").write_text(
        "# Offline\n\nThe kiosk keeps punches for 72 hours while it is offline."
    )
    (folder / "logo.png").write_bytes(b"\x89PNG")
    faq = folder.parent / "faq.jsonl"
    faq.write_text('{"id": "faq-1", "title": "PIN", "text": "A kiosk PIN has 4 digits."}\n')
    return terminal.ok("ingest", str(folder), str(faq), "--tenant", terminal.email)


def test_files_folders_and_jsonl_become_ready(terminal: Terminal, ingested: str) -> None:
    assert "2 ready, 0 failed; 2 chunks" in ingested
    assert "passed over" in ingested and "logo.png" in ingested
    again = terminal.ok("ingest", str(terminal.home / "faq.jsonl"), "--tenant", terminal.email)
    assert "1 ready, 0 failed" in again


def test_what_fails_is_named_with_its_reason(terminal: Terminal, ingested: str) -> None:
    broken = terminal.home / "broken.pdf"
    broken.write_bytes(b"%PDF-1.4 broken")
    done = terminal.run("ingest", str(broken), "--tenant", terminal.email)
    assert done.returncode == 1
    assert "failed: broken.pdf: " in done.stdout and "0 ready, 1 failed" in done.stdout


def test_search_and_ask_show_their_release(terminal: Terminal, ingested: str) -> None:
    found = terminal.ok("search", "kiosk PIN", "--tenant", terminal.email, "-k", "2")
    assert "A kiosk PIN has 4 digits" in found
    answer = terminal.ok(
        "ask", "How many digits does a kiosk PIN have?", "--tenant", terminal.email
    )
    assert "4 digits" in answer and "[1] PIN (faq-1, characters 0" in answer
    ids = [re.search(r"release ([0-9a-f]{16})", text) for text in (found, answer)]
    installed = re.search(r"release ([0-9a-f]{16})", terminal.ok("indexes"))
    assert installed is not None
    assert {match and match[1] for match in ids} == {installed[1]}


def test_reindex_finds_nothing_to_do(terminal: Terminal, ingested: str) -> None:
    assert "serves this release already" in terminal.ok("reindex", "--tenant", terminal.email)


def test_quotas_are_set_shown_and_cleared(terminal: Terminal) -> None:
    mine = ("--tenant", terminal.email)
    assert terminal.ok("quota", *mine).count("any number") == 4
    shown = terminal.ok("quota", "--messages", "1000", "--tokens", "none", *mine)
    assert re.search(r"messages\W+0\W+1000", shown) and shown.count("any number") == 3
    wrong = terminal.run("quota", "--bytes", "many", *mine)
    assert wrong.returncode == 1 and "many is no amount" in wrong.stderr
    assert terminal.ok("quota", "--clear", *mine).count("any number") == 4


def test_settings_hide_their_secrets(terminal: Terminal) -> None:
    shown = terminal.ok("settings")
    assert "SUPPORT_RAG_REDIS_URL" in shown
    for url in (
        terminal.environ["SUPPORT_RAG_DATABASE_URL"],
        terminal.environ["SUPPORT_RAG_REDIS_URL"],
    ):
        assert url not in shown


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["ask", "x", "--tenant", "nobody@nowhere.example"], "nobody signs in as nobody@nowhere"),
        (["ask", "x", "--tenant", "00000000-0000-4000-8000-000000000000"], "no such tenant"),
        (["ask", "x", "--tenant", "Acme"], "an id that is no uuid names nothing"),
        (["ingest", "nothing-here"], "nothing-here does not exist"),
        (["register", "Again", "cli@acme.example", "--password", PASSWORD], "registered already"),
    ],
)
def test_a_fault_is_one_line_on_standard_error(
    terminal: Terminal, words: list[str], line: str
) -> None:
    done = terminal.run(*words)
    assert done.returncode == 1
    assert line in done.stderr and done.stderr.startswith("support-rag: ")
    assert len(done.stderr.strip().splitlines()) == 1


def test_an_unknown_setting_is_refused(terminal: Terminal) -> None:
    environ = terminal.environ | {"SUPPORT_RAG_POOLSIZE": "3"}
    done = Terminal(environ, terminal.home, "").run("settings")
    assert done.returncode == 1 and "did you mean SUPPORT_RAG_POOL_SIZE?" in done.stderr


def test_help_teaches_each_command(terminal: Terminal) -> None:
    def said(*words: str) -> str:
        return str(CliRunner().invoke(app, words, env={"COLUMNS": "160", "TERM": "dumb"}).output)

    names = re.findall(r"^│ (\w[\w-]*)", terminal.ok("--help"), re.M)
    assert len(names) > 10
    for name in names:
        assert "Usage:" in said(name, "-h"), name
        assert said(name, "--help") == said(name, "-h")


def test_the_version_is_the_one_of_the_package(terminal: Terminal) -> None:
    assert terminal.ok("--version") == f"support-rag {version('support-rag')}\n"
