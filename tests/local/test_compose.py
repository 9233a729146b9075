"""docker-compose.yml is the system of `make up`: valid, and its exact commands serve."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from support_rag.local.processes import spawn
from support_rag.local.servers import local_servers
from support_rag.local.wheels import free_port

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
SECRET = "kQ3vN8zR5tX1wB7yL4mC9dF2gH6jP0sA"
VALUES = {
    name: SECRET if value == "change-me" else value
    for name, _, value in (
        line.partition("=")
        for line in (ROOT / ".env.example").read_text().splitlines()
        if line and not line.startswith("#")
    )
}


def substituted(text: str) -> str:
    "Do what compose does with `${NAME}`, `${NAME:-default}` and `${NAME:?message}`."

    def value(match: re.Match[str]) -> str:
        name, operator, rest = match.groups()
        given = VALUES.get(name, "")
        if not given and operator == ":?":
            raise AssertionError(f"{name} is needed and .env.example does not name it")
        return given or (rest if operator == ":-" else "")

    plain = re.sub(r"(?<!\$)\$\{(\w+)(?:(:[-?])([^}]*))?\}", value, text)
    return plain.replace("$$", "$")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load(substituted((ROOT / "docker-compose.yml").read_text()))


def test_the_services_are_those_of_the_design(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert set(services) == {"db", "redis", "migrate", "api", "worker", "jupyter"}
    for name in ("db", "redis", "api"):
        assert services[name]["healthcheck"]["test"], name
    assert {name for name in services if services[name].get("volumes")} >= {"db", "redis"}
    builds = {services[name]["build"]["target"] for name in ("migrate", "api", "worker", "jupyter")}
    targets = re.findall(r"^FROM .* AS (\w+)$", (ROOT / "Dockerfile").read_text(), re.M)
    assert builds == set(targets), "one Dockerfile, a target for each image"
    assert services["api"]["depends_on"]["migrate"]["condition"] == "service_completed_successfully"


def test_the_owner_is_not_the_application(compose: dict[str, Any]) -> None:
    api, migrate = (compose["services"][n]["environment"] for n in ("api", "migrate"))
    app, owner = (
        urlsplit(url).username
        for url in (api["SUPPORT_RAG_DATABASE_URL"], migrate["SUPPORT_RAG_OWNER_DATABASE_URL"])
    )
    assert app != owner
    assert not {"SUPPORT_RAG_OWNER_DATABASE_URL", "SUPPORT_RAG_SUPERUSER_URL"} & set(api)


def test_every_secret_must_be_set() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    for name in re.findall(r"\$\{(\w*(?:PASSWORD|SECRET|TOKEN))", text):
        assert re.search(rf"\$\{{{name}:\?", text), f"{name} may be left empty"


def compose_command() -> list[str] | None:
    "Return the compose of this machine: the plugin of docker, or the program."
    if shutil.which("docker"):
        asked = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
        if asked.returncode == 0:
            return ["docker", "compose"]
    return ["docker-compose"] if shutil.which("docker-compose") else None


def test_compose_itself_accepts_the_file(tmp_path: Path, compose: dict[str, Any]) -> None:
    "Where a compose is installed it is the judge; the tests above and below need none."
    command = compose_command()
    if command is None:
        assert compose["services"]
        return
    shutil.copy(ROOT / "docker-compose.yml", tmp_path)
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    refused = subprocess.run(
        [*command, "config"], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert refused.returncode != 0 and "set it in .env" in refused.stderr
    (tmp_path / ".env").write_text("".join(f"{k}={v}\n" for k, v in VALUES.items()))
    accepted = subprocess.run(
        [*command, "config"], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert accepted.returncode == 0, accepted.stderr


class Stack:
    "The containers' commands and environments, with the servers' addresses of this machine."

    def __init__(self, compose: dict[str, Any], superuser_url: str, redis_url: str, home: Path):
        self.services, self.home = compose["services"], home
        self.database, self.redis = urlsplit(superuser_url), urlsplit(redis_url)
        self.superuser_url, self.port = superuser_url, free_port()

    def environ(self, name: str) -> dict[str, str]:
        found = self.services[name]["environment"].items()
        given = {k: "" if v is None else str(v) for k, v in found}
        for key, value in given.items():
            value = value.replace("@db:5432", f"@127.0.0.1:{self.database.port}")
            given[key] = value.replace("@redis:6379", f"@127.0.0.1:{self.redis.port}")
        if "SUPPORT_RAG_SUPERUSER_URL" in given:
            given["SUPPORT_RAG_SUPERUSER_URL"] = self.superuser_url
        given["SUPPORT_RAG_REDIS_URL"] = self.redis.geturl()
        given["SUPPORT_RAG_HOME"] = str(self.home)
        return {"PATH": f"{BIN}:{os.environ['PATH']}", **given}

    def command(self, name: str) -> list[str]:
        port = {"8000": str(self.port)}
        return [port.get(word, word) for word in self.services[name]["command"]]

    def get(self, path: str, body: Any = None, token: str = "") -> Any:
        headers = {"content-type": "application/json", "authorization": f"Bearer {token}"}
        url = f"http://127.0.0.1:{self.port}{path}"
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=300) as got:
            return json.load(got)

    def healthy(self) -> bool:
        "Run the health check of the api container."
        _, *check = self.services["api"]["healthcheck"]["test"]
        words = [word.replace(":8000", f":{self.port}") for word in check]
        return subprocess.run(words, env=self.environ("api"), capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def stack(compose: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    home = tmp_path_factory.mktemp("compose")
    with ExitStack() as cleanup:
        servers = cleanup.enter_context(local_servers())
        stack = Stack(compose, servers.superuser_url, servers.redis_url, home)
        for _ in range(2):  # a second start migrates again
            done = subprocess.run(
                stack.command("migrate"), env=stack.environ("migrate"), cwd=home,
                capture_output=True, text=True, timeout=300,
            )  # fmt: skip
            assert done.returncode == 0, done.stdout + done.stderr
        for name in ("api", "worker"):
            log = (home / f"{name}.log").open("wb")
            child = spawn(
                stack.command(name), output=log.fileno(), environ=stack.environ(name), folder=home
            )
            cleanup.callback(child.wait, 30)
            cleanup.callback(child.send_signal, signal.SIGTERM)
        deadline = time.monotonic() + 240
        while not stack.healthy():
            assert time.monotonic() < deadline, (home / "api.log").read_text()[-2000:]
            time.sleep(0.3)
        yield stack


def test_the_commands_serve(stack: Stack) -> None:
    owner = {
        "tenant_name": "Acme",
        "email": "ada@acme.example",
        "password": "correct horse battery",
    }
    token = stack.get("/api/v1/auth/register", owner)["access_token"]
    text = "# Kiosk\n\nThe kiosk keeps punches for 72 hours while it is offline."
    document = stack.get("/api/v1/documents/ingest", {"title": "Kiosk", "content": text}, token)
    deadline = time.monotonic() + 240
    while document["status"] not in ("ready", "failed"):
        assert time.monotonic() < deadline, (stack.home / "worker.log").read_text()[-2000:]
        time.sleep(0.2)
        document = stack.get(f"/api/v1/documents/{document['id']}", token=token)
    assert document["status"] == "ready", document
    conversation = stack.get("/api/v1/conversations", {}, token)
    asked = {"content": "How long does the kiosk keep punches while it is offline?"}
    reply = stack.get(f"/api/v1/conversations/{conversation['id']}/messages", asked, token)
    assert "72 hours" in reply["content"], reply["reason"]
    assert reply["sources"][0]["document_id"] == document["id"]


@pytest.mark.parametrize("name", ["SUPPORT_RAG_JWT_SECRET", "SUPPORT_RAG_METRICS_TOKEN"])
def test_placeholders_are_refused(stack: Stack, name: str) -> None:
    weak = {**stack.environ("api"), name: "change-me"}
    done = subprocess.run(
        stack.command("api"), env=weak, cwd=stack.home, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1
    assert name in done.stderr and "change-me" not in done.stderr
