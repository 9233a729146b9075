"""The protocol's official client uses the tools, over HTTP and over standard input."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import httpx2
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

from tests.service.test_conversations import QUESTION, embedders, owner, release, url  # noqa: F401
from tests.serving import Account, signed_in

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def key_of(account: Account) -> str:
    "Return what an account sends."
    return account.client.headers["authorization"].removeprefix("Bearer ")


@asynccontextmanager
async def connected(url: str, account: Account, **headers: str) -> AsyncIterator[Client]:  # noqa: F811
    "Connect the official client over HTTP."
    sent = {"Authorization": f"Bearer {key_of(account)}", **headers}
    async with (
        httpx2.AsyncClient(headers=sent, timeout=60) as web,
        Client(streamable_http_client(f"{url}/mcp", http_client=web)) as client,
    ):
        yield client


async def test_a_model_searches_reads_and_asks(url: str, owner: Account) -> None:  # noqa: F811
    async with connected(url, owner) as client:
        tools = {tool.name for tool in (await client.list_tools()).tools}
        assert tools == {"search", "ask", "read_document"}
        found = await client.call_tool("search", {"query": QUESTION, "k": 3})
        assert found.structured_content is not None
        first = found.structured_content["passages"][0]
        told = owner.client.post("/api/v1/search", json={"query": QUESTION, "k": 3}).json()
        assert first["text"] == told["hits"][0]["text"]
        whole = await client.call_tool("read_document", {"document_id": first["document_id"]})
        assert whole.structured_content is not None
        text = whole.structured_content["text"]
        assert text[first["start"] : first["end"]] in first["text"]

        asked = await client.call_tool("ask", {"question": QUESTION})
        assert asked.structured_content is not None
        reply = asked.structured_content
        again = owner.ask(owner.open(), QUESTION).json()
        assert reply["text"] == again["content"] and reply["sources"] == again["sources"]
        assert reply["release_id"] == again["release_id"]
        more = {"question": "And then?", "conversation_id": reply["conversation_id"]}
        await client.call_tool("ask", more)
    stored = owner.client.get(f"/api/v1/conversations/{reply['conversation_id']}").json()
    assert [m["role"] for m in stored["messages"]] == ["user", "assistant"] * 2


async def test_a_tool_may_what_its_caller_may(url: str, owner: Account) -> None:  # noqa: F811
    with signed_in(url) as stranger:
        async with connected(url, owner) as client:
            found = await client.call_tool("search", {"query": QUESTION})
            assert found.structured_content is not None
            document_id = found.structured_content["passages"][0]["document_id"]
            talk = (await client.call_tool("ask", {"question": QUESTION})).structured_content
        async with connected(url, stranger) as client:
            nothing = await client.call_tool("search", {"query": QUESTION})
            assert nothing.structured_content is not None
            assert nothing.structured_content["passages"] == []
            for name, own in (
                ("read_document", {"document_id": document_id}),
                ("ask", {"question": QUESTION, "conversation_id": (talk or {})["conversation_id"]}),
            ):
                foreign = await client.call_tool(name, own)
                place = next(n for n in own if n.endswith("_id"))
                unknown = await client.call_tool(name, own | {place: str(uuid4())})
                assert foreign.is_error and unknown.is_error
                said = [UUID.sub("…", r.content[0].text) for r in (foreign, unknown)]  # type: ignore[union-attr]
                assert "not_found" in said[0] and said[0] == said[1]


async def test_who_asks_where_a_person_answers_is_told_so(url: str, owner: Account) -> None:  # noqa: F811
    talk = owner.open()
    assert owner.client.post(f"/api/v1/conversations/{talk}/take").status_code == 200
    async with connected(url, owner) as client:
        more = {"question": QUESTION, "conversation_id": talk}
        told = (await client.call_tool("ask", more)).structured_content
    assert told is not None and told["decision"] == "hand_off" and "person" in told["text"]


async def test_a_scoped_key_is_held_to_its_scopes(url: str, owner: Account) -> None:  # noqa: F811
    made = owner.client.post("/api/v1/keys", json={"name": "reader", "scopes": ["search"]})
    assert made.status_code == 201, made.text
    async with (
        httpx2.AsyncClient(headers={"Authorization": f"Bearer {made.json()['secret']}"}) as web,
        Client(streamable_http_client(f"{url}/mcp", http_client=web)) as client,
    ):
        assert not (await client.call_tool("search", {"query": QUESTION})).is_error
        refused = await client.call_tool("ask", {"question": QUESTION})
        assert refused.is_error
        assert "conversations:write" in refused.content[0].text  # type: ignore[union-attr]


def test_who_sends_no_key_gets_the_api_s_refusal(url: str) -> None:  # noqa: F811
    answer = httpx2.post(f"{url}/mcp", json={})
    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "unauthorized"
    assert httpx2.get(f"{url}/mcp").status_code == 405


@pytest.mark.parametrize("body", [b"", b"{}", b"[1]", b"\xff", b'{"jsonrpc": "2.0", "id": 1}'])
def test_what_is_no_message_is_refused(url: str, owner: Account, body: bytes) -> None:  # noqa: F811
    headers = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
    answer = owner.client.post("/mcp", content=body, headers=headers)
    assert answer.status_code in range(400, 500), answer.text


async def test_an_assistant_speaks_through_standard_input(url: str, owner: Account) -> None:  # noqa: F811
    program = StdioServerParameters(
        command=str(Path(sys.executable).parent / "support-rag"),
        args=["mcp", "--url", url],
        env={**os.environ, "SUPPORT_RAG_API_KEY": key_of(owner)},
    )
    async with Client(program) as client:
        found = await client.call_tool("search", {"query": QUESTION, "k": 1})
        assert found.structured_content is not None
        assert found.structured_content["passages"]
        refused = await client.call_tool("read_document", {"document_id": str(uuid4())})
        assert refused.is_error
