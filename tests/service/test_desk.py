"""People take conversations over from the bot and give them back, through a real socket."""

import asyncio
import threading
import uuid
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest

from support_rag.generate import CallBudget, ExtractiveGenerator
from support_rag.local.servers import Running
from support_rag.service.app import create_app
from support_rag.state import tables
from support_rag.state.hours import DAYS
from support_rag.types import Prompt
from tests.people import (
    Person,
    as_superuser,
    hashing_models,
    hashing_release,
    new_person,
    settings_of,
)
from tests.service.test_conversations import store_article
from tests.serving import read_events, serving

pytestmark = pytest.mark.usefixtures("no_work_left")
CONVERSATIONS, QUEUE, TENANT = "/api/v1/conversations", "/api/v1/queue", "/api/v1/tenant"
QUESTION = "How long does the kiosk keep punches while it is offline?"
PERSON = "I want to talk to a human"


class Gated(ExtractiveGenerator):
    "Writes when it is let, and remembers what it was shown."

    def __init__(self) -> None:
        super().__init__()
        self.let, self.asked = threading.Event(), threading.Event()
        self.let.set()
        self.shown: list[Prompt] = []

    async def generate(
        self, prompt: Prompt, *, budget: CallBudget | None = None
    ) -> AsyncGenerator[str, None]:
        self.shown.append(prompt)
        self.asked.set()
        while not self.let.is_set():
            await asyncio.sleep(0.005)
        async for piece in super().generate(prompt, budget=budget):
            yield piece


@dataclass
class Somebody:
    "A person or a program, and what it sends."

    client: httpx2.Client
    headers: dict[str, str]
    id: str = ""

    def send(self, method: str, path: str, **values: Any) -> httpx2.Response:
        headers = self.headers | values.pop("headers", {})
        return self.client.request(method, path, headers=headers, **values)

    def post(self, path: str, body: Any = None, **values: Any) -> httpx2.Response:
        return self.send("POST", path, json=body, **values)

    def get(self, path: str, **params: Any) -> Any:
        answer = self.send("GET", path, params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def open(self) -> str:
        return f"{CONVERSATIONS}/{self.post(CONVERSATIONS, {}).json()['id']}"

    def ask(self, talk: str, content: str) -> httpx2.Response:
        return self.post(f"{talk}/messages", {"content": content})


@dataclass
class Team:
    "A tenant with everybody who takes part."

    owner: Somebody
    ada: Somebody
    bob: Somebody
    cleo: Somebody
    widget: Somebody
    tenant_id: str


@pytest.fixture(scope="module")
def generator() -> Gated:
    return Gated()


@pytest.fixture(scope="module")
def team(servers: Running, generator: Gated) -> Iterator[Team]:
    app = create_app(settings_of(servers), **hashing_models() | {"generator": generator})
    with serving(app) as url, httpx2.Client(base_url=url, timeout=300) as client:

        def somebody(person: Person, name: str = "") -> Somebody:
            one = Somebody(client, person.headers, person.user_id)
            if name:
                assert one.send("PATCH", "/api/v1/me", json={"name": name}).status_code == 200
            return one

        boss = new_person(servers)
        here = {"tenant_id": boss.tenant_id}
        owner = somebody(boss)
        ada, bob = (
            somebody(new_person(servers, **here, role="agent"), name) for name in ("Ada", "Bob")
        )
        cleo = somebody(new_person(servers, **here, role="member"), "Cleo")
        made = owner.post(
            "/api/v1/keys",
            {"name": "W", "kind": "publishable", "origins": ["https://shop.example"]},
        )
        assert made.status_code == 201, made.text
        key = {"Authorization": f"Bearer {made.json()['secret']}", "Origin": "https://shop.example"}
        models = hashing_models()
        asyncio.run(
            store_article(servers.app_url, boss.tenant_id, hashing_release(), models["embedders"])
        )
        yield Team(owner, ada, bob, cleo, Somebody(client, key), boss.tenant_id)


@pytest.fixture(autouse=True)
def free(generator: Gated) -> Iterator[None]:
    yield
    generator.let.set()


def waiting(team: Team, **params: Any) -> list[str]:
    "Return the addresses of the conversations in the queue."
    return [
        f"{CONVERSATIONS}/{one['id']}" for one in team.ada.get(QUEUE, limit=100, **params)["items"]
    ]


def handed_off(team: Team) -> str:
    "Return a new conversation that waits for a person."
    talk = team.cleo.open()
    assert team.cleo.ask(talk, PERSON).json()["reason"] == "customer_request"
    return talk


def test_two_agents_hand_a_conversation_over(team: Team) -> None:
    ada, bob, cleo = team.ada, team.bob, team.cleo
    talk = cleo.open()
    assert cleo.ask(talk, QUESTION).json()["decision"] == "answer"
    asked = cleo.ask(talk, "Please let me talk to a human")
    assert (asked.json()["decision"], asked.json()["reason"]) == ("hand_off", "customer_request")

    [entry] = [one for one in ada.get(QUEUE)["items"] if talk.endswith(one["id"])]
    assert (entry["asked_by"], entry["last_question"]) == ("Cleo", "Please let me talk to a human")
    assert (entry["status"], entry["hand_off_reason"]) == ("handed_off", "customer_request")
    assert entry["waiting_since"] and entry["assignee"] is None

    taken = ada.post(f"{talk}/take")
    assert taken.status_code == 200 and taken.json()["assignee"] == {"id": ada.id, "name": "Ada"}
    silent = cleo.ask(talk, QUESTION)
    assert silent.status_code == 202 and silent.json()["role"] == "user"
    streamed = cleo.post(
        f"{talk}/messages", {"content": "Hello?"}, headers={"Accept": "text/event-stream"}
    )
    [(name, data)] = read_events(streamed.text)
    assert name == "person.answers" and data["assignee"]["name"] == "Ada"
    assert data["message"]["content"] == "Hello?"
    assert [m["role"] for m in cleo.get(talk)["messages"]][-2:] == ["user", "user"]

    assert ada.post(f"{talk}/notes", {"content": "She means the old kiosk."}).status_code == 201
    given = ada.post(f"{talk}/assign", {"user_id": bob.id})
    assert given.json()["assignee"]["name"] == "Bob"
    assert [n["author"]["name"] for n in bob.get(f"{talk}/notes")["items"]] == ["Ada"]
    late = ada.post(f"{talk}/replies", {"content": "Still me"})
    assert late.status_code == 409 and late.json()["detail"].startswith("Bob has this conversation")
    reply = bob.post(f"{talk}/replies", {"content": "The old one keeps 24 hours."})
    assert reply.status_code == 201 and reply.json()["author"]["name"] == "Bob"
    assert cleo.get(talk)["waiting_since"] is None, "a person has answered"

    assert bob.post(f"{talk}/return").json()["status"] == "open"
    again = cleo.ask(talk, QUESTION)
    assert again.status_code == 200 and again.json()["decision"] == "answer"
    assert bob.post(f"{talk}/resolve").json()["status"] == "resolved"
    rated = cleo.post(f"{talk}/rating", {"score": 5, "comment": "Quick, both of them."})
    assert rated.status_code == 200 and rated.json()["score"] == 5

    seen = cleo.get(talk)
    assert [m["seq"] for m in seen["messages"]] == sorted(m["seq"] for m in seen["messages"])
    assert seen["rating"] == 5 and talk not in waiting(team)
    done = ada.get(f"{talk}/actions")["items"]
    assert [(one["action"], (one["by"] or {}).get("name")) for one in done] == [
        ("hand_off", None), ("take_over", "Ada"), ("assignment", "Ada"), ("return", "Bob"),
        ("resolve", "Bob"), ("rating", "Cleo"),
    ]  # fmt: skip
    assert done[2]["to"]["name"] == "Bob"


@pytest.mark.parametrize("form", ["json", "events"])
def test_a_reply_that_a_take_over_comes_before_is_not_posted(
    team: Team, generator: Gated, form: str
) -> None:
    talk = team.cleo.open()
    generator.let.clear()
    generator.asked.clear()
    headers = {"Accept": "text/event-stream"} if form == "events" else {}
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(
            team.cleo.post, f"{talk}/messages", {"content": QUESTION}, headers=headers
        )
        assert generator.asked.wait(60)
        assert team.ada.post(f"{talk}/take").status_code == 200
        generator.let.set()
        answer = asking.result()
    if form == "events":
        name, data = read_events(answer.text)[-1]
        assert (name, data["assignee"]["name"]) == ("person.answers", "Ada")
    else:
        assert answer.status_code == 202 and answer.json()["role"] == "user"
    assert [m["role"] for m in team.cleo.get(talk)["messages"]] == ["user"]
    team.ada.post(f"{talk}/replies", {"content": "I am here."})
    assert [m["role"] for m in team.cleo.get(talk)["messages"]] == ["user", "agent"]


def test_a_question_that_a_person_answers_is_told_so_again_at_its_repetition(team: Team) -> None:
    talk, key = handed_off(team), {"Idempotency-Key": uuid.uuid4().hex}
    team.ada.post(f"{talk}/take")
    first, second = (
        team.cleo.post(f"{talk}/messages", {"content": "Hello?"}, headers=key) for _ in range(2)
    )
    assert first.status_code == second.status_code == 202 and first.json() == second.json()
    assert len([m for m in team.cleo.get(talk)["messages"] if m["content"] == "Hello?"]) == 1


def test_of_two_who_take_at_once_one_gets_it_and_the_other_learns_who(team: Team) -> None:
    for _ in range(6):
        talk = handed_off(team)
        with ThreadPoolExecutor(2) as pool:
            both = list(pool.map(Somebody.post, (team.ada, team.bob), [f"{talk}/take"] * 2))
        assert sorted(one.status_code for one in both) == [200, 409]
        won = next(one for one in both if one.status_code == 200).json()["assignee"]["name"]
        lost = next(one for one in both if one.status_code == 409).json()
        assert lost["detail"].startswith(f"{won} has this conversation")


def test_only_people_who_answer_customers_work_at_the_desk(team: Team) -> None:
    talk = team.widget.open()
    team.widget.ask(talk, PERSON)
    own = team.owner.post("/api/v1/keys", {"name": "K", "scopes": ["conversations:write"]}).json()
    program = Somebody(team.ada.client, {"Authorization": f"Bearer {own['secret']}"})
    for who in (team.cleo, team.widget, program):
        assert who.send("GET", QUEUE).status_code == 403
        for verb, body in (
            ("take", None), ("assign", {"user_id": team.ada.id}), ("return", None),
            ("resolve", None), ("replies", {"content": "x"}), ("notes", {"content": "x"}),
        ):  # fmt: skip
            assert who.post(f"{talk}/{verb}", body).status_code == 403, verb
        for shown in ("notes", "actions"):
            assert who.send("GET", f"{talk}/{shown}").status_code == 403
    assert team.ada.post(f"{talk}/assign", {"user_id": team.cleo.id}).status_code == 422
    assert team.ada.post(f"{talk}/assign", {"user_id": str(uuid.uuid4())}).status_code == 404
    assert team.owner.post(f"{talk}/take").status_code == 200, "an owner may"


def test_the_queue_is_in_order_and_asked_in_parts(team: Team, servers: Running) -> None:
    first, second, third = (handed_off(team) for _ in range(3))
    fourth = team.widget.open()
    assert team.widget.post(f"{fourth}/hand-off").status_code == 200
    with as_superuser(servers) as connection:
        connection.execute(
            "UPDATE conversations SET hand_off_reason = 'uncertain' WHERE id = %s", [third[-36:]]
        )
    team.bob.post(f"{second}/take")
    mine = {first, second, third, fourth}
    ordered = [one for one in waiting(team) if one in mine]
    assert ordered == [first, second, third, fourth]
    assert [one for one in waiting(team, assigned=True) if one in mine] == [second]
    assert [one for one in waiting(team, assigned=False) if one in mine] == [first, third, fourth]
    assert second in waiting(team, assignee_id=team.bob.id)
    assert [one for one in waiting(team, reason="uncertain") if one in mine] == [third]
    walked, cursor = [], None
    while True:
        page = team.ada.get(QUEUE, limit=2, **({"cursor": cursor} if cursor else {}))
        walked += [f"{CONVERSATIONS}/{one['id']}" for one in page["items"]]
        if (cursor := page["next_cursor"]) is None:
            break
    assert walked == waiting(team)
    assert team.ada.send("GET", QUEUE, params={"reason": "boredom"}).status_code == 422


def test_a_change_of_what_was_read_otherwise_is_refused(team: Team) -> None:
    talk = handed_off(team)
    read = team.ada.send("GET", talk).headers["etag"]
    team.cleo.ask(talk, "And please hurry")
    taken = team.ada.post(f"{talk}/take", headers={"If-Match": read})
    assert taken.status_code == 200, "a message changes nothing of who has it"
    for path, body in (("assign", {"user_id": team.bob.id}), ("return", None), ("resolve", None)):
        answer = team.bob.post(f"{talk}/{path}", body, headers={"If-Match": read})
        assert (answer.status_code, answer.json()["code"]) == (412, "precondition_failed")
    now = {"If-Match": taken.headers["etag"]}
    assert team.ada.post(f"{talk}/assign", {"user_id": team.bob.id}, headers=now).status_code == 200
    stale = team.ada.send("PATCH", talk, json={"title": "T"}, headers=now)
    assert stale.status_code == 412


def test_a_repetition_changes_nothing_more(team: Team) -> None:
    talk, key = handed_off(team), {"Idempotency-Key": uuid.uuid4().hex}
    for path, body in (
        ("take", None), ("replies", {"content": "Here."}), ("notes", {"content": "n"}),
        ("resolve", None),
    ):  # fmt: skip
        first, second = (team.ada.post(f"{talk}/{path}", body, headers=key) for _ in range(2))
        assert first.is_success and first.json() == second.json(), path
    other = team.ada.post(f"{talk}/resolve", headers=key | {"If-Match": '"another"'})
    assert (other.status_code, other.json()["code"]) == (422, "key_reused")
    assert [m["content"] for m in team.cleo.get(talk)["messages"]].count("Here.") == 1
    assert len(team.ada.get(f"{talk}/notes")["items"]) == 1


def test_a_customer_who_writes_again_opens_what_was_resolved(team: Team) -> None:
    talk = handed_off(team)
    team.ada.post(f"{talk}/take")
    assert team.bob.post(f"{talk}/resolve").status_code == 409, "it is Ada's"
    assert team.ada.post(f"{talk}/resolve").json()["assignee"] is None
    listed = {"status": "resolved", "reopened": False, "limit": 100}
    assert talk[-36:] in [one["id"] for one in team.ada.get(CONVERSATIONS, **listed)["items"]]
    assert team.cleo.ask(talk, QUESTION).status_code == 200
    seen = team.cleo.get(talk)
    assert seen["status"] == "open" and seen["resolved_at"] < seen["reopened_at"]
    again = team.ada.get(CONVERSATIONS, reopened=True, limit=100)["items"]
    assert talk[-36:] in [one["id"] for one in again]
    assert team.cleo.post(f"{talk}/close").json()["status"] == "closed"
    assert team.ada.post(f"{talk}/take").status_code == 409


def test_a_rating_is_the_customers_and_the_last_one_counts(team: Team) -> None:
    talk = handed_off(team)
    assert team.ada.post(f"{talk}/rating", {"score": 5}).status_code == 403
    for score in (1, 2):
        assert team.cleo.post(f"{talk}/rating", {"score": score}).status_code == 200
    for bad in ({"score": 6}, {"score": 0}, {"score": 2.5}, {"stars": 2}):
        assert team.cleo.post(f"{talk}/rating", bad).status_code == 422
    found = team.ada.get(CONVERSATIONS, rating=[2, 3], limit=100)["items"]
    assert talk[-36:] in [one["id"] for one in found] and found[0]["rating"] in (2, 3)
    assert talk[-36:] not in [
        one["id"] for one in team.ada.get(CONVERSATIONS, rating=1, limit=100)["items"]
    ]
    assert [one["action"] for one in team.ada.get(f"{talk}/actions")["items"]].count("rating") == 2


def test_a_reply_cites_what_documents_say(team: Team, servers: Running) -> None:
    talk = handed_off(team)
    team.ada.post(f"{talk}/take")
    [document] = team.ada.get("/api/v1/documents")["items"]
    text = team.ada.send("GET", f"/api/v1/documents/{document['id']}/text").text
    span = {"document_id": document["id"], "start": 0, "end": 12}
    reply = team.ada.post(f"{talk}/replies", {"content": "See [1].", "sources": [span]}).json()
    assert reply["sources"][0]["number"] == 1 and reply["sources"][0]["title"] == "Kiosk"
    assert reply["sources"][0]["text"] == text[:12] or text[:12] in text
    for change, status in (
        ({"document_id": str(uuid.uuid4())}, 404), ({"end": len(text) + 9999}, 422),
        ({"end": 0}, 422), ({"start": 12}, 422),
    ):  # fmt: skip
        sent = {"content": "x", "sources": [span | change]}
        assert team.ada.post(f"{talk}/replies", sent).status_code == status


# Notes


CANARY = "heliotrope-4417"


def rows_with(servers: Running, text: str) -> set[str]:
    "Return the tables that hold a text, in whatever column."
    with as_superuser(servers) as connection:
        return {
            name
            for name in tables.metadata.tables
            if connection.execute(
                f"SELECT count(*) FROM {name} t WHERE strpos(t::text, %s) > 0"
                f" OR strpos(t::text, %s) > 0",
                [text, text.encode().hex()],
            ).fetchone()[0]  # type: ignore[index]
        }


def test_a_note_is_read_by_colleagues_alone_and_erased(
    team: Team, servers: Running, generator: Gated
) -> None:
    talk = handed_off(team)
    team.ada.post(f"{talk}/take")
    key = {"Idempotency-Key": uuid.uuid4().hex}
    assert team.ada.post(f"{talk}/notes", {"content": CANARY}, headers=key).status_code == 201
    team.ada.post(f"{talk}/return")
    generator.shown.clear()
    assert team.cleo.ask(talk, QUESTION).status_code == 200
    assert generator.shown and CANARY not in str(generator.shown), "no model reads it"
    for who in (team.cleo, team.ada):
        assert CANARY not in who.send("GET", talk).text
        assert who.get(CONVERSATIONS, said=CANARY)["items"] == []
    assert CANARY not in str(team.ada.get(QUEUE, limit=100))
    assert rows_with(servers, CANARY) == {"notes", "idempotency"}
    team.cleo.post(f"{talk}/rating", {"score": 1, "comment": CANARY})
    assert team.cleo.send("DELETE", talk).status_code == 204
    assert rows_with(servers, CANARY) == set()
    with as_superuser(servers) as connection:
        kept = connection.execute("SELECT action FROM audit WHERE subject_id = %s", [talk[-36:]])
        assert {"hand_off", "take_over", "return", "rating"} == {row[0] for row in kept}


# Hours


def closed_now() -> dict[str, Any]:
    "Return hours that begin in about two days."
    day = DAYS[(datetime.now(UTC) + timedelta(days=2)).weekday()]
    return {"time_zone": "UTC", "week": {day: [{"start": "09:00", "end": "17:00"}]}}


@pytest.fixture
def hours(team: Team) -> Iterator[dict[str, Any]]:
    "Hours of the tenant that are closed now."
    given = closed_now() | {"closed_texts": {"de": "Feierabend! <Bis> {until}"}}
    answer = team.owner.send("PATCH", TENANT, json={"hours": given})
    assert answer.status_code == 200 and answer.json()["hours"]["time_zone"] == "UTC"
    yield given
    gone = team.owner.send("PATCH", TENANT, json={"hours": None})
    assert gone.json()["hours"] is None


def test_a_hand_off_outside_of_the_hours_says_when_somebody_will_be_there(
    team: Team, hours: dict[str, Any]
) -> None:
    said = team.cleo.ask(talk := team.cleo.open(), PERSON).json()["content"]
    assert "I am passing this conversation to a person" in said
    assert "We are closed until" in said and "9:00" in said and "Coordinated Universal Time" in said
    assert team.cleo.get(talk)["messages"][-1]["content"] == said
    german = team.cleo.ask(team.cleo.open(), "Ich möchte bitte mit einem Menschen sprechen")
    assert "\n\nFeierabend! <Bis> " in german.json()["content"], "used as it is"
    asked = team.cleo.post(f"{team.cleo.open()}/hand-off").json()
    assert asked["notice"].startswith("We are closed until")
    assert "closed until" not in team.cleo.ask(team.cleo.open(), QUESTION).json()["content"]


def test_hours_that_cannot_be_kept_are_refused(team: Team) -> None:
    week = {"mon": [{"start": "09:00", "end": "17:00"}]}
    for bad in (
        {"time_zone": "Mars/Olympus", "week": week}, {"time_zone": "UTC", "week": {}},
        {"time_zone": "UTC", "week": {"mon": [{"start": "17:00", "end": "09:00"}]}},
        {"time_zone": "UTC", "week": {"someday": week["mon"]}},
        {"time_zone": "UTC", "week": week, "closed_on": ["2026-02-30"]},
        {"time_zone": "UTC", "week": week, "closed_texts": {"tlh": "Qapla'"}},
    ):  # fmt: skip
        assert team.owner.send("PATCH", TENANT, json={"hours": bad}).status_code == 422, bad
    assert team.ada.send("PATCH", TENANT, json={"hours": None}).status_code == 403


def test_a_tenant_chooses_what_fills_its_queue(team: Team) -> None:
    chosen = team.owner.send("PATCH", TENANT, json={"queue_reasons": ["uncertain"]}).json()
    assert chosen["queue_reasons"] == ["customer_request", "complaint", "uncertain"]
    assert handed_off(team) in waiting(team), "somebody was promised"
    every = team.owner.send("PATCH", TENANT, json={"queue_reasons": None}).json()
    assert len(every["queue_reasons"]) == 8
