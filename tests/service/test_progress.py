"""How far a document is, as events over a socket, while it is worked on."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterator

import httpx2
import pytest
from fastapi import FastAPI

from support_rag.local.servers import Running
from tests.people import Person, new_person
from tests.service.test_tenancy import work_off
from tests.serving import read_events

pytestmark = pytest.mark.usefixtures("no_work_left")
DOCUMENTS = "/api/v1/documents"


@pytest.fixture(scope="module")
def person(servers: Running) -> Person:
    return new_person(servers)


@pytest.fixture(scope="module")
def client(url: str, person: Person) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=url, timeout=300, headers=person.headers) as client:
        yield client


def accepted(client: httpx2.Client) -> str:
    "Return the id of a new document."
    sent = {"title": "K", "content": f"# Kiosk\n\nOffline {uuid.uuid4()}."}
    answer = client.post(f"{DOCUMENTS}/ingest", json=sent)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def test_a_stream_ends_when_the_document_is_ready(
    app: FastAPI, client: httpx2.Client, servers: Running, person: Person
) -> None:
    id_, seen = accepted(client), list[str]()
    path = f"{DOCUMENTS}/{id_}/events"
    with client.stream("GET", path, params={"seconds": 60}) as stream:
        lines = stream.iter_lines()
        for line in lines:
            seen.append(line)
            if line == "":
                break
        assert "event: document.status" in seen
        worker = threading.Thread(target=work_off, args=(servers, person.tenant_id))
        worker.start()
        seen += list(lines)
        worker.join()
    events = read_events("\n".join(seen) + "\n")
    name, document = events[-1]
    assert name == "document.ready" and document["status"] == "ready" and document["id"] == id_
    states = [data["status"] for _, data in events]
    assert states[0] == "pending" and len(states) == len(set(states)), "each change once"
    numbers = [int(line[4:]) for line in seen if line.startswith("id: ")]
    assert numbers == list(range(1, len(events) + 1))
    again = client.get(path)
    assert [name for name, _ in read_events(again.text)] == ["document.ready"]


def test_a_stream_ends_with_its_time_and_with_the_document(client: httpx2.Client) -> None:
    id_ = accepted(client)
    path = f"{DOCUMENTS}/{id_}/events"
    assert [name for name, _ in read_events(client.get(path, params={"seconds": 0}).text)] == [
        "document.status"
    ]
    with client.stream("GET", path, params={"seconds": 60}) as stream:
        lines = stream.iter_lines()
        assert "document.status" in next(lines)
        assert client.delete(f"{DOCUMENTS}/{id_}").status_code == 204
        rest = "\n".join(lines)
    assert "event: document.deleted" in rest
    assert client.get(path).status_code == 404


@pytest.mark.parametrize("seconds", ["-1", "61", "nan", "x"])
def test_a_time_that_is_none_is_refused(client: httpx2.Client, seconds: str) -> None:
    answer = client.get(f"{DOCUMENTS}/{accepted(client)}/events", params={"seconds": seconds})
    assert answer.status_code == 422, answer.text
    assert "seconds" in json.dumps(answer.json())
