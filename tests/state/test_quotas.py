"""What a process reserves comes back when the question fails, and when the process dies."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from support_rag.state import answering, tables
from support_rag.state.answering import Service
from support_rag.state.asking import ask
from support_rag.state.database import Database
from support_rag.state.messages import Asked, MessageRecord
from support_rag.state.quotas import (
    LEASE,
    Limits,
    QuotaExceeded,
    UsageRecord,
    change_limits,
    list_usage,
    reserve,
    settle,
)
from support_rag.state.store import new_id
from tests.state.test_answering import (  # noqa: F401
    QUESTION,
    conversation_id,
    embedders,
    release,
    service,
)

TAKES = {"messages": 1, "tokens": 100}


async def today(database: Database, tenant_id: str) -> UsageRecord:
    async with database.tenant(tenant_id) as session:
        return (await list_usage(session, tenant_id=tenant_id, days=1, now=datetime.now(UTC)))[0]


async def test_a_question_that_breaks_gives_back_what_it_reserved(
    service: Service,  # noqa: F811
    tenant: str,
    conversation_id: str,  # noqa: F811
) -> None:
    async def also(session: AsyncSession, question: MessageRecord) -> None:
        await reserve(session, TAKES, tenant_id=tenant, default=Limits(), id=str(question.reply_id))

    async def broken(asked: Asked) -> None:
        assert (await today(service.database, tenant)).tokens == 100
        raise RuntimeError("a fault")

    service.choose = broken
    where = {"tenant_id": tenant, "conversation_id": conversation_id}
    exchange = await ask(service, **where, content=QUESTION, also=also)
    *_, told = [event async for event in exchange.follow()]
    assert told.name == "error" and told.data["code"] == "internal_error"
    await service.tasks.join(seconds=60)
    left = await today(service.database, tenant)
    assert (left.messages, left.tokens) == (0, 0)


async def test_what_is_refused_in_its_transaction_was_never_stored(
    service: Service,  # noqa: F811
    tenant: str,
    conversation_id: str,  # noqa: F811
) -> None:
    async def also(session: AsyncSession, question: MessageRecord) -> None:
        none = Limits(messages=0)
        await reserve(session, TAKES, tenant_id=tenant, default=none, id=str(question.reply_id))

    where = {"tenant_id": tenant, "conversation_id": conversation_id}
    with pytest.raises(QuotaExceeded) as refused:
        await ask(service, **where, content=QUESTION, also=also)
    assert refused.value.windows[0].left == 0
    async with service.database.tenant(tenant) as session:
        assert await answering.list_messages(session, **where) == []


async def test_what_a_dead_process_reserved_comes_back_once(
    database: Database, tenant: str
) -> None:
    place = {"tenant_id": tenant, "default": Limits(tokens=250)}
    lost = [new_id() for _ in range(2)]
    for id_ in lost:
        async with database.tenant(tenant) as session:
            await reserve(session, TAKES, **place, id=id_)
    with pytest.raises(QuotaExceeded, match="200 of 250 tokens a day are used, and this takes 100"):
        async with database.tenant(tenant) as session:
            await reserve(session, TAKES, **place)
    async with database.tenant(tenant) as session:
        long_ago = sa.func.now() - LEASE - timedelta(seconds=1)
        table = tables.reservations
        await session.execute(
            sa.update(table).where(table.c.tenant_id == tenant).values(created_at=long_ago)
        )

    async def one() -> None:
        async with database.tenant(tenant) as session:
            await reserve(session, {"messages": 1}, **place)

    await asyncio.gather(*(one() for _ in range(8)))
    found = await today(database, tenant)
    assert (found.messages, found.tokens) == (8, 0)
    async with database.tenant(tenant) as session:
        await settle(session, tenant_id=tenant, id=lost[0], messages=1, tokens=70)
    assert await today(database, tenant) == found, "a reply that comes after all is not counted"


async def test_a_settlement_belongs_to_the_day_of_its_reservation(
    database: Database, tenant: str
) -> None:
    late, id_ = datetime(2030, 5, 1, 23, 59, 59, tzinfo=UTC), new_id()
    async with database.tenant(tenant) as session:
        await reserve(session, TAKES, tenant_id=tenant, default=Limits(), id=id_, now=late)
    async with database.tenant(tenant) as session:
        await settle(session, tenant_id=tenant, id=id_, messages=1, tokens=70)
        days = await list_usage(session, tenant_id=tenant, days=2, now=late + timedelta(seconds=2))
    assert [(day.messages, day.tokens) for day in days] == [(0, 0), (1, 70)]


async def test_limits_of_a_tenant_are_beside_its_other_settings(
    database: Database, tenant: str
) -> None:
    async with database.tenant(tenant) as session:
        first = await change_limits(session, {"messages": 5}, tenant_id=tenant)
        second = await change_limits(session, {"tokens": None}, tenant_id=tenant)
    assert first.settings["quotas"] == {"messages": 5}
    assert second.settings["quotas"] == {"messages": 5, "tokens": None}
