"""Jobs in a worker's hands: taken, kept, ended or handed back.

Owns the worker's side of the scripts: which model is asked next, when lost jobs are looked for, and
how a delivery is written in a script's arguments. The rules by which a batch is chosen are in
`take.lua`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Collection, Sequence
from typing import Any

from service.batching import Batch, CloseReason, Delivery
from service.brokers import keys
from service.brokers.base import Taken, Want
from service.brokers.codec import done_to_bytes, job_from_bytes
from service.brokers.redis.connection import BLOCK_MS, RedisConnection
from service.brokers.redis.options import RedisOptions
from service.errors import QueueUnavailable
from service.jobs import JobDone, JobOutcome, state_of

_RECONNECT_S = 0.2


class Deliveries:
    """What one worker draws, of all models."""

    def __init__(
        self, connection: RedisConnection, models: Sequence[str], worker: str, options: RedisOptions
    ) -> None:
        self._connection = connection
        self._models = tuple(models)
        self._worker = worker
        self._options = options
        self._news = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None
        self._looked_s = 0.0
        self._turn = 0
        self._is_closed = False
        self._is_stopped = False

    async def take(self, want: Want, *, wait: bool) -> Taken | None:
        """Hand out the next batch of one of the models, which take turns."""
        if want.is_whole_only:
            # Taken ahead, jobs would wait here while another worker may be idle.
            return Taken(None)
        if self._reader is None:
            self._reader = asyncio.create_task(self._read_news(want.models))
        while not self._is_closed:
            self._news.clear()
            is_looking = time.monotonic() - self._looked_s >= self._options.lease_s / 4
            if is_looking:
                self._looked_s = time.monotonic()
            for _ in want.models:
                self._turn += 1
                model = want.models[self._turn % len(want.models)]
                taken = await self._take_of(model, want.max_jobs, is_looking)
                if taken.batch or taken.num_expired or taken.num_cancelled:
                    return taken
            if not wait:
                return Taken(None)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), self._options.lease_s / 4)
        return None

    async def _take_of(self, model: str, max_jobs: int, is_looking: bool) -> Taken:
        options = self._options
        reason, num_expired, num_cancelled, rows = await self._connection.script(
            "take",
            keys.prefix(model),
            [
                *(self._worker, max_jobs, options.ageing_s, int(options.lease_s * 1000)),
                *(options.max_deliveries, int(is_looking)),
            ],
        )
        if not rows:
            return Taken(None, num_expired, num_cancelled)
        deliveries = tuple(
            Delivery(
                job_from_bytes(body, image or None),
                int(number),
                f"{queue.decode()} {entry.decode()}",
            )
            for _, body, image, number, queue, entry in rows
        )
        batch = Batch(deliveries[0].job.key, deliveries, CloseReason(reason.decode()))
        return Taken(batch, num_expired, num_cancelled)

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
        self._news.set()

    async def stop(self) -> None:
        """End the reader."""
        self._is_stopped = True
        if self._reader is not None:
            # Inside the client a cancellation may get lost; the flag ends the reader then.
            self._reader.cancel()
            await asyncio.wait([self._reader], timeout=2 * BLOCK_MS / 1000)

    async def _read_news(self, models: Sequence[str]) -> None:
        positions = {keys.wake(model): "0" for model in models}
        while not self._is_stopped:
            try:
                for stream, entries in (await self._connection.read(positions)).items():
                    positions[stream] = entries[-1][0]
                    self._news.set()
            except QueueUnavailable:
                await asyncio.sleep(_RECONNECT_S)


def _arguments_of(deliveries: Collection[Delivery]) -> list[Any]:
    """id, number, queue, entry of each."""
    rows = ((d.job.id, d.number, *d.receipt.split(" ")) for d in deliveries)
    return [value for row in rows for value in row]
