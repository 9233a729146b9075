"""Owners and admins name who is told of events."""

import uuid
from collections.abc import Iterator

import httpx2
import pytest

from support_rag.local.servers import Running
from tests.people import Person, as_superuser, new_person

pytestmark = pytest.mark.usefixtures("no_work_left")
WEBHOOKS, DELIVERIES = "/api/v1/webhooks", "/api/v1/deliveries"


@pytest.fixture
def owner(servers: Running) -> Person:
    return new_person(servers)


@pytest.fixture
def client(url: str, owner: Person) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=url, timeout=60, headers=owner.headers) as client:
        yield client


def test_an_endpoint_is_told_of_what_it_wants(
    client: httpx2.Client, owner: Person, servers: Running
) -> None:
    key = {"Idempotency-Key": str(uuid.uuid4())}
    sent = {"url": "https://127.0.0.1/in", "events": ["conversation.closed", "feedback.created"]}
    made = client.post(WEBHOOKS, json=sent, headers=key)
    assert made.status_code == 201 and made.json()["secret"].startswith("whsec_")
    again = client.post(WEBHOOKS, json=sent, headers=key).json()
    assert again["secret"] is None and again["id"] == made.json()["id"]
    [listed] = client.get(WEBHOOKS).json()["items"]
    assert "secret" not in listed and listed["events"] == sent["events"]
    talk = client.post("/api/v1/conversations", json={}).json()["id"]
    client.post(f"/api/v1/conversations/{talk}/hand-off")
    path = f"/api/v1/conversations/{talk}/messages"
    reply = client.post(path, json={"content": "Is anybody there?"}).json()
    client.post(f"/api/v1/messages/{reply['id']}/feedback", json={"verdict": "up"})
    client.post(f"/api/v1/conversations/{talk}/close")
    told = client.get(DELIVERIES).json()["items"]
    assert [one["kind"] for one in told] == ["conversation.closed", "feedback.created"]
    assert told[0]["data"]["conversation_id"] == talk and told[1]["data"]["verdict"] == "up"
    assert told[0]["status"] == "pending" and "Is anybody" not in str(told)
    busy = client.post(f"{DELIVERIES}/{told[0]['id']}/resend")
    assert (busy.status_code, busy.json()["code"]) == (409, "conflict")
    with as_superuser(servers) as connection:
        connection.execute("UPDATE deliveries SET status = 'dead' WHERE id = %s", [told[0]["id"]])
    [dead] = client.get(DELIVERIES, params={"status": "dead"}).json()["items"]
    resent = client.post(f"{DELIVERIES}/{dead['id']}/resend")
    assert resent.status_code == 202 and resent.json()["status"] == "pending"
    assert client.delete(f"{WEBHOOKS}/{made.json()['id']}").status_code == 204
    assert client.get(DELIVERIES).json()["items"] == []


@pytest.mark.parametrize(
    "address",
    ["https://evil.example/", "http://hooks.example.com/", "https://10.0.0.1/", "file:///etc", "x"],
)
def test_a_host_that_the_operator_did_not_list_is_refused(
    client: httpx2.Client, address: str
) -> None:
    refused = client.post(WEBHOOKS, json={"url": address})
    assert (refused.status_code, refused.json()["code"]) == (422, "input_invalid")
    assert client.get(WEBHOOKS).json()["items"] == []


def test_agents_members_and_keys_name_nobody(
    url: str, client: httpx2.Client, owner: Person, servers: Running
) -> None:
    key = client.post("/api/v1/keys", json={"name": "K"}).json()["secret"]
    people = [new_person(servers, tenant_id=owner.tenant_id, role=r) for r in ("agent", "member")]
    for headers in (*(p.headers for p in people), {"Authorization": f"Bearer {key}"}):
        for path in (WEBHOOKS, DELIVERIES):
            assert client.get(path, headers=headers).status_code == 403
        sent = {"url": "https://127.0.0.1/"}
        assert client.post(WEBHOOKS, json=sent, headers=headers).status_code == 403
    admin = new_person(servers, tenant_id=owner.tenant_id, role="admin")
    assert client.get(WEBHOOKS, headers=admin.headers).status_code == 200
