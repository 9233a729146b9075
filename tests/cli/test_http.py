"""Commands that use the service go through its API, as whoever is signed in or with a key."""

import json
import os
import re
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support_rag.client.api import Client
from support_rag.client.transport import Unreachable
from support_rag.local.processes import spawn
from support_rag.local.servers import Running, free_port

BIN = Path(sys.executable).parent
PASSWORD = "correct horse battery"
ADA = "ada@http.example"
KIOSK = "# Offline\n\nThe kiosk keeps punches for 72 hours while it is offline."
QUESTION = "How long does the kiosk keep punches while it is offline?"


class Terminal:
    "Runs `support-rag` in a home of its own, as a user would."

    def __init__(self, environ: dict[str, str], home: Path, url: str) -> None:
        self.environ, self.home, self.url = environ | {"SUPPORT_RAG_HOME": str(home)}, home, url

    def run(self, *words: str, stdin: str = "", **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [BIN / "support-rag", *words], env=self.environ | more, cwd=self.home, input=stdin,
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    def ok(self, *words: str, stdin: str = "", **more: str) -> str:
        done = self.run(*words, stdin=stdin, **more)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def json(self, *words: str) -> Any:
        return json.loads(self.ok(*words, "--json"))

    def refused(self, *words: str, stdin: str = "", **more: str) -> str:
        done = self.run(*words, stdin=stdin, **more)
        assert done.returncode == 1, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr


@pytest.fixture(scope="module")
def environ() -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SUPPORT_RAG_")}
    return clean | {"COLUMNS": "200", "TERM": "dumb", "NO_PROXY": "*"}


@pytest.fixture(scope="module")
def url(
    servers: Running, environ: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    "The service and a worker, as a deployment runs them."
    home, port = tmp_path_factory.mktemp("service"), free_port()
    told = {"HOME": str(home), "DATABASE_URL": servers.app_url, "REDIS_URL": servers.redis_url}
    deployed = environ | {f"SUPPORT_RAG_{name}": value for name, value in told.items()}
    log = (home / "log").open("wb")
    commands = (["serve", "--port", str(port)], ["worker"])
    running = [
        spawn([str(BIN / "support-rag"), *words], output=log.fileno(), environ=deployed)
        for words in commands
    ]
    address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 240
    while True:
        try:
            Client(address).get_health()
            break
        except Unreachable:
            assert time.monotonic() < deadline, (home / "log").read_text()
            time.sleep(0.2)
    Client(address).register_tenant(tenant_name="Acme", email=ADA, password=PASSWORD)
    yield address
    for process in running:
        process.terminate()
    for process in running:
        process.wait(300)


@pytest.fixture(scope="module")
def ada(environ: dict[str, str], url: str, tmp_path_factory: pytest.TempPathFactory) -> Terminal:
    "Who owns a tenant with one document, and is signed in."
    terminal = Terminal(environ, tmp_path_factory.mktemp("ada"), url)
    said = terminal.ok("login", ADA, "--url", url, stdin=f"{PASSWORD}\n")
    assert f"signed in as {ADA} at {url}" in said
    (terminal.home / "docs").mkdir()
    (terminal.home / "docs/offline.md").write_text(KIOSK)
    (terminal.home / "docs/logo.png").write_bytes(b"\x89PNG")
    added = terminal.ok("documents", "add", "docs", "--tag", "setup", "--filter", "product=kiosk")
    assert "1 ready, 0 failed; 1 chunks" in added and "passed over" in added
    return terminal


def test_the_sign_in_is_kept_for_its_owner_alone(ada: Terminal) -> None:
    assert stat.S_IMODE((ada.home / "signed_in.json").stat().st_mode) == 0o600
    assert f"{ADA} (owner) of Acme at {ada.url}" in ada.ok("whoami")
    assert ada.json("whoami")["user"]["email"] == ADA


def test_search_prints_hits_with_both_ranks(ada: Terminal) -> None:
    shown = ada.ok("search", "kiosk offline", "-k", "1")
    assert "72 hours" in shown and re.search(r"release [0-9a-f]{16}", shown)
    found = ada.json("search", "kiosk offline", "--filter", "product=kiosk", "--tag", "setup")
    assert found["hits"][0]["ranks"] == {"dense": 1, "lexical": 1}
    assert ada.json("search", "kiosk offline", "--tag", "none")["hits"] == []


def test_a_question_is_answered_and_kept(ada: Terminal) -> None:
    shown = ada.ok("ask", QUESTION)
    assert "72 hours" in shown and "[1] Offline (offline.md, characters" in shown
    named = re.search(r"go on: support-rag ask --conversation (\S+)", shown)
    assert named is not None
    more = ada.json("ask", "And then?", "--conversation", named[1])
    assert (more["conversation_id"], more["seq"]) == (named[1], 4)
    kept = ada.ok("conversations", "show", named[1])
    assert f"? {QUESTION}" in kept and "? And then?" in kept and "72 hours" in kept
    assert named[1] in {one["id"] for one in ada.json("conversations", "list", "--said", "punches")}
    assert "closed" in ada.ok("conversations", "close", named[1])
    assert "this conversation is closed" in ada.refused("ask", "x y", "--conversation", named[1])


def test_a_conversation_is_held_line_by_line(ada: Terminal) -> None:
    said = ada.ok("ask", stdin=f"{QUESTION}\n\nthanks\n")
    assert said.count("confidence") == 2 and "72 hours" in said
    replies = ada.ok("ask", "--json", stdin=f"{QUESTION}\nthanks\n")
    decoder, values = json.JSONDecoder(), list[Any]()
    while replies.strip():
        value, end = decoder.raw_decode(replies.lstrip())
        values, replies = [*values, value], replies.lstrip()[end:]
    assert [value["seq"] for value in values] == [2, 4]
    assert len({value["conversation_id"] for value in values}) == 1
    assert "no such conversation" in ada.refused("ask", "--conversation", values[0]["id"])


def test_documents_are_listed_shown_tagged_done_again_and_deleted(ada: Terminal) -> None:
    (ada.home / "pin.md").write_text("# PIN\n\nA kiosk PIN has 4 digits.")
    [added] = ada.json("documents", "add", "pin.md", "--no-wait")
    known = ada.json("documents", "list", "--source", "pin.md")
    assert [one["id"] for one in known] == [added["id"]]
    assert "pin.md: a, b" in ada.ok("documents", "tag", added["id"], "a", "b")
    assert "pin.md: b" in ada.ok("documents", "tag", added["id"], "a", "--remove")
    again = ada.ok("documents", "reingest", added["id"])
    assert "1 ready, 0 failed" in again
    assert ada.json("documents", "show", added["id"])["tags"] == ["b"]
    assert "4 digits" in ada.ok("documents", "show", added["id"], "--text")
    asked = ada.run("documents", "delete", added["id"], stdin="n\n")
    assert asked.returncode == 1 and "Delete pin.md for good?" in asked.stdout
    assert "deleted: pin.md" in ada.ok("documents", "delete", added["id"], "--yes")
    assert "no such document" in ada.refused("documents", "show", added["id"])
    broken = ada.home / "broken.pdf"
    broken.write_bytes(b"%PDF-1.4 broken")
    done = ada.run("documents", "add", str(broken))
    assert done.returncode == 1 and "failed: broken.pdf: " in done.stdout


def test_conversations_are_erased_after_a_yes(ada: Terminal) -> None:
    talk = ada.json("ask", "Erase this one?")["conversation_id"]
    assert ada.run("conversations", "delete", talk, stdin="n\n").returncode == 1
    assert "erased: Erase this one?" in ada.ok("conversations", "delete", talk, "-y")
    assert "no such conversation" in ada.refused("conversations", "show", talk)


def test_people_are_invited_changed_and_kept_out(ada: Terminal, servers: Running) -> None:
    from tests.people import new_person

    assert "bob@http.example is invited as agent" in (
        ada.ok("users", "invite", "bob@http.example", "--role", "agent")
    )
    tenant_id = ada.json("whoami")["tenant"]["id"]
    eve = new_person(servers, tenant_id=tenant_id, role="member")
    assert f"{eve.email} is agent now" in ada.ok("users", "role", eve.email, "agent")
    assert "may not sign in any more" in ada.ok("users", "disable", eve.user_id)
    assert "may sign in again" in ada.ok("users", "enable", eve.email)
    assert {one["email"] for one in ada.json("users", "list")} == {ADA, eve.email}
    assert [one["email"] for one in ada.json("users", "list", "--role", "owner")] == [ADA]
    assert "nobody of this tenant" in ada.refused("users", "disable", "who@http.example")


def test_a_key_asks_without_a_sign_in(
    ada: Terminal, environ: dict[str, str], tmp_path: Path
) -> None:
    key = ada.ok("keys", "create", "CRM", "--scope", "search", "--days", "2", "--quiet").strip()
    assert key.startswith("srk_")
    program = Terminal(environ, tmp_path, ada.url)
    assert "nobody is signed in here: run `support-rag login`" in program.refused("search", "kiosk")
    told = {"SUPPORT_RAG_API_KEY": key, "SUPPORT_RAG_URL": ada.url}
    assert "72 hours" in program.ok("search", "kiosk offline", **told)
    assert "72 hours" in program.ok("search", "kiosk offline", "--key", key, "--url", ada.url)
    assert "this needs conversations:write" in program.refused("ask", "x y", **told)
    [made] = ada.json("keys", "list")
    assert made["name"] == "CRM" and made["scopes"] == ["search"] and "secret" not in made
    assert "revoked: CRM" in ada.ok("keys", "revoke", made["id"], "--yes")
    assert "unknown, expired or revoked" in program.refused("search", "kiosk", **told)


def test_usage_shows_days_and_limits(ada: Terminal) -> None:
    assert re.search(r"at most\W+–", ada.ok("usage"))
    assert ada.json("usage", "--days", "2")["days"][0]["messages"] > 0


def test_nothing_running_is_said_in_words(environ: dict[str, str], tmp_path: Path) -> None:
    nobody = Terminal(environ, tmp_path, "")
    nowhere = f"http://127.0.0.1:{free_port()}"
    said = nobody.refused("login", ADA, "--url", nowhere, stdin="x\n")
    assert f"nothing answers at {nowhere} (Connection refused): start it with `make up`" in said
    for words in (["ingest", "."], ["ask", "x", "--tenant", ADA], ["indexes"], ["quota"]):
        said = nobody.refused(*words)
        assert "nothing is running here" in said and "make up" in said, said
    gone = f"postgresql://app:correcthorsebattery@127.0.0.1:{free_port()}/support_rag"
    said = nobody.refused(
        "indexes", SUPPORT_RAG_DATABASE_URL=gone, SUPPORT_RAG_REDIS_URL="redis://"
    )
    assert "nothing is running here" in said and "correcthorse" not in said


def test_signing_out_ends_the_session(environ: dict[str, str], url: str, tmp_path: Path) -> None:
    ada = Terminal(environ, tmp_path, url)
    wrong = ada.refused("login", ADA, "--url", url, stdin="wrong horse battery\n")
    assert "the e-mail address or the password is wrong" in wrong
    ada.ok("login", ADA, "--url", url, stdin=f"{PASSWORD}\n")
    other = ada.refused("search", "kiosk", "--url", "http://127.0.0.1:1")
    assert f"{ADA} is signed in at {url}" in other
    kept = (tmp_path / "signed_in.json").read_bytes()
    assert "signed out" in ada.ok("logout")
    assert "support-rag login" in ada.refused("whoami")
    (tmp_path / "signed_in.json").write_bytes(kept)  # a copy that somebody made
    assert "not valid" in ada.refused("whoami") and not (tmp_path / "signed_in.json").exists()


def test_an_expired_token_is_renewed_unseen(ada: Terminal) -> None:
    path = ada.home / "signed_in.json"
    kept = json.loads(path.read_text())
    path.write_text(json.dumps(kept | {"access_token": "expired"}))
    assert ADA in ada.ok("whoami")
    assert json.loads(path.read_text())["refresh_token"] != kept["refresh_token"]


def test_reset_asks_first(environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir()
    somebody = Terminal(environ, tmp_path, "")
    asked = somebody.run("reset", stdin="n\n")
    assert asked.returncode == 1 and "with every tenant, document" in asked.stdout
    assert (tmp_path / "postgres").exists()
    somebody.ok("reset", "--yes")
    assert not (tmp_path / "postgres").exists()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands(environ: dict[str, str], tmp_path: Path, shell: str) -> None:
    somebody = Terminal(environ, tmp_path, "")
    assert "_SUPPORT_RAG_COMPLETE" in somebody.ok("--show-completion", shell)
    typed = {"COMP_WORDS": "support-rag conv", "COMP_CWORD": "1"}
    if shell == "bash":
        told = typed | {"_SUPPORT_RAG_COMPLETE": "complete_bash"}
        assert somebody.run(**told).stdout.split() == ["conversations"]


@pytest.mark.parametrize(
    "words", [["--help"], ["-h"], ["--version"], ["ask", "-h"], ["documents", "-h"]]
)
def test_help_loads_nothing_of_the_service(words: list[str]) -> None:
    code = (
        "import sys; sys.argv[1:] = sys.argv[1].split();"
        "import atexit; atexit.register(lambda: print('LOADED', *sys.modules, file=sys.stderr));"
        "from support_rag.cli.main import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, " ".join(words)], capture_output=True, text=True, timeout=300
    )
    loaded = {name.partition(".")[0] for name in done.stderr.split("LOADED")[1].split()}
    assert not loaded & {"fastapi", "sqlalchemy", "numpy", "asyncio", "docx", "pandas"}
