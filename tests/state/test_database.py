"""Roles, row-level security and transactions, on a real server as the application's role."""

import asyncio
import uuid
from datetime import UTC, datetime

import psycopg
import pytest
import sqlalchemy as sa
from alembic import command

from support_rag.state import store, tables
from support_rag.state.database import (
    Database,
    check_roles,
    create_database,
    create_roles,
    database_url,
    driver,
    head,
    migrate,
    migrate_back,
    migrations,
)
from support_rag.state.tables import APPENDED, GLOBAL_TABLES, metadata
from support_rag.types import InputInvalid, NotFound, SettingsInvalid, Unavailable

TENANT_TABLES = sorted(set(metadata.tables) - GLOBAL_TABLES)

LATER = datetime(2100, 1, 1, tzinfo=UTC)
ROWS = {
    "tenants": {"name": "n"},
    "users": {"id": ..., "email": "e", "password_hash": "h", "role": "owner"},
    "documents": {"id": ..., "source": "s", "title": "t", "content_type": "c", "content": b"",
                  "content_hash": "h"},
    "indexes": {"id": ..., "digest": "d", "dim": 3, "model": "m", "parameters": {}},
    "staged_vectors": {"document_id": "documents", "text_digest": "d", "model": "m",
                       "embedding": [1, 0, 0]},
    "chunks": {"index_id": "indexes", "id": ..., "document_id": "documents", "ordinal": 0,
               "start_char": 0, "end_char": 1, "number": 1, "n_tokens": 1, "n_terms": 1, "dim": 3,
               "heading_path": [], "text": "t", "embedding": [1, 0, 0]},
    "segments": {"index_id": "indexes", "id": 1, "n_chunks": 1, "n_terms": 1},
    "postings": {"index_id": "indexes", "segment_id": 1, "term": "t", "entries": b""},
    "dead": {"index_id": "indexes", "number": 1, "n_terms": 1},
    "conversations": {"id": ..., "user_id": "users"},
    "messages": {"id": ..., "conversation_id": "conversations", "seq": 1, "role": "user",
                 "content": "c"},
    "traces": {"message_id": "messages", "facts": {}},
    "labels": {"id": ..., "question": "q", "source": "s", "start_char": 0, "end_char": 1,
               "text": "t", "made_by": "m"},
    "sessions": {"id": ..., "user_id": "users", "expires_at": LATER},
    "refresh_tokens": {"session_id": "sessions", "digest": "d"},
    "tickets": {"id": ..., "kind": "invitation", "email": "e", "digest": "d", "expires_at": LATER},
    "api_keys": {"id": ..., "user_id": "users", "kind": "secret", "name": "n", "prefix": "p",
                 "digest": "d", "scopes": []},
    "idempotency": {"caller_id": str(uuid.UUID(int=1)), "route": "r", "key": "k",
                    "fingerprint": "f", "claim_id": str(uuid.UUID(int=2)), "lease_until": LATER},
    "usage": {"day": LATER.date()},
    "reservations": {"id": ..., "day": LATER.date()},
    "feedback": {"message_id": "messages", "verdict": "up"},
    "webhooks": {"id": ..., "url": "https://a", "events": ["document.ready"], "secret": "s"},
    "deliveries": {"id": ..., "webhook_id": "webhooks", "kind": "document.ready", "data": {},
                   "status": "pending"},
    "canaries": {"id": ..., "release_id": "r", "index_digest": "d", "parameters": {}, "share": 0.5,
                 "why": "w"},
    "notes": {"id": ..., "conversation_id": "conversations", "user_id": "users", "content": "c"},
    "ratings": {"conversation_id": "conversations", "user_id": "users", "score": 5},
    "audit": {"id": ..., "action": "resolve", "subject_id": ...},
}  # fmt: skip


async def fill(database: Database) -> tuple[str, dict[str, dict]]:
    "Create a tenant with one row in every tenant table; return the rows that were written."
    tenant_id, written = str(uuid.uuid4()), {}
    async with database.tenant(tenant_id) as session:
        for name, template in ROWS.items():
            row = {"tenant_id": tenant_id}
            for column, value in template.items():
                if value is ...:
                    value = str(uuid.uuid4())
                elif isinstance(value, str) and value in written:
                    value = written[value]["id"]
                row[column] = value
            await session.execute(sa.insert(metadata.tables[name]).values(**row))
            written[name] = row
    return tenant_id, written


async def count(session, name: str) -> int:
    return await session.scalar(sa.select(sa.func.count()).select_from(metadata.tables[name]))


def test_every_tenant_table_has_a_row_template():
    assert sorted(ROWS) == TENANT_TABLES


# --- what the catalogue says


@pytest.fixture(scope="module")
def catalogue(owner_url):
    with psycopg.connect(owner_url) as connection:
        yield connection


def test_the_described_columns_are_the_migrated_ones(catalogue):
    kinds = {
        "uuid": "uuid", "text": "text", "_text": "texts", "int4": "int", "int8": "int",
        "float4": "real", "jsonb": "json", "bytea": "bytes", "halfvec": "vector",
        "timestamptz": "time", "date": "date",
    }  # fmt: skip
    rows = catalogue.execute(
        "SELECT table_name, column_name, udt_name FROM information_schema.columns "
        "WHERE table_schema = 'public' AND table_name <> 'alembic_version'"
    )
    migrated = {(table, column): kinds[kind] for table, column, kind in rows}
    names = {type(value): name for name, value in tables.TYPES.items()}
    described = {
        (table.name, column.name): names[type(column.type)]
        for table in metadata.tables.values()
        for column in table.c
    }
    assert described == migrated


@pytest.mark.parametrize("name", TENANT_TABLES)
def test_forced_security_with_both_conditions(catalogue, name):
    flags = catalogue.execute(
        "SELECT relrowsecurity, relforcerowsecurity FROM pg_class WHERE oid = %s::regclass", [name]
    ).fetchone()
    assert flags == (True, True)
    [(command, using, check)] = catalogue.execute(
        "SELECT polcmd, pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid) "
        "FROM pg_policy WHERE polrelid = %s::regclass", [name]
    ).fetchall()  # fmt: skip
    assert command == b"*" or command == "*"
    for condition in (using, check):
        assert condition == (
            "(tenant_id = (NULLIF(current_setting('app.tenant_id'::text, true), ''::text))::uuid)"
        )


@pytest.mark.parametrize("name", TENANT_TABLES)
def test_keys_start_with_the_tenant(catalogue, name):
    rows = catalogue.execute(
        "SELECT conname, contype, ARRAY(SELECT attname::text FROM unnest(conkey) WITH ORDINALITY "
        "k(n, i) JOIN pg_attribute a ON attrelid = conrelid AND attnum = n ORDER BY i) "
        "FROM pg_constraint WHERE conrelid = %s::regclass AND contype IN ('p', 'u', 'f')", [name]
    ).fetchall()  # fmt: skip
    assert sum(kind in (b"p", "p") for _, kind, _ in rows) == 1
    for constraint, _, columns in rows:
        assert columns[0] == "tenant_id", constraint
    rows = catalogue.execute(
        "SELECT indexrelid::regclass::text, attname::text FROM pg_index "
        "JOIN pg_attribute a ON attrelid = indrelid AND attnum = indkey[0] "
        "WHERE indrelid = %s::regclass AND indisunique", [name]
    ).fetchall()  # fmt: skip
    assert rows and all(first == "tenant_id" for _, first in rows)


def test_only_the_allowed_tables_are_global(catalogue):
    rows = catalogue.execute(
        "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace "
        "AND relkind IN ('r', 'p', 'v', 'm', 'f') AND NOT relforcerowsecurity"
    ).fetchall()
    assert {name for (name,) in rows} == {*GLOBAL_TABLES, "alembic_version"}


def test_the_application_owns_nothing(catalogue, app_url):
    app = sa.make_url(app_url).username
    owned = catalogue.execute(
        "SELECT relname FROM pg_class WHERE relowner = %s::regrole", [app]
    ).fetchall()
    assert owned == []
    flags = catalogue.execute(
        "SELECT rolsuper, rolbypassrls, rolcreaterole, rolcreatedb FROM pg_roles "
        "WHERE rolname = %s",
        [app],
    ).fetchone()
    assert flags == (False, False, False, False)


# --- what the application's role can do


async def test_a_tenant_sees_its_row_in_every_table_and_nobody_elses(database):
    mine, _ = await fill(database)
    await fill(database)
    async with database.tenant(mine) as session:
        for name in TENANT_TABLES:
            rows = (await session.execute(sa.select(metadata.tables[name].c.tenant_id))).all()
            assert rows == [(mine,)], name


async def test_without_a_tenant_there_are_no_rows(database):
    await fill(database)
    async with database.system() as session:
        assert {name: await count(session, name) for name in TENANT_TABLES} == dict.fromkeys(
            TENANT_TABLES, 0
        )


@pytest.mark.parametrize("name", TENANT_TABLES)
async def test_another_tenants_rows_cannot_be_written(database, name):
    theirs, rows = await fill(database)
    mine, _ = await fill(database)
    table = metadata.tables[name]
    row = rows[name] | {key: str(uuid.uuid4()) for key in ("id",) if rows[name].get("id") != 1}
    row = {key: value for key, value in row.items() if key in table.c}
    with pytest.raises(sa.exc.ProgrammingError, match="row-level security"):
        async with database.tenant(mine) as session:
            await session.execute(sa.insert(table).values(**row))
    refused = "permission denied" if name in APPENDED else "row-level security"
    with pytest.raises(sa.exc.ProgrammingError, match=refused):
        async with database.tenant(mine) as session:
            await session.execute(sa.update(table).values(tenant_id=theirs))
    there = table.c.tenant_id == theirs
    if name in APPENDED:
        with pytest.raises(sa.exc.ProgrammingError, match=refused):
            async with database.tenant(mine) as session:
                await session.execute(sa.delete(table).where(there))
        return
    async with database.tenant(mine) as session:
        deleted = await session.execute(sa.delete(table).where(there))
        updated = await session.execute(sa.update(table).where(there).values(tenant_id=mine))
        assert (deleted.rowcount, updated.rowcount) == (0, 0)
    async with database.tenant(theirs) as session:
        assert await count(session, name) == 1


@pytest.mark.parametrize(
    ("name", "column", "target"),
    [
        ("chunks", "document_id", "documents"),
        ("chunks", "index_id", "indexes"),
        ("staged_vectors", "document_id", "documents"),
        ("conversations", "user_id", "users"),
        ("messages", "conversation_id", "conversations"),
        ("segments", "index_id", "indexes"),
        ("dead", "index_id", "indexes"),
    ],
)
async def test_no_row_can_point_at_another_tenants_row(database, name, column, target):
    _, theirs = await fill(database)
    mine, _ = await fill(database)
    with pytest.raises(sa.exc.IntegrityError, match="foreign key"):
        async with database.tenant(mine) as session:
            change = sa.update(metadata.tables[name]).values({column: theirs[target]["id"]})
            await session.execute(change)


async def test_the_tenant_ends_with_its_transaction(app_url):
    database = create_database(app_url, pool_size=1)
    mine, _ = await fill(database)
    async with database.tenant(mine) as session:
        assert await count(session, "documents") == 1
        process = await session.scalar(sa.text("SELECT pg_backend_pid()"))
    async with database.system() as session:
        assert await session.scalar(sa.text("SELECT pg_backend_pid()")) == process
        assert await count(session, "documents") == 0
    with pytest.raises(ZeroDivisionError):
        async with database.tenant(mine) as session:
            1 / 0  # noqa: B018
    async with database.system() as session:
        setting = await session.scalar(sa.text("SELECT current_setting('app.tenant_id', true)"))
        assert setting in (None, "")
    async with database.tenant(mine) as session:
        await session.commit()  # nobody should; what follows has no tenant
        assert await count(session, "documents") == 0
    await database.close()


async def test_concurrent_tenants_never_mix(app_url):
    database = create_database(app_url, pool_size=3, pool_timeout_seconds=30)
    tenants = [(await fill(database))[0] for _ in range(6)]

    async def look(tenant_id: str) -> set[str]:
        async with database.tenant(tenant_id) as session:
            await session.execute(sa.text("SELECT pg_sleep(0.001)"))
            return set(await session.scalars(sa.select(tables.documents.c.tenant_id)))

    asked = tenants * 20
    assert await asyncio.gather(*map(look, asked)) == [{tenant_id} for tenant_id in asked]
    await database.close()


async def test_an_error_rolls_back(database):
    tenant_id = str(uuid.uuid4())
    with pytest.raises(ValueError, match="stop"):
        async with database.tenant(tenant_id) as session:
            await store.create_tenant(session, tenant_id=tenant_id, name="gone")
            raise ValueError("stop")
    async with database.tenant(tenant_id) as session:
        with pytest.raises(NotFound):
            await store.get_tenant(session, tenant_id=tenant_id)


async def test_a_snapshot_does_not_move(database):
    mine, _ = await fill(database)
    async with database.tenant(mine, snapshot=True) as reader:
        before = await count(reader, "documents")
        async with database.tenant(mine) as writer:
            await writer.execute(sa.delete(tables.dead).where(tables.dead.c.tenant_id == mine))
        assert await count(reader, "dead") == before == 1
    async with database.tenant(mine) as session:
        assert await count(session, "dead") == 0
        isolation = await session.scalar(sa.text("SHOW transaction_isolation"))
        assert isolation == "read committed"


# --- refusing to start


async def test_the_service_starts_only_with_the_restricted_role(database, owner_url):
    await check_roles(database)
    owner = create_database(owner_url)
    with pytest.raises(SettingsInvalid, match=r"owns \d+ tables"):
        await check_roles(owner)
    await owner.close()


@pytest.mark.parametrize(
    ("change", "undo"),
    [
        ("ALTER TABLE messages NO FORCE ROW LEVEL SECURITY",
         "ALTER TABLE messages FORCE ROW LEVEL SECURITY"),
        ("ALTER TABLE messages DISABLE ROW LEVEL SECURITY",
         "ALTER TABLE messages ENABLE ROW LEVEL SECURITY"),
        ("CREATE POLICY everyone ON messages USING (true)", "DROP POLICY everyone ON messages"),
        ("CREATE POLICY readers ON messages FOR SELECT USING (tenant_id IS NOT NULL)",
         "DROP POLICY readers ON messages"),
        ("ALTER POLICY one_tenant ON messages RENAME TO a; ALTER POLICY a ON messages USING (true)",
         "DROP POLICY a ON messages; CREATE POLICY one_tenant ON messages"
         " USING (tenant_id = nullif(current_setting('app.tenant_id', true), '')::uuid)"
         " WITH CHECK (tenant_id = nullif(current_setting('app.tenant_id', true), '')::uuid)"),
        ("CREATE MATERIALIZED VIEW messages_2 AS SELECT 1", "DROP MATERIALIZED VIEW messages_2"),
    ],
)  # fmt: skip
async def test_one_unprotected_table_is_refused(database, owner_url, change, undo):
    with psycopg.connect(owner_url, autocommit=True) as owner:
        owner.execute(change)
        try:
            with pytest.raises(SettingsInvalid, match="does not protect messages"):
                await check_roles(database)
        finally:
            owner.execute(undo)
    await check_roles(database)


@pytest.mark.parametrize("right", ["SUPERUSER", "BYPASSRLS"])
async def test_a_role_that_could_become_a_mightier_one_is_refused(
    database, superuser_url, app_url, right
):
    app = sa.make_url(app_url).username
    with psycopg.connect(superuser_url, autocommit=True) as server:
        server.execute(f"CREATE ROLE mighty {right}")
        server.execute(f"GRANT mighty TO {app}")
        try:
            with pytest.raises(SettingsInvalid, match="can act as mighty"):
                await check_roles(database)
        finally:
            server.execute("DROP ROLE mighty")
    await check_roles(database)


async def test_a_superuser_is_refused(unprotected):
    with pytest.raises(SettingsInvalid, match=r"can act as postgres, .* owns \d+ tables"):
        await check_roles(unprotected)


async def test_another_schema_version_is_refused(database, owner_url):
    with psycopg.connect(owner_url, autocommit=True) as owner:
        owner.execute("UPDATE alembic_version SET version_num = '0000'")
        try:
            with pytest.raises(SettingsInvalid, match=f"at 0000, not at {head()}"):
                await check_roles(database)
        finally:
            owner.execute("UPDATE alembic_version SET version_num = %s", [head()])


async def test_the_application_cannot_change_the_schema_or_its_version(database):
    for statement in (
        "CREATE TABLE mine (x int)",
        "ALTER TABLE documents DISABLE ROW LEVEL SECURITY",
        "DROP POLICY one_tenant ON documents",
        "UPDATE alembic_version SET version_num = 'x'",
        "TRUNCATE documents",
        "COPY documents TO PROGRAM 'cat'",
    ):
        with pytest.raises(sa.exc.ProgrammingError, match=r"permission denied|must be owner"):
            async with database.system() as session:
                await session.execute(sa.text(statement))


def test_migrating_again_changes_nothing(owner_url, app_url):
    app = sa.make_url(app_url).username
    assert migrate(owner_url, app_user=app) == head() == migrate(owner_url, app_user=app)


def schema_of(connection: sa.Connection) -> set[tuple[str, ...]]:
    "Return columns, constraints, indexes and policies, in words."
    statements = (
        "SELECT table_name, column_name, data_type, is_nullable, coalesce(column_default, '') "
        "FROM information_schema.columns WHERE table_schema = 'public'",
        "SELECT conrelid::regclass::text, pg_get_constraintdef(oid) FROM pg_constraint "
        "WHERE connamespace = 'public'::regnamespace",
        "SELECT tablename, indexdef FROM pg_indexes WHERE schemaname = 'public'",
        "SELECT tablename, policyname, qual, with_check FROM pg_policies",
        "SELECT relname, relrowsecurity::text, relforcerowsecurity::text FROM pg_class "
        "WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'",
    )
    return {tuple(row) for text in statements for row in connection.execute(sa.text(text))}


def test_chunks_and_traces_of_an_older_schema_stay_there_and_back(superuser_url, app_url):
    url = sa.make_url(superuser_url).set(database="of_before")
    with psycopg.connect(superuser_url, autocommit=True) as admin:
        admin.execute("CREATE DATABASE of_before")
    old = sa.create_engine(database_url(url.render_as_string(False)), poolclass=sa.NullPool)
    named = ("tenant", "document", "index", "chunk", "user", "talk", "reply")
    ids = {name: str(uuid.uuid4()) for name in named}
    with old.begin() as connection:
        config = migrations()
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        for statement in (
            "INSERT INTO tenants VALUES (:tenant, 'n')",
            "INSERT INTO documents (tenant_id, id, source, title, content_type, content, "
            "content_hash) VALUES (:tenant, :document, 's', 't', 'text/plain', '', 'h')",
            "INSERT INTO indexes (tenant_id, id, digest, dim, model, parameters) "
            "VALUES (:tenant, :index, 'd', 3, 'm', '{}')",
            "INSERT INTO chunks VALUES (:tenant, :index, :chunk, :document, 0, 0, 4, 1, 1, 1, 3, "
            "'{}', 'text', '[1,0,0]')",
            "INSERT INTO users (tenant_id, id, email, password_hash, role) "
            "VALUES (:tenant, :user, 'e', 'h', 'customer')",
            "INSERT INTO conversations (tenant_id, id, user_id) VALUES (:tenant, :talk, :user)",
            "INSERT INTO messages (tenant_id, id, conversation_id, seq, role, content, trace) "
            "VALUES (:tenant, :reply, :talk, 2, 'assistant', 'c', '{\"query\": \"q\"}')",
        ):
            connection.execute(sa.text(statement), ids)
        schema = schema_of(connection)
    app = sa.make_url(app_url).username
    assert migrate(url.render_as_string(False), app_user=app) == head()
    with old.connect() as connection:
        rows = connection.execute(sa.text("SELECT text, lead, embedding::text FROM chunks")).all()
        traces = connection.execute(sa.text("SELECT message_id::text, facts FROM traces")).all()
    with old.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0010")
        gone = connection.execute(
            sa.text("SELECT to_regclass('feedback'), to_regclass('canaries')")
        )
        assert gone.one() == (None, None)
    assert migrate(url.render_as_string(False), app_user=app) == head(), "down and up again"
    assert rows == [("text", "", "[1,0,0]")] and traces == [(ids["reply"], {"query": "q"})]
    with pytest.raises(InputInvalid, match="is no version below it"):
        migrate_back(url.render_as_string(False), version="9999")
    assert migrate_back(url.render_as_string(False), version="0001") == "0001"
    with old.connect() as connection:
        assert schema_of(connection) == schema
        rows = connection.execute(sa.text("SELECT text, embedding::text FROM chunks")).all()
        traces = connection.execute(sa.text("SELECT id::text, trace FROM messages")).all()
        roles = connection.execute(sa.text("SELECT role FROM users")).scalars().all()
    assert rows == [("text", "[1,0,0]")] and traces == [(ids["reply"], {"query": "q"})]
    assert roles == ["customer"]
    assert migrate(url.render_as_string(False), app_user=app) == head()
    with psycopg.connect(superuser_url, autocommit=True) as admin:
        admin.execute("DROP DATABASE of_before")


# --- faults


async def test_an_exhausted_pool_says_when_to_come_back(app_url):
    database = create_database(app_url, pool_size=1, pool_timeout_seconds=0.05)
    async with database.system() as session:
        await session.execute(sa.text("SELECT 1"))
        with pytest.raises(Unavailable, match="all 1 database connections") as caught:
            await database.ping()
    assert caught.value.retry_after_seconds == 1.0
    await database.ping()
    await database.close()


async def test_a_server_that_is_away_is_unavailable():
    database = create_database("postgresql://nobody:secret-word@127.0.0.1:9/nowhere")
    with pytest.raises(Unavailable, match="cannot be reached") as caught:
        await database.ping()
    assert "secret-word" not in f"{caught.value!r} {database!r}"
    assert caught.value.retry_after_seconds == 2.0


async def test_a_killed_connection_costs_the_next_caller_nothing(app_url):
    database = create_database(app_url, pool_size=1)
    own = "SELECT pg_terminate_backend(pg_backend_pid())"
    with pytest.raises(Unavailable):
        async with database.system() as session:
            await session.execute(sa.text(own))
    await database.ping()
    async with database.system() as session:
        process = await session.scalar(sa.text("SELECT pg_backend_pid()"))
    other = create_database(app_url)
    async with other.system() as session:
        await session.execute(sa.text("SELECT pg_terminate_backend(:pid)"), {"pid": process})
    await other.close()
    await asyncio.sleep(0.1)
    await database.ping()
    await database.close()


async def test_a_connection_lost_while_committing_is_not_called_a_failure(app_url):
    database = create_database(app_url, pool_size=1)
    other = create_database(app_url, pool_size=1)
    with pytest.raises(Unavailable, match="unknown whether the change was stored"):
        async with database.system() as session:
            process = await session.scalar(sa.text("SELECT pg_backend_pid()"))
            async with other.system() as killer:
                await killer.execute(sa.text("SELECT pg_terminate_backend(:pid)"), {"pid": process})
            await asyncio.sleep(0.1)
    await database.close()
    await other.close()


async def test_a_statement_that_takes_too_long_ends(app_url):
    database = create_database(app_url, statement_timeout_seconds=0.05)
    with pytest.raises(Unavailable, match="longer than its limit"):
        async with database.system() as session:
            await session.execute(sa.text("SELECT pg_sleep(5)"))
    await database.close()


async def test_the_driver_speaks_inside_the_transaction(database):
    mine, _ = await fill(database)
    async with database.tenant(mine) as session:
        cursor = await (await driver(session)).execute("SELECT count(*) FROM documents")
        assert await cursor.fetchone() == (1,)
    with pytest.raises(Unavailable):
        async with database.tenant(mine) as session:
            await (await driver(session)).execute("SELECT pg_terminate_backend(pg_backend_pid())")


@pytest.mark.parametrize("text", ["a\x00b", "\ud800", "x\udfff"])
async def test_unstorable_text_is_the_callers_mistake(database, text):
    tenant_id = str(uuid.uuid4())
    with pytest.raises(InputInvalid, match="cannot be stored"):
        async with database.tenant(tenant_id) as session:
            await store.create_tenant(session, tenant_id=tenant_id, name=text)
    with pytest.raises(InputInvalid):
        async with database.tenant(text):
            pass


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": ["\x00"]}, {"\ud800": 1}])
async def test_unstorable_json_is_the_callers_mistake(database, value):
    mine, _ = await fill(database)
    with pytest.raises(InputInvalid):
        async with database.tenant(mine) as session:
            await session.execute(sa.update(tables.documents).values(metadata={"value": value}))


async def test_an_id_that_is_no_uuid_names_nothing(database):
    mine, _ = await fill(database)
    for wrong in ("", "1", "x" * 36, "00000000-0000-0000-0000-00000000000g"):
        with pytest.raises(NotFound):
            async with database.tenant(mine) as session:
                await store.get_document(session, tenant_id=mine, document_id=wrong)


@pytest.mark.parametrize("url", ["", "not a url", "sqlite://", "mysql://host/db"])
def test_only_postgresql_urls(url):
    with pytest.raises(SettingsInvalid):
        create_database(url)


def test_creating_roles_again_keeps_everything(superuser_url, owner_url, app_url):
    parts = {"owner": sa.make_url(owner_url), "app": sa.make_url(app_url)}
    again = create_roles(
        superuser_url,
        owner=parts["owner"].username,
        app=parts["app"].username,
        owner_password=parts["owner"].password,
        app_password=parts["app"].password,
        database=parts["app"].database,
    )
    assert [sa.make_url(url) for url in again] == list(parts.values())
    with psycopg.connect(again[0]) as connection:
        assert connection.execute("SELECT count(*) FROM alembic_version").fetchone() == (1,)
