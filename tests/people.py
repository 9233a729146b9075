"""Tenants and people that exist at once, and the application they use."""

import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from fastapi import FastAPI
from pydantic import SecretStr

from support_rag.embed import HashingEmbedder
from support_rag.generate import ExtractiveGenerator
from support_rag.local.servers import Running
from support_rag.release import Release, load_release
from support_rag.service.access import Tokens
from support_rag.service.app import create_app
from support_rag.state.database import database_url, plain
from support_rag.state.indexes import Embedders
from support_rag.state.settings import ServiceSettings

KEY = "a key that only the tests have, long enough for any of the algorithms: 7f3a9c15"
METRICS = "what reads the metrics in tests"
SCRAPER = {"Authorization": f"Bearer {METRICS}"}
LOW = {
    "answer_threshold": 0.1,
    "abstain_threshold": 0.03,
}  # hashed cosines are low


def settings_of(servers: Running, **changes: Any) -> ServiceSettings:
    "Return the settings of a service on these servers."
    urls = {"database_url": servers.app_url, "redis_url": servers.redis_url, "jwt_secret": KEY}
    urls |= {"metrics_token": METRICS}
    secrets = {name: SecretStr(value) for name, value in (urls | changes).items()}
    home = Path(tempfile.mkdtemp(prefix="support_rag-"))
    return ServiceSettings(**secrets, home=home, webhook_hosts="127.0.0.1, hooks.example.com")


def hashing_release() -> Release:
    "Return a release whose embedder needs no model."
    parameters = load_release().parameters
    return load_release(parameters.with_(embed={"model": "hashing-256"}, gate=LOW))


def hashing_models() -> dict[str, Any]:
    "Return models that load at once, as the application takes them."
    return {
        "release": hashing_release(),
        "embedders": Embedders(lambda parameters: HashingEmbedder()),
        "generator": ExtractiveGenerator(),
    }


def hashing_app(servers: Running, **changes: Any) -> FastAPI:
    "Return the application with models that load at once."
    return create_app(settings_of(servers, **changes), **hashing_models())


def as_superuser(servers: Running) -> "psycopg.Connection[Any]":
    "Return a connection that sees every tenant."
    url = plain(database_url(servers.superuser_url), database="support_rag")
    return psycopg.connect(url, autocommit=True)


@contextmanager
def leaving_no_work(servers: Running) -> Iterator[None]:
    "Delete the jobs of documents that nobody processes, so that no later test's worker does."
    yield
    with as_superuser(servers) as connection:
        connection.execute("DELETE FROM jobs")


@dataclass(frozen=True)
class Person:
    "Somebody who is signed in."

    tenant_id: str
    user_id: str
    email: str
    token: str
    session_id: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}


def new_person(servers: Running, *, tenant_id: str | None = None, role: str = "owner") -> Person:
    "Store a person, in a new tenant unless one is given, and sign the person in."
    user_id, email = str(uuid.uuid4()), f"{uuid.uuid4().hex}@example.com"
    with as_superuser(servers) as connection:
        if tenant_id is None:
            tenant_id = str(uuid.uuid4())
            connection.execute(
                "INSERT INTO tenants (tenant_id, name) VALUES (%s, 'T')", [tenant_id]
            )
        connection.execute(
            "INSERT INTO users (tenant_id, id, email, password_hash, role)"
            " VALUES (%s, %s, %s, 'none', %s)",
            [tenant_id, user_id, email, role],
        )
        session_id = str(uuid.uuid4())
        connection.execute(
            "INSERT INTO sessions (tenant_id, id, user_id, expires_at)"
            " VALUES (%s, %s, %s, now() + interval '1 day')",
            [tenant_id, session_id, user_id],
        )
    token = Tokens(KEY).issue(tenant_id=tenant_id, user_id=user_id, session_id=session_id)
    return Person(tenant_id, user_id, email, token, session_id)
