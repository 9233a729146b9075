"""One pair of embedded servers for the whole run; a pool and a tenant for each test."""

import uuid
from collections.abc import AsyncIterator, Iterator

import pytest
from hypothesis import HealthCheck, settings

from support_rag.local.servers import Running, local_servers
from support_rag.state import store
from support_rag.state.database import Database, create_database, database_url, migrate, plain
from support_rag.state.jobs import Queue

# The same examples on every machine, however slow; `--hypothesis-profile=explore` draws others.
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("same", PATIENT, derandomize=True, print_blob=True)
settings.register_profile("explore", PATIENT, max_examples=1_000, print_blob=True)
settings.load_profile("same")

LONGEST = (
    "test_show",
    "test_http",
    "test_worker",
    "test_up",
    "test_hostile",
    "test_runs",
    "test_following",
    "test_workbench",
    "test_sweep",
    "test_site",
    "test_indexes",
    "test_tenancy",
    "test_ingest",
    "test_served",
    "test_access",
    "test_servers",
    "test_compose",
    "test_main",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    "Begin with the files that take longest, so that no worker ends on one of them alone."
    rank = {name: at for at, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(LONGEST)))


@pytest.fixture(scope="session")
def servers() -> Iterator[Running]:
    "PostgreSQL, migrated, and Valkey; their data is thrown away."
    with local_servers() as running:
        migrate(running.owner_url, app_user=running.app_user)
        yield running


@pytest.fixture(scope="session")
def superuser_url(servers: Running) -> str:
    return servers.superuser_url


@pytest.fixture(scope="session")
def owner_url(servers: Running) -> str:
    return servers.owner_url


@pytest.fixture(scope="session")
def app_url(servers: Running) -> str:
    return servers.app_url


@pytest.fixture(scope="session")
def redis_url(servers: Running) -> str:
    return servers.redis_url


@pytest.fixture
async def database(app_url: str) -> AsyncIterator[Database]:
    "A pool of the application's role."
    database = create_database(app_url)
    yield database
    await database.close()


@pytest.fixture
async def unprotected(superuser_url: str) -> AsyncIterator[Database]:
    "A pool of the superuser, whom row-level security does not bind: statements must hold alone."
    database = create_database(plain(database_url(superuser_url), database="support_rag"))
    yield database
    await database.close()


@pytest.fixture
async def tenant(database: Database) -> str:
    "The id of a new tenant that has nothing yet."
    tenant_id = str(uuid.uuid4())
    async with database.tenant(tenant_id) as session:
        await store.create_tenant(session, tenant_id=tenant_id, name="T")
    return tenant_id


@pytest.fixture
async def queue(redis_url: str) -> AsyncIterator[Queue]:
    "The wake-ups of the workers."
    queue = Queue(redis_url)
    yield queue
    await queue.close()
