"""The promises of `service.brokers.base` are run against every broker.

The one in Redis runs against a real server, which `redis_server` starts.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial

import pytest
from broker_stands import STANDS, Stand
from broker_work import MakeJob, new_job

from service.brokers.base import Broker


@pytest.fixture(params=sorted(STANDS))
async def stand(request: pytest.FixtureRequest, redis_url: str) -> AsyncIterator[Stand]:
    async with STANDS[request.param](redis_url) as stand:
        yield stand


@pytest.fixture
def broker(stand: Stand) -> Broker:
    """Where requests arrive."""
    return stand.api


@pytest.fixture
def worker(stand: Stand) -> Broker:
    """Where they are drawn; in memory, the same."""
    return stand.worker


@pytest.fixture
def make_job(broker: Broker) -> MakeJob:
    return partial(new_job, broker)


@pytest.fixture
async def shared(redis_url: str) -> AsyncIterator[Stand]:
    """A queue between processes."""
    async with STANDS["redis"](redis_url) as stand:
        yield stand
