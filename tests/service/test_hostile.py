"""Whatever is sent, the answer is no 5xx, every refusal is a problem, and nothing secret shows."""

import codecs
import encodings.aliases
import json
import os
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

from support_rag.local.servers import Running, local_servers
from support_rag.state.database import migrate
from tests.cable import Cable
from tests.people import KEY, METRICS, SCRAPER, Person, new_person
from tests.service.test_app import logged

PROBLEM = "application/problem+json"
CANARY = "canary-4b1d"
JSON = {"Content-Type": "application/json"}
INGEST, DOCUMENTS = "/api/v1/documents/ingest", "/api/v1/documents"


pytestmark = pytest.mark.usefixtures("no_work_left")


@pytest.fixture(scope="module")
def person(servers: Running) -> Person:
    return new_person(servers)


@pytest.fixture(scope="module")
def client(url: str, person: Person) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=url, timeout=300, headers=person.headers) as client:
        yield client


# Everything that the description allows, and much that it does not

CONFIG = """
# Whether bytes are a document of some type is nothing that a schema can say.
[[operations]]
include-operation-id = "ingest_document"
checks.positive_data_acceptance.expected-statuses = ["2xx", "401", "409", "415", "422"]

[[operations]]
include-operation-id = "ingest_documents"
checks.positive_data_acceptance.expected-statuses = ["2xx", "400", "415", "422"]
checks.negative_data_rejection.expected-statuses = ["2xx", "4xx"]  # a form has only text
# Nor which state a document is in.
[[operations]]
include-operation-id = "update_document"
checks.positive_data_acceptance.expected-statuses = ["2xx", "404", "412"]

# Nor who has a conversation, how long a document is, or whether hours are ever open.
[[operations]]
include-operation-id = [
    "update_conversation", "take_conversation", "assign_conversation", "return_conversation",
    "resolve_conversation",
]
checks.positive_data_acceptance.expected-statuses = ["2xx", "404", "409", "412"]
[[operations]]
include-operation-id = ["create_reply", "update_tenant"]
checks.positive_data_acceptance.expected-statuses = ["2xx", "404", "409", "422"]

# Neither can a schema say which passwords are guessed first, nor what fits together in a key.
[[operations]]
include-operation-id = "register_tenant"
checks.positive_data_acceptance.expected-statuses = ["2xx", "409", "422", "429"]
[[operations]]
include-operation-id = "create_key"
checks.positive_data_acceptance.expected-statuses = ["2xx", "422"]
[[operations]]
include-operation-id = ["accept_invitation", "confirm_password_reset", "change_password"]
checks.positive_data_acceptance.expected-statuses = ["2xx", "401", "422", "429"]
# Nor that a chat ends with a question of the user, nor which model serves.
[[operations]]
include-operation-id = "create_completion"
checks.positive_data_acceptance.expected-statuses = ["2xx", "404", "422"]
# Nor which hosts an operator allows.
[[operations]]
include-operation-id = "create_webhook"
checks.positive_data_acceptance.expected-statuses = ["2xx", "409", "422"]
# A header that nobody knows is read over (RFC 9110, section 5.1), also beside a known one.
[[operations]]
include-operation-id = ["create_message", "get_events", "regenerate_reply"]
checks.negative_data_rejection.expected-statuses = ["2xx", "4xx"]
# Using these for real would end the session that everything else is tried with.
[[operations]]
include-operation-id = ["sign_out_user", "update_user"]
enabled = false
"""
# A key of a good request gets to be a new one: with another request it is refused, which
# test_idempotency tests.
HOOKS = """
import uuid

import schemathesis


@schemathesis.hook
def before_call(context, case, kwargs):
    key = (case.headers or {}).get("Idempotency-Key")
    if isinstance(key, str) and case.meta.generation.mode.is_positive:
        case.headers["Idempotency-Key"] = uuid.uuid4().hex
"""
N_LEFT_OUT = 2


def test_the_whole_description_holds(url: str, person: Person, tmp_path: Path) -> None:
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG)
    (tmp_path / "hooks.py").write_text(HOOKS)
    environ = {**os.environ, "SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": str(tmp_path)}
    command = [
        Path(sys.executable).parent / "schemathesis", "--config-file", config, "run",
        f"{url}/openapi.json", "--header", f"Authorization: {person.headers['Authorization']}",
        "--checks", "all", "--max-examples", "12", "--seed", "7", "--no-shrink", "--no-color",
        "--generation-database", "none",
    ]  # fmt: skip
    with logged() as lines:
        done = subprocess.run(
            command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=600
        )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2000:]
    paths = httpx2.get(f"{url}/openapi.json").json()["paths"]
    n_operations = sum(len(methods) for methods in paths.values())
    assert f"{n_operations - N_LEFT_OUT} selected / {n_operations} total" in done.stdout
    answered = [line for line in lines if line["logger"] == "access"]
    assert len(answered) > 300
    assert not [line for line in answered if line["status"] >= 500]
    assert {line["status"] for line in answered} >= {200, 201, 202, 204, 401, 404, 405, 422}


# JSON that is none, or that something behind the parser cannot bear

RAW = {  # in place of a value
    "NaN": b"NaN",
    "infinity": b"-Infinity",
    "too large": b"1e999",
    "digits": b"9" * 5000,
    "digits of a fraction": b"0." + b"3" * 5000,
    "deep list": b"[" * 100_000,
    "deep list that ends": b"[" * 100_000 + b"]" * 100_000,
    "deep object": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "NUL": b'"' + CANARY.encode() + b'\\u0000"',
    "raw NUL": b'"' + CANARY.encode() + b'\x00"',
    "lone surrogate": b'"' + CANARY.encode() + b'\\ud800"',
    "lone second surrogate": b'"\\udfff' + CANARY.encode() + b'"',
    "surrogates in the wrong order": b'"\\udc00\\ud800"',
    "encoded surrogate": b'"\xed\xa0\x80"',
    "no UTF-8": b'"\xff\xfe"',
    "overlong": b'"\xc0\x80"',
    "list": b'["' + CANARY.encode() + b'"]',
    "object": b'{"$ne": "' + CANARY.encode() + b'"}',
    "null": b"null",
    "true": b"true",
    "large": b"1e308",
    "negative zero": b"-0.0",
    "very long": b'"' + b"x" * 900_000 + b'"',
    "nothing": b"",
    "an unknown field": b'null, "' + CANARY.encode() + b' ": 1',
    "a long name": b'null, "' + b"x" * 100_000 + b'": 1',
    "the same field again": b'null, "k": {}',
    "quote": b"\"'; DROP TABLE documents; --" + CANARY.encode() + b'"',
}
WHOLE = {  # in place of a body
    "nothing": b"",
    "spaces": b"  ",
    "a string": b'"' + CANARY.encode() + b'"',
    "a number": b"5",
    "null": b"null",
    "a list": b"[]",
    "cut off": b'{"title": "' + CANARY.encode(),
    "two values": b"{}{}",
    "a comment": b"{/* x */}",
    "single quotes": b"{'a': 1}",
    "a byte order mark": codecs.BOM_UTF8 + b"{}",
    "UTF-16": '{"k": 1}'.encode("utf-16"),
    "UTF-32": '{"k": 1}'.encode("utf-32"),
    "many keys": json.dumps(dict.fromkeys(map(str, range(50_000)))).encode(),
    "a proto key": b'{"__proto__": {"a": 1}}',
}
FIELDS = {  # path → fields that can be replaced, with good values
    "/api/v1/auth/register": {"tenant_name": "T", "email": "a@example.com", "password": "x" * 9},
    "/api/v1/auth/login": {"email": "a@example.com", "password": "x" * 9},
    INGEST: {"title": "T", "content": "x", "source": "s", "metadata": {}, "content_type": "a/b"},
    "/api/v1/conversations": {"title": "T"},
    "/api/v1/conversations/{id}/messages": {"content": "Why?"},
    "/api/v1/search": {"query": "Why?", "k": 1},
}
ACCEPTED = {  # hostile to somebody else perhaps, and values like any other here
    "quote", "null", "large", "negative zero", "very long", "true", "list", "object",
    "digits of a fraction",
}  # fmt: skip


def hostile_bodies(fields: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    "Yield (what it is, body)."
    yield from WHOLE.items()
    for field in fields:
        others = {name: value for name, value in fields.items() if name != field}
        start = json.dumps(others).removesuffix("}") + (", " if others else "")
        for name, value in RAW.items():
            yield f"{field}: {name}", f'{start}"{field}": '.encode() + value + b"}"
    for name, value in RAW.items():
        body = json.dumps({**fields, "metadata": {"a": "HERE"}}).encode()
        yield f"inside: {name}", body.replace(b'"HERE"', value)


def check_refusal(answer: httpx2.Response, what: str) -> None:
    "Check that a refusal is a problem that repeats nothing."
    assert answer.status_code < 500, f"{what}: {answer.status_code} {answer.text[:300]}"
    if answer.status_code >= 400:
        assert answer.headers["content-type"] == PROBLEM, what
        body = answer.json()
        assert body["code"] and body["request_id"] == answer.headers["x-request-id"], what
        assert CANARY not in answer.text, what
        assert len(answer.text) < 5000, what


@pytest.mark.parametrize("path", FIELDS)
def test_hostile_json_is_refused_with_a_problem(client: httpx2.Client, path: str) -> None:
    opened = client.post("/api/v1/conversations", json={"title": "T"})
    statuses = set[int]()
    for name, body in hostile_bodies(FIELDS[path]):
        address = path.replace("{id}", opened.json()["id"])
        answer = client.post(address, content=body, headers=JSON)
        check_refusal(answer, f"{path} {name}")
        statuses.add(answer.status_code)
        is_plain = name in ("nothing", "inside: an unknown field")  # metadata knows no fields
        if name.rpartition(": ")[2] not in ACCEPTED and not is_plain:
            assert answer.is_client_error, f"{path} {name}: {answer.status_code}"
    assert 422 in statuses


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", f"{DOCUMENTS}/%00"),
        ("GET", f"{DOCUMENTS}/%ED%A0%80"),
        ("GET", f"{DOCUMENTS}/%FF"),
        ("GET", f"{DOCUMENTS}/{'9' * 5000}"),
        ("DELETE", f"{DOCUMENTS}/00000000-0000-0000-0000-00000000000g"),
        ("GET", f"{DOCUMENTS}/../../etc/passwd"),
        ("GET", f"{DOCUMENTS}?limit=NaN"),
        ("GET", f"{DOCUMENTS}?limit=1e3"),
        ("GET", f"{DOCUMENTS}?limit={'9' * 5000}"),
        ("GET", f"{DOCUMENTS}?limit=-1&limit=5"),
        ("GET", f"{DOCUMENTS}?cursor=%00"),
        ("GET", f"{DOCUMENTS}?cursor=%F0%9F%A6%8A"),
        ("GET", f"{DOCUMENTS}?cursor={'A' * 100}"),
        ("GET", f"{DOCUMENTS}?cursor={'A' * 10_000}"),
        ("GET", f"/api/v1/conversations/00000000-0000-4000-8000-000000000001?before={'9' * 30}"),
        ("GET", "/api/v1/conversations/00000000-0000-4000-8000-000000000002?before=0x10"),
        ("GET", f"/{CANARY}%00"),
        ("GET", f"/static/{CANARY}"),
        ("GET", "/static/" + "a/" * 5000),
        ("TRACE", "/health"),
        ("PATCH", DOCUMENTS),
        ("PROPFIND", f"/{CANARY}"),
    ],
)
def test_hostile_addresses_are_refused_with_a_problem(
    client: httpx2.Client, method: str, path: str
) -> None:
    answer = client.request(method, path)
    check_refusal(answer, path)
    assert answer.is_client_error or path.endswith("limit=5")


def test_no_charset_of_python_breaks_a_form(client: httpx2.Client) -> None:
    names = sorted({*encodings.aliases.aliases.values(), "undefined", "idna", "punycode", "x"})
    part = b'--b\r\nContent-Disposition: form-data; name="%b"; filename="%b"\r\n\r\nx\r\n--b--'
    for name in (*names, CANARY, "", "utf-8;charset=undefined"):
        content_type = {"Content-Type": f"multipart/form-data; boundary=b; charset={name}"}
        for label in (b"file", b"xn--\xff\x00", CANARY.encode() + b"\xed\xa0\x80"):
            body = part % (label, label)
            check_refusal(client.post(INGEST, content=body, headers=content_type), name)


@pytest.mark.parametrize(
    "header",
    [
        {"Content-Type": "application/json; charset=undefined"},
        {"Content-Type": "multipart/form-data"},
        {"Content-Type": f"multipart/form-data; boundary={'b' * 5000}"},
        {"Content-Type": f'multipart/form-data; boundary="{CANARY}'},
        {"Content-Type": ";;;,/"},
        {"Content-Type": f"application/{CANARY}+json"},
        {"Accept": "\\x00/\\x00;q=NaN", **JSON},
        {"X-Request-ID": f"{CANARY} two words", **JSON},
        {"Authorization": f"Bearer {CANARY}", **JSON},
        {"Cookie": f"a={CANARY}", "If-None-Match": CANARY, "Range": "bytes=9-1", **JSON},
        {"Host": f"{CANARY}.example.com", "X-Forwarded-Host": CANARY, **JSON},
    ],
    ids=str,
)
def test_hostile_headers_are_refused_with_a_problem(
    client: httpx2.Client, header: dict[str, str]
) -> None:
    for path in (INGEST, "/api/v1/search", "/health"):
        for method in ("POST", "GET"):
            answer = client.request(method, path, headers=header, content=b"{}")
            check_refusal(answer, f"{method} {path} {header}")
            assert CANARY not in str(answer.headers)


# Secrets


@pytest.fixture
def own_servers() -> Iterator[Running]:
    "Servers without the work that other tests left for a worker."
    with local_servers() as running:
        migrate(running.owner_url, app_user=running.app_user)
        yield running


@pytest.fixture
def secrets(own_servers: Running) -> dict[str, str]:
    "Twelve things that must never be seen outside."
    planted = {
        name: f"{CANARY}-{name.replace(' ', '-')}-{uuid.uuid4().hex[:12]}"
        for name in ("password", "wrong password", "message", "document", "query", "address",
                     "broken body", "model key")
    }  # fmt: skip
    return planted | {
        "database password": str(urlsplit(own_servers.app_url).password),
        "redis password": str(urlsplit(own_servers.redis_url).password),
        "signing key": KEY,
        "forged token": f"eyJhbGciOiJIUzI1NiJ9.{uuid.uuid4().hex}.{uuid.uuid4().hex}",
    }


def test_no_secret_is_in_logs_metrics_or_errors(
    own_servers: Running, secrets: dict[str, str], tmp_path: Path
) -> None:
    assert len(secrets) == 12
    cable, log, refusals = Cable(own_servers.postgres_port), tmp_path / "log", list[str]()
    environ = {
        "SUPPORT_RAG_DATABASE_URL": cable.through(own_servers.app_url),
        "SUPPORT_RAG_REDIS_URL": own_servers.redis_url,
        "SUPPORT_RAG_JWT_SECRET": secrets["signing key"],
        "SUPPORT_RAG_LLM_BASE_URL": "http://127.0.0.1:9/v1",  # nobody answers there
        "OPENAI_API_KEY": secrets["model key"],
        "SUPPORT_RAG_LOG_LEVEL": "debug",
        "SUPPORT_RAG_METRICS_TOKEN": METRICS,
        "SUPPORT_RAG_HOME": str(tmp_path),
        "PATH": os.defpath,
    }
    program = [sys.executable, "-m", "support_rag.cli.main"]
    with log.open("a") as output:
        running = [
            subprocess.Popen([*program, *command], env=environ, stdout=output, stderr=output)
            for command in (["serve", "--port", "0"], ["worker"])
        ]
    try:
        port: list[str] = []
        while not port and running[0].poll() is None:
            time.sleep(0.1)
            port = re.findall(r'"port": (\d+)', log.read_text())
        with httpx2.Client(base_url=f"http://127.0.0.1:{port[0]}", timeout=300) as client:
            while client.get("/health").status_code != 200:
                time.sleep(0.1)
            use(client, secrets, refusals)
            cable.cut()
            use(client, secrets, refusals)
            refusals.append(client.get("/metrics", headers=SCRAPER).text)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait(300)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    seen = log.read_text() + "".join(refusals)
    for name, secret in secrets.items():
        assert secret not in seen, f"{name} is in {[x for x in lines if secret in str(x)][:1]}"
    statuses = [line["status"] for line in lines if line["logger"] == "access"]
    assert {200, 201, 202, 401, 422, 503} <= set(statuses), "all of it did happen"
    assert "document_ready" in {line["event"] for line in lines}
    reasons = {line["reason"] for line in lines if line["event"] == "reply_stored"}
    assert "generation_unavailable" in reasons, "the model was called, and did not answer"
    assert len(refusals) > 10


def use(client: httpx2.Client, secrets: dict[str, str], refusals: list[str]) -> None:
    "Send every secret to where somebody might send it; collect what refusals say."

    def send(method: str, path: str, **values: Any) -> dict[str, Any]:
        answer = client.request(method, path, **values)
        if answer.is_error:
            refusals.append(str(answer.headers) + answer.text)
        return dict(answer.json())

    who = {"email": f"{uuid.uuid4().hex}@example.com", "password": secrets["password"]}
    registered = send("POST", "/api/v1/auth/register", json={"tenant_name": "T", **who})
    send("POST", "/api/v1/auth/login", json=who)
    send("POST", "/api/v1/auth/login", json={**who, "password": secrets["wrong password"]})
    forged = {"Authorization": f"Bearer {secrets['forged token']}"}
    send("GET", DOCUMENTS, headers=forged)
    if "access_token" in registered:
        client.headers["Authorization"] = f"Bearer {registered['access_token']}"
        secrets["access token"] = registered["access_token"]
        spent = {"refresh_token": registered["refresh_token"]}
        renewed = send("POST", "/api/v1/auth/refresh", json=spent)
        secrets["refresh token"] = renewed["refresh_token"]
        secrets["key"] = send("POST", "/api/v1/keys", json={"name": "K"})["secret"]
        client.get(DOCUMENTS, headers={"Authorization": f"Bearer {secrets['key']}"})
    send("GET", f"{DOCUMENTS}?token={secrets['address']}")
    send("GET", f"/{secrets['address']}")
    fox = {"title": "The fox", "content": "# The fox\n\nThe fox sleeps in the red barn at night."}
    article = {"title": secrets["document"], "content": f"# T\n\nIt is {secrets['document']}."}
    files = {"file": (f"{secrets['document']}.pdf", b"%PDF-1.4 " + secrets["document"].encode())}
    sent = [send("POST", INGEST, json=text) for text in (fox, article)]
    sent.append(send("POST", INGEST, files=files))
    for document in [document for document in sent if "id" in document]:
        while document["status"] not in ("ready", "failed"):
            time.sleep(0.1)
            document = send("GET", f"{DOCUMENTS}/{document['id']}")
    send("POST", INGEST, content=f'{{"title": "{secrets["broken body"]}'.encode(), headers=JSON)
    send("POST", "/api/v1/search", json={"query": secrets["query"], "k": secrets["broken body"]})
    send("POST", "/api/v1/search", json={"query": secrets["query"]})
    opened = send("POST", "/api/v1/conversations", json={"title": secrets["message"]})
    path = f"/api/v1/conversations/{opened.get('id', uuid.uuid4())}/messages"
    send("POST", path, json={"content": f"My number is {secrets['message']}. Is it right?"})
    send("POST", path, json={"content": "Does the fox sleep in the red barn at night?"})
    send("POST", path, json={"content": [secrets["message"]]})
