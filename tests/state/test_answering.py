"""Conversations keep every question, number it without gaps, and answer it once."""

import asyncio
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import pytest
import sqlalchemy as sa

from support_rag.embed import Embedder, HashingEmbedder
from support_rag.generate import CallBudget, ExtractiveGenerator
from support_rag.release import EmbedParameters, Release, Writer, load_release
from support_rag.state import asking, store, tables
from support_rag.state.answering import KEPT, Service, search
from support_rag.state.asking import reply
from support_rag.state.database import Database, create_database
from support_rag.state.events import Exchange
from support_rag.state.indexes import Embedders, Grace, serving_index
from support_rag.state.ingest import Ingestion, accept, ingest, reindex, request_reindex, retire
from support_rag.state.messages import (
    Asked,
    MessageRecord,
    add_message,
    close_conversation,
    create_conversation,
    get_conversation,
    list_conversations,
    list_messages,
    store_question,
)
from support_rag.state.observe import REGISTRY
from support_rag.state.traces import TraceRecord, get_trace
from support_rag.types import (
    Conflict,
    GenerationFailed,
    InputInvalid,
    NotFound,
    Prompt,
    SettingsInvalid,
    Unavailable,
)
from tests.state.test_ingest import ARTICLE, lease_of

QUESTION = "How long does the kiosk keep punches while it is offline?"
LOW = {
    "answer_threshold": 0.1,
    "abstain_threshold": 0.03,
}  # hashed cosines are low


@pytest.fixture
def release() -> Release:
    parameters = load_release().parameters
    return load_release(parameters.with_(embed={"model": "hashing-256"}, gate=LOW))


@pytest.fixture
def embedders() -> Embedders:
    return Embedders(lambda parameters: HashingEmbedder())


@pytest.fixture
async def service(
    database: Database, tenant: str, release: Release, embedders: Embedders
) -> AsyncIterator[Service]:
    "A service for a tenant with one article."
    await accept(
        database, None, tenant_id=tenant, content=ARTICLE, content_type="text/markdown",
        source="kiosk.md",
    )  # fmt: skip
    await ingest(Ingestion(database, release, embedders), await lease_of(database, tenant))
    service = Service(database, release, embedders, ExtractiveGenerator(max_sentences=3))
    yield service
    await service.close()


async def new_user(database: Database, tenant: str) -> str:
    async with database.tenant(tenant) as session:
        user = await store.create_user(
            session, tenant_id=tenant, email=f"{uuid.uuid4().hex}@example.com", password_hash="x",
            role="owner",
        )  # fmt: skip
    return user.id


@pytest.fixture
async def conversation_id(database: Database, tenant: str) -> str:
    user_id = await new_user(database, tenant)
    async with database.tenant(tenant) as session:
        return (await create_conversation(session, tenant_id=tenant, user_id=user_id)).id


async def ask(service: Service, tenant: str, conversation_id: str, text: str) -> MessageRecord:
    where = {"tenant_id": tenant, "conversation_id": conversation_id}
    events = [event async for event in reply(service, **where, content=text)]
    assert isinstance(events[-1], MessageRecord)
    assert all(isinstance(event, str) for event in events[:-1])
    return events[-1]


async def messages(database: Database, tenant: str, conversation_id: str) -> list[MessageRecord]:
    async with database.tenant(tenant) as session:
        return await list_messages(session, tenant_id=tenant, conversation_id=conversation_id)


async def trace_of(database: Database, message: MessageRecord) -> TraceRecord:
    where = {"tenant_id": message.tenant_id, "message_id": message.id}
    async with database.tenant(message.tenant_id) as session:
        return await get_trace(session, **where)


def sample(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def test_a_reply_carries_its_evidence(
    service: Service, tenant: str, conversation_id: str
) -> None:
    decided, confident = sample("decisions_total", decision="answer"), "answer_confidence_count"
    before = sample(confident), sample("stage_seconds_count", stage="retrieve")
    message = await ask(service, tenant, conversation_id, QUESTION)
    assert "72 hours" in message.content and message.decision == "answer"
    assert message.release_id == service.release.id
    assert message.confidence is not None and 0 <= message.confidence <= 1
    kept = await trace_of(service.database, message)
    assert message.sources and kept.facts["hits"] and kept.facts["seconds"]
    for source in message.sources:
        assert ARTICLE.decode()[source["start"] : source["end"]] == source["text"]
        assert f"[{source['number']}]" in message.content and source["source"] == "kiosk.md"
    stored = await messages(service.database, tenant, conversation_id)
    assert [m.content for m in stored] == [QUESTION, message.content] and stored[1] == message
    assert sample("decisions_total", decision="answer") == decided + 1
    assert sample(confident) == before[0] + 1
    assert sample("stage_seconds_count", stage="retrieve") == before[1] + 1


async def test_numbers_have_no_gaps_when_twenty_ask_two_processes_at_once(
    service: Service, tenant: str, conversation_id: str, app_url: str
) -> None:
    database = create_database(app_url, pool_size=3)
    second = Service(database, service.release, service.embedders, service.generator)
    asking = [
        ask((service, second)[n % 2], tenant, conversation_id, f"{QUESTION} {n}") for n in range(20)
    ]
    replies = await asyncio.gather(*asking)
    stored = await messages(service.database, tenant, conversation_id)
    assert [m.seq for m in stored] == list(range(1, 41))
    assert [m.role for m in stored] == ["user", "assistant"] * 20
    assert len({m.content for m in stored if m.role == "user"}) == 20
    for n, message in enumerate(replies):
        assert stored[message.seq - 2].content == f"{QUESTION} {n}"
        assert stored[message.seq - 1].id == message.id
    await second.close()
    await database.close()


async def test_a_closed_conversation_and_bad_questions_are_refused(
    service: Service, tenant: str, conversation_id: str
) -> None:
    for bad in (" \n ", "x" * 4001, "a\0b", "a\ud800b"):
        with pytest.raises(InputInvalid):
            await ask(service, tenant, conversation_id, bad)
    for unknown in (str(uuid.uuid4()), "no uuid"):
        with pytest.raises(NotFound):
            await ask(service, tenant, unknown, QUESTION)
    where = {"tenant_id": tenant, "conversation_id": conversation_id}

    async def close() -> str:
        async with service.database.tenant(tenant) as session:
            return (await close_conversation(session, **where)).status

    outcomes = await asyncio.gather(*(close() for _ in range(8)), return_exceptions=True)
    assert outcomes.count("closed") == 1, "of many who close it, one does"
    assert sum(isinstance(outcome, Conflict) for outcome in outcomes) == 7
    with pytest.raises(Conflict, match="closed"):
        await ask(service, tenant, conversation_id, QUESTION)
    assert await messages(service.database, tenant, conversation_id) == []


async def test_a_tenant_without_documents_gets_an_abstention(
    database: Database, tenant: str, release: Release, embedders: Embedders, conversation_id: str
) -> None:
    empty = Service(database, release, embedders, ExtractiveGenerator(max_sentences=3))
    message = await ask(empty, tenant, conversation_id, QUESTION)
    assert message.decision == "abstain" and message.sources == []
    hits, release_id = await search(empty, tenant_id=tenant, query=QUESTION)
    assert hits == () and release_id == release.id == message.release_id


async def test_a_search_returns_what_an_answer_is_made_from(
    service: Service, tenant: str, conversation_id: str
) -> None:
    message = await ask(service, tenant, conversation_id, QUESTION)
    hits, release_id = await search(service, tenant_id=tenant, query=QUESTION)
    kept = await trace_of(service.database, message)
    assert [hit.chunk.id for hit in hits] == [hit["chunk_id"] for hit in kept.facts["hits"]]
    assert release_id == message.release_id
    one, _ = await search(service, tenant_id=tenant, query=QUESTION, k=1)
    assert one == hits[:1]
    for bad in ({"k": 0}, {"k": 101}, {"query": " "}, {"query": "a\0b"}):
        with pytest.raises(InputInvalid):
            await search(service, tenant_id=tenant, **{"query": QUESTION, **bad})


# --- models that fail, think, or are hung up on


class FailingGenerator:
    """A model that is away."""

    name = "failing"
    is_model = False
    writer = Writer("failing")

    async def generate(
        self, prompt: Prompt, *, budget: CallBudget | None = None
    ) -> AsyncGenerator[str, None]:
        raise GenerationFailed("the model did not answer within 30 s")
        yield ""


async def test_a_failing_model_hands_off_and_keeps_the_question(
    service: Service, tenant: str, conversation_id: str
) -> None:
    failing = Service(service.database, service.release, service.embedders, FailingGenerator())
    message = await ask(failing, tenant, conversation_id, QUESTION)
    assert (message.decision, message.reason) == ("hand_off", "generation_unavailable")
    assert message.sources, "the best sources are shown"
    stored = await messages(service.database, tenant, conversation_id)
    assert [(m.role, m.content == QUESTION) for m in stored] == [
        ("user", True),
        ("assistant", False),
    ]


class SlowGenerator(ExtractiveGenerator):
    """An extractive generator that says one word and thinks until it may go on."""

    def __init__(self) -> None:
        super().__init__(max_sentences=2)
        self.thinking = asyncio.Semaphore(0)  # released by every reply that began
        self.may_go_on = asyncio.Event()

    async def generate(
        self, prompt: Prompt, *, budget: CallBudget | None = None
    ) -> AsyncGenerator[str, None]:
        yield "Well, "
        self.thinking.release()
        await self.may_go_on.wait()
        async for text in super().generate(prompt, budget=budget):
            yield text

    async def wait(self, n: int) -> None:
        "Wait until `n` replies have begun."
        async with asyncio.timeout(240):
            for _ in range(n):
                await self.thinking.acquire()


def slowed(service: Service, database: Database | None = None, **limits: int) -> Service:
    "Return the same service with a slow generator."
    return Service(
        database or service.database, service.release, service.embedders, SlowGenerator(), **limits
    )


async def test_no_connection_is_held_while_a_model_thinks(
    service: Service, tenant: str, conversation_id: str, app_url: str
) -> None:
    database = create_database(app_url, pool_size=2, pool_timeout_seconds=120)
    thinking = slowed(service, database)
    asked = [
        asyncio.create_task(ask(thinking, tenant, conversation_id, QUESTION)) for _ in range(10)
    ]
    await thinking.generator.wait(10)
    assert database.engine.pool.checkedout() == 0
    assert not any(task.done() for task in asked)
    stored = await messages(service.database, tenant, conversation_id)
    assert [m.seq for m in stored] == list(range(1, 21, 2)), "questions are kept, replies reserved"
    thinking.generator.may_go_on.set()
    await asyncio.gather(*asked)
    await thinking.close()
    await database.close()
    assert len(await messages(service.database, tenant, conversation_id)) == 20


async def test_questions_of_one_conversation_take_one_connection(
    service: Service, tenant: str, conversation_id: str, app_url: str
) -> None:
    database = create_database(app_url, pool_size=2, pool_timeout_seconds=120)
    busy = Service(database, service.release, service.embedders, service.generator)
    row = sa.select(tables.conversations.c.id).where(store.owned(tables.conversations, tenant))
    async with service.database.tenant(tenant) as session:
        await session.execute(row.with_for_update())
        asked = [
            asyncio.create_task(ask(busy, tenant, conversation_id, QUESTION)) for _ in range(5)
        ]
        while database.engine.pool.checkedout() == 0:
            await asyncio.sleep(0.01)
        async with database.tenant(tenant) as other:  # the second connection is free
            assert len(await list_conversations(other, tenant_id=tenant, limit=9)) == 1
            assert database.engine.pool.checkedout() == 2
    assert sorted([(await one).seq for one in asked]) == [2, 4, 6, 8, 10]
    await busy.close()
    await database.close()


async def test_a_reader_who_hangs_up_loses_nothing(
    service: Service, tenant: str, conversation_id: str
) -> None:
    where = {"tenant_id": tenant, "conversation_id": conversation_id}
    slow = slowed(service)
    async with aclosing(reply(slow, **where, content=QUESTION)) as events:
        assert await anext(events) == "Well, "
    waiting = asyncio.create_task(ask(slow, tenant, conversation_id, QUESTION))
    await slow.generator.wait(2)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    early = asyncio.create_task(ask(slow, tenant, conversation_id, QUESTION))
    await asyncio.sleep(0)  # its transaction has not begun
    early.cancel()
    slow.generator.may_go_on.set()
    await slow.close()
    stored = await messages(service.database, tenant, conversation_id)
    assert [m.role for m in stored] == ["user", "assistant"] * (len(stored) // 2)
    assert len(stored) in (4, 6) and "72 hours" in stored[1].content


async def test_closing_while_answering_keeps_the_reply(
    service: Service, tenant: str, conversation_id: str
) -> None:
    slow = slowed(service)
    asked = asyncio.create_task(ask(slow, tenant, conversation_id, QUESTION))
    await slow.generator.wait(1)
    where = {"tenant_id": tenant, "conversation_id": conversation_id}
    async with service.database.tenant(tenant) as session:
        await close_conversation(session, **where)
    slow.generator.may_go_on.set()
    assert (await asked).seq == 2
    assert len(await messages(service.database, tenant, conversation_id)) == 2


async def test_a_question_whose_service_stopped_stays_visible(
    service: Service, tenant: str, conversation_id: str
) -> None:
    where = {"tenant_id": tenant, "conversation_id": conversation_id}
    slow = slowed(service)
    asked = asyncio.create_task(ask(slow, tenant, conversation_id, QUESTION))
    await slow.generator.wait(1)
    await slow.close(seconds=0)
    with pytest.raises(Unavailable, match="stopping"):
        await asked

    async def store() -> Asked:
        raise AssertionError("it never begins")

    exchange = Exchange()
    never = asyncio.create_task(asking.carry(slow, exchange, store, **where))
    never.add_done_callback(exchange.stop)
    never.cancel()  # before it began
    [told] = [event async for event in exchange.follow()]
    assert told.name == "error" and "stopping" in told.data["message"]
    later = await ask(service, tenant, conversation_id, QUESTION)
    stored = await messages(service.database, tenant, conversation_id)
    assert [m.seq for m in stored] == [1, 3, 4] and later.seq == 4


async def test_past_its_capacity_a_service_refuses_and_stores_nothing(
    service: Service, tenant: str, conversation_id: str
) -> None:
    slow = slowed(service, at_once=2)
    asked = [asyncio.create_task(ask(slow, tenant, conversation_id, QUESTION)) for _ in range(2)]
    await slow.generator.wait(2)
    with pytest.raises(Unavailable, match="2 messages are being answered") as refused:
        await ask(slow, tenant, conversation_id, QUESTION)
    assert refused.value.retry_after_seconds
    slow.generator.may_go_on.set()
    await asyncio.gather(*asked)
    assert len(await messages(service.database, tenant, conversation_id)) == 4


async def test_a_reply_is_stored_once_and_waits_for_the_pool(
    service: Service, tenant: str, conversation_id: str, app_url: str
) -> None:
    database = create_database(app_url, pool_size=1, pool_timeout_seconds=0.05)
    slow = slowed(service, database)
    asked = asyncio.create_task(ask(slow, tenant, conversation_id, QUESTION))
    await slow.generator.wait(1)
    async with database.tenant(tenant):  # the only connection
        slow.generator.may_go_on.set()
        with pytest.raises(Unavailable):
            async with database.tenant(tenant):
                pass
    message = await asked
    await database.close()
    where = {"tenant_id": tenant, "conversation_id": conversation_id}
    async with service.database.tenant(tenant) as session:
        values = {"role": "assistant", "content": "Another reply."}
        assert await add_message(session, **where, seq=2, **values) == message
    assert len(await messages(service.database, tenant, conversation_id)) == 2


# --- the index that serves


async def test_the_old_index_serves_with_its_own_model_until_the_switch(
    service: Service, tenant: str, conversation_id: str
) -> None:
    def factory(parameters: EmbedParameters) -> Embedder:
        return HashingEmbedder(int(parameters.model.removeprefix("hashing-")))

    embedders = Embedders(factory)
    newer = load_release(service.release.parameters.with_(embed={"model": "hashing-512"}))
    ahead = Service(service.database, newer, embedders, service.generator)
    message = await ask(ahead, tenant, conversation_id, QUESTION)
    index = await serving_index(service.database, tenant)
    assert index is not None and index.digest != newer.index_digest
    assert message.release_id == newer.on_index(index.digest).id != newer.id
    assert "72 hours" in message.content
    _, release_id = await search(ahead, tenant_id=tenant, query=QUESTION)
    assert release_id == message.release_id
    asked = {"tenant_id": tenant, "release": newer, "embedders": embedders}
    assert await request_reindex(service.database, None, **asked) is not None
    context = Ingestion(service.database, newer, embedders)
    await reindex(context, await lease_of(service.database, tenant))
    after = await ask(ahead, tenant, conversation_id, QUESTION)
    assert after.release_id == newer.id and "72 hours" in after.content


async def test_an_index_replaced_under_a_message_hands_off(
    service: Service, tenant: str, conversation_id: str
) -> None:
    where = {"tenant_id": tenant, "conversation_id": conversation_id}
    async with service.database.tenant(tenant) as session:
        asked = await store_question(session, **where, content=QUESTION)
    finer = load_release(service.release.parameters.with_(chunk={"size_tokens": 16}))
    values = {"tenant_id": tenant, "release": finer, "embedders": service.embedders}
    await request_reindex(service.database, None, **values)
    context = Ingestion(service.database, finer, service.embedders, grace=Grace(0, 0))
    await reindex(context, await lease_of(service.database, tenant))
    assert await retire(context, await lease_of(service.database, tenant))
    await asking.respond(service, Exchange(), asked)
    (_, message) = await messages(service.database, tenant, conversation_id)
    assert (message.decision, message.reason) == ("hand_off", "retrieval_unavailable")


async def test_an_embedder_that_cannot_be_had_hands_off(
    service: Service, tenant: str, conversation_id: str
) -> None:
    def factory(parameters: EmbedParameters) -> Embedder:
        raise SettingsInvalid("[embed] model is served by an endpoint, and no key is set")

    bare = Service(service.database, service.release, Embedders(factory), service.generator)
    message = await ask(bare, tenant, conversation_id, QUESTION)
    assert (message.decision, message.reason) == ("hand_off", "retrieval_unavailable")


# --- summaries


async def test_a_long_conversation_is_summarised_and_keeps_its_newest_turns(
    service: Service, tenant: str, conversation_id: str
) -> None:
    where = {"tenant_id": tenant, "conversation_id": conversation_id}
    every = service.release.parameters.prompt.summary_every
    for n in range(every):
        message = await ask(service, tenant, conversation_id, f"{QUESTION} Kiosk {n}.")
        await service.close()
        async with service.database.tenant(tenant) as session:
            conversation = await get_conversation(session, **where)
        left = message.seq - conversation.summary_seq
        assert min(KEPT, message.seq) <= left < every + KEPT
    assert "Customer: How long does the kiosk keep punches" in conversation.summary
    async with service.database.tenant(tenant) as session:
        asked = await store_question(session, **where, content="And then?")
    assert len(asked.history) == 2 * every - conversation.summary_seq
    assert asked.history[-1].role == "assistant"


async def test_a_summary_waits_for_replies_under_way(
    service: Service, tenant: str, conversation_id: str
) -> None:
    where = {"tenant_id": tenant, "conversation_id": conversation_id}
    slow = slowed(service)
    held = asyncio.create_task(ask(slow, tenant, conversation_id, QUESTION))
    await slow.generator.wait(1)
    for _ in range(service.release.parameters.prompt.summary_every):
        await ask(service, tenant, conversation_id, QUESTION)
        await service.close()
    async with service.database.tenant(tenant) as session:
        assert (await get_conversation(session, **where)).summary_seq == 0
    slow.generator.may_go_on.set()
    await held
    await ask(service, tenant, conversation_id, QUESTION)
    await service.close()
    async with service.database.tenant(tenant) as session:
        conversation = await get_conversation(session, **where)
        earlier = sa.func.now() - sa.text("interval '2 min'")
        old = sa.update(tables.messages).values(created_at=earlier)
        await session.execute(old.where(store.owned(tables.messages, tenant)))
        lost = await store_question(session, **where, content="Lost in a crash?")
        await session.execute(old.where(store.owned(tables.messages, tenant, id=lost.question.id)))
    assert conversation.summary_seq > 0
    for _ in range(service.release.parameters.prompt.summary_every):
        await ask(service, tenant, conversation_id, QUESTION)
        await service.close()
    async with service.database.tenant(tenant) as session:
        conversation = await get_conversation(session, **where)
    assert conversation.summary_seq > lost.question.seq, "a lost reply does not hold it up"


# --- the tenant predicate, with row-level security out of the way


async def test_foreign_ids_are_not_found_without_row_level_security(
    unprotected: Database,
) -> None:
    made = []
    for _ in range(2):
        tenant_id = str(uuid.uuid4())
        async with unprotected.tenant(tenant_id) as session:
            await store.create_tenant(session, tenant_id=tenant_id, name="T")
        user_id = await new_user(unprotected, tenant_id)
        async with unprotected.tenant(tenant_id) as session:
            created = await create_conversation(session, tenant_id=tenant_id, user_id=user_id)
            where = {"tenant_id": tenant_id, "conversation_id": created.id}
            await store_question(session, **where, content=QUESTION)
        made.append(where)
    mine, theirs = made
    foreign = {**theirs, "tenant_id": mine["tenant_id"]}
    async with unprotected.tenant(mine["tenant_id"]) as session:
        assert await list_messages(session, **foreign) == []
        listed = await list_conversations(session, tenant_id=mine["tenant_id"], limit=100)
        assert [conversation.id for conversation in listed] == [mine["conversation_id"]]
        for refused in (
            get_conversation(session, **foreign),
            store_question(session, **foreign, content=QUESTION),
            close_conversation(session, **foreign),
        ):
            with pytest.raises(NotFound):
                await refused
        assert len(await list_messages(session, **mine)) == 1
    async with unprotected.tenant(theirs["tenant_id"]) as session:
        untouched = await get_conversation(session, **theirs)
        assert (untouched.status, untouched.next_seq) == ("open", 3)
        assert len(await list_messages(session, **theirs)) == 1
