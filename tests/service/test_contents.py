"""Documents in batches, what is said about them, what they hold, and search that is restricted."""

import asyncio
import json
import uuid
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from support_rag.local.servers import Running
from tests.people import Person, new_person
from tests.service.test_tenancy import work_off
from tests.serving import read_events

DOCUMENTS, SEARCH = "/api/v1/documents", "/api/v1/search"
CONVERSATIONS = "/api/v1/conversations"


pytestmark = pytest.mark.usefixtures("no_work_left")


@pytest.fixture
def person(servers: Running) -> Person:
    return new_person(servers)


@pytest.fixture
def client(url: str, person: Person) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=url, timeout=300, headers=person.headers) as client:
        yield client


def send(client: httpx2.Client, source: str, **more: Any) -> dict[str, Any]:
    sent = {"title": source, "content": f"# {source}\n\nThe zebra is striped.", "source": source}
    answer = client.post(f"{DOCUMENTS}/ingest", json={**sent, **more})
    assert answer.status_code == 202, answer.text
    return dict(answer.json())


# Batches


def test_each_file_of_a_batch_has_a_result(client: httpx2.Client) -> None:
    files = [
        ("files", ("a.md", b"# A\n\nText.")),
        ("files", ("b.exe", b"MZ")),
        ("files", ("c.md", b"x" * 10_000_001)),
        ("files", ("folder/d.txt", b"Text.")),
    ]
    said = {"tags": ["one", "two"], "metadata": json.dumps({"product": "kiosk"})}
    answer = client.post(f"{DOCUMENTS}/batch", files=files, data=said)
    assert answer.status_code == 200, answer.text
    items = answer.json()["items"]
    assert [(i["name"], i["status"]) for i in items] == [
        ("a.md", 202), ("b.exe", 415), ("c.md", 413), ("d.txt", 202),
    ]  # fmt: skip
    assert [i["problem"] and i["problem"]["code"] for i in items] == [
        None, "unsupported_type", "too_large", None,
    ]  # fmt: skip
    listed = client.get(DOCUMENTS).json()["items"]
    assert {d["source"] for d in listed} == {"a.md", "d.txt"}
    for document in listed:
        assert document["tags"] == ["one", "two"]
        assert document["metadata"] == {"product": "kiosk"}


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ({"json": {}}, 415),
        ({"data": {"metadata": "{}"}, "files": {"other": ("a.md", b"x")}}, 422),
        ({"files": [("files", (f"{n}.md", b"x")) for n in range(21)]}, 400),
        ({"files": {"files": ("a.md", b"x")}, "data": {"source": "a"}}, 422),
        ({"files": {"files": ("a.md", b"x")}, "data": {"metadata": "{"}}, 422),
    ],
)
def test_a_batch_that_is_none_is_refused(
    client: httpx2.Client, sent: dict[str, Any], status: int
) -> None:
    answer = client.post(f"{DOCUMENTS}/batch", **sent)
    assert answer.status_code == status, answer.text
    assert client.get(DOCUMENTS).json()["items"] == []


# What is said about a document


def test_a_change_names_the_state_it_is_meant_for(client: httpx2.Client) -> None:
    path = f"{DOCUMENTS}/{send(client, 'a.md', tags=['old'])['id']}"
    seen = client.get(path)
    etag = seen.headers["etag"]
    change = {"title": "New", "tags": ["b", "a", "b"], "metadata": {"product": "kiosk"}}
    done = client.patch(path, json=change, headers={"If-Match": etag})
    assert done.status_code == 200 and done.headers["etag"] != etag
    assert (done.json()["title"], done.json()["tags"]) == ("New", ["b", "a"])
    late = client.patch(path, json={"title": "Late"}, headers={"If-Match": etag})
    assert (late.status_code, late.json()["code"]) == (412, "precondition_failed")
    assert client.get(path).json() == done.json()
    assert client.get(path).headers["etag"] == done.headers["etag"]
    for headers in ({"If-Match": done.headers["etag"]}, {"If-Match": "*"}, {}):
        again = client.patch(path, json={}, headers=headers)
        assert again.status_code == 200 and again.json()["title"] == "New"
    emptied = client.patch(path, json={"tags": [], "metadata": {}}).json()
    assert (emptied["tags"], emptied["metadata"], emptied["title"]) == ([], {}, "New")
    assert emptied["version"] == 1, "its content is the same"


def test_of_two_changes_of_one_state_one_succeeds(url: str, person: Person) -> None:
    with httpx2.Client(base_url=url, timeout=300, headers=person.headers) as client:
        path = f"{DOCUMENTS}/{send(client, 'a.md')['id']}"
        etag = client.get(path).headers["etag"]

    async def both() -> list[int]:
        async with httpx2.AsyncClient(base_url=url, timeout=300, headers=person.headers) as many:
            sent = (
                many.patch(path, json={"title": str(n)}, headers={"If-Match": etag})
                for n in range(8)
            )
            return [answer.status_code for answer in await asyncio.gather(*sent)]

    assert sorted(asyncio.run(both())) == [200] + [412] * 7


def test_tags_stay_when_a_new_version_names_none(client: httpx2.Client) -> None:
    first = send(client, "a.md", tags=["kept"])
    second = send(client, "a.md", content="# Another")
    assert second["id"] == first["id"] and second["version"] == 2 and second["tags"] == ["kept"]
    third = send(client, "a.md", content="# Another", tags=[])
    assert third["tags"] == []
    assert send(client, "a.md", content="# Another", tags=[])["version"] == third["version"]


def test_a_list_is_filtered_by_tags(client: httpx2.Client) -> None:
    for source, tags in (("a", ["x"]), ("b", ["x", "y"]), ("c", [])):
        send(client, source, tags=tags)

    def sources(**params: Any) -> set[str]:
        answer = client.get(DOCUMENTS, params=params)
        assert answer.status_code == 200, answer.text
        return {d["source"] for d in answer.json()["items"]}

    assert sources() == {"a", "b", "c"}
    assert sources(tag="x") == {"a", "b"} and sources(tag=["x", "y"]) == {"b"}
    assert sources(tag="z") == set() and sources(tag="x", source="a") == {"a"}


# What it holds


def test_chunks_are_the_spans_of_the_text(
    client: httpx2.Client, servers: Running, person: Person
) -> None:
    text = "\n\n".join(f"# Part {n}\n\n" + f"Sentence {n} of zebras. " * 60 for n in range(6))
    made = send(client, "long.md", content=text)
    path = f"{DOCUMENTS}/{made['id']}"
    assert client.get(f"{path}/chunks").json() == {"items": [], "next_cursor": None}
    assert client.get(f"{path}/text").status_code == 404, "nothing is extracted yet"
    work_off(servers, person.tenant_id)
    extracted = client.get(f"{path}/text")
    assert extracted.headers["content-type"] == "text/plain; charset=utf-8"
    walked, cursor = list[dict[str, Any]](), None
    while True:
        params = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        page = client.get(f"{path}/chunks", params=params).json()
        walked += page["items"]
        if (cursor := page["next_cursor"]) is None:
            break
    assert [c["ordinal"] for c in walked] == list(range(len(walked))) and len(walked) >= 3
    assert len(walked) == client.get(path).json()["n_chunks"]
    for chunk in walked:
        assert extracted.text[chunk["start"] : chunk["end"]] == chunk["text"]
        assert text[chunk["source_start"] : chunk["source_end"]] == chunk["text"]
    other = send(client, "other.md")["id"]
    first = client.get(f"{path}/chunks", params={"limit": 1}).json()["next_cursor"]
    wrong = client.get(f"{DOCUMENTS}/{other}/chunks", params={"cursor": first})
    assert wrong.status_code == 404


def test_an_original_comes_back_byte_by_byte(client: httpx2.Client) -> None:
    content = b"<html><script>alert(1)</script>\xff</html>"
    sent = {"file": ("räksmörgås .html", content, "text/html")}
    made = client.post(f"{DOCUMENTS}/ingest", files=sent).json()
    answer = client.get(f"{DOCUMENTS}/{made['id']}/content")
    assert answer.content == content
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"].startswith("attachment; filename*=UTF-8''r%C3%A4k")
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_document_is_processed_again(
    client: httpx2.Client, servers: Running, person: Person
) -> None:
    made = send(client, "a.md")
    work_off(servers, person.tenant_id)
    path = f"{DOCUMENTS}/{made['id']}"
    again = client.post(f"{path}/reingest")
    assert again.status_code == 202 and again.headers["location"] == path
    assert (again.json()["version"], again.json()["ready_version"]) == (2, 1)
    assert client.post(SEARCH, json={"query": "zebra"}).json()["hits"], "the one before serves"
    work_off(servers, person.tenant_id)
    ready = client.get(path).json()
    assert (ready["status"], ready["ready_version"]) == ("ready", 2)
    hits = client.post(SEARCH, json={"query": "zebra"}).json()["hits"]
    assert len(hits) == ready["n_chunks"] == 1


# Filters


@pytest.fixture
def products(client: httpx2.Client, servers: Running, person: Person) -> dict[str, str]:
    "Two products that say the same of different numbers."
    made = {}
    for product, hours, tags in (("kiosk", 72, ["a"]), ("phone", 12, ["a", "b"])):
        content = f"# Offline\n\nThe device stores punches offline for {hours} hours."
        metadata = {"product": product, "year": 2025, "old": False}
        made[product] = send(
            client, f"{product}.md", content=content, metadata=metadata, tags=tags
        )["id"]
    work_off(servers, person.tenant_id)
    return made


QUESTION = "How long does the device store punches offline?"


@pytest.mark.parametrize(
    ("sent", "found"),
    [
        ({}, {"kiosk", "phone"}),
        ({"filter": {}, "tags": []}, {"kiosk", "phone"}),
        ({"filter": {"product": "kiosk"}}, {"kiosk"}),
        ({"filter": {"product": "phone", "year": 2025}}, {"phone"}),
        ({"filter": {"product": "phone", "year": 2024}}, set()),
        ({"filter": {"old": False}}, {"kiosk", "phone"}),
        ({"filter": {"old": 0}}, set()),
        ({"filter": {"missing": None}}, set()),
        ({"tags": ["a"]}, {"kiosk", "phone"}),
        ({"tags": ["b", "a"]}, {"phone"}),
        ({"tags": ["b"], "filter": {"product": "kiosk"}}, set()),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "-".join(sorted(value)),
)
def test_search_reads_only_what_passes(
    client: httpx2.Client, products: dict[str, str], sent: dict[str, Any], found: set[str]
) -> None:
    answer = client.post(SEARCH, json={"query": QUESTION, **sent})
    assert answer.status_code == 200, answer.text
    assert {hit["document_id"] for hit in answer.json()["hits"]} == {products[p] for p in found}


def test_a_reply_reads_only_what_passes(client: httpx2.Client, products: dict[str, str]) -> None:
    talk = f"{CONVERSATIONS}/{client.post(CONVERSATIONS, json={}).json()['id']}/messages"
    for product, hours in (("kiosk", "72"), ("phone", "12")):
        sent = {"content": QUESTION, "filter": {"product": product}}
        reply = client.post(talk, json=sent).json()
        assert hours in reply["content"], reply
        assert {s["document_id"] for s in reply["sources"]} == {products[product]}
        streamed = client.post(talk, json=sent, headers={"Accept": "text/event-stream"})
        assert hours in read_events(streamed.text)[-1][1]["content"]
    nothing = client.post(talk, json={"content": QUESTION, "filter": {"product": "none"}}).json()
    assert nothing["decision"] == "abstain" and nothing["sources"] == []


def test_a_filter_follows_a_change_at_once(client: httpx2.Client, products: dict[str, str]) -> None:
    path = f"{DOCUMENTS}/{products['kiosk']}"
    sent = {"query": QUESTION, "filter": {"product": "clock"}}
    assert client.post(SEARCH, json=sent).json()["hits"] == []
    client.patch(path, json={"metadata": {"product": "clock"}})
    assert [h["document_id"] for h in client.post(SEARCH, json=sent).json()["hits"]] == [
        products["kiosk"]
    ]


@pytest.mark.parametrize("bad", [{"a": []}, {"": 1}, {"a": {"b": 1}}, "x", {"a": "x" * 1001}])
def test_a_filter_that_is_none_is_refused(client: httpx2.Client, bad: Any) -> None:
    assert client.post(SEARCH, json={"query": "x", "filter": bad}).status_code == 422


def test_nothing_of_another_tenant_passes(
    url: str, servers: Running, client: httpx2.Client, products: dict[str, str]
) -> None:
    stranger = new_person(servers)
    with httpx2.Client(base_url=url, timeout=300, headers=stranger.headers) as other:
        send(other, "mine.md", metadata={"product": "kiosk"})
        work_off(servers, stranger.tenant_id)
        hits = other.post(SEARCH, json={"query": QUESTION, "filter": {"product": "kiosk"}}).json()
        assert {h["source"] for h in hits["hits"]} == {"mine.md"}
        assert not set(products.values()) & {h["document_id"] for h in hits["hits"]}


def test_an_id_of_nothing_is_not_found(client: httpx2.Client) -> None:
    path = f"{DOCUMENTS}/{uuid.uuid4()}"
    for answer in (
        client.patch(path, json={"title": "T"}),
        client.get(f"{path}/chunks"),
        client.get(f"{path}/content"),
        client.get(f"{path}/text"),
        client.post(f"{path}/reingest"),
    ):
        assert answer.status_code == 404
