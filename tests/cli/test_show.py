"""A better chunk size is published, served, verified elsewhere; a worse one is refused."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest

from support_rag.evaluation.publishing import published_run
from support_rag.evaluation.regression import gate_run
from support_rag.local.servers import Running
from support_rag.registry import Entry, Registry
from tests.cli.test_indexes import Checkout
from tests.local.test_workbench import write_labels
from tests.serving import Account, signed_in


def ids_until(account: Account, question: str, wanted: str) -> tuple[float, set[str]]:
    "Ask until a reply has an id; return the seconds and the ids on the way."
    began, seen = time.monotonic(), set[str]()
    while wanted not in seen:
        assert time.monotonic() - began < 600, f"{wanted} never answered, {seen} did"
        seen.add(account.ask(account.open(), question).json()["release_id"])
    return time.monotonic() - began, seen


@pytest.fixture(scope="module")
def checkout(servers: Running, tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    "A checkout with a few labels of its own."
    folder = tmp_path_factory.mktemp("show")
    urls = {"database_url": servers.app_url, "redis_url": servers.redis_url}
    made = Checkout.make(folder / "clone", **urls)
    write_labels(folder / "labels", n=60, distractors=6)
    return made


def registry_of(checkout: Checkout) -> Registry:
    "Return the registry of a checkout."
    return Registry(checkout.folder / "data/releases")


def entries(checkout: Checkout) -> list[Entry]:
    "Return what was published, first to last."
    return list(registry_of(checkout).entries())


def publish(checkout: Checkout, why: str, *more: str) -> subprocess.CompletedProcess[str]:
    "Evaluate what the settings say, and try to publish it."
    labels = ("--labels", str(checkout.folder.parent / "labels"))
    checkout.ok("release", "evaluate", *labels)
    return checkout.run("release", "publish", "--why", why, *labels, *more, "--json")


def test_the_whole_show(checkout: Checkout, tmp_path: Path) -> None:
    checkout.set(size_tokens=16)
    first = json.loads(publish(checkout, "a first release").stdout)["release_id"]

    log = tmp_path / "service.log"
    running = checkout.serve(log)
    url = next(running)
    with signed_in(url) as account:
        folder = checkout.folder.parent / "labels/corpus"
        checkout.ok("ingest", str(folder), "--tenant", account.tenant_id)
        asked = json.loads((folder.parent / "queries.jsonl").read_text().splitlines()[0])["text"]
        assert ids_until(account, asked, first)[1] == {first}

        checkout.set(size_tokens=48)
        done = publish(checkout, "chunks of 48 tokens find more")
        assert done.returncode == 0, done.stderr
        second = json.loads(done.stdout)["release_id"]
        before, after = (published_run(registry_of(checkout), e, "tune") for e in entries(checkout))
        assert "better in recall" in gate_run(before, after).sentence
        checkout.set(size_tokens=16)
        refused = publish(checkout, "as small as can be, once more")
        assert refused.returncode == 1 and "recall is worse" in refused.stderr, refused.stderr
        assert len(entries(checkout)) == 2, "nothing was written"
        checkout.set(size_tokens=48)
        built, ids = ids_until(account, asked, second)
        assert ids <= {first, second}, "no mixture of both answered"
        reply = account.ask(account.open(), asked).json()
        saved = tmp_path / "reply.json"
        said = checkout.ok("release", "verify", "--message", reply["id"], "--save", str(saved))
        assert "byte by byte" in said and second in said
        traced = json.loads(checkout.ok("trace", reply["id"], "--tenant", account.tenant_id))
        assert {"hits", "decision", "query", "seconds"} <= traced.keys()

        began = time.monotonic()
        checkout.ok("release", "rollback", "--why", "it was a show")
        command = time.monotonic() - began
        followed, ids = ids_until(account, asked, first)
        assert ids <= {first, second}
        assert log.read_text().count("index_switched") == 1, "going back builds nothing"
    running.close()
    print(f"index built and switched {built:.1f} s after publishing; rollback: the command took "
          f"{command:.1f} s, the service answered with it {followed:.2f} s later")  # fmt: skip
    actions = [(e.action, e.release_id) for e in entries(checkout)]
    assert actions == [("publish", first), ("publish", second), ("rollback", first)]

    elsewhere, empty = Checkout.make(tmp_path / "fresh"), tmp_path / "empty"
    empty.mkdir()
    assert "byte by byte" in elsewhere.ok("release", "verify", str(saved), cwd=empty)
    content = saved.read_bytes()
    at = len(content) // 3
    saved.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    assert elsewhere.run("release", "verify", str(saved), cwd=empty).returncode == 1
    saved.write_bytes(content)
    module = elsewhere.folder / "support_rag/gate.py"
    module.write_text(module.read_text() + "\nEDITED = True\n")
    edited = elsewhere.run("release", "verify", str(saved), cwd=empty)
    assert edited.returncode == 1 and "code of gate" in edited.stdout

    assert "every byte as it was written" in checkout.ok("release", "verify")
    *_, last = files = registry_of(checkout).files()
    for path in (*registry_of(checkout).folder.glob("*/*/*"), *files):
        content = path.read_bytes()
        path.write_bytes(bytes([*content[:200], content[200] ^ 1, *content[201:]]))
        assert registry_of(checkout).faults(), path.name
        if path == last:
            assert checkout.run("release", "verify").returncode == 1
        path.write_bytes(content)
    assert registry_of(checkout).faults() == []
