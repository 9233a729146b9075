"""Publish, serve and roll back while questions arrive at a fixed rate; run by hand, not by pytest.

    python -m tests.bench_release              20 questions a second
    python -m tests.bench_release 40 10        40 a second, 10 s more after each release is taken up

It starts servers, an API, a worker and a scripted embedding endpoint of its own. Questions of the
sample help centre arrive whether or not earlier ones were answered, half of them read as a stream.
Meanwhile releases come: fewer hits, other chunks of the local model, 1536 dimensions of the
endpoint, and both last ones again by rolling back. The table has a row for each; its times are
seconds from the moment a question was due, `processor` is what the API took for one. The exit
status is 1 unless every claim below the table holds.
"""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import psutil

from support_rag.embed import HashingEmbedder
from support_rag.evaluation.labels import load_labels
from support_rag.local.demo import Api, list_documents, sample_documents, send
from support_rag.local.servers import Running, local_servers
from support_rag.registry import Registry
from support_rag.release import load_parameters, resource
from support_rag.state.database import database_url, migrate, plain
from tests.local.test_following import Cited, cited, lives, publish, supervise
from tests.local.test_up import until
from tests.openai_stub import OpenAIStub
from tests.serving import Account, read_events, signed_in

RATE, SECONDS = 20.0, 6.0
CLIENTS = 64  # questions on their way at most
DOCUMENTS = 40
BACK_SECONDS = 2.0  # that a rollback may take
ENDPOINT = "text-embedding-3-small"  # 1536 dimensions


@dataclass
class Asked:
    "A question that was due at `at`, in seconds of `time.monotonic`."

    at: float
    seconds: float = 0.0  # until its reply
    reply: dict[str, Any] = field(default_factory=dict)
    failure: str = ""


class Arrivals:
    "Questions that arrive at a fixed rate, whatever becomes of those before."

    def __init__(self, url: str, account: Account, questions: list[str], rate: float) -> None:
        self.url, self.headers, self.rate = url, dict(account.client.headers), rate
        self.questions = itertools.cycle(questions)
        self.asked: list[Asked] = []
        self.over, self.local = threading.Event(), threading.local()

    @contextmanager
    def arriving(self) -> Iterator[Arrivals]:
        "Let them arrive inside the block; each is answered or has failed at its end."
        with ThreadPoolExecutor(CLIENTS) as pool:
            pace = threading.Thread(target=self.pace, args=(pool,))
            pace.start()
            try:
                yield self
            finally:
                self.over.set()
                pace.join()

    def pace(self, pool: ThreadPoolExecutor) -> None:
        "Send a question whenever one is due."
        began = time.monotonic()
        for n in itertools.count():
            due = began + n / self.rate
            if self.over.wait(max(0.0, due - time.monotonic())):
                return
            one = Asked(due)
            self.asked.append(one)
            pool.submit(self.ask, one, next(self.questions), is_stream=n % 2 == 1)

    def ask(self, one: Asked, question: str, *, is_stream: bool) -> None:
        "Ask in a new conversation, and note what came back."
        if not hasattr(self.local, "client"):
            given: dict[str, Any] = {"headers": self.headers, "trust_env": False, "timeout": 30}
            self.local.client = httpx2.Client(base_url=self.url, **given)
        client, accept = self.local.client, {"accept": "text/event-stream"} if is_stream else {}
        try:
            opened = client.post("/api/v1/conversations", json={"title": ""})
            path = f"/api/v1/conversations/{opened.json()['id']}/messages"
            answered = client.post(path, json={"content": question}, headers=accept)
            assert answered.status_code in (200, 201), answered.text
            text = answered.text
            one.reply = (
                dict(read_events(text))["message.completed"] if is_stream else answered.json()
            )
        except (httpx2.HTTPError, AssertionError, KeyError, ValueError) as error:
            one.failure = f"{type(error).__name__}: {error}"
        one.seconds = time.monotonic() - one.at

    def until_id(self, release_id: str) -> float:
        "Return the seconds until the first reply of a release."
        began, seen = time.monotonic(), len(self.asked)
        until(
            lambda: any(o.reply.get("release_id") == release_id for o in self.asked[seen:]),
            what=f"a reply of {release_id}",
        )
        return time.monotonic() - began


@dataclass
class Phase:
    "What happened from one release to the next."

    name: str
    taken_up: float  # seconds from publishing to the first reply
    first: int  # of the questions
    embedded: int = 0  # texts that the endpoint was sent
    busy: float = 0.0  # seconds of processor time of the API until the phase ended


@dataclass
class Found:
    "What a run of the scenario saw."

    phases: list[Phase] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    cited: Cited = field(default_factory=dict)
    registered: set[str] = field(default_factory=set)
    switched: int = 0  # times that an index was built and took over


def busy_seconds() -> float:
    "Return the processor time that the API has taken."
    api = [p for pid in lives() if "serve" in (p := psutil.Process(pid)).cmdline()]
    return sum(sum(process.cpu_times()[:2]) for process in api)


def texts_sent(stub: OpenAIStub) -> int:
    "Return how many texts the endpoint was sent, questions included."
    return sum(len(seen.body["input"]) for seen in stub.requests)


def load_documents(url: str, account: Account) -> list[str]:
    "Store articles of the sample, wait until all are ready, and return questions about them."
    api = Api(url, account.client.headers["Authorization"].removeprefix("Bearer "))
    labels, forms = load_labels(resource("data/help_centre")), sample_documents()[:DOCUMENTS]
    for form in forms:
        send(api, "POST", "/api/v1/documents/ingest", form)
    until(lambda: all(d["status"] == "ready" for d in list_documents(api)), what="documents")
    stored = {form.fields["source"] for form in forms}
    relevant = {q.id: set(labels.qrels.get(q.id, {})) for q in labels.questions}
    return [q.text for q in labels.questions if relevant[q.id] and relevant[q.id] <= stored]


def scenario(
    url: str, account: Account, registry: Registry, stub: OpenAIStub, *, rate: float,
    seconds: float, look: Callable[[], Cited],
) -> Found:  # fmt: skip
    "Publish and roll back under load; `seconds` pass after each release is taken up."
    found = Found()
    present = load_parameters().with_(generate={"generator": "extractive"})
    fewer = present.with_(retrieve={"k": present.retrieve.k - 3})
    smaller = fewer.with_(chunk={"size_tokens": 120})
    wider = smaller.with_(embed={"model": ENDPOINT})
    first = publish(registry, present).release_id
    until(
        lambda: account.client.get("/api/v1/release").json()["release_id"] == first,
        what="the first release",
    )
    steps: tuple[tuple[str, Any, Any], ...] = (
        ("fewer hits", fewer, "publish"),
        ("chunks of 120 tokens", smaller, "publish"), ("1536 dimensions", wider, "publish"),
        ("back to 384", smaller, "rollback"), ("1536 again", wider, "rollback"),
    )  # fmt: skip
    questions = load_documents(url, account)
    with Arrivals(url, account, questions, rate).arriving() as load:
        began = busy_seconds()
        found.phases.append(Phase("as it is", 0.0, 0))
        time.sleep(seconds)
        found.phases[0].busy = busy_seconds() - began
        for name, parameters, action in steps:
            before, so_far = texts_sent(stub), len(load.asked)
            entry = publish(registry, parameters, action=action)
            phase = Phase(name, load.until_id(entry.release_id), so_far)
            found.phases.append(phase)
            phase.embedded = texts_sent(stub) - before
            found.cited = look() | found.cited  # before an index is deleted that nobody needs
            time.sleep(seconds)
            phase.busy = busy_seconds() - began - sum(p.busy for p in found.phases)
    found.asked, found.cited = load.asked, look() | found.cited
    found.registered = {entry.release_id for entry in registry.entries()}
    return found


def show(found: Found) -> None:
    "Print a row for each phase."
    head = f"{'release':<22}{'taken up':>9}{'questions':>11}{'failed':>8}{'median':>8}{'p95':>8}"
    print(f"{head}{'slowest':>9}{'processor':>11}{'texts sent':>12}")
    ends = [*(p.first for p in found.phases[1:]), len(found.asked)]
    for phase, end in zip(found.phases, ends, strict=True):
        some = found.asked[phase.first : end]
        p50, p95, last = np.percentile([one.seconds for one in some], [50, 95, 100])
        failed = sum(bool(one.failure) for one in some)
        busy = 1000 * phase.busy / len(some)
        print(f"{phase.name:<22}{phase.taken_up:>7.2f} s{len(some):>11}{failed:>8}"
              f"{p50:>8.2f}{p95:>8.2f}{last:>9.2f}{busy:>8.0f} ms{phase.embedded:>12}")  # fmt: skip


def claims(found: Found) -> dict[str, bool]:
    "Return what is claimed, with the figures seen, and whether it holds."
    failures = [one.failure for one in found.asked if one.failure]
    unknown = [o for o in found.asked if o.reply and o.reply["release_id"] not in found.registered]
    n, lost = (sum(values) for values in zip(*found.cited.values(), strict=True))
    back = [phase for phase in found.phases if phase.name.startswith(("back", "1536 again"))]
    slowest = max(phase.taken_up for phase in back)
    said = f" ({failures[0]})" if failures else ""
    when = f" ({unknown[0].at - found.asked[0].at:.1f} s after the start)" if unknown else ""
    return {
        f"{len(failures)} of {len(found.asked)} questions failed{said}": not failures,
        f"{lost} of {n} citations are not in the index that was searched": not lost and n > 0,
        f"{len(unknown)} replies carry an id that is not in the registry{when}": not unknown,
        f"{found.switched} indexes were built by {len(found.phases) - 1} steps": found.switched
        == 2,
        f"rolled back in at most {slowest:.2f} s ({BACK_SECONDS:.0f})": slowest <= BACK_SECONDS,
    }


def measure(servers: Running, home: Path, *, rate: float, seconds: float) -> Found:
    "Run the scenario on processes of its own."
    os.environ["SUPPORT_RAG_RELEASES"] = str(home / "releases")
    registry, made = Registry(home / "releases"), list[Found]()
    everything = plain(database_url(servers.superuser_url), database="support_rag")
    wide = HashingEmbedder(1536)
    with OpenAIStub(vector=lambda text, dim: wide.vector(text).tolist()) as stub:

        def run(url: str) -> None:
            with signed_in(url) as account:
                given: dict[str, Any] = {"rate": rate, "seconds": seconds}
                given["look"] = lambda: cited(everything, account.tenant_id)
                made.append(scenario(url, account, registry, stub, **given))

        supervise(home, servers, run, llm_base_url=stub.base_url)
    log = (home / "logs/worker.log").read_text()
    made[0].switched = log.count("index_switched")
    return made[0]


def main() -> int:
    "Return the exit status."
    told = [float(word) for word in sys.argv[1:3]]
    rate, seconds = [*told, *(RATE, SECONDS)[len(told) :]]
    with local_servers() as servers, tempfile.TemporaryDirectory(prefix="rag-bench-") as folder:
        migrate(servers.owner_url, app_user=servers.app_user)
        found = measure(servers, Path(folder), rate=rate, seconds=seconds)
    show(found)
    held = claims(found)
    for claim, is_true in held.items():
        print(f"{'holds ' if is_true else 'BROKEN'}  {claim}")
    return 0 if all(held.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
