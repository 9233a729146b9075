"""One convention for all routes: names, parameters, lists, errors."""

import re
import uuid
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI

from support_rag.local.servers import Running
from support_rag.service.catalogue import ENTRIES, subclasses
from support_rag.types import SupportRagError
from tests.people import Person, as_superuser, new_person
from tests.serving import serving

INGEST, DOCUMENTS = "/api/v1/documents/ingest", "/api/v1/documents"
CONVERSATIONS = "/api/v1/conversations"
PROBLEM = "application/problem+json"


pytestmark = pytest.mark.usefixtures("no_work_left")


@pytest.fixture(scope="module")
def person(servers: Running) -> Person:
    return new_person(servers)


@pytest.fixture(scope="module")
def client(app: FastAPI, person: Person) -> Iterator[httpx2.Client]:
    with (
        serving(app) as url,
        httpx2.Client(base_url=url, timeout=300, headers=person.headers) as client,
    ):
        yield client


def operations(app: FastAPI) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (method.upper(), path, described)
        for path, methods in app.openapi()["paths"].items()
        for method, described in methods.items()
    ]


# Names

VERBS = (
    "accept|ask|assign|cancel|change|close|confirm|create|delete|disable|enable|get|ingest|list|"
    "refresh|regenerate|register|reingest|request|resend|reset|resolve|return|revoke|search|sign|take|"
    "update"
)


def test_operations_are_named_in_one_style(app: FastAPI) -> None:
    seen = set()
    for method, path, described in operations(app):
        id_, summary = described["operationId"], described["summary"]
        assert re.fullmatch(rf"({VERBS})(_[a-z]+)+", id_), (method, path, id_)
        assert re.fullmatch(r"[A-Z][a-z]+( [a-z]+)+", summary), (id_, summary)
        assert summary.lower().split()[0] == id_.split("_")[0], (id_, summary)
        assert described["description"].endswith("."), id_
        seen.add(id_)
    assert len(seen) == len(operations(app))


# Parameters


def test_an_unknown_parameter_is_refused_and_the_known_ones_are_named(
    app: FastAPI, client: httpx2.Client
) -> None:
    for method, path, described in operations(app):
        address = re.sub(r"\{\w+\}", str(uuid.uuid4()), path)
        answer = client.request(method, address, params={"no_such_thing": "canary"})
        assert answer.status_code == 422, (method, path, answer.text)
        (fault,) = answer.json()["errors"]
        assert fault["field"] == "query.no_such_thing" and "canary" not in answer.text
        for parameter in described.get("parameters", ()):
            if parameter["in"] == "query":
                assert parameter["name"] in fault["message"], (path, fault)


# Lists


def send(client: httpx2.Client, source: str) -> str:
    body = {"title": "T", "content": f"# {source}", "source": source}
    answer = client.post(INGEST, json=body)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def ids(client: httpx2.Client, path: str, **params: Any) -> list[str]:
    answer = client.get(path, params=params)
    assert answer.status_code == 200, answer.text
    return [item["id"] for item in answer.json()["items"]]


def test_documents_are_filtered_and_sorted(client: httpx2.Client, servers: Running) -> None:
    a, b, c = (send(client, f"{name}.md") for name in "abc")
    with as_superuser(servers) as connection:
        connection.execute("UPDATE documents SET status = 'failed' WHERE id = %s", [a])
        connection.execute(
            "UPDATE documents SET status = 'ready', updated_at = now() WHERE id = %s", [b]
        )
    assert ids(client, DOCUMENTS) == [c, b, a]
    assert ids(client, DOCUMENTS, sort="created_at") == [a, b, c]
    assert ids(client, DOCUMENTS, sort="-updated_at") == [b, c, a]
    assert ids(client, DOCUMENTS, sort="updated_at") == [a, c, b]
    assert ids(client, DOCUMENTS, status="failed") == [a]
    assert ids(client, DOCUMENTS, status=["failed", "pending"]) == [c, a]
    assert ids(client, DOCUMENTS, source="b.md") == [b]
    assert ids(client, DOCUMENTS, source="b.md", status="failed") == []
    for bad in ({"status": "done"}, {"sort": "title"}, {"sort": "-"}):
        assert client.get(DOCUMENTS, params=bad).status_code == 422


@pytest.mark.parametrize("sort", ["created_at", "-created_at", "updated_at", "-updated_at"])
def test_a_filtered_list_is_walked_once_in_order(client: httpx2.Client, sort: str) -> None:
    for _ in range(5):
        assert client.post(CONVERSATIONS, json={}).status_code == 201
    closed = client.post(CONVERSATIONS, json={}).json()["id"]
    assert client.post(f"{CONVERSATIONS}/{closed}/close").status_code == 200
    whole = ids(client, CONVERSATIONS, status="open", sort=sort, limit=100)
    assert closed not in whole and closed in ids(client, CONVERSATIONS, status="closed")
    walked, cursor = list[str](), None
    while True:
        params = {"status": "open", "sort": sort, "limit": 2}
        answer = client.get(CONVERSATIONS, params=params | ({"cursor": cursor} if cursor else {}))
        walked += [item["id"] for item in answer.json()["items"]]
        if (cursor := answer.json()["next_cursor"]) is None:
            break
    assert walked == whole and len(set(walked)) == len(walked) >= 5


def test_a_cursor_belongs_to_its_filters_and_its_order(client: httpx2.Client) -> None:
    for _ in range(2):
        client.post(CONVERSATIONS, json={})
    params = {"status": "open", "limit": 1}
    cursor = client.get(CONVERSATIONS, params=params).json()["next_cursor"]
    assert client.get(CONVERSATIONS, params=params | {"cursor": cursor}).status_code == 200
    for other in ({"status": "closed"}, {"sort": "created_at"}):
        assert (
            client.get(CONVERSATIONS, params=params | {"cursor": cursor} | other).status_code == 404
        )
    assert client.get(CONVERSATIONS, params={"cursor": cursor}).status_code == 404


# Errors


def test_every_code_has_its_place_in_the_catalogue(client: httpx2.Client) -> None:
    listed = {entry["code"]: entry for entry in client.get("/api/v1/problems").json()}
    served = [one for one in subclasses(SupportRagError) if "evaluation" not in one.__module__]
    ours = {one.code for one in served if one.__module__.startswith("support")}
    assert ours <= set(listed) == set(ENTRIES)
    for code, entry in listed.items():
        assert client.get(entry["type"]).json() == entry, code
        assert entry["meaning"] and entry["remedy"] and entry["example"]
    assert client.get("/api/v1/problems/teapot").status_code == 404


def test_the_type_of_a_problem_leads_to_its_explanation(client: httpx2.Client) -> None:
    for answer in (
        client.get(f"{DOCUMENTS}/{uuid.uuid4()}"),
        client.get("/nothing"),
        client.put(DOCUMENTS),
        client.get(DOCUMENTS, params={"limit": 0}),
        client.get(DOCUMENTS, headers={"Authorization": "Bearer x"}),
        client.get(DOCUMENTS, headers={"X-Long": "x" * 33_000}),
    ):
        problem = answer.json()
        entry = client.get(problem["type"]).json()
        assert (entry["code"], entry["status"]) == (problem["code"], answer.status_code)


def test_examples_stand_under_the_status_of_their_code(app: FastAPI) -> None:
    shown = set()
    for method, path, described in operations(app):
        for status, response in described["responses"].items():
            for code, example in (
                response.get("content", {}).get(PROBLEM, {}).get("examples", {}).items()
            ):
                value = example["value"]
                assert str(value["status"]) == status == str(ENTRIES[code].status), (path, code)
                assert value["code"] == code and value["type"].endswith(f"/{code}")
                shown.add(code)
        wanted = [s for s in described["responses"] if s[0] in "45"]
        for status in wanted:
            assert described["responses"][status]["content"][PROBLEM]["examples"], (method, path)
    assert {"input_invalid", "unauthorized", "not_found", "too_large", "unavailable"} <= shown


# Text that shows nothing


@pytest.mark.parametrize(
    "blank", ["\u200b", "\u2060\ufeff", "\u200d\u200c \u00ad", "\u3164", "\u2800"]
)
def test_text_without_width_is_blank(client: httpx2.Client, blank: str) -> None:
    conversation = client.post(CONVERSATIONS, json={}).json()["id"]
    for path, body in (
        ("/api/v1/search", {"query": blank}),
        (f"{CONVERSATIONS}/{conversation}/messages", {"content": blank}),
        (INGEST, {"title": blank, "content": "x"}),
    ):
        assert client.post(path, json=body).status_code == 422, path
    assert client.post("/api/v1/search", json={"query": f"a{blank}b"}).status_code == 200
