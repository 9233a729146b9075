"""A reply is followed from any event on, by any process, cancelled, and asked for again."""

import asyncio
import json
import random
import socket
import threading
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
import redis

from support_rag.generate import CallBudget, ExtractiveGenerator
from support_rag.local.servers import Running
from support_rag.service.app import create_app
from support_rag.types import GenerationFailed, Prompt
from tests.people import (
    Person,
    as_superuser,
    hashing_app,
    hashing_models,
    new_person,
    settings_of,
)
from tests.service.test_tenancy import work_off
from tests.serving import pieces_of, read_events, serving

pytestmark = pytest.mark.usefixtures("no_work_left")
CONVERSATIONS, MESSAGES = "/api/v1/conversations", "/api/v1/messages"
ARTICLE = "# Kiosk\n\nThe kiosk keeps punches for 72 hours while it is offline."
QUESTION = "How long does the kiosk keep punches while it is offline?"
STREAM = {"Accept": "text/event-stream"}


class Scripted(ExtractiveGenerator):
    """Writes a long reply in many pieces, as fast or as slowly as a test says."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.fails = False
        self.pause_seconds = 0.0
        self.go_on = threading.Event()
        self.go_on.set()

    async def generate(
        self, prompt: Prompt, *, budget: CallBudget | None = None
    ) -> AsyncGenerator[str, None]:
        self.asked += 1
        yield "Well, "
        while not self.go_on.is_set():
            await asyncio.sleep(0.005)
        if self.fails:
            raise GenerationFailed("no usable answer")
        for n in range(60):
            await asyncio.sleep(self.pause_seconds)
            yield f"– {n} ☂ " + "very " * (n % 7)
        yield "72 hours [1]."


@dataclass
class Two:
    """Two processes, as far as they can tell, and somebody who asks both."""

    urls: list[str]
    person: Person
    models: list[Scripted]
    clients: list[httpx2.Client] = field(default_factory=list)

    def open(self) -> str:
        return str(self.clients[0].post(CONVERSATIONS, json={}).json()["id"])

    def begin(self, talk: str, *, n_events: int = 3) -> tuple[str, list[str]]:
        "Ask, read some events, hang up; return the id of the reply and what was read."
        path, body = f"{CONVERSATIONS}/{talk}/messages", {"content": QUESTION}
        read = ""
        with self.clients[0].stream("POST", path, json=body, headers=STREAM) as answered:
            assert answered.status_code == 200
            for part in answered.iter_text():
                read += part
                if read.count("\n\n") >= n_events:
                    break
        blocks = read.split("\n\n")[:n_events]
        return str(read_events(read)[0][1]["id"]), blocks

    def events(self, reply_id: str, *, after: int = 0, at: int = 1) -> httpx2.Response:
        headers = {"Last-Event-ID": str(after)}
        return self.clients[at].get(f"{MESSAGES}/{reply_id}/events", headers=headers)

    def messages(self, talk: str) -> list[dict[str, Any]]:
        return list(self.clients[0].get(f"{CONVERSATIONS}/{talk}").json()["messages"])


@pytest.fixture(scope="module")
def served(servers: Running) -> Iterator[Two]:
    models = [Scripted(), Scripted()]
    apps = [
        create_app(settings_of(servers), **{**hashing_models(), "generator": model})
        for model in models
    ]
    with ExitStack() as stack:
        urls = [stack.enter_context(serving(app)) for app in apps]
        two = Two(urls, new_person(servers), models)
        for url in urls:
            given: dict[str, Any] = {"timeout": 60, "headers": two.person.headers}
            client = httpx2.Client(base_url=url, trust_env=False, **given)
            two.clients.append(stack.enter_context(client))
        sent = {"title": "Kiosk", "content": ARTICLE, "source": "kiosk.md"}
        two.clients[0].post("/api/v1/documents/ingest", json=sent)
        work_off(servers, two.person.tenant_id)
        yield two


@pytest.fixture
def two(served: Two) -> Iterator[Two]:
    yield served
    for model in served.models:
        model.fails, model.pause_seconds = False, 0.0
        model.go_on.set()


def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def numbers_of(text: str) -> list[int]:
    lines = (line for block in text.split("\n\n") for line in block.splitlines())
    return [int(line.removeprefix("id: ")) for line in lines if line.startswith("id: ")]


# --- cut and resumed


@dataclass
class Cut:
    """A reader whose connection is cut after some bytes, and who comes back."""

    person: Person
    seen: list[str] = field(default_factory=list)  # whole events
    cuts: int = 0

    @property
    def after(self) -> int:
        return numbers_of(self.seen[-1])[0] if self.seen else 0

    def read(self, url: str, method: str, path: str, *, body: Any = None, n_bytes: int) -> bool:
        "Read so many bytes of a stream; say whether it has told its end."
        place, data = urlsplit(url), b"" if body is None else json.dumps(body).encode()
        headers = {"Host": place.netloc, **STREAM, **self.person.headers, "Connection": "close"}
        headers |= {"Content-Type": "application/json", "Content-Length": str(len(data))}
        headers |= {"Last-Event-ID": str(self.after), "Idempotency-Key": "k-" + path}
        head = f"{method} {path} HTTP/1.1\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in headers.items()) + "\r\n"
        with socket.create_connection((place.hostname, place.port), timeout=60) as wire:
            wire.sendall(head.encode() + data)
            raw = b""
            while b"\r\n\r\n" not in raw:
                raw += wire.recv(1)
            assert raw.startswith(b"HTTP/1.1 200"), raw
            raw = b""
            while len(raw) < n_bytes and (got := wire.recv(min(512, n_bytes - len(raw)))):
                raw += got
        self.take(raw)
        return "event: message.completed" in (self.seen[-1] if self.seen else "")

    def take(self, raw: bytes) -> None:
        "Keep the whole events of what was read, without the frame of the chunks around them."
        body, rest = b"", raw
        while b"\r\n" in rest:
            size, _, rest = rest.partition(b"\r\n")
            n = int(size, 16)
            body += rest[:n]
            rest = rest[n + 2 :]
        *whole, _ = body.split(b"\n\n")
        self.seen += [one.decode() for one in whole if not one.startswith(b":")]
        self.cuts += 1


def test_a_stream_that_is_cut_two_hundred_times_loses_and_doubles_nothing(two: Two) -> None:
    dice, cuts, replies = random.Random(7741), 0, 0
    while cuts < 200:
        talk, cut = two.open(), Cut(two.person)
        for model in two.models:
            model.pause_seconds = dice.choice([0.0, 0.0005, 0.002])
        path, body = f"{CONVERSATIONS}/{talk}/messages", {"content": QUESTION}
        while not cut.seen:  # the id of the reply is not known yet: the question is repeated
            cut.read(two.urls[0], "POST", path, body=body, n_bytes=dice.randint(1, 1500))
        reply_id = json.loads(cut.seen[0].splitlines()[1].removeprefix("data: "))["id"]
        is_over = False
        while not is_over:
            address = f"{MESSAGES}/{reply_id}/events"
            url, n_bytes = dice.choice(two.urls), dice.randint(1, 2500)
            is_over = cut.read(url, "GET", address, n_bytes=n_bytes)
        told = two.events(reply_id).text
        assert "\n\n".join([*cut.seen, ""]) == told, "the same bytes as read at once"
        numbers = numbers_of(told)
        assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) > 60
        asked, reply = two.messages(talk)
        assert "".join(pieces_of(read_events(told))) == reply["content"]
        assert asked["reply_id"] == reply["id"] == reply_id
        cuts, replies = cuts + cut.cuts, replies + 1
    assert sum(model.asked for model in two.models) == replies, "no question was asked twice"
    assert replies > 5


def test_the_reply_is_made_when_nobody_reads(two: Two) -> None:
    two.models[0].go_on.clear()
    talk = two.open()
    reply_id, read = two.begin(talk)
    assert [message["reply_id"] for message in two.messages(talk)] == [reply_id]
    two.models[0].go_on.set()
    until(lambda: len(two.messages(talk)) == 2)
    rest = two.events(reply_id, after=3).text.split("\n\n")
    assert read + rest == two.events(reply_id, at=0).text.split("\n\n")
    last = numbers_of(rest[-2])[0]
    assert two.events(reply_id, after=last).status_code == 204
    asked, _ = two.messages(talk)
    assert two.events(asked["id"]).text == two.events(reply_id).text, "a question leads to it"


def test_a_flushed_redis_costs_a_follower_elsewhere_nothing(two: Two, servers: Running) -> None:
    two.models[0].go_on.clear()
    reply_id, _ = two.begin(two.open())
    reading = threading.Thread(target=lambda: told.append(two.events(reply_id).text))
    told: list[str] = []
    reading.start()
    with redis.Redis.from_url(servers.redis_url) as client:
        until(lambda: bool(client.keys(f"support_rag:reply:*{reply_id}")))
        client.flushall()
        until(lambda: bool(client.keys(f"support_rag:reply:*{reply_id}")))
        client.flushall()
    two.models[0].go_on.set()
    reading.join(60)
    assert told == [two.events(reply_id, at=0).text]


def test_what_is_stored_is_told_also_without_redis(two: Two, servers: Running) -> None:
    reply_id, read = two.begin(two.open(), n_events=5)
    until(lambda: two.events(reply_id, at=0).text.count("message.completed") > 0)
    live = two.events(reply_id, at=0).text
    with redis.Redis.from_url(servers.redis_url) as client:
        client.flushall()
    assert two.events(reply_id).text == live and live.split("\n\n")[:5] == read
    away = hashing_app(servers, redis_url="redis://127.0.0.1:1/0")
    with (
        serving(away) as url,
        httpx2.Client(base_url=url, headers=two.person.headers, timeout=60) as client,
    ):
        assert client.get(f"{MESSAGES}/{reply_id}/events").text == live
        talk = client.post(CONVERSATIONS, json={}).json()["id"]
        path = f"{CONVERSATIONS}/{talk}/messages"
        asked = client.post(path, json={"content": QUESTION}, headers=STREAM)
        assert read_events(asked.text)[-1][0] == "message.completed"


def test_a_failure_is_told_and_the_question_can_be_asked_again(two: Two, servers: Running) -> None:
    talk = two.open()
    with as_superuser(servers) as connection:
        connection.execute("ALTER TABLE traces RENAME TO traces_away")
        try:
            path, body = f"{CONVERSATIONS}/{talk}/messages", {"content": QUESTION}
            told = read_events(two.clients[0].post(path, json=body, headers=STREAM).text)
        finally:
            connection.execute("ALTER TABLE traces_away RENAME TO traces")
    (name, problem), reply_id = told[-1], told[0][1]["id"]
    assert (name, problem["code"], problem["status"]) == ("error", "internal_error", 500)
    elsewhere = read_events(two.events(reply_id).text)
    assert [name for name, _ in elsewhere] == [name for name, _ in told]
    assert two.events(reply_id, after=len(told)).text == ""
    again = two.clients[1].post(f"{MESSAGES}/{reply_id}/regenerate")
    assert again.status_code == 200 and again.json()["seq"] == 2
    assert [m["role"] for m in two.messages(talk)] == ["user", "assistant"]


# --- cancelled


@pytest.mark.parametrize("at", [0, 1])
def test_a_cancelled_reply_ends_and_its_question_stays(two: Two, at: int) -> None:
    two.models[0].go_on.clear()
    talk = two.open()
    reply_id, _ = two.begin(talk)
    key = {"Idempotency-Key": str(uuid.uuid4())}
    cancelled = two.clients[at].post(f"{MESSAGES}/{reply_id}/cancel", headers=key)
    assert cancelled.status_code == 200, cancelled.text
    shown = cancelled.json()
    assert (shown["id"], shown["status"], shown["content"]) == (reply_id, "cancelled", "")
    for again in (key, {}):
        repeated = two.clients[at].post(f"{MESSAGES}/{reply_id}/cancel", headers=again)
        assert repeated.json() == shown
    told = two.events(reply_id, at=0).text
    assert read_events(told)[-1] == ("message.completed", shown)
    until(lambda: "message.completed" in two.events(reply_id, after=3).text)
    assert numbers_of(two.events(reply_id, after=3).text) == [4], "the number that it had"
    two.models[0].go_on.set()
    asked, kept = two.messages(talk)
    assert asked["content"] == QUESTION and kept == shown
    made = two.clients[1].post(f"{MESSAGES}/{reply_id}/regenerate").json()
    assert made["seq"] == 2 and "72 hours" in made["content"]
    assert two.messages(talk)[1] == made
    late = two.clients[0].post(f"{MESSAGES}/{made['id']}/cancel")
    assert (late.status_code, late.json()["code"]) == (409, "conflict")


# --- asked again


def test_a_reply_is_asked_for_again_and_the_one_before_is_kept(two: Two, servers: Running) -> None:
    talk = two.open()
    path = f"{CONVERSATIONS}/{talk}/messages"
    first = two.clients[0].post(path, json={"content": QUESTION}).json()
    two.models[1].go_on.clear()
    with (
        two.clients[1].stream(
            "POST", f"{MESSAGES}/{first['id']}/regenerate", headers=STREAM
        ) as answered,
    ):
        second = read_events(next(answered.iter_text()))[0][1]["id"]
    assert two.messages(talk)[1] == first, "it stands until there is another one"
    busy = two.clients[0].post(f"{MESSAGES}/{first['id']}/regenerate")
    assert busy.status_code == 409 and "replaced" in busy.json()["detail"]
    named = two.messages(talk)[0]["id"]
    busy = two.clients[0].post(f"{MESSAGES}/{named}/regenerate")
    assert busy.status_code == 409 and "being made" in busy.json()["detail"]
    two.models[1].go_on.set()
    until(lambda: two.messages(talk)[1]["id"] == second)
    assert [m["seq"] for m in two.messages(talk)] == [1, 2]
    with as_superuser(servers) as connection:
        rows = connection.execute(
            "SELECT id::text, replaced_at IS NULL FROM messages WHERE conversation_id = %s"
            " AND seq = 2",
            [talk],
        ).fetchall()
    assert dict(rows) == {first["id"]: False, second: True}
    old = read_events(two.events(first["id"]).text)[-1][1]
    assert old == first, "what was told stays as it was"


def test_only_the_last_question_of_an_open_conversation_is_asked_again(two: Two) -> None:
    talk = two.open()
    path = f"{CONVERSATIONS}/{talk}/messages"
    first, second = (two.clients[0].post(path, json={"content": QUESTION}).json() for _ in range(2))
    refused = two.clients[0].post(f"{MESSAGES}/{first['id']}/regenerate")
    assert refused.status_code == 409 and "went on" in refused.json()["detail"]
    key = {"Idempotency-Key": str(uuid.uuid4())}
    again = [
        two.clients[n].post(f"{MESSAGES}/{second['id']}/regenerate", headers=key).json()
        for n in (0, 1)
    ]
    assert again[0] == again[1] and again[0]["id"] != second["id"]
    two.clients[0].post(f"{CONVERSATIONS}/{talk}/close")
    refused = two.clients[0].post(f"{MESSAGES}/{again[0]['id']}/regenerate")
    assert refused.status_code == 409 and "closed" in refused.json()["detail"]


# --- whose it is


def test_another_member_or_customer_finds_no_events(two: Two, servers: Running) -> None:
    talk = two.clients[0].post(CONVERSATIONS, json={"end_user": "c-1"}).json()["id"]
    path = f"{CONVERSATIONS}/{talk}/messages"
    reply = two.clients[0].post(path, json={"content": QUESTION}).json()
    member = new_person(servers, tenant_id=two.person.tenant_id, role="member").headers
    for headers in (member, {"End-User": "c-2"}):
        for method, what in (("GET", "events"), ("POST", "cancel"), ("POST", "regenerate")):
            found = two.clients[1].request(
                method, f"{MESSAGES}/{reply['id']}/{what}", headers=headers
            )
            assert found.status_code == 404, (headers, what)
    own = {"End-User": "c-1"}
    assert two.clients[1].get(f"{MESSAGES}/{reply['id']}/events", headers=own).is_success
    for bad in ("x", "-1", "1.5", str(2**40)):
        wrong = two.clients[1].get(
            f"{MESSAGES}/{reply['id']}/events", headers={"Last-Event-ID": bad}
        )
        assert wrong.status_code == 422, bad
