"""Who has a conversation, where people, the bot and the customer reach for it at once."""

import asyncio
from typing import Any

import pytest
import sqlalchemy as sa

from support_rag.state import audit, custody, desk, messages, tables
from support_rag.state.audit import Actor
from support_rag.state.custody import Custody
from support_rag.state.database import Database
from support_rag.state.store import create_user, new_id
from support_rag.types import Answer, Conflict, Decision, NotFound, Outcome

ANSWER = Answer("72 hours.", (), Decision(Outcome.ANSWER, "confident", 0.9), "r-1")
UNSURE = Answer("72 hours?", (), Decision(Outcome.HAND_OFF, "uncertain", 0.4), "r-1")


@pytest.fixture
async def people(database: Database, tenant: str) -> list[str]:
    "The ids of two agents and a member."
    async with database.tenant(tenant) as session:
        made = [
            await create_user(
                session, tenant_id=tenant, email=f"{new_id()}@example.com", name=name, role=role,
                password_hash="",
            )
            for name, role in (("Ada", "agent"), ("Bob", "agent"), ("Cleo", "member"))
        ]  # fmt: skip
    return [one.id for one in made]


@pytest.fixture
async def talk(database: Database, tenant: str, people: list[str]) -> dict[str, str]:
    async with database.tenant(tenant) as session:
        made = await messages.create_conversation(session, tenant_id=tenant, user_id=people[2])
    return {"tenant_id": tenant, "conversation_id": made.id}


async def do(database: Database, talk: dict[str, str], work: Any, **values: Any) -> Custody:
    async with database.tenant(talk["tenant_id"]) as session:
        held: Custody = await work(session, await custody.hold(session, **talk), **values)
        return held


async def ask(database: Database, talk: dict[str, str], content: str = "How long?") -> Any:
    async with database.tenant(talk["tenant_id"]) as session:
        return await messages.store_question(session, **talk, content=content)


async def test_a_reply_and_a_take_over_at_once_are_one_after_the_other(
    database: Database, talk: dict[str, str], people: list[str]
) -> None:
    for _ in range(12):
        asked = await ask(database, talk)
        reply, held = await asyncio.gather(
            messages.store_reply(database, asked.question, ANSWER),
            do(database, talk, custody.take, user_id=people[0]),
        )
        async with database.tenant(talk["tenant_id"]) as session:
            said = await messages.list_messages(session, **talk, after=asked.question.seq - 1)
        assert held.assignee_id == people[0]
        assert [one.role for one in said] == ["user"] + ["assistant"] * (reply is not None)
        assert (said[0].addressee_id is None) == (reply is not None)
        await do(database, talk, custody.give_back, by=Actor(people[0]))


async def test_of_many_who_take_at_once_one_gets_it(
    database: Database, talk: dict[str, str], people: list[str]
) -> None:
    tries = [do(database, talk, custody.take, user_id=people[n % 2]) for n in range(4)]
    done = await asyncio.gather(*tries, return_exceptions=True)
    won = {one.assignee_id for one in done if isinstance(one, Custody)}
    lost = [one for one in done if isinstance(one, Conflict)]
    assert len(won) == 1 and len(lost) == 2
    async with database.tenant(talk["tenant_id"]) as session:
        known = await audit.list_actions(
            session, tenant_id=talk["tenant_id"], subject_id=talk["conversation_id"]
        )
    assert [one.action for one in known] == ["take_over"], "what changed nothing is not noted"


async def test_what_is_refused_is_not_noted(
    database: Database, talk: dict[str, str], people: list[str]
) -> None:
    await do(database, talk, custody.take, user_id=people[0])
    for work, values in (
        (custody.take, {"user_id": people[1]}), (custody.give_back, {"by": Actor(people[1])}),
        (custody.resolve, {"by": Actor(people[1])}),
    ):  # fmt: skip
        with pytest.raises(Conflict, match="Ada has this conversation"):
            await do(database, talk, work, **values)
    with pytest.raises(NotFound):
        await do(database, talk, custody.assign, to=new_id(), by=Actor(people[0]))
    async with database.tenant(talk["tenant_id"]) as session:
        count = sa.select(sa.func.count()).select_from(tables.audit)
        assert await session.scalar(count) == 1


async def test_an_unsure_reply_waits_in_the_queue_and_the_bot_goes_on(
    database: Database, talk: dict[str, str], people: list[str]
) -> None:
    asked = await ask(database, talk)
    await messages.store_reply(database, asked.question, UNSURE)
    again = await ask(database, talk, "And then?")
    assert again.question.addressee_id is None and again.question.seq == 3
    reply = await messages.store_reply(database, again.question, ANSWER)
    assert reply is not None and reply.seq == 4
    async with database.tenant(talk["tenant_id"]) as session:
        [entry] = await desk.list_queue(session, tenant_id=talk["tenant_id"], limit=5)
    assert entry.conversation.hand_off_reason == "uncertain" and entry.asked_by == "Cleo"
    assert entry.last_question == "And then?"


async def test_what_a_person_said_is_history_and_a_note_is_none(
    database: Database, talk: dict[str, str], people: list[str]
) -> None:
    await ask(database, talk)
    await do(database, talk, custody.take, user_id=people[0])
    async with database.tenant(talk["tenant_id"]) as session:
        held = await custody.hold(session, **talk)
        await desk.add_reply(session, held, user_id=people[0], content="24 hours.")
        await desk.add_note(session, **talk, user_id=people[0], content="heliotrope")
    await do(database, talk, custody.give_back, by=Actor(people[0]))
    asked = await ask(database, talk, "Thanks. And the new one?")
    assert [turn.role for turn in asked.history] == ["user", "assistant"]
    assert asked.history[1].content == "24 hours." and "heliotrope" not in str(asked)


async def test_a_question_for_a_person_waits_for_no_reply_of_the_bot(
    database: Database, talk: dict[str, str], people: list[str]
) -> None:
    await do(database, talk, custody.take, user_id=people[0])
    asked = await ask(database, talk)
    assert messages.is_settled([asked.question])
    async with database.tenant(talk["tenant_id"]) as session:
        held = await custody.hold(session, **talk)
        await desk.add_reply(session, held, user_id=people[0], content="24 hours.")
        restored, reply = await messages.restore_question(
            session, tenant_id=talk["tenant_id"], message_id=asked.question.id
        )
    assert reply is None and restored.question.addressee_id == people[0]
