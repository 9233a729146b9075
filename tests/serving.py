"""The application behind a real socket, and a signed-in client of it."""

import asyncio
import contextlib
import json
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx2
import uvicorn
from fastapi import FastAPI

from support_rag.service.app import server_config
from support_rag.service.layers import GuardedProtocol
from support_rag.service.sockets import listen

Events = list[tuple[str, Any]]  # name and data of server-sent events


@contextlib.contextmanager
def serving(app: FastAPI, *, protocol: type[asyncio.Protocol] = GuardedProtocol) -> Iterator[str]:
    "Serve as in production, in a thread of its own; yield the address."
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(server_config(app, protocol=protocol))
    started = threading.Event()

    async def serve() -> None:
        running = asyncio.create_task(server.serve(sockets=[listener]))
        while not (server.started or running.done()):
            await asyncio.sleep(0.005)
        started.set()
        await running

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    started.wait(300)
    assert server.started, "the application did not start"
    try:
        port = listener.getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(300)


@dataclass
class Account:
    "A new tenant's owner, signed in."

    client: httpx2.Client
    tenant_id: str

    def open(self, title: str = "") -> str:
        "Open a conversation; return its id."
        answered = self.client.post("/api/v1/conversations", json={"title": title})
        assert answered.status_code == 201, answered.text
        return str(answered.json()["id"])

    def ask(self, conversation_id: str, content: str) -> httpx2.Response:
        "Ask for a reply as JSON."
        path = f"/api/v1/conversations/{conversation_id}/messages"
        return self.client.post(path, json={"content": content})

    def stream(self, conversation_id: str, content: str) -> Events:
        "Ask for a reply as events, and read them all."
        path = f"/api/v1/conversations/{conversation_id}/messages"
        accept = {"Accept": "text/event-stream"}
        answered = self.client.post(path, json={"content": content}, headers=accept)
        assert answered.status_code == 200, answered.text
        assert answered.headers["content-type"].startswith("text/event-stream")
        return read_events(answered.text)

    def messages(self, conversation_id: str) -> list[dict[str, Any]]:
        "Return what is stored."
        answered = self.client.get(f"/api/v1/conversations/{conversation_id}")
        assert answered.status_code == 200, answered.text
        return list(answered.json()["messages"])


def pieces_of(events: Events) -> list[str]:
    "Return the pieces of the text that a stream told."
    return [data["text"] for name, data in events if name == "answer.delta"]


def read_events(text: str) -> Events:
    "Return the events of an event stream, comments left out."
    events: Events = []
    for block in text.split("\n\n"):
        lines = [line.partition(": ") for line in block.splitlines() if line[:1] != ":"]
        fields = {name: value for name, _, value in lines}
        if fields:
            events.append((fields["event"], json.loads(fields["data"])))
    return events


@contextlib.contextmanager
def signed_in(url: str) -> Iterator[Account]:
    "Register a new tenant at `url`."
    with httpx2.Client(base_url=url, timeout=300, trust_env=False) as client:
        who = {"email": f"{uuid.uuid4().hex}@example.com", "password": "a long enough phrase"}
        answered = client.post("/api/v1/auth/register", json={"tenant_name": "T", **who})
        assert answered.status_code == 201, answered.text
        client.headers["Authorization"] = f"Bearer {answered.json()['access_token']}"
        yield Account(client, answered.json()["tenant"]["id"])
