"""Every broker as the contract suite sees it: where requests arrive and where they are drawn.

A new broker joins the suite by one line in `STANDS`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import redis.asyncio

from service.brokers.base import Broker
from service.brokers.memory import MemoryBroker
from service.brokers.redis import RedisBroker, RedisOptions

MAX_DEPTH = 4
LEASE_S = 0.6
MAX_DELIVERIES = 3
AGEING_S = 1.0
MODELS = ("tiny", "other")


class Stand:
    """Two ends of one queue, and what a test does to the server behind their backs."""

    def __init__(self, api: Broker, worker: Broker, url: str = "") -> None:
        self.api = api
        self.worker = worker
        self._url = url

    @asynccontextmanager
    async def another(self) -> AsyncIterator[RedisBroker]:
        """One more process at the same queue."""
        async with _redis_broker(self._url) as broker:
            yield broker

    async def dead_letters(self) -> list[str]:
        async with redis.asyncio.from_url(self._url, decode_responses=True) as client:
            return [fields["job"] for _, fields in await client.xrange("onestep:{tiny}:dead")]

    async def lose_replies(self) -> None:
        async with redis.asyncio.from_url(self._url) as client:
            async for key in client.scan_iter("*:replies:*"):
                await client.delete(key)

    async def flush(self) -> None:
        async with redis.asyncio.from_url(self._url) as client:
            await client.flushall()

    async def fields_of_jobs(self, field: str) -> list[str | None]:
        """What jobs have under a field; those without it are left out."""
        async with redis.asyncio.from_url(self._url, decode_responses=True) as client:
            keys = [key async for key in client.scan_iter("*:job:*")]
            values = [await client.hget(key, field) for key in keys]
            return [value for value in values if value is not None]

    async def leftovers(self) -> list[str]:
        """Keys of open jobs."""
        async with redis.asyncio.from_url(self._url, decode_responses=True) as client:
            patterns = ("*:queue:*", "*:queues", "*:open", "*:due")
            return [key for one in patterns async for key in client.scan_iter(one)]


@asynccontextmanager
async def _redis_broker(url: str) -> AsyncIterator[RedisBroker]:
    broker = RedisBroker(
        url,
        MODELS,
        RedisOptions(
            max_depth=MAX_DEPTH,
            lease_s=LEASE_S,
            max_deliveries=MAX_DELIVERIES,
            ageing_s=AGEING_S,
        ),
    )
    await broker.start()
    try:
        yield broker
    finally:
        await broker.stop()


@asynccontextmanager
async def _memory(url: str) -> AsyncIterator[Stand]:
    broker = MemoryBroker(MAX_DEPTH, ageing_s=AGEING_S)
    yield Stand(broker, broker)


@asynccontextmanager
async def _redis(url: str) -> AsyncIterator[Stand]:
    async with _redis_broker(url) as api, _redis_broker(url) as worker:
        yield Stand(api, worker, url)


STANDS: dict[str, Callable[[str], AbstractAsyncContextManager[Stand]]] = {
    "memory": _memory,
    "redis": _redis,
}
