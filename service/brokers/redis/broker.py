"""`Broker` over Redis.

Owns the way in: what a process asks of the scripts for those who request pictures, and how full the
queue is. Hearing of ends is `ends`' part, drawing `deliveries`'. Every change of a job's state is
one script, so that it happens whole or not at all, whichever process dies when.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from service.batching import Delivery
from service.brokers import keys
from service.brokers.base import (
    QueueCounts,
    QueueDepth,
    StoreHealth,
    Taken,
    Want,
    closed,
    full,
    lost_where_unknown,
    mismatch,
)
from service.brokers.codec import job_to_bytes
from service.brokers.pace import Pace
from service.brokers.redis.connection import RedisConnection
from service.brokers.redis.deliveries import Deliveries
from service.brokers.redis.ends import Ends
from service.brokers.redis.options import RedisOptions
from service.brokers.redis.records import read_records
from service.errors import QueueUnavailable
from service.jobs import Job, JobOutcome, JobRecord, request_of, siblings

if TYPE_CHECKING:
    from redis.asyncio import Redis


class RedisBroker:
    """Implements `Broker` for API and worker processes that meet in Redis."""

    def __init__(self, url: str, models: Sequence[str], options: RedisOptions) -> None:
        self._connection = RedisConnection(url)
        self._models = tuple(models)
        self._options = options
        self._pace = Pace()
        process = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._ends = Ends(self._connection, models, process, self._pace)
        self._deliveries = Deliveries(self._connection, models, process, options)
        self._num_workers = 0
        self._is_closed = False

    async def start(self) -> None:
        """Compare clocks if the server is there; a later sweep does it otherwise.

        Raises:
            StartError: the server is too old.
        """
        with contextlib.suppress(QueueUnavailable):
            await self._connection.check()

    async def stop(self) -> None:
        """End the reader and close the connections."""
        await self._ends.stop()
        await self._connection.close()

    @property
    def client(self) -> Redis:
        """The connections that commands go through, for others who keep something on the server."""
        return self._connection.client

    @property
    def store(self) -> StoreHealth | None:
        """As of the last sweep that reached it."""
        return self._connection.health

    def now_s(self) -> float:
        """The server's clock: it is the same for every process."""
        return self._connection.now_s()

    # Where requests arrive.

    async def put(self, jobs: Sequence[Job]) -> list[asyncio.Future[JobOutcome]]:
        """Accept all jobs or none; a request that is known is waited for."""
        if self._is_closed:
            raise closed()
        if self._connection.is_memory_full:
            raise QueueUnavailable("the queue has little room left: try again", retry_after_s=5.0)
        model = jobs[0].key.model
        arguments: list[Any] = [self._options.max_depth, self._ends.stream(model), len(jobs)]
        for job in jobs:
            arguments += [job.id, job_to_bytes(job), job.image or b"", keys.queue(job)]
            arguments += [job.created_s, job.deadline_s, job.owner, request_of(job.id)]
            arguments += [job.keep_s, job.digest, int(bool(job.webhook))]
        futures = self._ends.expect(jobs)
        verdict, rest = b"", []
        try:
            verdict, *rest = await self._connection.script("put", keys.prefix(model), arguments)
        finally:
            if verdict != b"accepted":
                self._ends.dismiss(jobs, futures)
        if verdict == b"full":
            drain_s = self._pace.drain_s(rest[0], self._num_workers)
            raise full(rest[0], self._options.max_depth, drain_s)
        if verdict == b"mismatch":
            raise mismatch()
        if verdict == b"accepted":
            return futures
        ids = siblings(jobs[0])
        return lost_where_unknown(ids, await self.watch(ids))

    async def watch(self, job_ids: Sequence[str]) -> list[asyncio.Future[JobOutcome] | None]:
        """Join those who wait, here and on the server."""
        return await self._ends.watch(job_ids)

    async def find(
        self, job_ids: Sequence[str], *, with_pictures: bool = True
    ) -> list[JobRecord | None]:
        """What the server has of jobs, whichever model they are of."""
        pairs = [(model, job_id) for job_id in job_ids for model in self._models]
        records = await read_records(self._connection, pairs, with_pictures=with_pictures)
        return [
            next((records[pair] for pair in pairs if pair[1] == job_id and pair in records), None)
            for job_id in job_ids
        ]

    async def requests_of(self, owner: str, max_requests: int) -> list[str]:
        """Newest first, of all models."""
        found: list[tuple[bytes, float]] = []
        for model in self._models:
            found += await self._connection.newest(keys.owner(model, owner), max_requests)
        found.sort(key=lambda pair: -pair[1])
        return [request.decode() for request, _ in found[:max_requests]]

    async def cancel(self, job_ids: Collection[str]) -> int:
        """End open jobs; whoever draws one learns of it with the next renewal."""
        num_queued = 0
        for model in self._models:
            prefix = keys.prefix(model)
            num_queued += await self._connection.script("cancel", prefix, list(job_ids))
        return num_queued

    async def hold_webhooks(self, held: Collection[str], hold_s: float, max_new: int) -> list[str]:
        """Of every model; a request that is held is of one of them and unknown to the others."""
        found: list[str] = []
        for model in self._models:
            arguments = [hold_s, max_new - len(found), *held]
            free = await self._connection.script("hold", keys.prefix(model), arguments)
            found += [request.decode() for request in free]
        return found

    async def drop_webhook(self, request: str) -> None:
        """Forget it, whichever model it is of."""
        for model in self._models:
            await self._connection.drop(keys.webhooks(model), request)

    # Where they are drawn.

    async def take(self, want: Want, *, wait: bool) -> Taken | None:
        """Hand out the next batch of one of the models, which take turns."""
        return await self._deliveries.take(want, wait=wait)

    async def renew(self, deliveries: Collection[Delivery]) -> frozenset[str]:
        """Keep leases; also the sign of life of a worker that draws for long."""
        return await self._deliveries.renew(deliveries)

    async def reply(self, delivery: Delivery, outcome: JobOutcome) -> bool:
        """Compare and set on the delivery's number."""
        return await self._deliveries.reply(delivery, outcome)

    async def hand_back(self, deliveries: Collection[Delivery]) -> None:
        """Put jobs at the end of their lines."""
        await self._deliveries.hand_back(deliveries)

    # Both.

    async def sweep(self) -> QueueDepth:
        """End what is overdue, find replies that got lost, and jobs that the server lost."""
        await self._connection.check()
        depths = [await self._sweep_of(model) for model in self._models]
        self._num_workers = max(depth.num_workers or 0 for depth in depths)
        await self._ends.sweep()
        return QueueDepth(
            num_jobs=sum(depth.num_jobs for depth in depths),
            oldest_age_s=max(depth.oldest_age_s for depth in depths),
            num_expired=sum(depth.num_expired for depth in depths),
            num_workers=self._num_workers,
            heartbeat_age_s=max(depth.heartbeat_age_s for depth in depths),
            counts=QueueCounts(
                sum(depth.counts.num_redelivered for depth in depths),
                sum(depth.counts.num_dead for depth in depths),
                sum(depth.counts.num_late for depth in depths),
            ),
        )

    async def _sweep_of(self, model: str) -> QueueDepth:
        num_jobs, oldest, num_expired, num_workers, silent, *counts = await self._connection.script(
            "sweep", keys.prefix(model), [self._options.lease_s * 2]
        )
        now_s = self.now_s()
        return QueueDepth(
            num_jobs,
            max(0.0, now_s - float(oldest)) if oldest else 0.0,
            num_expired,
            num_workers,
            max(0.0, now_s - float(silent)) if silent else 0.0,
            QueueCounts(*counts),
        )

    async def close(self) -> None:
        """Refuse new jobs; what is queued is left to other workers."""
        self._is_closed = True
        await self._deliveries.close()
