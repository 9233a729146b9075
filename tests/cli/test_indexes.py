"""The commands of indexes: labels guard a switch, a reason overrides them, and the way back."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support_rag.local.processes import spawn
from support_rag.local.servers import Running
from support_rag.local.wheels import free_port
from tests.local.test_up import until
from tests.serving import signed_in

ROOT = Path(__file__).parents[2]
CLI = ("-m", "support_rag.cli.main")
TOPICS = {  # passage → question that shares its meaning and none of its words
    "The laptop battery lasts ten hours.": "how long can my notebook run without power",
    "Refunds are paid within two weeks.": "when do I get my money back",
    "The office is closed on Sundays.": "opening times at the weekend",
    "Children under six travel free.": "does my toddler need a ticket",
    "Passwords expire after ninety days.": "why must I choose a new login secret",
    "Cats and dogs are welcome.": "may I bring a pet",
    "The soup contains peanuts.": "is there anything for people with allergies",
    "Parking costs three euros an hour.": "what is the price for leaving a car",
}


@dataclass
class Checkout:
    "A copy of what a clone holds, whose settings may be edited."

    folder: Path
    environ: dict[str, str]

    @classmethod
    def make(cls, folder: Path, **settings: str) -> Checkout:
        "Copy the package, its settings and its data."
        ignored = shutil.ignore_patterns("releases")
        for name in ("support_rag", "data"):
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        for name in ("settings.ini", "pyproject.toml"):
            shutil.copy(ROOT / name, folder)
        private = ("SUPPORT_RAG_", "OPENAI_", "PYTHONPATH")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(private)}
        told = {f"SUPPORT_RAG_{name.upper()}": value for name, value in settings.items()}
        home = {"SUPPORT_RAG_HOME": str(folder / ".support_rag")}
        terminal = {"PYTHONPATH": str(folder), "TERM": "dumb", "COLUMNS": "200"}
        return cls(folder, kept | home | terminal | told)

    def run(self, *words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        "Run a command of `support-rag`."
        return subprocess.run(
            (sys.executable, *CLI, *words), env=self.environ, cwd=cwd or self.folder,
            capture_output=True, text=True, timeout=600,
        )  # fmt: skip

    def ok(self, *words: str, cwd: Path | None = None) -> str:
        "Run a command that must succeed."
        done = self.run(*words, cwd=cwd)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def ok_each(self, *commands: Sequence[str]) -> str:
        "Run commands that must succeed, one after another in one process."
        program = (
            "import json, sys; from support_rag.cli.main import app\n"
            "for words in json.loads(sys.argv[1]): app(words, standalone_mode=False)"
        )
        done = subprocess.run(
            (sys.executable, "-c", program, json.dumps(commands)), env=self.environ,
            cwd=self.folder, capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def set(self, **values: Any) -> None:
        "Edit settings.ini."
        path = self.folder / "settings.ini"
        text = path.read_text()
        for name, value in values.items():
            text, n = re.subn(rf"(?m)^{name} = .*$", f"{name} = {value}", text, count=1)
            assert n == 1, name
        path.write_text(text)

    def serve(self, log: Path) -> Iterator[str]:
        "Run API and worker; yield the address."
        port, words = free_port(), (sys.executable, *CLI)
        environ = self.environ | {"SUPPORT_RAG_PORT": str(port)}
        with log.open("wb") as output:
            given: dict[str, Any] = {"output": output.fileno(), "environ": environ}
            given["folder"] = self.folder
            children = [spawn((*words, name), **given) for name in ("serve", "worker")]
            try:
                for said in ('"listening"', '"worker_started"'):
                    until(lambda said=said: said in log.read_text(), what=said)
                yield f"http://127.0.0.1:{port}"
            finally:
                for child in children:
                    child.terminate()
                for child in children:
                    child.wait(300)


def test_labels_guard_a_switch_and_there_is_a_way_back(servers: Running, tmp_path: Path) -> None:
    urls = {"database_url": servers.app_url, "redis_url": servers.redis_url}
    checkout = Checkout.make(tmp_path / "clone", **urls)
    checkout.set(k=1, fusion="dense")
    running = checkout.serve(tmp_path / "service.log")
    with signed_in(next(running)) as account:
        tenant = ("--tenant", account.tenant_id)
        documents = tmp_path / "topics.jsonl"
        rows = [{"id": f"t{n}", "text": text} for n, text in enumerate(TOPICS)]
        documents.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        assert f"{len(rows)} ready" in checkout.ok("ingest", str(documents), *tenant)

        said = checkout.ok_each(
            *(("label", question, "--source", f"t{n}", "--passage", passage, *tenant)
              for n, (passage, question) in enumerate(TOPICS.items()))
        )  # fmt: skip
        for n, passage in enumerate(TOPICS):
            assert f"t{n}, characters 0–{len(passage)}" in said
        lost = checkout.run("label", "x", "--source", "t0", "--passage", "not there", *tenant)
        assert lost.returncode == 1 and "the passage is not in t0" in lost.stderr

        reply = account.ask(account.open(), next(iter(TOPICS))).json()
        said = checkout.ok_each(("trace", reply["id"]), ("trace", reply["id"], *tenant))
        traced, end = json.JSONDecoder().raw_decode(said)
        assert traced["hits"][0]["source"] == "t0" and {"decision", "seconds"} <= traced.keys()
        assert json.loads(said[end:]) == traced
        nobody = checkout.run("trace", account.tenant_id)
        assert nobody.returncode == 1 and "has a trace" in nobody.stderr

        none = checkout.run("reindex", "--back", *tenant)
        assert none.returncode == 1 and "no index is kept" in none.stderr
        first = re.findall(r"index ([0-9a-f]{16})", checkout.ok("indexes"))[0]
        checkout.set(model="hashing-64")
        refused = checkout.run("reindex", *tenant)
        assert refused.returncode == 1, refused.stdout + refused.stderr
        assert "finds less" in refused.stderr and "--anyway WHY" in refused.stderr
        assert reply["release_id"] == account.ask(account.open(), "pets?").json()["release_id"]
        checkout.ok("reindex", "--anyway", "a test of the way back", *tenant)
        second = re.findall(r"index ([0-9a-f]{16})", checkout.ok("indexes"))[0]
        assert second != first
        for digest in (first, second):
            assert f"serves from index {digest} again" in checkout.ok("reindex", "--back", *tenant)
    running.close()
