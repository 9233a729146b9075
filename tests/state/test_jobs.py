"""Jobs are done once, in turns, and lost by nothing that happens to Redis or to a worker."""

import asyncio
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from datetime import datetime

import pytest
import sqlalchemy as sa

from support_rag.local.servers import Running
from support_rag.state import tables
from support_rag.state.database import Database, create_database
from support_rag.state.jobs import (
    BELL,
    BELLS,
    MAX_ATTEMPTS,
    Lease,
    LeaseLost,
    Queue,
    Turns,
    add_job,
    begin,
    claim,
    claim_next,
    count_jobs,
    finish,
    give_back,
    postpone,
    progress,
    renew,
    sweep,
)
from support_rag.state.store import new_id
from support_rag.types import SettingsInvalid, Unavailable

pytestmark = pytest.mark.usefixtures("no_jobs")


@pytest.fixture
async def no_jobs(database: Database, queue: Queue) -> AsyncIterator[None]:
    """Other tests leave jobs behind: these look at all there are."""
    async with database.system() as session:
        await session.execute(sa.delete(tables.jobs))
    queue.redis.flushall()
    yield
    async with database.system() as session:
        await session.execute(sa.delete(tables.jobs))


async def add(database: Database, tenant: str, *, target: str | None = None) -> str:
    async with database.system() as session:
        return await add_job(session, tenant_id=tenant, kind="ingest", target_id=target or new_id())


async def row_of(database: Database, job_id: str) -> dict | None:
    async with database.system() as session:
        query = sa.select(tables.jobs).where(tables.jobs.c.id == job_id)
        row = (await session.execute(query)).one_or_none()
        return None if row is None else dict(row._mapping)


async def take(database: Database, job_id: str, **options: float) -> Lease:
    lease = await claim(database, job_id, "worker", **options)
    assert lease is not None
    return lease


# --- the row


async def test_no_job_without_its_transaction(database: Database, tenant: str) -> None:
    with pytest.raises(RuntimeError):
        async with database.tenant(tenant) as session:
            await add_job(session, tenant_id=tenant, kind="ingest", target_id=new_id())
            raise RuntimeError("the upload fails after the job was added")
    assert await count_jobs(database) == {"ingest": 0, "reindex": 0, "retire": 0, "deliver": 0}


async def test_a_target_has_one_job_however_many_ask_at_once(
    database: Database, tenant: str
) -> None:
    target = new_id()
    ids = await asyncio.gather(*(add(database, tenant, target=target) for _ in range(10)))
    assert len(set(ids)) == 1
    assert await count_jobs(database) == {"ingest": 1, "reindex": 0, "retire": 0, "deliver": 0}


async def test_an_upload_during_the_work_does_not_take_it_away(
    database: Database, tenant: str
) -> None:
    target = new_id()
    job_id = await add(database, tenant, target=target)
    lease = await take(database, job_id)
    assert await add(database, tenant, target=target) == job_id
    assert await claim(database, job_id, "other") is None
    async with database.system() as session:
        await renew(session, lease)


async def test_an_upload_ends_the_wait_after_an_error(database: Database, tenant: str) -> None:
    target = new_id()
    job_id = await add(database, tenant, target=target)
    for _ in range(2):
        lease = await take(database, job_id)
        async with database.system() as session:
            assert await postpone(session, lease)
        assert await claim(database, job_id, "early") is None
        await add(database, tenant, target=target)
    assert (await take(database, job_id)).attempts == 0


# --- leases


async def test_one_of_many_workers_gets_a_job(database: Database, tenant: str) -> None:
    job_id = await add(database, tenant)
    leases = await asyncio.gather(*(claim(database, job_id, f"w{n}") for n in range(10)))
    assert sum(lease is not None for lease in leases) == 1


async def test_many_workers_take_each_job_once(database: Database, app_url: str) -> None:
    tenants = [new_id() for _ in range(3)]
    ids = [await add(database, tenant) for tenant in tenants for _ in range(8)]
    other = create_database(app_url)  # as another process has

    async def work(pool: Database, name: str) -> list[str]:
        turns, taken, misses = Turns(), [], 0
        while misses < 3:  # another may hold the row that was tried
            lease = await claim_next(pool, turns, name)
            if lease is None:
                misses += 1
            else:
                taken.append(lease.job_id)
        return taken

    found = await asyncio.gather(*(work(pool, f"w{n}") for n, pool in enumerate([database, other])))
    await other.close()
    assert Counter(found[0] + found[1]) == Counter(ids)


async def test_a_lease_that_ran_out_is_worth_nothing(database: Database, tenant: str) -> None:
    job_id = await add(database, tenant)
    dead = await take(database, job_id, seconds=0)
    heir = await take(database, job_id)
    for step in (begin, renew, progress, finish, give_back):
        with pytest.raises(LeaseLost):
            async with database.system() as session:
                await step(session, dead)
    async with database.system() as session:
        assert not await postpone(session, dead)
        await finish(session, heir)
    assert await row_of(database, job_id) is None


async def test_finishing_is_part_of_the_transaction(database: Database, tenant: str) -> None:
    job_id = await add(database, tenant)
    lease = await take(database, job_id)
    with pytest.raises(RuntimeError):
        async with database.tenant(tenant) as session:
            await finish(session, lease)
            raise RuntimeError("the result could not be stored")
    assert await row_of(database, job_id) is not None


async def test_renewing_keeps_a_job_and_giving_back_frees_it(
    database: Database, tenant: str
) -> None:
    job_id = await add(database, tenant)
    lease = await take(database, job_id, seconds=60)
    before = await row_of(database, job_id)
    async with database.system() as session:
        await renew(session, lease)
    after = await row_of(database, job_id)
    assert before and after and after["lease_until"] > before["lease_until"]
    async with database.system() as session:
        await give_back(session, lease)
    freed = await row_of(database, job_id)
    assert freed and (freed["leased_by"], freed["lease_until"], freed["attempts"]) == (
        None,
        None,
        0,
    )


async def die(database: Database, job_id: str, *steps: str) -> bool:
    "Be a worker that begins, does some steps and is killed; return whether it might begin."
    lease = await take(database, job_id, seconds=0)
    async with database.system() as session:
        allowed = await begin(session, lease)
        await begin(session, lease)  # counts once
        for _ in steps:
            await progress(session, lease)
        await session.execute(sa.update(tables.jobs).values(lease_until=None))
    return allowed


async def test_a_job_that_kills_its_workers_is_begun_three_times(
    database: Database, tenant: str
) -> None:
    job_id = await add(database, tenant)
    assert [await die(database, job_id) for _ in range(5)] == [True] * MAX_ATTEMPTS + [False] * 2


async def test_a_job_that_gets_somewhere_each_time_may_go_on(
    database: Database, tenant: str
) -> None:
    job_id = await add(database, tenant)
    for _ in range(20):
        assert await die(database, job_id)
        assert await die(database, job_id)
        assert await die(database, job_id, "progress")


async def test_a_worker_killed_before_the_work_begins_is_no_attempt(
    database: Database, tenant: str
) -> None:
    job_id = await add(database, tenant)
    for _ in range(10):
        assert (await take(database, job_id, seconds=0)).attempts == 0
    assert await die(database, job_id)


@pytest.mark.parametrize("begun", [False, True])
async def test_errors_count_whether_or_not_the_work_had_begun(
    database: Database, tenant: str, begun: bool
) -> None:
    job_id, more = await add(database, tenant), []
    for _ in range(MAX_ATTEMPTS):
        lease = await take(database, job_id)
        async with database.system() as session:
            if begun:
                await begin(session, lease)
            more.append(await postpone(session, lease))
            await session.execute(sa.update(tables.jobs).values(lease_until=None))
    assert more == [True] * (MAX_ATTEMPTS - 1) + [False]


async def test_an_interrupted_attempt_does_not_count(database: Database, tenant: str) -> None:
    job_id = await add(database, tenant)
    assert await die(database, job_id)
    for _ in range(10):
        lease = await take(database, job_id)
        assert lease.attempts == 1
        async with database.system() as session:
            await begin(session, lease)
            await give_back(session, lease)


async def test_a_postponed_job_waits_longer_each_time(database: Database, tenant: str) -> None:
    job_id, waits = await add(database, tenant), []
    for _ in range(MAX_ATTEMPTS - 1):
        lease = await take(database, job_id)
        async with database.system() as session:
            assert await postpone(session, lease)
            left = tables.jobs.c.lease_until - sa.func.now()
            waits.append(await session.scalar(sa.select(sa.extract("epoch", left))))
            await session.execute(sa.update(tables.jobs).values(lease_until=None))
    assert [round(float(wait)) for wait in waits] == [5, 20]


# --- turns


def test_a_tenant_that_comes_late_is_next() -> None:
    turns, noon = Turns(), datetime(2026, 1, 1, 12)
    flood = {"flood": noon}
    for _ in range(100):
        assert turns.choose(flood) is not None
    late = flood | {"small": noon.replace(hour=13)}
    assert turns.choose(late) == ("small", True)
    chosen = [turns.choose(late) for _ in range(6)]
    assert [turn and turn[0] for turn in chosen] == ["flood", "small"] * 3


async def test_a_flood_delays_another_tenant_by_one_turn(database: Database, tenant: str) -> None:
    for _ in range(30):
        await add(database, tenant)
    turns = Turns()
    await claim_next(database, turns, "worker")
    small = new_id()
    await add(database, small)
    lease = await claim_next(database, turns, "worker")
    assert lease is not None and lease.tenant_id == small


async def test_a_large_document_alternates_with_small_ones(database: Database, tenant: str) -> None:
    large = await add(database, tenant)
    small = [await add(database, tenant) for _ in range(3)]
    turns, order = Turns(), []
    for _ in range(7):
        lease = await claim_next(database, turns, "worker")
        assert lease is not None
        order.append(lease.job_id)
        async with database.system() as session:
            await (give_back if lease.job_id == large else finish)(session, lease)
    assert order == [large, large, small[0], large, small[1], large, small[2]]


# --- the bell


async def test_a_bell_carries_an_id_and_nothing_else(queue: Queue) -> None:
    job_id = new_id()
    assert await queue.ring(job_id)
    [bell] = queue.bells.jobs
    assert (bell.func_name, bell.args, bell.kwargs) == (BELL, [job_id], {})
    assert queue.redis.ttl(bell.key) == -1, "a queue key is never evicted under volatile-lru"


async def test_a_bell_that_cannot_be_rung_fails_nothing() -> None:
    away = Queue("redis://127.0.0.1:1/0")
    assert not await away.ring(new_id())
    assert await away.waiting() is None
    with pytest.raises(Unavailable):
        await away.ping()
    await away.close()


async def test_a_wrong_password_is_away_too(servers: Running) -> None:
    stranger = Queue(f"redis://:wrong@127.0.0.1:{servers.redis_port}/0")
    assert not await stranger.ring(new_id())
    with pytest.raises(Unavailable, match="AuthenticationError"):
        await stranger.ping()
    await stranger.close()


@pytest.mark.parametrize("url", ["", "localhost:6379", "http://localhost"])
def test_a_wrong_url_is_refused(url: str) -> None:
    with pytest.raises(SettingsInvalid):
        Queue(url)


# --- the sweep


async def test_a_flush_loses_bells_and_no_job(
    database: Database, queue: Queue, tenant: str
) -> None:
    ids = {await add(database, tenant) for _ in range(3)}
    for job_id in ids:
        await queue.ring(job_id)
    queue.redis.flushall()
    assert await sweep(database, queue) == 3
    assert {bell.args[0] for bell in queue.bells.jobs} == ids


async def test_the_sweep_rings_for_dead_workers_and_not_for_living_ones(
    database: Database, queue: Queue, tenant: str
) -> None:
    living, dead = await add(database, tenant), await add(database, tenant)
    await take(database, living)
    await take(database, dead, seconds=0)
    assert await sweep(database, queue) == 1
    assert queue.bells.jobs[0].args == [dead]


async def test_the_sweep_does_not_pile_up_bells(
    database: Database, queue: Queue, tenant: str
) -> None:
    for _ in range(BELLS + 5):
        await add(database, tenant)
    assert [await sweep(database, queue) for _ in range(5)] == [BELLS, 0, 0, 0, 0]


async def test_counts_are_those_of_the_table(database: Database, tenant: str) -> None:
    await add(database, tenant)
    async with database.system() as session:
        for _ in range(2):
            await add_job(session, tenant_id=tenant, kind="reindex", target_id=str(uuid.uuid4()))
    assert await count_jobs(database) == {"ingest": 1, "reindex": 2, "retire": 0, "deliver": 0}
