"""Conversations keep every question, number without gaps, and answer with the one pipeline."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from support_rag import store
from support_rag.converse import (
    MessageRecord,
    Service,
    close_conversation,
    create_conversation,
    get_conversation,
    list_messages,
    reply,
    search,
)
from support_rag.db import Database, create_database
from support_rag.embed import HashingEmbedder
from support_rag.generate import ExtractiveGenerator
from support_rag.indexes import Embedders
from support_rag.ingest import Ingestion, accept, ingest
from support_rag.release import Release, load_release
from support_rag.types import Conflict, GenerationFailed, InputInvalid, NotFound, Prompt
from tests.test_ingest import ARTICLE, lease_of

QUESTION = "How long does the kiosk keep punches while it is offline?"


@pytest.fixture
def release() -> Release:
    return load_release(load_release().parameters.with_(embed={"model": "hashing-256"}))


@pytest.fixture
async def service(database: Database, tenant: str, release: Release) -> AsyncIterator[Service]:
    embedders = Embedders(lambda parameters: HashingEmbedder())
    await accept(
        database, None, tenant_id=tenant, content=ARTICLE, content_type="text/markdown",
        source="kiosk.md",
    )  # fmt: skip
    lease = await lease_of(database, tenant)
    await ingest(Ingestion(database, release, embedders), lease)
    service = Service(database, release, embedders, ExtractiveGenerator(max_sentences=3))
    yield service
    await service.close()


@pytest.fixture
async def conversation_id(database: Database, tenant: str) -> str:
    async with database.tenant(tenant) as session:
        user = await store.create_user(
            session, tenant_id=tenant, email=f"{tenant}@example.com", password_hash="x",
            role="owner",
        )  # fmt: skip
        created = await create_conversation(session, tenant_id=tenant, user_id=user.id)
    return created.id


async def ask(service: Service, tenant: str, conversation_id: str, text: str) -> MessageRecord:
    events = [
        event
        async for event in reply(
            service, tenant_id=tenant, conversation_id=conversation_id, content=text
        )
    ]
    assert isinstance(events[-1], MessageRecord)
    assert all(isinstance(event, str) for event in events[:-1])
    return events[-1]


async def messages(database: Database, tenant: str, conversation_id: str) -> list[MessageRecord]:
    async with database.tenant(tenant) as session:
        return await list_messages(session, tenant_id=tenant, conversation_id=conversation_id)


async def test_a_reply_carries_its_evidence(
    service: Service, tenant: str, conversation_id: str
) -> None:
    message = await ask(service, tenant, conversation_id, QUESTION)
    assert "72 hours" in message.content
    assert message.release_id == service.release.id
    assert message.confidence is not None and 0 <= message.confidence <= 1
    for source in message.sources:
        assert ARTICLE.decode()[source["start"] : source["end"]] == source["text"]


async def test_numbers_have_no_gaps_when_twenty_ask_at_once(
    service: Service, tenant: str, conversation_id: str
) -> None:
    await asyncio.gather(*(ask(service, tenant, conversation_id, QUESTION) for _ in range(20)))
    stored = await messages(service.database, tenant, conversation_id)
    assert [m.seq for m in stored] == list(range(1, 41))
    assert sum(m.role == "assistant" for m in stored) == 20


async def test_a_closed_conversation_and_bad_questions_are_refused(
    service: Service, tenant: str, conversation_id: str
) -> None:
    with pytest.raises(InputInvalid):
        await ask(service, tenant, conversation_id, " \n ")
    with pytest.raises(NotFound):
        await ask(service, tenant, "00000000-0000-4000-8000-000000000000", QUESTION)
    async with service.database.tenant(tenant) as session:
        await close_conversation(session, tenant_id=tenant, conversation_id=conversation_id)
    with pytest.raises(Conflict, match="closed"):
        await ask(service, tenant, conversation_id, QUESTION)
    assert await messages(service.database, tenant, conversation_id) == []


async def test_a_tenant_without_documents_gets_an_abstention(
    database: Database, tenant: str, release: Release, conversation_id: str
) -> None:
    embedders = Embedders(lambda parameters: HashingEmbedder())
    empty = Service(database, release, embedders, ExtractiveGenerator(max_sentences=3))
    message = await ask(empty, tenant, conversation_id, QUESTION)
    assert message.decision == "abstain" and message.sources == []
    hits, release_id = await search(empty, tenant_id=tenant, query=QUESTION)
    assert hits == () and release_id == release.id


class FailingGenerator:
    """A model that is away."""

    name = "failing"
    is_model = False

    async def generate(self, prompt: Prompt) -> AsyncIterator[str]:
        raise GenerationFailed("the model did not answer within 30 s")
        yield ""


async def test_a_failing_model_hands_off_and_keeps_the_question(
    service: Service, tenant: str, conversation_id: str
) -> None:
    failing = Service(service.database, service.release, service.embedders, FailingGenerator())
    message = await ask(failing, tenant, conversation_id, QUESTION)
    assert (message.decision, message.reason) == ("hand_off", "generation_unavailable")
    stored = await messages(service.database, tenant, conversation_id)
    assert [(m.role, m.content == QUESTION) for m in stored] == [
        ("user", True),
        ("assistant", False),
    ]


class SlowGenerator(ExtractiveGenerator):
    """An extractive generator that thinks until it is told to stop."""

    release: asyncio.Event

    async def generate(self, prompt: Prompt) -> AsyncIterator[str]:
        await self.release.wait()
        async for text in super().generate(prompt):
            yield text


async def test_no_connection_is_held_while_a_model_thinks(
    service: Service, tenant: str, conversation_id: str, app_url: str
) -> None:
    database = create_database(app_url, pool_size=2, pool_timeout_seconds=5)
    slow = SlowGenerator(max_sentences=2)
    slow.release = asyncio.Event()
    thinking = Service(database, service.release, service.embedders, slow)
    asked = [
        asyncio.create_task(ask(thinking, tenant, conversation_id, QUESTION)) for _ in range(10)
    ]
    while len(await messages(service.database, tenant, conversation_id)) < 10:
        await asyncio.sleep(0.02)
    await asyncio.sleep(0.3)
    assert database.engine.pool.checkedout() == 0
    assert not any(task.done() for task in asked)
    slow.release.set()
    await asyncio.gather(*asked)
    await thinking.close()
    await database.close()
    assert len(await messages(service.database, tenant, conversation_id)) == 20


async def test_a_long_conversation_is_summarised(
    service: Service, tenant: str, conversation_id: str
) -> None:
    for _ in range(service.release.parameters.prompt.summary_every):
        await ask(service, tenant, conversation_id, QUESTION)
        await service.close()
    where = {"tenant_id": tenant, "conversation_id": conversation_id}
    async with service.database.tenant(tenant) as session:
        conversation = await get_conversation(session, **where)
    assert conversation.summary and conversation.summary_seq > 0
