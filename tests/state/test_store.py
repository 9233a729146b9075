"""Records of tenants, users, documents and indexes, on a real server."""

import asyncio
import uuid

import numpy as np
import pytest
import sqlalchemy as sa

from support_rag.state import store, tables
from support_rag.state.pgindex import add_chunks
from support_rag.types import Block, Chunk, Conflict, Document, NotFound, Span, chunk_id

UPLOAD = {"title": "Kiosk", "content_type": "text/plain", "content": b"Kiosks work offline."}


async def new_tenant(database) -> str:
    tenant_id = str(uuid.uuid4())
    async with database.tenant(tenant_id) as session:
        await store.create_tenant(session, tenant_id=tenant_id, name="T")
    return tenant_id


async def accept(database, tenant_id: str, **changes):
    async with database.tenant(tenant_id) as session:
        return await store.accept_document(session, tenant_id=tenant_id, **{**UPLOAD, **changes})


async def new_index(database, tenant_id: str, digest: str = "d1") -> store.IndexRecord:
    async with database.tenant(tenant_id) as session:
        return await store.create_index(
            session, tenant_id=tenant_id, digest=digest, dim=3, model="m", parameters={"a": 1}
        )


def parsed(document: store.DocumentRecord, text: str = "Kiosks work offline.") -> Document:
    blocks = (Block("heading", Span(0, 6), 2), Block("paragraph", Span(7, len(text)), page=3))
    return Document(document.id, document.title, text, document.source, "text/plain", blocks)


async def make_ready(database, tenant_id: str, document: store.DocumentRecord, **counts) -> bool:
    counts = {"n_chunks": 1, "n_tokens": 5} | counts
    async with database.tenant(tenant_id) as session:
        return await store.store_ready(
            session, parsed(document), tenant_id=tenant_id, version=document.version, **counts
        )


async def add_one_chunk(database, tenant_id: str, document_id: str, index_id: str) -> None:
    text = "Kiosks work offline."
    one = Chunk(chunk_id(document_id, Span(0, 20), text), document_id, Span(0, 20), text)
    async with database.tenant(tenant_id) as session:
        await add_chunks(
            session,
            tenant_id=tenant_id,
            index_id=index_id,
            document_id=document_id,
            chunks=[one],
            vectors=np.array([[1.0, 0, 0]]),
        )


async def blocked(database, tenant_id: str) -> None:
    "Return when another transaction of the application waits for a lock."
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    async with asyncio.timeout(240):
        while True:
            async with database.system() as session:
                if await session.scalar(sa.text(waiting)):
                    return
            await asyncio.sleep(0.01)


# --- people


async def test_an_address_signs_in_one_person_whatever_its_case(database, tenant):
    other = await new_tenant(database)
    email = f"Ana-{uuid.uuid4().hex}@Example.com"
    async with database.tenant(tenant) as session:
        user = await store.create_user(
            session, tenant_id=tenant, email=email, password_hash="h", role="owner"
        )
        assert await store.get_user(session, tenant_id=tenant, user_id=user.id) == user
    with pytest.raises(Conflict, match="registered already"):
        async with database.tenant(other) as session:
            await store.create_user(
                session, tenant_id=other, email=f" {email.upper()}", password_hash="x", role="admin"
            )
    async with database.system() as session:
        found = await store.find_sign_in(session, email=email.lower())
        assert (found.tenant_id, found.user_id) == (tenant, user.id)
        assert await store.find_sign_in(session, email="nobody@example.com") is None
    assert "password" not in repr(user)


async def test_of_many_registrations_at_once_one_wins(database):
    email = f"{uuid.uuid4().hex}@example.com"

    async def register() -> bool:
        tenant_id = str(uuid.uuid4())
        try:
            async with database.tenant(tenant_id) as session:
                await store.create_tenant(session, tenant_id=tenant_id, name="T")
                await store.create_user(
                    session, tenant_id=tenant_id, email=email, password_hash="h", role="owner"
                )
        except Conflict:
            async with database.tenant(tenant_id) as session:
                with pytest.raises(NotFound):
                    await store.get_tenant(session, tenant_id=tenant_id)
            return False
        return True

    assert sum(await asyncio.gather(*(register() for _ in range(8)))) == 1


# --- identity of documents


async def test_identity(database, tenant):
    first, outcome = await accept(database, tenant, source="a.md")
    assert (outcome, first.version, first.status, first.ready_version) == (
        "created",
        1,
        "pending",
        None,
    )
    assert first.n_bytes == 20
    assert await accept(database, tenant, source="a.md") == (first, "unchanged")
    second, outcome = await accept(database, tenant, source="a.md", content=b"new")
    assert (outcome, second.id, second.version) == ("replaced", first.id, 2)
    third, outcome = await accept(database, tenant, source="a.md", content=b"new", title="Other")
    assert (outcome, third.version, third.title) == ("replaced", 3, "Other")
    other, outcome = await accept(database, tenant, source="b.md")
    assert outcome == "created" and other.id != first.id


async def test_without_a_source_the_hash_is_one(database, tenant):
    first, _ = await accept(database, tenant)
    assert first.source == first.content_hash and len(first.source) == 64
    assert (await accept(database, tenant))[1] == "unchanged"
    assert (await accept(database, tenant, content=b"other"))[1] == "created"


async def test_the_same_source_in_two_tenants_is_two_documents(database, tenant):
    mine, _ = await accept(database, tenant, source="a.md")
    theirs, outcome = await accept(database, await new_tenant(database), source="a.md")
    assert outcome == "created" and theirs.id != mine.id


async def test_a_failed_document_sent_again_is_tried_again(database, tenant):
    document, _ = await accept(database, tenant, source="a.pdf")
    async with database.tenant(tenant) as session:
        assert await store.fail(
            session, tenant_id=tenant, document_id=document.id, version=1,
            error="encrypted: remove the password", error_code="document_unreadable",
        )  # fmt: skip
    again, outcome = await accept(database, tenant, source="a.pdf")
    assert (outcome, again.version, again.status) == ("retried", 2, "pending")
    assert (again.error, again.error_code) == (None, None)


async def test_uploads_at_once_are_one_document(database, tenant):
    results = await asyncio.gather(*(accept(database, tenant, source="a.md") for _ in range(8)))
    assert sorted(outcome for _, outcome in results) == ["created"] + ["unchanged"] * 7
    assert len({document.id for document, _ in results}) == 1
    changed = await asyncio.gather(
        *(accept(database, tenant, source="a.md", content=b"%d" % n) for n in range(8))
    )
    assert sorted(document.version for document, _ in changed) == list(range(2, 10))


# --- the state machine


async def test_a_replacement_that_fails_leaves_the_served_version(database, tenant):
    first, _ = await accept(database, tenant, source="a.md")
    assert await make_ready(database, tenant, first)
    await accept(database, tenant, source="a.md", content=b"broken")
    async with database.tenant(tenant) as session:
        assert await store.fail(
            session, tenant_id=tenant, document_id=first.id, version=2, error="e", error_code="c"
        )
        document = await store.get_document(session, tenant_id=tenant, document_id=first.id)
        served = await store.get_extracted(session, tenant_id=tenant, document_id=first.id)
    assert (document.status, document.version, document.ready_version) == ("failed", 2, 1)
    assert served.text == "Kiosks work offline."


async def test_a_slow_worker_cannot_overwrite_a_newer_version(database, tenant):
    old, _ = await accept(database, tenant, source="a.md")
    new, _ = await accept(database, tenant, source="a.md", content=b"new")
    where = {"tenant_id": tenant, "document_id": old.id, "version": old.version}
    async with database.tenant(tenant) as session:
        assert not await store.set_status(session, **where, status="parsing")
        assert not await store.fail(session, **where, error="e", error_code="c")
    assert not await make_ready(database, tenant, old)
    async with database.tenant(tenant) as session:
        document = await store.get_document(session, tenant_id=tenant, document_id=old.id)
        assert document == new
        with pytest.raises(NotFound):
            await store.get_extracted(session, tenant_id=tenant, document_id=old.id)


async def test_ready_stores_text_blocks_and_counts(database, tenant):
    document, _ = await accept(database, tenant, metadata={"team": "Süd"})
    async with database.tenant(tenant) as session:
        await session.execute(
            sa.insert(tables.staged_vectors).values(
                tenant_id=tenant, document_id=document.id, text_digest="d", model="m",
                embedding=[1, 0, 0],
            )
        )  # fmt: skip
        assert await store.get_content(
            session, tenant_id=tenant, document_id=document.id
        ) == UPLOAD["content"]  # fmt: skip
    assert await make_ready(database, tenant, document, n_chunks=2, n_tokens=9, truncated_tokens=1)
    async with database.tenant(tenant) as session:
        ready = await store.get_document(session, tenant_id=tenant, document_id=document.id)
        served = await store.get_extracted(session, tenant_id=tenant, document_id=document.id)
        staged = await session.scalar(sa.select(sa.func.count()).select_from(tables.staged_vectors))
    assert (ready.status, ready.ready_version, ready.n_chunks) == ("ready", 1, 2)
    assert (ready.n_tokens, ready.truncated_tokens, ready.metadata) == (9, 1, {"team": "Süd"})
    assert ready.ready_at is not None
    assert served == parsed(document)
    assert staged == 0


# --- lists


async def test_a_walk_during_changes_sees_every_lasting_document_once(database, tenant):
    kept = {(await accept(database, tenant, source=f"kept-{n}"))[0].id for n in range(30)}
    doomed = [(await accept(database, tenant, source=f"doomed-{n}"))[0].id for n in range(10)]
    seen, after = [], None
    for step in range(100):
        async with database.tenant(tenant) as session:
            page = await store.list_documents(session, tenant_id=tenant, limit=4, after=after)
        if not page:
            break
        seen += [document.id for document in page]
        after = (page[-1].created_at, page[-1].id)
        for n in range(5):
            await accept(database, tenant, source=f"new-{step}-{n}")
        if doomed:
            async with database.tenant(tenant) as session:
                await store.delete_document(session, tenant_id=tenant, document_id=doomed.pop())
    assert len(seen) == len(set(seen))
    assert kept <= set(seen)


async def test_equal_moments_are_ordered_by_id(database, tenant):
    async with database.tenant(tenant) as session:
        for n in range(9):
            await store.accept_document(session, tenant_id=tenant, source=f"{n}", **UPLOAD)
        seen, after = [], None
        while page := await store.list_documents(session, tenant_id=tenant, limit=2, after=after):
            seen += [document.id for document in page]
            after = (page[-1].created_at, page[-1].id)
    assert seen == sorted(seen) and len(seen) == 9


# --- deleting


async def test_deleting_a_document_takes_its_chunks_and_notes_them(database, tenant):
    document, _ = await accept(database, tenant)
    index = await new_index(database, tenant)
    await add_one_chunk(database, tenant, document.id, index.id)
    with pytest.raises(sa.exc.IntegrityError, match="still referenced"):
        async with database.tenant(tenant) as session:
            where = tables.documents.c.tenant_id == tenant
            await session.execute(sa.delete(tables.documents).where(where))
    async with database.tenant(tenant) as session:
        await store.delete_document(session, tenant_id=tenant, document_id=document.id)
        assert (await session.execute(sa.select(tables.dead.c.n_terms))).all() == [(3,)]
        assert (await session.execute(sa.select(tables.chunks.c.id))).all() == []
        with pytest.raises(NotFound):
            await store.delete_document(session, tenant_id=tenant, document_id=document.id)


async def test_deleting_at_once_notes_each_chunk_once(database, tenant):
    document, _ = await accept(database, tenant)
    index = await new_index(database, tenant)
    await add_one_chunk(database, tenant, document.id, index.id)

    async def delete() -> int:
        async with database.tenant(tenant) as session:
            return await store.delete_chunks(session, tenant_id=tenant, document_id=document.id)

    assert sorted(await asyncio.gather(*(delete() for _ in range(5)))) == [0, 0, 0, 0, 1]


# --- indexes


async def test_one_index_is_active_and_one_digest_lives_once(database, tenant):
    made = await asyncio.gather(*(new_index(database, tenant) for _ in range(5)))
    assert len({index.id for index in made}) == 1
    first, second = made[0], await new_index(database, tenant, "d2")
    for index in (first, second):
        async with database.tenant(tenant) as session:
            active = await store.set_index_status(
                session, tenant_id=tenant, index_id=index.id, status="active"
            )
            assert active.activated_at is not None
            assert (await store.find_active_index(session, tenant_id=tenant)).id == index.id
    async with database.tenant(tenant) as session:
        listed = await store.list_indexes(session, tenant_id=tenant)
        assert [(i.id, i.status) for i in listed] == [(second.id, "active"), (first.id, "retired")]
        with pytest.raises(Conflict, match="is serving"):
            await store.delete_index(session, tenant_id=tenant, index_id=second.id)
        await store.delete_index(session, tenant_id=tenant, index_id=first.id)
        with pytest.raises(NotFound):
            await store.get_index(session, tenant_id=tenant, index_id=first.id)
    assert (await new_index(database, tenant, "d1")).id != first.id


async def test_activating_an_unknown_index_keeps_the_active_one(database, tenant):
    index = await new_index(database, tenant)
    async with database.tenant(tenant) as session:
        await store.set_index_status(session, tenant_id=tenant, index_id=index.id, status="active")
    with pytest.raises(NotFound):
        async with database.tenant(tenant) as session:
            await store.set_index_status(
                session, tenant_id=tenant, index_id=str(uuid.uuid4()), status="active"
            )
    async with database.tenant(tenant) as session:
        assert (await store.find_active_index(session, tenant_id=tenant)).id == index.id


async def test_of_two_activations_at_once_one_index_stays_active(database, tenant):
    indexes = [await new_index(database, tenant, f"d{n}") for n in range(5)]

    async def activate(index_id: str) -> None:
        async with database.tenant(tenant) as session:
            await store.set_index_status(
                session, tenant_id=tenant, index_id=index_id, status="active"
            )

    await asyncio.gather(*(activate(index.id) for index in indexes))
    async with database.tenant(tenant) as session:
        states = [index.status for index in await store.list_indexes(session, tenant_id=tenant)]
    assert sorted(states) == ["active"] + ["retired"] * 4


async def test_deleting_an_index_and_its_documents_at_once(database, tenant):
    for attempt in range(8):
        documents = [(await accept(database, tenant, source=f"{attempt}-{n}"))[0] for n in range(6)]
        index = await new_index(database, tenant, f"d{attempt}")
        for document in documents:
            await add_one_chunk(database, tenant, document.id, index.id)

        async def delete_one(document_id: str) -> None:
            async with database.tenant(tenant) as session:
                await store.delete_document(session, tenant_id=tenant, document_id=document_id)

        async def delete_all(index_id: str) -> None:
            async with database.tenant(tenant) as session:
                await store.delete_index(session, tenant_id=tenant, index_id=index_id)

        work = [delete_one(document.id) for document in documents]
        await asyncio.gather(*work[:3], delete_all(index.id), *work[3:])
    async with database.tenant(tenant) as session:
        names = "documents indexes chunks segments postings dead"
        for table in (getattr(tables, name) for name in names.split()):
            assert await session.scalar(sa.select(sa.func.count()).select_from(table)) == 0


async def test_a_document_cannot_be_added_to_an_index_that_is_being_deleted(database, tenant):
    document, _ = await accept(database, tenant)
    index = await new_index(database, tenant)
    await add_one_chunk(database, tenant, document.id, index.id)
    async with database.tenant(tenant) as session:
        await store.delete_index(session, tenant_id=tenant, index_id=index.id)
        late = asyncio.create_task(add_one_chunk(database, tenant, document.id, index.id))
        await blocked(database, tenant)
    with pytest.raises(NotFound, match="no such index"):
        await late
    async with database.tenant(tenant) as session:
        assert await session.scalar(sa.select(sa.func.count()).select_from(tables.postings)) == 0


async def test_deleting_an_index_takes_everything_in_it(database, tenant):
    document, _ = await accept(database, tenant)
    index = await new_index(database, tenant)
    await add_one_chunk(database, tenant, document.id, index.id)
    async with database.tenant(tenant) as session:
        await store.delete_index(session, tenant_id=tenant, index_id=index.id)
        for table in (tables.chunks, tables.segments, tables.postings, tables.dead):
            assert await session.scalar(sa.select(sa.func.count()).select_from(table)) == 0


async def test_tenants_are_listed_without_a_tenant(database, tenant):
    async with database.tenant(tenant) as session:
        for role in ("owner", "agent"):
            await store.create_user(
                session, tenant_id=tenant, email=f"{uuid.uuid4().hex}@x.y", password_hash="h",
                role=role,
            )  # fmt: skip
    async with database.system() as session:
        listed = await store.list_tenant_ids(session)
    assert listed.count(tenant) == 1 and listed == sorted(listed)


# --- the tenant predicate, with row-level security out of the way


@pytest.fixture
async def both(unprotected):
    "Two tenants with the same things, on a connection that row-level security does not bind."
    made = []
    for _ in range(2):
        tenant_id = await new_tenant(unprotected)
        document, _ = await accept(unprotected, tenant_id, source="same")
        index = await new_index(unprotected, tenant_id)
        async with unprotected.tenant(tenant_id) as session:
            await store.set_index_status(
                session, tenant_id=tenant_id, index_id=index.id, status="active"
            )
            user = await store.create_user(
                session, tenant_id=tenant_id, email=f"{uuid.uuid4().hex}@x.y", password_hash="h",
                role="owner",
            )  # fmt: skip
        await make_ready(unprotected, tenant_id, document)
        await add_one_chunk(unprotected, tenant_id, document.id, index.id)
        made.append({"t": tenant_id, "d": document.id, "i": index.id, "u": user.id})
    return made


READS = {
    "get_tenant": (store.get_tenant, {}),
    "get_user": (store.get_user, {"user_id": "u"}),
    "get_document": (store.get_document, {"document_id": "d"}),
    "get_content": (store.get_content, {"document_id": "d"}),
    "get_extracted": (store.get_extracted, {"document_id": "d"}),
    "delete_document": (store.delete_document, {"document_id": "d"}),
    "get_index": (store.get_index, {"index_id": "i"}),
    "set_index_status": (store.set_index_status, {"index_id": "i", "=status": "ready"}),
}


@pytest.mark.parametrize("name", [name for name in READS if name != "get_tenant"])
async def test_foreign_ids_are_not_found_without_row_level_security(unprotected, both, name):
    mine, theirs = both
    function, arguments = READS[name]

    def values(of) -> dict:
        return {
            key.lstrip("="): value if key.startswith("=") else of[value]
            for key, value in arguments.items()
        }

    with pytest.raises(NotFound):
        async with unprotected.tenant(mine["t"]) as session:
            await function(session, tenant_id=mine["t"], **values(theirs))
    async with unprotected.tenant(mine["t"]) as session:
        await function(session, tenant_id=mine["t"], **values(mine))


async def test_lists_and_writes_stay_inside_without_row_level_security(unprotected, both):
    mine, theirs = both
    where = {"tenant_id": mine["t"], "document_id": theirs["d"], "version": 1}
    async with unprotected.tenant(mine["t"]) as session:
        listed = await store.list_documents(session, tenant_id=mine["t"], limit=100)
        assert [document.id for document in listed] == [mine["d"]]
        everyones = [mine["d"], theirs["d"]]
        found = await store.get_documents(session, tenant_id=mine["t"], ids=everyones)
        assert [document.id for document in found] == [mine["d"]]
        indexes = await store.list_indexes(session, tenant_id=mine["t"])
        assert [index.id for index in indexes] == [mine["i"]]
        active = await store.find_active_index(session, tenant_id=mine["t"])
        assert active.id == mine["i"]
        assert (await store.get_tenant(session, tenant_id=mine["t"])).tenant_id == mine["t"]
        assert not await store.set_status(session, **where, status="pending")
        assert not await store.fail(session, **where, error="e", error_code="c")
        foreign = Document(theirs["d"], "t", "x", "s")
        assert not await store.store_ready(
            session, foreign, tenant_id=mine["t"], version=1, n_chunks=0, n_tokens=0
        )
        deleted = await store.delete_chunks(
            session, tenant_id=mine["t"], document_id=theirs["d"], index_id=theirs["i"]
        )
        assert deleted == 0
        with pytest.raises(NotFound):
            await store.delete_index(session, tenant_id=mine["t"], index_id=theirs["i"])
        _, outcome = await store.accept_document(
            session, tenant_id=mine["t"], source="same", **{**UPLOAD, "content": b"new"}
        )
        assert outcome == "replaced"
        other = await store.create_index(
            session, tenant_id=mine["t"], digest="d9", dim=3, model="m", parameters={}
        )
        await store.set_index_status(
            session, tenant_id=mine["t"], index_id=other.id, status="active"
        )
    async with unprotected.tenant(theirs["t"]) as session:
        document = await store.get_document(session, tenant_id=theirs["t"], document_id=theirs["d"])
        assert (document.status, document.version, document.n_chunks) == ("ready", 1, 1)
        assert (await store.find_active_index(session, tenant_id=theirs["t"])).id == theirs["i"]
        there = tables.chunks.c.tenant_id == theirs["t"]
        assert await session.scalar(sa.select(sa.func.count(tables.chunks.c.id)).where(there)) == 1
