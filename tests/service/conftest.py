"""An application on the embedded servers, for a module of tests; the queue is empty after it."""

from collections.abc import Iterator

import pytest
from fastapi import FastAPI

from support_rag.local.servers import Running
from tests.people import hashing_app, leaving_no_work
from tests.serving import serving


@pytest.fixture(scope="module")
def no_work_left(servers: Running) -> Iterator[None]:
    with leaving_no_work(servers):
        yield


@pytest.fixture(scope="module")
def app(servers: Running) -> FastAPI:
    return hashing_app(servers)


@pytest.fixture(scope="module")
def url(app: FastAPI) -> Iterator[str]:
    with serving(app) as address:
        yield address
