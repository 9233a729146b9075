"""Sessions, passwords, people, roles, keys: what is revoked is without effect at once."""

import email
import email.policy
import re
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import pytest
import redis
from fastapi import FastAPI

from support_rag.local.servers import Running
from support_rag.service.app import create_app
from support_rag.state.settings import ServiceSettings
from support_rag.state.tables import metadata
from tests.people import (
    SCRAPER,
    Person,
    as_superuser,
    hashing_models,
    leaving_no_work,
    new_person,
    settings_of,
)
from tests.serving import serving

AUTH, DOCUMENTS, CONVERSATIONS = "/api/v1/auth", "/api/v1/documents", "/api/v1/conversations"
KEYS, USERS, INVITATIONS, ME = "/api/v1/keys", "/api/v1/users", "/api/v1/invitations", "/api/v1/me"
PASSWORD, NEWER = "correct horse battery", "a staple of another colour"
TEXT = {"title": "T", "content": "# T", "source": "t.md"}


@pytest.fixture(scope="module", autouse=True)
def no_work_left(servers: Running) -> Iterator[None]:
    with leaving_no_work(servers):
        yield


@pytest.fixture(scope="module")
def settings(servers: Running) -> ServiceSettings:
    return settings_of(servers)


@pytest.fixture(scope="module")
def app(settings: ServiceSettings) -> FastAPI:
    return create_app(settings, **hashing_models())


@pytest.fixture(scope="module")
def url(app: FastAPI) -> Iterator[str]:
    with serving(app) as address:
        yield address


@pytest.fixture(scope="module")
def second_url(servers: Running) -> Iterator[str]:
    "Another process of the same service, as far as memory goes."
    with serving(create_app(settings_of(servers), **hashing_models())) as address:
        yield address


ADDRESSES = (f"127.0.{n}.{m}" for n in range(1, 255) for m in range(1, 255))


@pytest.fixture
def client(url: str) -> Iterator[httpx2.Client]:
    "A client with an address of its own: attempts are counted for each address."
    transport = httpx2.HTTPTransport(local_address=next(ADDRESSES))
    with httpx2.Client(base_url=url, transport=transport, timeout=300) as client:
        yield client


@dataclass
class Session:
    "Somebody with tokens."

    client: httpx2.Client
    email: str
    body: dict[str, Any]

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.body['access_token']}"}

    def send(self, method: str, path: str, **values: Any) -> httpx2.Response:
        return self.client.request(method, path, headers=self.headers, **values)

    def status(self, path: str = ME) -> int:
        return self.send("GET", path).status_code


def register(client: httpx2.Client) -> Session:
    who = {"email": f"{uuid.uuid4().hex}@example.com", "password": PASSWORD}
    answer = client.post(f"{AUTH}/register", json={"tenant_name": "Tempolane", **who})
    assert answer.status_code == 201, answer.text
    return Session(client, who["email"], answer.json())


def log_in(client: httpx2.Client, email: str, password: str = PASSWORD) -> Session:
    answer = client.post(f"{AUTH}/login", json={"email": email, "password": password})
    assert answer.status_code == 200, answer.text
    return Session(client, email, answer.json())


def refresh(client: httpx2.Client, token: str) -> httpx2.Response:
    return client.post(f"{AUTH}/refresh", json={"refresh_token": token})


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


# Sessions


def test_a_refresh_token_works_once_and_a_second_use_ends_the_session(
    client: httpx2.Client, second_url: str
) -> None:
    ada = register(client)
    other = log_in(client, ada.email)
    second = refresh(client, ada.body["refresh_token"])
    assert second.status_code == 200
    renewed = Session(client, ada.email, second.json())
    assert renewed.status() == 200 and renewed.body["refresh_token"] != ada.body["refresh_token"]
    stolen = refresh(client, ada.body["refresh_token"])
    assert stolen.status_code == 401
    with httpx2.Client(base_url=second_url) as elsewhere:
        assert elsewhere.get(ME, headers=renewed.headers).status_code == 401
    assert refresh(client, renewed.body["refresh_token"]).status_code == 401
    assert other.status() == 200, "another session of the same person goes on"


def test_of_refreshes_at_once_one_succeeds_at_most(client: httpx2.Client) -> None:
    ada = register(client)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: refresh(client, ada.body["refresh_token"]), range(8)))
    assert sorted(a.status_code for a in answers) == [200] + [401] * 7
    assert ada.status() == 401, "the other seven are a theft"


@pytest.mark.parametrize("kind", ["access", "changed", "nothing", "reset", "foreign"])
def test_what_is_no_refresh_token_is_refused(client: httpx2.Client, kind: str) -> None:
    ada = register(client)
    token = ada.body["refresh_token"]
    bad = {
        "access": ada.body["access_token"][:200],
        "changed": token[:70] + ("A" if token[70] != "A" else "B") + token[71:],
        "nothing": "",
        "reset": "srt_" + token[4:],
        "foreign": token[:30] + register(client).body["refresh_token"][30:],
    }[kind]
    assert refresh(client, bad).status_code == 401
    assert ada.status() == 200 and refresh(client, token).status_code == 200
    assert ada.send("GET", ME).status_code == 200
    assert client.get(ME, headers=bearer(token)).status_code == 401, "no access with it either"


def test_signing_out_ends_one_session_or_all(client: httpx2.Client) -> None:
    first = register(client)
    second, third = log_in(client, first.email), log_in(client, first.email)
    assert first.send("POST", f"{AUTH}/logout").status_code == 204
    assert [s.status() for s in (first, second, third)] == [401, 200, 200]
    assert refresh(client, first.body["refresh_token"]).status_code == 401
    assert second.send("POST", f"{AUTH}/logout", json={"everywhere": True}).status_code == 204
    assert [s.status() for s in (second, third)] == [401, 401]


def test_what_is_revoked_stays_so_when_redis_is_flushed(
    client: httpx2.Client, servers: Running
) -> None:
    ada = register(client)
    made = ada.send("POST", KEYS, json={"name": "K"}).json()
    out = log_in(client, ada.email)
    assert ada.send("DELETE", f"{KEYS}/{made['id']}").status_code == 200
    assert out.send("POST", f"{AUTH}/logout").status_code == 204
    redis.Redis.from_url(servers.redis_url).flushall()
    assert out.status() == 401
    assert client.get(ME, headers=bearer(made["secret"])).status_code == 401
    assert ada.status() == 200


# Passwords


def test_a_new_password_ends_every_session(client: httpx2.Client) -> None:
    ada = register(client)
    other = log_in(client, ada.email)
    change = {"current_password": PASSWORD, "new_password": NEWER}
    wrong = {"current_password": NEWER, "new_password": PASSWORD}
    assert ada.send("POST", f"{AUTH}/password", json=wrong).status_code == 401
    easy = {**change, "new_password": "password1"}
    refused = ada.send("POST", f"{AUTH}/password", json=easy)
    assert refused.status_code == 422 and "password1" not in refused.text
    answer = ada.send("POST", f"{AUTH}/password", json=change)
    assert answer.status_code == 200
    assert [ada.status(), other.status()] == [401, 401]
    assert Session(client, ada.email, answer.json()).status() == 200
    assert refresh(client, other.body["refresh_token"]).status_code == 401
    old = client.post(f"{AUTH}/login", json={"email": ada.email, "password": PASSWORD})
    assert old.status_code == 401
    log_in(client, ada.email, NEWER)


@pytest.mark.parametrize(
    "password", ["12345678", "qwertyuiop", "iloveyou2", "Passw0rd!", "Tempolane"]
)
def test_passwords_that_are_guessed_first_are_refused(client: httpx2.Client, password: str) -> None:
    who = {"email": f"{uuid.uuid4().hex}@example.com", "password": password}
    answer = client.post(f"{AUTH}/register", json={"tenant_name": "Tempolane", **who})
    assert answer.status_code == 422, answer.text
    assert "too easy to guess" in answer.json()["detail"] and password not in answer.text


def mails(settings: ServiceSettings, to: str) -> list[str]:
    "Return the texts of the messages to an address, oldest first."
    found = []
    for path in sorted((settings.home / "outbox").glob("*.eml")):
        message = email.message_from_bytes(path.read_bytes(), policy=email.policy.default)
        if message["To"] == to:
            found.append(message.get_content())
    return found


def mailed_token(settings: ServiceSettings, to: str, *, number: int = 1) -> str:
    "Return the token of the message with this number to an address; it is sent after the answer."
    until = time.monotonic() + 240
    while len(mails(settings, to)) < number and time.monotonic() < until:
        time.sleep(0.05)
    found = re.search(r"#(sr[ti]_\S+)", mails(settings, to)[number - 1])
    assert found is not None
    return found[1]


def test_a_forgotten_password_is_set_with_the_token_of_a_mail(
    client: httpx2.Client, settings: ServiceSettings
) -> None:
    ada = register(client)
    ask = f"{AUTH}/password/reset"
    asked = [client.post(ask, json={"email": e}) for e in (ada.email, "nobody@example.com")]
    assert [a.status_code for a in asked] == [202, 202]
    assert asked[0].json() == asked[1].json(), "who is known does not show"
    stale = mailed_token(settings, ada.email)
    assert len(mails(settings, ada.email)) == 1 and not mails(settings, "nobody@example.com")
    assert client.post(ask, json={"email": ada.email}).status_code == 202
    token = mailed_token(settings, ada.email, number=2)
    confirm = f"{ask}/confirm"
    for bad in (stale, token[:-2] + "AA", ada.body["refresh_token"], ""):
        answer = client.post(confirm, json={"token": bad, "new_password": NEWER})
        assert answer.status_code == 401, bad
    easy = client.post(confirm, json={"token": token, "new_password": "password1"})
    assert easy.status_code == 422, "and the token is not used up"
    with ThreadPoolExecutor(4) as pool:
        sent = {"token": token, "new_password": NEWER}
        answers = list(pool.map(lambda _: client.post(confirm, json=sent), range(4)))
    assert sorted(a.status_code for a in answers) == [204, 401, 401, 401]
    assert ada.status() == 401
    log_in(client, ada.email, NEWER)
    for _ in range(3):
        assert client.post(ask, json={"email": ada.email}).status_code == 202
    mailed_token(settings, ada.email, number=3)
    assert len(mails(settings, ada.email)) == 3, "three messages an address, then silence"


# People


def invite(owner: Session, settings: ServiceSettings, role: str) -> Session:
    "Invite somebody, who accepts."
    address = f"{uuid.uuid4().hex}@example.com"
    invited = owner.send("POST", INVITATIONS, json={"email": address, "role": role})
    assert invited.status_code == 201, invited.text
    sent = {"token": mailed_token(settings, address), "password": PASSWORD, "name": "N"}
    accepted = owner.client.post(f"{AUTH}/invitations/accept", json=sent)
    assert accepted.status_code == 201, accepted.text
    return Session(owner.client, address, accepted.json())


def test_an_invitation_is_accepted_once(client: httpx2.Client, settings: ServiceSettings) -> None:
    ada = register(client)
    bob = invite(ada, settings, "agent")
    me = bob.send("GET", ME).json()
    assert (me["user"]["role"], me["user"]["name"]) == ("agent", "N")
    assert me["tenant"]["id"] == ada.body["tenant"]["id"]
    sent = {"token": mailed_token(settings, bob.email), "password": PASSWORD}
    assert client.post(f"{AUTH}/invitations/accept", json=sent).status_code == 401
    again = ada.send("POST", INVITATIONS, json={"email": bob.email.upper()})
    assert again.status_code == 409
    address = f"{uuid.uuid4().hex}@example.com"
    revoked = ada.send("POST", INVITATIONS, json={"email": address})
    assert "sri_" not in revoked.text, "only the mailbox knows the token"
    assert ada.send("DELETE", revoked.headers["location"]).status_code == 204
    sent = {"token": mailed_token(settings, address), "password": PASSWORD}
    assert client.post(f"{AUTH}/invitations/accept", json=sent).status_code == 401
    listed = ada.send("GET", INVITATIONS).json()["items"]
    assert [bool(one["used_at"]) for one in listed] == [False, True]
    assert [bool(one["revoked_at"]) for one in listed] == [True, False]


def test_nobody_gives_more_than_they_have(client: httpx2.Client, settings: ServiceSettings) -> None:
    owner = register(client)
    people = {role: invite(owner, settings, role) for role in ("admin", "agent", "member")}
    admin = people["admin"]
    ids = {
        r: s.send("GET", ME).json()["user"]["id"] for r, s in (people | {"owner": owner}).items()
    }
    for role in ("agent", "member"):
        who = people[role]
        assert who.send("POST", INVITATIONS, json={"email": "x@example.com"}).status_code == 403
        assert who.send("PATCH", f"{USERS}/{ids[role]}", json={"role": "owner"}).status_code == 403
        assert who.send("POST", KEYS, json={"name": "K"}).status_code == 403
    assert people["member"].status(USERS) == 403 and people["agent"].status(USERS) == 200
    up = {"email": "x@example.com", "role": "owner"}
    assert admin.send("POST", INVITATIONS, json=up).status_code == 403
    assert admin.send("PATCH", f"{USERS}/{ids['admin']}", json={"role": "owner"}).status_code == 403
    assert (
        admin.send("PATCH", f"{USERS}/{ids['owner']}", json={"disabled": True}).status_code == 403
    )
    assert admin.send("PATCH", "/api/v1/tenant", json={"name": "Mine"}).status_code == 403
    assert owner.send("PATCH", "/api/v1/tenant", json={"name": "Ours"}).json()["name"] == "Ours"
    agreed = owner.send("PATCH", "/api/v1/tenant", json={"allow_replay": True}).json()
    assert agreed["allow_replay"] and agreed["name"] == "Ours"
    assert owner.send("GET", "/api/v1/tenant").json()["allow_replay"]
    assert owner.send("PATCH", f"{USERS}/{ids['owner']}", json={"role": "admin"}).status_code == 409
    assert (
        owner.send("PATCH", f"{USERS}/{ids['owner']}", json={"disabled": True}).status_code == 409
    )


def test_a_new_role_and_a_disabled_person_hold_with_the_next_request(
    client: httpx2.Client, settings: ServiceSettings, second_url: str
) -> None:
    owner = register(client)
    bob = invite(owner, settings, "member")
    bob_id = bob.send("GET", ME).json()["user"]["id"]
    assert bob.send("POST", f"{DOCUMENTS}/ingest", json=TEXT).status_code == 403
    assert owner.send("PATCH", f"{USERS}/{bob_id}", json={"role": "admin"}).status_code == 200
    assert bob.send("POST", f"{DOCUMENTS}/ingest", json=TEXT).status_code == 202
    secret = bob.send("POST", KEYS, json={"name": "K"}).json()["secret"]
    assert client.get(DOCUMENTS, headers=bearer(secret)).status_code == 200
    write = {"headers": bearer(secret), "json": TEXT}
    assert client.post(f"{DOCUMENTS}/ingest", **write).status_code == 202
    assert owner.send("PATCH", f"{USERS}/{bob_id}", json={"role": "member"}).status_code == 200
    assert client.post(f"{DOCUMENTS}/ingest", **write).status_code == 403, "the key sank, too"
    assert owner.send("PATCH", f"{USERS}/{bob_id}", json={"disabled": True}).status_code == 200
    with httpx2.Client(base_url=second_url) as elsewhere:
        assert elsewhere.get(ME, headers=bob.headers).status_code == 401
        assert elsewhere.get(ME, headers=bearer(secret)).status_code == 401
    assert refresh(client, bob.body["refresh_token"]).status_code == 401
    again = client.post(f"{AUTH}/login", json={"email": bob.email, "password": PASSWORD})
    assert again.status_code == 401
    assert owner.send("PATCH", f"{USERS}/{bob_id}", json={"disabled": False}).status_code == 200
    assert bob.status() == 401, "the old session stays over"
    log_in(client, bob.email)


def test_members_see_their_own_conversations(
    client: httpx2.Client, settings: ServiceSettings
) -> None:
    owner = register(client)
    bob, eve = (invite(owner, settings, "member") for _ in range(2))
    agent = invite(owner, settings, "agent")
    made = {s.email: s.send("POST", CONVERSATIONS, json={}).json()["id"] for s in (owner, bob, eve)}
    for who in (bob, eve):
        listed = [one["id"] for one in who.send("GET", CONVERSATIONS).json()["items"]]
        assert listed == [made[who.email]]
    theirs = f"{CONVERSATIONS}/{made[eve.email]}"
    never = f"{CONVERSATIONS}/{uuid.uuid4()}"
    for method, tail, body in (("GET", "", None), ("POST", "/close", None),
                               ("POST", "/messages", {"content": "Why?"})):  # fmt: skip
        answers = [bob.send(method, base + tail, json=body) for base in (theirs, never)]
        assert [a.status_code for a in answers] == [404, 404]
        assert answers[0].json()["detail"] == answers[1].json()["detail"]
    assert len(agent.send("GET", CONVERSATIONS).json()["items"]) == 3
    assert eve.send("POST", f"{theirs}/close").status_code == 200


# Keys


def test_a_key_is_shown_once_and_does_what_its_scopes_say(
    client: httpx2.Client, servers: Running
) -> None:
    ada = register(client)
    made = ada.send("POST", KEYS, json={"name": "CRM", "scopes": ["search", "documents:read"]})
    assert made.status_code == 201
    key, secret = made.json(), made.json()["secret"]
    assert secret.startswith(key["prefix"]) and key["used_at"] is None
    statuses = {
        "search": client.post("/api/v1/search", json={"query": "x"}, headers=bearer(secret)),
        "read": client.get(DOCUMENTS, headers=bearer(secret)),
        "write": client.post(f"{DOCUMENTS}/ingest", json=TEXT, headers=bearer(secret)),
        "talk": client.post(CONVERSATIONS, json={}, headers=bearer(secret)),
        "people": client.get(USERS, headers=bearer(secret)),
        "keys": client.post(KEYS, json={"name": "K2"}, headers=bearer(secret)),
        "out": client.post(f"{AUTH}/logout", headers=bearer(secret)),
    }
    found = {name: answer.status_code for name, answer in statuses.items()}
    assert found == {
        "search": 200, "read": 200, "write": 403, "talk": 403, "people": 403, "keys": 403,
        "out": 403,
    }  # fmt: skip
    me = client.get(ME, headers=bearer(secret)).json()
    assert me["key_id"] == key["id"] and me["permissions"] == ["documents:read", "search"]
    shown = ada.send("GET", f"{KEYS}/{key['id']}")
    assert shown.json()["used_at"] and secret not in shown.text
    assert secret not in ada.send("GET", KEYS).text
    with as_superuser(servers) as connection:
        for name in metadata.tables:
            rows = connection.execute(f"SELECT t::text FROM {name} t").fetchall()
            assert not [row for row in rows if secret in row[0]], name
    revoked = ada.send("DELETE", f"{KEYS}/{key['id']}").json()
    assert revoked["revoked_at"]
    assert client.get(DOCUMENTS, headers=bearer(secret)).status_code == 401


def test_a_key_expires(client: httpx2.Client, servers: Running) -> None:
    ada = register(client)
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    key = ada.send("POST", KEYS, json={"name": "K", "expires_at": later}).json()
    assert client.get(ME, headers=bearer(key["secret"])).status_code == 200
    with as_superuser(servers) as connection:
        connection.execute("UPDATE api_keys SET expires_at = now() WHERE id = %s", [key["id"]])
    assert client.get(ME, headers=bearer(key["secret"])).status_code == 401
    past = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    assert ada.send("POST", KEYS, json={"name": "K", "expires_at": past}).status_code == 422


def test_forged_keys_are_refused_alike(client: httpx2.Client) -> None:
    ada, eve = register(client), register(client)
    secret = ada.send("POST", KEYS, json={"name": "K"}).json()["secret"]
    other = eve.send("POST", KEYS, json={"name": "K"}).json()["secret"]
    forged = {
        "changed": secret[:80] + ("A" if secret[80] != "A" else "B") + secret[81:],
        "another tenant's secret": secret[:47] + other[47:],
        "publishable": "srp_" + secret[4:],
        "cut": secret[:-1],
        "padded": secret + "=",
    }
    answers = {name: client.get(ME, headers=bearer(text)) for name, text in forged.items()}
    assert {a.status_code for a in answers.values()} == {401}
    assert client.get(ME, headers=bearer(secret)).status_code == 200


SITE = "https://shop.example"


def test_a_widget_key_is_bound_to_its_origins(client: httpx2.Client) -> None:
    ada = register(client)
    new = {"name": "Widget", "kind": "publishable", "origins": [SITE]}
    key = ada.send("POST", KEYS, json=new).json()
    assert key["secret"].startswith("srp_")
    page = {**bearer(key["secret"]), "Origin": SITE}
    opened = client.post(CONVERSATIONS, json={}, headers=page)
    assert opened.status_code == 201
    assert opened.headers["access-control-allow-origin"] == SITE
    assert opened.headers["cross-origin-resource-policy"] == "cross-origin"
    mine = f"{CONVERSATIONS}/{opened.json()['id']}"
    asked = client.post(f"{mine}/messages", json={"content": "Why?"}, headers=page)
    assert asked.status_code == 200, asked.text
    assert client.get(mine, headers=page).status_code == 200
    for origin in ("https://evil.example", "http://shop.example", f"{SITE}.evil.example", "null"):
        refused = client.get(mine, headers={**page, "Origin": origin})
        assert refused.status_code == 403, origin
        assert "access-control-allow-origin" not in refused.headers
    assert client.get(mine, headers=bearer(key["secret"])).status_code == 403
    assert client.get(CONVERSATIONS, headers=page).status_code == 403, "visitors are not listed"
    assert client.post("/api/v1/search", json={"query": "x"}, headers=page).status_code == 403
    other = ada.send("POST", KEYS, json=new).json()
    theirs = {**bearer(other["secret"]), "Origin": SITE}
    assert client.get(mine, headers=theirs).status_code == 404
    people = ada.send("POST", CONVERSATIONS, json={}).json()["id"]
    assert client.get(f"{CONVERSATIONS}/{people}", headers=page).status_code == 404
    ada.send("DELETE", f"{KEYS}/{key['id']}")
    assert client.get(mine, headers=page).status_code == 401


def test_a_browser_may_ask_first(client: httpx2.Client) -> None:
    ask = {"Origin": SITE, "Access-Control-Request-Method": "POST"}
    told = client.options(f"{CONVERSATIONS}/{uuid.uuid4()}/messages", headers=ask)
    assert told.status_code == 204
    assert told.headers["access-control-allow-origin"] == SITE
    assert "authorization" in told.headers["access-control-allow-headers"].lower()
    assert "access-control-allow-credentials" not in told.headers
    for path in (DOCUMENTS, KEYS, f"{AUTH}/login"):
        assert "access-control-allow-origin" not in client.options(path, headers=ask).headers


# Operators


def test_metrics_need_their_token(client: httpx2.Client, servers: Running) -> None:
    assert client.get("/metrics", headers=SCRAPER).status_code == 200
    person: Person = new_person(servers)
    for headers in ({}, bearer("x"), person.headers):
        assert client.get("/metrics", headers=headers).status_code == 401


def test_without_a_token_nobody_reads_the_metrics(servers: Running) -> None:
    closed = create_app(settings_of(servers, metrics_token=""), **hashing_models())
    with serving(closed) as url, httpx2.Client(base_url=url) as client:
        for headers in ({}, bearer("x"), SCRAPER):
            assert client.get("/metrics", headers=headers).status_code == 401


# Roles that were stored before they had their names


def test_customers_become_members(servers: Running) -> None:
    migration = Path(__file__).parents[2] / "support_rag/migrations/versions/0006_access.py"
    assert "SET role = 'member' WHERE role = 'customer'" in migration.read_text()
    with as_superuser(servers) as connection, pytest.raises(psycopg.errors.CheckViolation):
        new = new_person(servers)
        connection.execute("UPDATE users SET role = 'customer' WHERE id = %s", [new.user_id])


# Guessing


def test_guesses_from_one_address_keep_nobody_out_elsewhere(
    client: httpx2.Client, url: str
) -> None:
    elsewhere = httpx2.HTTPTransport(local_address="127.0.0.2")
    with httpx2.Client(base_url=url, transport=elsewhere, timeout=300) as owner:
        ada = register(owner)
        got_in = 0
        for n in range(12):
            guesses = [
                client.post(
                    f"{AUTH}/login", json={"email": ada.email, "password": f"guess {n} {m}"}
                )
                for m in range(3)
            ]
            assert {g.status_code for g in guesses} <= {401, 429}
            sent = {"email": ada.email, "password": PASSWORD}
            if n < 9:  # ten at once from the owner's own address, one is spent on registering
                got_in += owner.post(f"{AUTH}/login", json=sent).status_code == 200
        assert guesses[-1].status_code == 429 and got_in == 9
