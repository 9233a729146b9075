"""Under requests without a pause: processes are replaced, releases come and go, nothing fails."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import psutil
import psycopg
import pytest

from support_rag.embed import HashingEmbedder
from support_rag.local.processes import Process
from support_rag.local.servers import Running
from support_rag.local.supervisor import Supervisor, ask_restart
from support_rag.local.workbench import NewCode, service_processes
from support_rag.registry import Entry, Registry, append, entry_of
from support_rag.release import Facts, Parameters, Writer, load_parameters, read_facts, release_of
from support_rag.service.sockets import listen
from support_rag.state.database import database_url, plain
from support_rag.state.settings import load_settings
from tests.local.test_up import until
from tests.openai_stub import OpenAIStub
from tests.serving import Account, read_events, signed_in

QUESTION = "How long does the kiosk keep punches while it is offline?"
ARTICLE = "\n\n".join(
    f"# Chapter {n}\n\n{'The kiosk keeps punches for 72 hours while it is offline. ' * (n % 3)}"
    f"{'Everything else about time clocks stands in this chapter of the manual. ' * 8}"
    for n in range(12)
)


def publish(
    registry: Registry,
    parameters: Parameters,
    *,
    facts: Facts | None = None,
    action: Any = "publish",
) -> Entry:
    "Add an entry as publishing and rolling back do."
    known = facts or read_facts()
    release = release_of(parameters, known, writer=Writer())
    evidence = {"tune": {"n": 1, "summary": {}}}
    entry = entry_of(release, known, action, who="Ada", why="a test", evidence=evidence)
    return append(registry, entry)


@dataclass
class Load:
    "Clients that ask without a pause, each over one connection that it keeps."

    account: Account
    url: str
    replies: list[dict[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # that each reply took
    over: threading.Event = field(default_factory=threading.Event)
    threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Load:
        self.threads = [threading.Thread(target=self.ask, args=(n,)) for n in range(4)]
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join(60)

    def ask(self, number: int) -> None:
        "Ask until it is over: every second client takes its replies as a stream."
        accept = {"accept": "text/event-stream"} if number % 2 else {}
        headers = {**self.account.client.headers, **accept}
        with httpx2.Client(
            base_url=self.url, headers=headers, timeout=300, trust_env=False
        ) as client:
            while not self.over.is_set():
                began = time.monotonic()
                try:
                    opened = client.post("/api/v1/conversations", json={"title": ""})
                    path = f"/api/v1/conversations/{opened.json()['id']}/messages"
                    answered = client.post(path, json={"content": QUESTION})
                    assert answered.status_code in (200, 201), answered.text
                    body = (
                        dict(read_events(answered.text)).get("message.completed")
                        if accept
                        else None
                    )
                    self.replies.append(body or answered.json())
                    self.seconds.append(time.monotonic() - began)
                except Exception as error:
                    self.failures.append(f"{type(error).__name__}: {error}")
                time.sleep(0.05)

    def until_id(self, release_id: str) -> float:
        "Return the seconds until the first reply with an id."
        began, seen = time.monotonic(), len(self.replies)

        def is_there() -> bool:
            return any(r["release_id"] == release_id for r in self.replies[seen:])

        until(is_there, what=f"a reply of {release_id}")
        return time.monotonic() - began


Cited = dict[str, tuple[int, int]]  # reply → its citations, and those no chunk searched holds


def cited(superuser_url: str, tenant_id: str) -> Cited:
    "Look up the citations of every reply in the index that was searched for it."
    query = """
        SELECT m.id::text, count(*), count(*) FILTER (WHERE NOT EXISTS (
            SELECT FROM chunks c WHERE c.tenant_id = m.tenant_id AND c.index_id = t.index_id
            AND c.document_id = (s->>'document_id')::uuid
            AND c.start_char <= (s->>'start')::int AND c.end_char >= (s->>'end')::int))
        FROM messages m JOIN traces t ON t.tenant_id = m.tenant_id AND t.message_id = m.id,
             jsonb_array_elements(m.sources) s WHERE m.tenant_id = %s GROUP BY m.id"""
    with psycopg.connect(superuser_url) as connection:
        rows = connection.execute(query, (tenant_id,)).fetchall()  # type: ignore[arg-type]
    return {str(name): (int(n), int(missing)) for name, n, missing in rows}


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    "A registry of its own, where the release of this checkout was published."
    monkeypatch.setenv("SUPPORT_RAG_RELEASES", str(tmp_path / "releases"))
    registry = Registry(tmp_path / "releases")
    publish(registry, load_parameters())
    return registry


def supervise(home: Path, servers: Running, scenario: Callable[[str], None], **more: str) -> None:
    "Run API and worker under a supervisor; call `scenario` with the address when all are ready."
    given = {"database_url": servers.app_url, "redis_url": servers.redis_url, **more}
    settings = load_settings(home=home, **given)
    with listen("127.0.0.1", 0) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        told = {**given, "home": str(home), "jwt_secret": "k" * 8 + "".join(map(str, range(30)))}
        processes: tuple[Process, ...] = service_processes(
            settings, told, url, listener=listener.fileno()
        )
        supervisor = Supervisor(home, processes, stale=NewCode().is_published)

        def announce() -> None:
            try:
                scenario(url)
            finally:
                supervisor.request_stop()

        supervisor.run(announce)


def lives() -> set[int]:
    "Return the processes of the service that this one started."
    own = psutil.Process().children()
    found = set()
    for process in own:
        with contextlib.suppress(psutil.ZombieProcess, psutil.NoSuchProcess):
            if "support_rag.cli.main" in process.cmdline():
                found.add(process.pid)
    return found


def load_article(account: Account) -> None:
    "Store the article and wait until it is ready."
    files = {"file": ("kiosk.md", ARTICLE.encode(), "text/markdown")}
    sent = account.client.post("/api/v1/documents/ingest", files=files)
    assert sent.status_code == 202, sent.text
    path = f"/api/v1/documents/{sent.json()['id']}"
    until(lambda: account.client.get(path).json()["status"] == "ready", what="the article")


def test_a_restart_fails_no_request(tmp_path: Path, servers: Running, registry: Registry) -> None:
    seen: dict[str, Any] = {}

    def scenario(url: str) -> None:
        with signed_in(url) as account:
            load_article(account)
            before = lives()
            with Load(account, url) as load:
                until(lambda: len(load.replies) > 8, what="replies")
                seen["seconds"] = ask_restart(tmp_path)
                n = len(load.replies)
                until(lambda: len(load.replies) > n + 8, what="replies of the new process")
            until(lambda: not before & lives(), what="the old to end")
        seen["replies"], seen["failures"] = load.replies, load.failures

    supervise(tmp_path, servers, scenario)
    print(f"restarted in {seen['seconds']:.1f} s, {len(seen['replies'])} replies")
    assert seen["failures"] == []
    assert {r["release_id"] for r in seen["replies"]} == {registry.entries()[0].release_id}


def test_a_release_that_cannot_start_leaves_the_old_one_serving(
    tmp_path: Path, servers: Running, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def scenario(url: str) -> None:
        with signed_in(url) as account:
            monkeypatch.setenv("SUPPORT_RAG_RELEASES", str(tmp_path / "releases"))
            answered = account.client.get("/api/v1/release").json()
            seen["release"] = answered["release_id"], answered["proven"]
            tuned = registry.entries()[0].parameters
            publish(registry, tuned.with_(generate={"generator": "openai", "model": "absent"}))
            log = tmp_path / "logs/api.log"
            until(lambda: "release_not_taken_up" in log.read_text(), what="the refusal")
            seen["later"] = account.client.get("/api/v1/release").json()["release_id"]

    supervise(tmp_path, servers, scenario)
    assert seen["release"] == (registry.entries()[0].release_id, True)
    assert seen["later"] == seen["release"][0]


def test_releases_come_and_go_under_load(
    tmp_path: Path, servers: Running, registry: Registry
) -> None:
    present = load_parameters().with_(generate={"generator": "extractive"})
    fewer = present.with_(retrieve={"k": present.retrieve.k - 3})
    wider = fewer.with_(embed={"model": "text-embedding-3-small"})
    embedder = HashingEmbedder(1536)
    seconds: dict[str, float] = {}
    seen: dict[str, Any] = {}

    def texts_sent(stub: OpenAIStub) -> list[str]:
        return [text for request in stub.requests for text in request.body["input"]]

    def scenario(url: str) -> None:
        with signed_in(url) as account:
            load_article(account)
            first = publish(registry, present).release_id
            release = "/api/v1/release"
            until(
                lambda: account.client.get(release).json()["release_id"] == first, what="the first"
            )
            with Load(account, url) as load:
                seconds["publish"] = load.until_id(publish(registry, fewer).release_id)
                built = publish(registry, wider).release_id
                seconds["1536 dimensions"] = load.until_id(built)
                passages = set(texts_sent(stub)) - {QUESTION}
                for name, back in (("rollback", fewer), ("and again", wider)):
                    entry = publish(registry, back, action="rollback")
                    seconds[name] = load.until_id(entry.release_id)
            seen["tenant"], seen["passages"] = account.tenant_id, passages
            seen["rest"] = set(texts_sent(stub)) - passages
        seen["replies"], seen["failures"] = load.replies, load.failures
        seen["slowest"] = max(load.seconds)

    with OpenAIStub(vector=lambda text, dim: embedder.vector(text).tolist()) as stub:
        supervise(tmp_path, servers, scenario, llm_base_url=stub.base_url)
    print({name: round(value, 2) for name, value in seconds.items()}, len(seen["replies"]))
    assert seen["failures"] == []
    published = {entry.release_id for entry in registry.entries()}
    assert {r["release_id"] for r in seen["replies"]} <= published, "no id that nobody published"
    everything = plain(database_url(servers.superuser_url), database="support_rag")
    n, missing = (
        sum(values) for values in zip(*cited(everything, seen["tenant"]).values(), strict=True)
    )
    assert n > 20 and missing == 0, f"{missing} of {n} citations are not in their index"
    soon = 2 + 10 * seen["slowest"]  # a busy machine answers late, whoever answers
    assert seconds["rollback"] <= soon and seconds["and again"] <= soon, (seconds, seen["slowest"])
    assert seen["passages"] and seen["rest"] <= {QUESTION}, "going back embeds nothing"
    log = (tmp_path / "logs/worker.log").read_text().splitlines()
    switched = [line for line in log if "index_switched" in line and seen["tenant"] in line]
    assert len(switched) == 1, "going back builds nothing"


def test_other_code_is_answered_by_new_processes(
    tmp_path: Path, servers: Running, registry: Registry
) -> None:
    seen: dict[str, Any] = {}

    def scenario(url: str) -> None:
        before = lives()
        facts = read_facts()
        edited = Facts({**facts.sources, "gate": "edited"}, facts.versions, facts.learned)
        publish(registry, load_parameters(), facts=edited)
        until(lambda: not before & lives(), what="new processes")
        with httpx2.Client(base_url=url, trust_env=False) as client:
            seen["health"] = client.get("/health").status_code

    supervise(tmp_path, servers, scenario)
    assert seen["health"] == 200
    assert "release_of_other_code" in (tmp_path / "logs/api.log").read_text()
