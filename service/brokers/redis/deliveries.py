"""Jobs in a worker's hands: taken, kept, ended or handed back.

Owns the worker's side of the scripts: which model is asked next, when it is asked and lost jobs are
looked for, and how a delivery is written in a script's arguments. The rules by which a batch is
chosen are in `take.lua`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

from service.batching import Batch, CloseReason, Delivery
from service.brokers import keys
from service.brokers.base import Taken, Want
from service.brokers.codec import done_to_bytes, job_from_bytes
from service.brokers.redis.connection import RedisConnection
from service.brokers.redis.options import RedisOptions
from service.brokers.redis.wakeups import WakeUps, look_s
from service.errors import QueueUnavailable
from service.jobs import JobDone, JobOutcome, state_of

_RECONNECT_S = 0.2


class _Asked(NamedTuple):
    """What one model had; `num_workers` are alive, and told only where nothing is left."""

    taken: Taken
    num_workers: int


class Deliveries:
    """What one worker draws, of all models."""

    def __init__(
        self, connection: RedisConnection, models: Sequence[str], worker: str, options: RedisOptions
    ) -> None:
        self._connection = connection
        self._models = tuple(models)
        self._worker = worker
        self._options = options
        self._wakeups = WakeUps(connection, worker)
        self._looked_s = 0.0
        self._turn = 0
        self._is_closed = False

    async def take(self, want: Want, *, wait: bool) -> Taken | None:
        """Hand out the next batch of one of the models, which take turns."""
        if want.is_whole_only:
            # Taken ahead, jobs would wait here while another worker may be idle.
            return Taken(None)
        woken_for: str | None = None
        while not self._is_closed:
            is_looking = time.monotonic() - self._looked_s >= self._options.lease_s / 4
            if is_looking:
                self._looked_s = time.monotonic()
            num_workers = 0
            for model in self._in_turn(want.models, woken_for):
                taken, num_alive = await self._ask(model, want.max_jobs, is_looking)
                if taken.batch or taken.num_expired or taken.num_cancelled:
                    return taken
                num_workers = max(num_workers, num_alive)
            if not wait:
                return Taken(None)
            woken_for = await self._wait_for_work(want.models, num_workers)
        if woken_for is not None:
            await self._wakeups.pass_on(woken_for)
        return None

    def _in_turn(self, models: Sequence[str], woken_for: str | None) -> Iterator[str]:
        """The models, each first once; before all the one that a wake-up was spent for."""
        if woken_for is not None:
            yield woken_for
        for _ in models:
            self._turn += 1
            model = models[self._turn % len(models)]
            if model != woken_for:
                yield model

    async def _wait_for_work(self, models: Sequence[str], num_workers: int) -> str | None:
        if self._is_closed:
            return None
        try:
            wait_s = min(look_s(num_workers), self._options.lease_s / 4)
            return await self._wakeups.wait(models, wait_s)
        except QueueUnavailable:
            # Asking tells whether the server is away or only the connection was.
            await asyncio.sleep(_RECONNECT_S)
            return None

    async def _ask(self, model: str, max_jobs: int, is_looking: bool) -> _Asked:
        options = self._options
        reason, num_expired, num_cancelled, rows, num_workers = await self._connection.script(
            "take",
            keys.prefix(model),
            [
                *(self._worker, max_jobs, options.ageing_s, int(options.lease_s * 1000)),
                *(options.max_deliveries, int(is_looking)),
            ],
        )
        if not rows:
            return _Asked(Taken(None, num_expired, num_cancelled), num_workers)
        deliveries = tuple(
            Delivery(
                job_from_bytes(body, image or None),
                int(number),
                f"{queue.decode()} {entry.decode()}",
            )
            for _, body, image, number, queue, entry in rows
        )
        batch = Batch(deliveries[0].job.key, deliveries, CloseReason(reason.decode()))
        return _Asked(Taken(batch, num_expired, num_cancelled), num_workers)

    async def renew(self, deliveries: Collection[Delivery]) -> frozenset[str]:
        """Keep leases; also the sign of life of a worker that draws for long."""
        gone: set[str] = set()
        for model in self._models:
            mine = [d for d in deliveries if d.job.key.model == model]
            arguments = [self._worker, *_arguments_of(mine)]
            lost = await self._connection.script("renew", keys.prefix(model), arguments)
            gone |= {job_id.decode() for job_id in lost}
        return frozenset(gone)

    async def reply(self, delivery: Delivery, outcome: JobOutcome) -> bool:
        """Compare and set on the delivery's number."""
        job = delivery.job
        arguments: list[Any] = [job.id, delivery.number, state_of(outcome).value]
        if isinstance(outcome, JobDone):
            arguments += ["", done_to_bytes(outcome), outcome.image_bytes, job.keep_s]
        else:
            arguments += [outcome.reason.value, b"", b"", job.keep_s]
        prefix = keys.prefix(job.key.model)
        return bool(await self._connection.script("finish", prefix, arguments))

    async def hand_back(self, deliveries: Collection[Delivery]) -> None:
        """Put jobs at the end of their lines: a stream has no other place for them."""
        for model in {delivery.job.key.model for delivery in deliveries}:
            mine = [d for d in deliveries if d.job.key.model == model]
            await self._connection.script("hand_back", keys.prefix(model), _arguments_of(mine))

    async def close(self) -> None:
        """Let `take` come to its end; what is queued is left to other workers."""
        self._is_closed = True
        await self._wakeups.end()


def _arguments_of(deliveries: Collection[Delivery]) -> list[Any]:
    """id, number, queue, entry of each."""
    rows = ((d.job.id, d.number, *d.receipt.split(" ")) for d in deliveries)
    return [value for row in rows for value in row]
