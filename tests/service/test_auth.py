"""Nobody signs in as somebody else, learns who is registered, or keeps the service from others."""

import base64
import json
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import jwt
import pytest
from fastapi import FastAPI

from support_rag.local.servers import Running
from support_rag.service import auth
from support_rag.service.access import AUDIENCE, ISSUER, LIFETIME_SECONDS, Tokens
from support_rag.service.auth import Attempts
from support_rag.service.http import add_problem_handlers
from support_rag.service.passwords import Hasher, Rate, hash_password
from support_rag.state.database import create_database
from support_rag.types import SettingsInvalid
from tests.people import KEY, Person, as_superuser, hashing_app, new_person
from tests.serving import serving

REGISTER, LOGIN, DOCUMENTS = "/api/v1/auth/register", "/api/v1/auth/login", "/api/v1/documents"


class CountingHasher(Hasher):
    """A hasher that counts the calls and can be held up."""

    def __init__(self, **limits: int) -> None:
        super().__init__(**limits)
        self.calls = 0
        self.open = threading.Event()
        self.open.set()

    async def run(self, work: Callable[[], Any]) -> Any:
        def counted() -> Any:
            self.calls += 1
            self.open.wait(30)
            return work()

        return await super().run(counted)


@pytest.fixture(scope="module")
def client(servers: Running) -> Iterator[httpx2.Client]:
    "A client of the whole service."
    with serving(hashing_app(servers)) as url, httpx2.Client(base_url=url, timeout=300) as client:
        yield client


@pytest.fixture
def hasher() -> Iterator[CountingHasher]:
    hasher = CountingHasher(threads=1, waiting=2)
    yield hasher
    hasher.open.set()
    hasher.close()


@pytest.fixture
def strict(servers: Running, hasher: CountingHasher) -> Iterator[httpx2.Client]:
    "A client of the sign-in routes alone, with tight limits and a hasher that counts."

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        database = create_database(servers.app_url)
        attempts = Attempts(account=Rate(3, 600), address=Rate(8, 600))
        yield {"database": database, "tokens": Tokens(KEY), "hasher": hasher, "attempts": attempts}
        await database.close()

    app = FastAPI(lifespan=lifespan)
    app.include_router(auth.router)
    add_problem_handlers(app)
    with serving(app) as url, httpx2.Client(base_url=url, timeout=300) as client:
        yield client


def newcomer(password: str = "correct horse") -> dict[str, str]:
    return {"email": f"{uuid.uuid4().hex}@example.com", "password": password}


def without_id(answer: httpx2.Response) -> tuple[int, dict[str, Any]]:
    "Return an answer without what differs between any two requests."
    body = answer.json()
    assert body.pop("request_id") != ""
    return answer.status_code, body


def set_password(servers: Running, person: Person, password: str) -> dict[str, str]:
    "Let a person sign in; return the credentials."
    with as_superuser(servers) as connection:
        connection.execute(
            "INSERT INTO sign_ins (key, tenant_id, user_id) VALUES (%s, %s, %s)",
            [f"email:{person.email}", person.tenant_id, person.user_id],
        )
        change = "UPDATE users SET password_hash = %s WHERE id = %s"
        connection.execute(change, [hash_password(password), person.user_id])
    return {"email": person.email, "password": password}


def test_registering_gives_a_tenant_an_owner_and_a_token(client: httpx2.Client) -> None:
    ada = newcomer()
    answer = client.post(REGISTER, json={"tenant_name": "Tempolane", **ada})
    assert answer.status_code == 201
    body = answer.json()
    tokens = {"access_token", "token_type", "expires_in", "refresh_token", "refresh_expires_in"}
    assert set(body) == {"tenant", "user", *tokens}
    assert (body["tenant"]["name"], body["user"]["role"]) == ("Tempolane", "owner")
    assert (body["token_type"], body["expires_in"]) == ("bearer", 900)
    assert ada["password"] not in answer.text and "hash" not in answer.text
    signed_in = client.post(LOGIN, json={**ada, "email": ada["email"].upper()})
    assert signed_in.status_code == 200
    assert set(signed_in.json()) == tokens
    for token in (body["access_token"], signed_in.json()["access_token"]):
        headers = {"Authorization": f"Bearer {token}"}
        assert client.get(DOCUMENTS, headers=headers).json() == {"items": [], "next_cursor": None}


def test_an_address_is_registered_once(client: httpx2.Client, servers: Running) -> None:
    ada, name = newcomer(), f"once-{uuid.uuid4()}"
    with ThreadPoolExecutor(6) as pool:
        bodies = [{"tenant_name": name, **ada, "email": e} for e in (ada["email"],) * 3]
        bodies += [{"tenant_name": name, **ada, "email": e} for e in (ada["email"].upper(),) * 3]
        answers = list(pool.map(lambda body: client.post(REGISTER, json=body), bodies))
    assert sorted(a.status_code for a in answers) == [201, 409, 409, 409, 409, 409]
    with as_superuser(servers) as connection:
        count = "SELECT count(*) FROM tenants WHERE name = %s"
        assert connection.execute(count, [name]).fetchone() == (1,), "no half of a registration"


def forgeries(person: Person) -> dict[str, str]:
    "Return tokens that nobody may get in with, by what is wrong with them."
    now = int(time.time())
    claims = {
        "iss": ISSUER, "aud": AUDIENCE, "jti": "j", "tenant": person.tenant_id,
        "sub": person.user_id, "sid": person.session_id,
        "iat": now, "exp": now + 60,
    }  # fmt: skip
    good = Tokens(KEY).sign(claims)
    head, body, mac = good.split(".")

    def signed(**changes: Any) -> str:
        kept = {k: v for k, v in (claims | changes).items() if v is not ...}
        return Tokens(KEY).sign(kept)

    def segment(value: Any) -> str:
        text = value if isinstance(value, bytes) else json.dumps(value).encode()
        return base64.urlsafe_b64encode(text).rstrip(b"=").decode()

    unsigned = {alg: f"{segment({'alg': alg, 'typ': 'JWT'})}.{body}." for alg in ("none", "NONE")}
    without = {f"no {name}": signed(**{name: ...}) for name in claims}
    return unsigned | without | {
        "alg null": f"{segment({'alg': None})}.{body}.",
        "no header": f".{body}.{mac}",
        "no signature": f"{head}.{body}.",
        "cut signature": good[:-1],
        "padded": good + "=",
        "one more dot": good + ".",
        "twice": f"{good}.{good}",
        "payload of another": f"{head}.{segment(claims | {'sub': str(uuid.uuid4())})}.{mac}",
        "HS384": jwt.encode(claims, KEY, algorithm="HS384"),
        "HS512": jwt.encode(claims, KEY, algorithm="HS512"),
        "another key": jwt.encode(claims, KEY[::-1], algorithm="HS256"),
        "names a key": jwt.encode(claims, KEY, algorithm="HS256", headers={"kid": "/dev/null"}),
        "brings a key": jwt.encode(claims, KEY, algorithm="HS256", headers={"jwk": {"kty": "oct"}}),
        "deep header": f"{segment(b'[' * 700)}.{body}.{mac}",
        "huge": f"{head}.{'A' * 20_000}.{mac}",
        "expired": signed(iat=now - 100, exp=now - 1),
        "lives too long": signed(exp=now + LIFETIME_SECONDS + 1),
        "from the future": signed(iat=now + 3600, exp=now + 3700),
        "not yet": signed(nbf=now + 3600),
        "exp is text": signed(exp="tomorrow"),
        "exp is infinite": signed(exp=float("inf")),
        "refresh": signed(aud="support_rag:refresh"),
        "two audiences": signed(aud=[AUDIENCE, "another"]),
        "another issuer": signed(iss="another"),
        "sub is no id": signed(sub="ada"),
        "sub is a number": signed(sub=7),
        "tenant is a list": signed(tenant=[person.tenant_id]),
        "unknown user": signed(sub=str(uuid.uuid4())),
        "unknown session": signed(sid=str(uuid.uuid4())),
        "unknown tenant": signed(tenant=str(uuid.uuid4())),
    }  # fmt: skip


def test_forged_tokens_are_all_refused_alike(client: httpx2.Client, servers: Running) -> None:
    person, other = new_person(servers), new_person(servers)
    assert client.get(DOCUMENTS, headers=person.headers).status_code == 200
    forged = forgeries(person)
    foreign = Tokens(KEY).issue(
        tenant_id=other.tenant_id, user_id=person.user_id, session_id=person.session_id
    )
    forged["user of another tenant"] = foreign
    assert len(forged) >= 30
    answers = {}
    for name, token in forged.items():
        answer = client.get(DOCUMENTS, headers={"Authorization": f"Bearer {token}"})
        assert answer.headers["www-authenticate"] == "Bearer", name
        answers[name] = without_id(answer)
    assert all(a == answers["expired"] for a in answers.values()), answers
    assert answers["expired"][0] == 401


@pytest.mark.parametrize("header", [None, "", "Bearer", "Basic YTpi", "Bearer a b", "Token x"])
def test_no_token_is_no_entry(client: httpx2.Client, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}
    answer = client.get(DOCUMENTS, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")


def test_whoever_is_disabled_or_deleted_is_out_at_once(
    client: httpx2.Client, servers: Running
) -> None:
    person, colleague = new_person(servers), new_person(servers)
    credentials = set_password(servers, person, "correct horse")
    wrong = client.post(LOGIN, json={**credentials, "password": "wrong horse"})
    assert client.post(LOGIN, json=credentials).status_code == 200
    with as_superuser(servers) as connection:
        disable = "UPDATE users SET disabled_at = now() WHERE id = %s"
        connection.execute(disable, [person.user_id])
        connection.execute("DELETE FROM tenants WHERE tenant_id = %s", [colleague.tenant_id])
    for gone in (person, colleague):
        assert client.get(DOCUMENTS, headers=gone.headers).status_code == 401
    assert without_id(client.post(LOGIN, json=credentials)) == without_id(wrong)
    with as_superuser(servers) as connection:
        enable = "UPDATE users SET disabled_at = NULL WHERE id = %s"
        connection.execute(enable, [person.user_id])
    assert client.get(DOCUMENTS, headers=person.headers).status_code == 200


def test_unknown_and_wrong_are_one_answer_and_one_hash(
    strict: httpx2.Client, servers: Running, hasher: CountingHasher
) -> None:
    known = set_password(servers, new_person(servers), "correct horse")
    answers = []
    for guess in ({**known, "password": "wrong horse"}, newcomer("wrong horse")):
        before = hasher.calls
        answers.append(without_id(strict.post(LOGIN, json=guess)))
        assert hasher.calls == before + 1
    assert answers[0] == answers[1] and answers[0][0] == 401


def test_attempts_are_limited_before_anything_is_hashed(
    strict: httpx2.Client, servers: Running, hasher: CountingHasher
) -> None:
    ada = set_password(servers, new_person(servers), "correct horse")
    guesses = [{**ada, "password": f"guess number {n}"} for n in range(5)]
    spoofed = [{"X-Forwarded-For": f"192.0.2.{n}", "Forwarded": "for=192.0.2.9"} for n in range(5)]
    answers = [
        strict.post(LOGIN, json=guess, headers=headers)
        for guess, headers in zip(guesses, spoofed, strict=True)
    ]
    assert [a.status_code for a in answers] == [401, 401, 401, 429, 429]
    assert int(answers[-1].headers["retry-after"]) > 0
    assert answers[-1].json()["code"] == "rate_limited"
    assert strict.post(LOGIN, json=ada).status_code == 429, "the right password is limited, too"
    others = [strict.post(LOGIN, json=newcomer()).status_code for _ in range(4)]
    assert others == [401, 401, 429, 429], "and so is the address"
    register = strict.post(REGISTER, json={"tenant_name": "T", **newcomer()})
    assert register.status_code == 429
    assert hasher.calls == 5, "three for the account, two for the address"


def test_a_full_queue_of_hashes_refuses_and_blocks_nobody(
    strict: httpx2.Client, hasher: CountingHasher
) -> None:
    hasher.open.clear()
    with ThreadPoolExecutor(3) as pool:
        slow = [pool.submit(strict.post, LOGIN, json=newcomer()) for _ in range(3)]
        while hasher.free > 0:
            time.sleep(0.01)
        full = strict.post(LOGIN, json=newcomer())
        assert (full.status_code, full.json()["code"]) == (503, "unavailable")
        assert int(full.headers["retry-after"]) > 0
        assert strict.get("/openapi.json").status_code == 200, "the loop is free meanwhile"
        hasher.open.set()
        assert [s.result().status_code for s in slow] == [401, 401, 401]


def test_long_passwords_count_in_full(client: httpx2.Client) -> None:
    ada = newcomer("x" * 72 + "one more")
    assert client.post(REGISTER, json={"tenant_name": "T", **ada}).status_code == 201
    other = {**ada, "password": "x" * 72 + "another!"}
    assert client.post(LOGIN, json=other).status_code == 401
    assert client.post(LOGIN, json=ada).status_code == 200
    zoo = "".join(chr(0x1F400 + n * 37 % 64) for n in range(64))
    fox = newcomer(zoo)
    assert client.post(REGISTER, json={"tenant_name": "T", **fox}).status_code == 201
    assert client.post(LOGIN, json={**fox, "password": zoo[:63]}).status_code == 401


@pytest.mark.parametrize("password", ["short", "x" * 129, 12345678, None, ["correct horse"]])
def test_unfit_passwords_are_refused_and_not_repeated(client: httpx2.Client, password: Any) -> None:
    answer = client.post(REGISTER, json={"tenant_name": "T", **newcomer(), "password": password})
    assert (answer.status_code, answer.json()["code"]) == (422, "input_invalid")
    assert answer.json()["errors"][0]["field"] == "body.password"
    assert not isinstance(password, str) or password not in answer.text


def test_weak_keys_are_refused() -> None:
    with pytest.raises(SettingsInvalid, match="at least 32"):
        Tokens("k" * 31)
