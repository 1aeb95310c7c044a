"""Loads on a server: as many requests at once as connections, or arrivals at random times.

Owns when a request is due and what the answers come to. A request that was due while the server
was slow still counts from when it was due: a client that waits with it would hide the very delay
that it is there to see.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from engines.bench.statistics import quantile
from tests.bench.overhead.client import (
    Connection,
    LoneConnection,
    Reply,
    connect,
    request_bytes,
)

# As many as a burst may have open at once; a request beyond waits for one, and its clock runs.
MAX_CONNECTIONS = 256
MAX_SEED = 2**32 - 1


@dataclass(frozen=True)
class Address:
    """Where a server draws."""

    host: str
    port: int
    path: str


@dataclass(frozen=True)
class Asked:
    """A request with its answer; times are readings of `time.perf_counter`."""

    due_s: float
    sent_s: float
    reply: Reply

    @property
    def latency_ms(self) -> float:
        """From when it was due, however late it was sent."""
        # A timer may also fire early, by the part of a millisecond that it cannot count.
        return (self.reply.ended_s - min(self.due_s, self.sent_s)) * 1000


@dataclass(frozen=True)
class Load:
    """All that was asked in one go, in any order, and how long it was asked for."""

    asked: Sequence[Asked]
    duration_s: float

    @property
    def right(self) -> list[Asked]:
        """What came to the picture that was wanted."""
        return [one for one in self.asked if one.reply.is_right]

    @property
    def num_refused(self) -> int:
        """Answers of 429: told to come back later."""
        return sum(one.reply.status == 429 for one in self.asked)

    @property
    def num_lost(self) -> int:
        """Neither a right picture nor a refusal."""
        return len(self.asked) - len(self.right) - self.num_refused

    @property
    def mean_batch_size(self) -> float:
        """Pictures per run of the engine: a batch of n shows up in n answers."""
        sizes = [one.reply.batch_size for one in self.right if one.reply.batch_size]
        return len(sizes) / sum(1 / size for size in sizes) if sizes else 0.0

    def latency_ms(self, fraction: float) -> float:
        """The latency that this part of the right answers stays within."""
        return quantile([one.latency_ms for one in self.right] or [float("inf")], fraction)

    def images_per_s(self, batch_size: int) -> float:
        """Right pictures per second while the load lasted.

        Pictures come a batch at a time, so the clock starts with the end of the first batch:
        whole batches are then divided by the time of just as many.
        """
        ended_s = sorted(one.reply.ended_s for one in self.right)
        if len(ended_s) <= batch_size:
            return 0.0
        return (len(ended_s) - batch_size) / (ended_s[-1] - ended_s[batch_size - 1])

    def goodput_per_s(self, limit_ms: float) -> float:
        """Right pictures within the limit, per second of the time in which they were asked for."""
        return sum(one.latency_ms <= limit_ms for one in self.right) / self.duration_s

    def lateness_ms(self, fraction: float) -> float:
        """How long after it was due this part of the requests was sent: the client's own delay."""
        return quantile([max(0.0, one.sent_s - one.due_s) * 1000 for one in self.asked], fraction)


class Seeds:
    """A seed for every request, none twice in one measurement."""

    def __init__(self, first: int = 0) -> None:
        """Count from `first` on."""
        self._numbers: Iterator[int] = itertools.count(first)

    def __next__(self) -> int:
        return next(self._numbers) % (MAX_SEED + 1)


def lone_load(address: Address, seeds: Seeds, *, warm_up_s: float, duration_s: float) -> Load:
    """One client, which asks again as soon as it has its answer; the warm-up is left out."""
    connection = LoneConnection(address.host, address.port)
    begin_s = time.perf_counter() + warm_up_s
    end_s = begin_s + duration_s
    asked: list[Asked] = []
    while time.perf_counter() < end_s and (not asked or asked[-1].reply.status):
        request = request_bytes(address.path, seed := next(seeds))
        sent_s = time.perf_counter()
        one = Asked(sent_s, sent_s, connection.ask(request, seed))
        if begin_s <= one.reply.ended_s <= end_s or not one.reply.status:
            asked.append(one)
    connection.close()
    return Load(asked, duration_s)


async def closed_load(
    address: Address, seeds: Seeds, *, num_connections: int, warm_up_s: float, duration_s: float
) -> Load:
    """Every connection asks again as soon as it has its answer; the warm-up is left out."""
    connections = [await connect(address.host, address.port) for _ in range(num_connections)]
    begin_s = time.perf_counter() + warm_up_s
    end_s = begin_s + duration_s
    asked: list[Asked] = []

    async def ask_again(connection: Connection) -> None:
        while (sent_s := time.perf_counter()) < end_s:
            one = await _ask(connection, address, next(seeds), due_s=sent_s)
            if begin_s <= one.reply.ended_s <= end_s:
                asked.append(one)
            if not one.reply.status:
                asked.append(one)
                return

    await asyncio.gather(*map(ask_again, connections))
    for connection in connections:
        connection.close()
    return Load(asked, duration_s)


async def poisson_load(
    address: Address, seeds: Seeds, *, rate_per_s: float, duration_s: float, seed: int
) -> Load:
    """Requests at random times that no answer changes, as from many people."""
    due_s = list(arrivals(rate_per_s, duration_s, seed))
    free: asyncio.LifoQueue[Connection] = asyncio.LifoQueue()
    num_open = min(MAX_CONNECTIONS, len(due_s))
    connections = [await connect(address.host, address.port) for _ in range(num_open)]
    for connection in connections:
        free.put_nowait(connection)
    asked: list[Asked] = []

    async def ask_once(due_s: float) -> None:
        connection = await free.get()
        asked.append(await _ask(connection, address, next(seeds), due_s=due_s))
        free.put_nowait(connection)

    start_s = time.perf_counter()
    asking: list[asyncio.Task[None]] = []
    for offset_s in due_s:
        ahead_s = start_s + offset_s - time.perf_counter()
        if ahead_s > 0:
            await asyncio.sleep(ahead_s)
        asking.append(asyncio.create_task(ask_once(start_s + offset_s)))
    await asyncio.gather(*asking)
    for connection in connections:
        connection.close()
    return Load(asked, duration_s)


def arrivals(rate_per_s: float, duration_s: float, seed: int) -> Iterator[float]:
    """Seconds from the start at which a Poisson process of this rate has its events."""
    gaps = random.Random(seed)
    at_s = gaps.expovariate(rate_per_s)
    while at_s < duration_s:
        yield at_s
        at_s += gaps.expovariate(rate_per_s)


async def _ask(connection: Connection, address: Address, seed: int, due_s: float) -> Asked:
    request = request_bytes(address.path, seed)
    sent_s = time.perf_counter()
    return Asked(due_s, sent_s, await connection.ask(request, seed))
