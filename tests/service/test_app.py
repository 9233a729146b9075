"""The service as clients and operators meet it, through a real socket."""

import asyncio
import contextlib
import io
import json
import logging
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from playwright.sync_api import sync_playwright
from pydantic import SecretStr

from support_rag.local.servers import Running
from support_rag.service.app import refuse_unsafe
from support_rag.service.layers import CAREFUL, GuardedProtocol, Limits
from support_rag.state.database import database_url, plain
from support_rag.state.ingest import MAX_BYTES
from support_rag.state.observe import configure_logging
from support_rag.types import SettingsInvalid
from tests.cable import Cable
from tests.local.test_up import until
from tests.people import (
    KEY,
    SCRAPER,
    Person,
    hashing_app,
    leaving_no_work,
    new_person,
    settings_of,
)
from tests.serving import serving

INGEST, DOCUMENTS = "/api/v1/documents/ingest", "/api/v1/documents"
PROBLEM = "application/problem+json"
ARTICLE = {"title": "Kiosk", "content": "# Kiosk\n\nIt keeps punches for 72 hours."}


class Hasty(GuardedProtocol):
    """The served protocol with limits that a test can wait for."""

    limits = Limits(head_seconds=1, body_seconds=1, linger_seconds=0.2, connections=300)


class Full(GuardedProtocol):
    """The served protocol with a number of connections that a test can open before they end."""

    limits = Limits(body_seconds=300, linger_seconds=0.2, connections=100)


@pytest.fixture(scope="module", autouse=True)
def no_work_left(servers: Running) -> Iterator[None]:
    with leaving_no_work(servers):
        yield


@pytest.fixture(scope="module")
def app(servers: Running) -> FastAPI:
    app = hashing_app(servers)

    @app.get("/crash", include_in_schema=False)
    async def crash(secret: str) -> None:
        raise ValueError(f"{secret} is no number")

    return app


@pytest.fixture(scope="module")
def url(app: FastAPI) -> Iterator[str]:
    with serving(app) as address:
        yield address


@pytest.fixture
def hasty_url(servers: Running) -> Iterator[str]:
    with serving(hashing_app(servers), protocol=Hasty) as address:
        yield address


@pytest.fixture
def full_url(servers: Running) -> Iterator[str]:
    with serving(hashing_app(servers), protocol=Full) as address:
        yield address


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[httpx2.Client]:
    "A client that is not signed in."
    with httpx2.Client(base_url=url, timeout=300) as client:
        yield client


@pytest.fixture
def person(servers: Running) -> Person:
    return new_person(servers)


@contextlib.contextmanager
def logged(level: str = "info") -> Iterator[list[dict[str, Any]]]:
    "Collect the log lines of this process; the list is filled at the end."
    stream, lines = io.StringIO(), list[dict[str, Any]]()
    before = logging.getLogger().handlers[:]
    configure_logging(level=level, stream=stream)
    try:
        yield lines
    finally:
        logging.getLogger().handlers[:] = before
        lines += [json.loads(line) for line in stream.getvalue().splitlines()]


def raw(url: str, *parts: bytes) -> bytes:
    "Send bytes as they are; return all that comes back until the server closes."
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=300) as connection:
        for part in parts:
            connection.sendall(part)
        with connection.makefile("rb") as back:
            return back.read()


def head(path: str, person: Person, *lines: str, method: str = "POST") -> bytes:
    "Return the head of a request."
    token = person.headers["Authorization"]
    fixed = (f"{method} {path} HTTP/1.1", "Host: x", f"Authorization: {token}")
    return "\r\n".join([*fixed, *lines, "", ""]).encode()


# Documents


def test_a_text_is_accepted_shown_listed_and_deleted(client: httpx2.Client, person: Person) -> None:
    sent = {**ARTICLE, "source": "kiosk.md", "metadata": {"product": "kiosk", "rank": 2}}
    accepted = client.post(INGEST, json=sent, headers=person.headers)
    assert accepted.status_code == 202
    document = accepted.json()
    assert accepted.headers["location"] == f"{DOCUMENTS}/{document['id']}"
    assert (document["status"], document["version"]) == ("pending", 1)
    assert {k: document[k] for k in ("title", "source", "metadata")} == {
        k: sent[k] for k in ("title", "source", "metadata")
    }
    assert document["content_type"] == "text/markdown"
    again = client.post(INGEST, json=sent, headers=person.headers)
    assert (again.status_code, again.json()) == (202, document), "nothing to do"
    newer = client.post(INGEST, json=sent | {"content": "# New"}, headers=person.headers)
    assert (newer.json()["id"], newer.json()["version"]) == (document["id"], 2)
    shown = client.get(accepted.headers["location"], headers=person.headers)
    assert (shown.status_code, shown.json()) == (200, newer.json())
    listed = client.get(DOCUMENTS, headers=person.headers).json()
    assert listed == {"items": [shown.json()], "next_cursor": None}
    gone = client.delete(accepted.headers["location"], headers=person.headers)
    assert (gone.status_code, gone.content) == (204, b"")
    for answer in (
        client.get(accepted.headers["location"], headers=person.headers),
        client.delete(accepted.headers["location"], headers=person.headers),
    ):
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("name", "attached", "content_type"),
    [
        ("a.txt", "application/octet-stream", "text/plain"),
        ("a.MD", "application/octet-stream", "text/markdown"),
        ("a.html", "text/plain", "text/html"),
        ("a.csv", "application/vnd.ms-excel", "text/csv"),
        ("a.pdf", "application/octet-stream", "application/pdf"),
        ("notes", "text/plain; charset=latin-1", "text/plain"),
        (
            "a.docx",
            "application/zip",
            "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
        ),
    ],
)
def test_files_are_taken_by_their_name(
    client: httpx2.Client, person: Person, name: str, attached: str, content_type: str
) -> None:
    files = {"file": (f"../help/{name}", b"content", attached)}
    form = {"metadata": '{"n": 1}'}
    answer = client.post(INGEST, files=files, data=form, headers=person.headers)
    assert answer.status_code == 202, answer.text
    assert (answer.json()["content_type"], answer.json()["source"]) == (content_type, name)
    assert answer.json()["metadata"] == {"n": 1}


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        ({"files": {"file": ("a.png", b"x", "image/png")}}, 415, "unsupported_type"),
        ({"files": {"file": ("a", b"x", "application/octet-stream")}}, 415, "unsupported_type"),
        ({"files": {"other": ("a.md", b"x", "text/markdown")}}, 422, "input_invalid"),
        ({"files": [("file", ("a.md", b"x")), ("file", ("b.md", b"y"))]}, 400, "bad_request"),
        ({"files": {"file": ("a.md", b"x")}, "data": {"colour": "red"}}, 422, "input_invalid"),
        ({"files": {"file": ("a.md", b"x")}, "data": {"metadata": "{"}}, 422, "input_invalid"),
        ({"files": {"file": ("a.md", b"x")}, "data": {"title": " "}}, 422, "input_invalid"),
        ({"json": {**ARTICLE, "content_type": "image/png"}}, 415, "unsupported_type"),
        ({"json": {**ARTICLE, "content_type": "application/pdf"}}, 415, "unsupported_type"),
        ({"json": {"title": "Kiosk"}}, 422, "input_invalid"),
        ({"json": {**ARTICLE, "metadata": {"a": [1]}}}, 422, "input_invalid"),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 422, "input_invalid"),
        ({"content": b"a=b", "headers": {"content-type": "text/plain"}}, 415, "unsupported_type"),
        ({"content": b"x"}, 415, "unsupported_type"),
        (
            {"content": b"--", "headers": {"content-type": "multipart/form-data"}},
            400,
            "bad_request",
        ),
    ],
)
def test_what_cannot_be_a_document_is_refused(
    client: httpx2.Client, person: Person, request_: dict[str, Any], status: int, code: str
) -> None:
    headers = person.headers | request_.get("headers", {})
    answer = client.post(INGEST, **{**request_, "headers": headers})
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert answer.headers["content-type"] == PROBLEM
    assert client.get(DOCUMENTS, headers=person.headers).json()["items"] == []


def test_ten_megabytes_are_the_limit_whatever_is_declared(
    client: httpx2.Client, person: Person
) -> None:
    def send(size: int) -> httpx2.Response:
        files = {"file": ("a.txt", b"x" * size, "text/plain")}
        return client.post(INGEST, files=files, headers=person.headers)

    assert send(MAX_BYTES).status_code == 202, "exactly the limit is accepted"
    for answer in (
        send(MAX_BYTES + 1),
        send(MAX_BYTES + 100_000),
        client.post(INGEST, json={**ARTICLE, "content": "x" * MAX_BYTES}, headers=person.headers),
    ):
        if answer.status_code != 202:
            assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


def test_a_body_without_end_is_cut_off_while_it_arrives(full_url: str, person: Person) -> None:
    host, port = full_url.removeprefix("http://").split(":")
    lines = ("Content-Type: application/json", "Transfer-Encoding: chunked")
    parts = list[bytes]()
    chunk, cut_off = b"%x\r\n%b\r\n" % (65_536, b"x" * 65_536), False
    with socket.create_connection((host, int(port)), timeout=300) as connection:

        def receive() -> None:
            with contextlib.suppress(OSError):
                while part := connection.recv(4096):
                    parts.append(part)

        connection.sendall(head(INGEST, person, *lines))
        received = threading.Thread(target=receive)
        received.start()
        try:
            for _ in range(100_000):
                connection.sendall(chunk)
        except OSError:
            cut_off = True
        received.join()
    assert cut_off, "the server closed the connection, not the client"
    answer = b"".join(parts)
    assert answer.startswith(b"HTTP/1.1 413 ") and b"too_large" in answer


def test_other_bodies_have_a_smaller_limit(client: httpx2.Client, person: Person) -> None:
    answer = client.post("/api/v1/search", json={"query": "x" * 2_000_000}, headers=person.headers)
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


def test_a_stranger_is_refused_before_the_body_is_read(url: str, person: Person) -> None:
    stranger = Person(person.tenant_id, person.user_id, "", "not.a.token", "")
    lines = ("Content-Type: application/json", "Content-Length: 9000000", "Expect: 100-continue")
    answer = raw(url, head(INGEST, stranger, *lines))
    assert answer.startswith(b"HTTP/1.1 401 "), "no 100 Continue comes first"


def test_a_walk_sees_every_lasting_document_once(client: httpx2.Client, person: Person) -> None:
    def add(n: int) -> str:
        sent = {"title": f"T{n}", "content": f"text {n}", "source": f"{n}.md"}
        return str(client.post(INGEST, json=sent, headers=person.headers).json()["id"])

    def walk() -> Iterator[list[str]]:
        cursor: dict[str, str] = {}
        while True:
            answer = client.get(DOCUMENTS, params={"limit": 7, **cursor}, headers=person.headers)
            yield [item["id"] for item in answer.json()["items"]]
            if answer.json()["next_cursor"] is None:
                return
            cursor = {"cursor": answer.json()["next_cursor"]}

    lasting = {n: add(n) for n in range(60)}
    doomed = [lasting.pop(n) for n in range(0, 60, 4)]
    seen, extra = list[str](), 1000
    for ids in walk():
        seen += ids
        for _ in range(10):
            add(extra := extra + 1)
        for document_id in doomed[:3]:
            client.delete(f"{DOCUMENTS}/{document_id}", headers=person.headers)
        del doomed[:3]
    assert len(seen) == len(set(seen)) and set(lasting.values()) <= set(seen)
    assert not doomed and extra > 1050


# Errors, headers, ids, logs


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/api/v1/documents/", 404, "not_found"),
        ("PUT", DOCUMENTS, 405, "method_not_allowed"),
        ("GET", "/api/v1/auth/login", 405, "method_not_allowed"),
        ("GET", f"{DOCUMENTS}/no-uuid", 404, "not_found"),
        ("GET", f"{DOCUMENTS}/{uuid.UUID(int=7)}", 401, "unauthorized"),
        ("POST", "/api/v1/auth/login", 422, "input_invalid"),
        ("GET", "/static/%2e%2e/app.py", 404, "not_found"),
        ("GET", "/crash?secret=hunter2", 500, "internal_error"),
        ("GET", "/crash", 422, "input_invalid"),
    ],
)
def test_every_error_is_a_problem(
    client: httpx2.Client, method: str, path: str, status: int, code: str
) -> None:
    answer = client.request(method, path)
    assert answer.headers["content-type"] == PROBLEM
    body = answer.json()
    assert (answer.status_code, body["status"], body["code"]) == (status, status, code)
    assert body["request_id"] == answer.headers["x-request-id"]
    assert "hunter2" not in answer.text
    assert all(answer.headers[name] == value for name, value in CAREFUL.items())
    assert "server" not in answer.headers
    if status == 405:
        assert answer.headers["allow"]


@pytest.mark.parametrize(
    "bytes_", [b"\x16\x03\x01\x02\x00", b"GET / HTTP/9.9\r\n\r\n", b"GET /\xff HTTP/1.1\r\n\r\n"]
)
def test_what_is_no_http_is_a_problem_too(url: str, bytes_: bytes) -> None:
    answer = raw(url, bytes_)
    assert answer.startswith(b"HTTP/1.1 400 ") and PROBLEM.encode() in answer


def test_one_line_a_request_with_its_id_and_no_words_of_clients(
    client: httpx2.Client, person: Person
) -> None:
    sent = {"query": "canary-in-the-body"}
    headers = person.headers | {"X-Request-ID": "checkout-0001", "User-Agent": "canary-agent"}
    with logged() as lines:
        answer = client.post("/api/v1/search", json=sent, headers=headers)
        crash = client.get("/crash?secret=canary-hunter2")
        client.get("/health")  # when it is answered, the lines of the others are written
    assert answer.headers["x-request-id"] == "checkout-0001"
    (line,) = [x for x in lines if x["logger"] == "access" and x["request_id"] == "checkout-0001"]
    assert (line["method"], line["route"], line["status"]) == ("POST", "/api/v1/search", 200)
    assert (line["tenant_id"], line["user_id"]) == (person.tenant_id, person.user_id)
    of_crash = [x for x in lines if x.get("request_id") == crash.json()["request_id"]]
    assert {x["event"] for x in of_crash} == {"request", "request_crashed"}
    ours = [x for x in lines if not x["logger"].startswith("http")]
    assert "canary" not in json.dumps(ours + of_crash)


# Operations


def test_health_names_both_servers(client: httpx2.Client) -> None:
    answer = client.get("/health")
    assert answer.status_code == 200
    body = answer.json()
    assert (body["status"], body["database"], body["redis"]) == ("ok", "ok", "ok")
    assert re.fullmatch("[0-9a-f]{16}", body["release_id"])


def test_health_is_503_while_a_server_is_away_and_the_service_recovers(
    servers: Running, person: Person
) -> None:
    cables = {"database": Cable(servers.postgres_port), "redis": Cable(servers.redis_port)}
    urls = {
        "database_url": cables["database"].through(servers.app_url),
        "redis_url": cables["redis"].through(servers.redis_url),
    }
    app = hashing_app(servers, **urls)
    with serving(app) as url, httpx2.Client(base_url=url, timeout=300) as client:

        def wait_for(status: int) -> httpx2.Response:
            while (answer := client.get("/health")).status_code != status:
                time.sleep(0.05)
            return answer

        assert wait_for(200).json()["status"] == "ok"
        for name, cable in cables.items():
            cable.cut()
            down = wait_for(503)
            assert (down.headers["content-type"], down.json()["code"]) == (PROBLEM, "unavailable")
            assert int(down.headers["retry-after"]) > 0
            states = {key: down.json()[key] for key in cables}
            assert states == {key: "down" if key == name else "ok" for key in cables}
            upload = client.post(INGEST, json=ARTICLE, headers=person.headers)
            listed = client.get(DOCUMENTS, headers=person.headers)
            if name == "redis":
                assert (upload.status_code, listed.status_code) == (202, 200), "Redis only rings"
            else:
                assert (upload.status_code, listed.status_code) == (503, 503)
                assert int(listed.headers["retry-after"]) > 0
            assert client.get("/metrics", headers=SCRAPER).status_code == 200
            cable.mend()
            wait_for(200)
            assert client.get(DOCUMENTS, headers=person.headers).status_code == 200


def series(client: httpx2.Client) -> set[str]:
    lines = client.get("/metrics", headers=SCRAPER).text.splitlines()
    return {line.rpartition(" ")[0] for line in lines if not line.startswith("#")}


def test_metrics_do_not_grow_with_what_clients_invent(
    client: httpx2.Client, person: Person
) -> None:
    for path in ("/nothing", f"{DOCUMENTS}/{uuid.uuid4()}", "/health", "/metrics"):
        client.get(path, headers=person.headers)
    before = series(client)
    for _ in range(500):
        client.get(f"/{uuid.uuid4()}?{uuid.uuid4()}")
        client.get(f"{DOCUMENTS}/{uuid.uuid4()}", headers=person.headers)
    assert series(client) == before
    assert any(
        line.startswith('http_requests_total{method="GET",route="/api/v1/documents/{document_id}"')
        for line in before
    )
    assert 'queue_depth{kind="ingest"}' in before
    for name in ("stage_seconds", "answer_confidence", "decisions_total", "ingest_outcomes_total"):
        assert (
            f"# TYPE {name.removesuffix('_total')}" in client.get("/metrics", headers=SCRAPER).text
        )


# The document that describes the API


def test_openapi_has_examples_and_problems_everywhere(client: httpx2.Client) -> None:
    described = client.get("/openapi.json").json()
    schemas = described["components"]["schemas"]

    def has_example(schema: dict[str, Any]) -> bool:
        if {"example", "examples", "default", "const", "enum"} & schema.keys():
            return True
        if "$ref" in schema:
            return has_example(schemas[schema["$ref"].rpartition("/")[2]])
        inner = schema.get("properties", {}).values(), schema.get("anyOf", [])
        return any(has_example(one) for group in inner for one in group)

    operations = [
        (f"{method.upper()} {path}", operation)
        for path, methods in described["paths"].items()
        for method, operation in methods.items()
    ]
    assert len(operations) >= 14
    for name, operation in operations:
        assert operation["operationId"] and operation["summary"], name
        for content in operation.get("requestBody", {}).get("content", {}).values():
            assert {"example", "examples"} & content.keys() or has_example(content["schema"]), name
        assert PROBLEM in operation["responses"]["default"]["content"], name
        for status, response in operation["responses"].items():
            if status >= "4" and status != "default":
                assert list(response["content"]) == [PROBLEM], (name, status)
        if "/v1/" in name and "/auth/" not in name and "/problems" not in name:
            assert operation["security"] and "401" in operation["responses"], name
    assert "HTTPValidationError" not in schemas and "Problem" in schemas


def test_the_page_of_the_api_allows_only_this_service(client: httpx2.Client) -> None:
    page = client.get("/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self';")
    assert "unsafe-eval" not in policy and "http" not in policy
    for name in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        if not name.startswith("data:"):
            assert client.get(f"/{name}").status_code == 200, name


def test_the_first_page_leads_to_what_there_is(client: httpx2.Client) -> None:
    page = client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    links = re.findall(r'href="([^"]+)"', page.text)
    expected = {"/docs": 200, "/health": 200, "/api/v1/release": 401, "/api/v1/problems": 200}
    expected |= {"/chat": 200, "/desk": 200}
    assert {link: client.get(link).status_code for link in links} == expected


def look_at(browser: str, url: str) -> tuple[list[str], list[str]]:
    "Open the page in Chromium and use it; return the addresses it asked, and its complaints."
    asked, complaints = list[str](), list[str]()
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=browser, args=["--no-sandbox", "--disable-background-networking"]
        )
        page = chromium.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(f"{url}/docs")
        page.get_by_text("/api/v1/conversations/{conversation_id}/messages").wait_for()
        page.get_by_text("/api/v1/search").first.click()
        page.get_by_text("Try it out").first.wait_for()
        chromium.close()
    return asked, complaints


if BROWSER := shutil.which("chromium"):  # the tests above hold where there is none

    def test_the_page_renders_in_a_browser_without_the_network(url: str) -> None:
        asked, complaints = look_at(str(BROWSER), url)
        assert len(asked) >= 4
        assert all(address.startswith((url, "data:")) for address in asked)
        assert not complaints, "nothing that the policy forbids"


# Slow clients, too many of them, and the end


def test_slow_clients_are_closed_and_keep_nobody_out(hasty_url: str, person: Person) -> None:
    host, port = hasty_url.removeprefix("http://").split(":")
    upload = head(INGEST, person, "Content-Type: application/json", "Content-Length: 100000")
    half_open = []
    for n in range(200):  # each says what it has to say at once: the clock of the first runs
        half_open.append(connection := socket.create_connection((host, int(port)), timeout=300))
        connection.sendall([b"", b"GET /health HTT", upload, upload + b'{"title": "'][n % 4])
    with httpx2.Client(base_url=hasty_url, timeout=300) as client:
        assert client.get("/health").status_code == 200
        assert client.get(DOCUMENTS, headers=person.headers).status_code == 200
    for connection in half_open:
        with connection, connection.makefile("rb") as back:
            assert back.read().startswith(b"HTTP/1.1 408 ")


def test_connections_beyond_the_limit_are_refused(full_url: str) -> None:
    host, port = full_url.removeprefix("http://").split(":")
    many = [
        socket.create_connection((host, int(port)), timeout=300)
        for _ in range(Full.limits.connections)
    ]
    refused = raw(full_url)
    assert refused.startswith(b"HTTP/1.1 503 ") and b"retry-after: 1" in refused
    for connection in many:
        connection.close()


@pytest.fixture
def process(servers: Running, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    "The service as a process of its own, and its address."
    settings = settings_of(servers)
    environ = {
        "SUPPORT_RAG_DATABASE_URL": settings.database_url.get_secret_value(),
        "SUPPORT_RAG_REDIS_URL": settings.redis_url.get_secret_value(),
        "SUPPORT_RAG_JWT_SECRET": KEY,
        "SUPPORT_RAG_HOME": str(tmp_path),
        "PATH": "/usr/bin:/bin",
    }
    command = [sys.executable, "-m", "support_rag.cli.main", "serve", "--port", "0"]
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        for line in running.stdout:
            if (written := json.loads(line))["event"] == "listening":
                yield running, f"http://127.0.0.1:{written['port']}"
                break
        running.kill()


def is_closed(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError:
        return True
    return False


def test_a_stop_lets_requests_end(
    process: tuple[subprocess.Popen[str], str], person: Person
) -> None:
    running, url = process
    host, port = url.removeprefix("http://").split(":")
    body = json.dumps(ARTICLE).encode()
    lines = ("Content-Type: application/json", f"Content-Length: {len(body)}")
    with socket.create_connection((host, int(port)), timeout=300) as connection:
        connection.sendall(head(INGEST, person, *lines) + body[:10])
        assert httpx2.get(f"{url}/health", timeout=60).status_code == 200
        running.send_signal(signal.SIGTERM)
        assert running.stdout is not None
        for line in running.stdout:
            if "Shutting down" in line:
                break
        until(lambda: is_closed(host, int(port)), what="the listening socket to close")
        connection.sendall(body[10:])
        with connection.makefile("rb") as back:
            assert back.read().startswith(b"HTTP/1.1 202 ")
    rest = [json.loads(line) for line in running.stdout]
    assert running.wait(300) in (0, -signal.SIGTERM)
    assert not [line for line in rest if line["level"] == "error"]


def test_an_unsafe_role_keeps_the_service_from_starting(servers: Running, tmp_path: Path) -> None:
    superuser = plain(database_url(servers.superuser_url), database="support_rag")
    for address in (servers.owner_url, superuser):
        settings = settings_of(servers, database_url=address)
        with pytest.raises(SettingsInvalid, match="not safe to serve from: the role"):
            asyncio.run(refuse_unsafe(settings))
    environ = {
        "SUPPORT_RAG_DATABASE_URL": servers.owner_url,
        "SUPPORT_RAG_REDIS_URL": servers.redis_url,
        "SUPPORT_RAG_HOME": str(tmp_path),
    }
    command = [sys.executable, "-m", "support_rag.cli.main", "serve", "--port", "0"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "not safe to serve from" in done.stderr and "Traceback" not in done.stderr
    assert SecretStr(servers.owner_url).get_secret_value() not in done.stderr + done.stdout
