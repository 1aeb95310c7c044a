"""`Broker` over Redis.

Owns what each call asks of the scripts, the two readers (ends of jobs, and news for idle workers)
and the sweep that finds what a reader missed. Every change of a job's state is one script, so that
it happens whole or not at all, whichever process dies when.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from service.batching import AGEING_S, Batch, CloseReason, Delivery
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
from service.brokers.codec import done_from_bytes, done_to_bytes, job_from_bytes, job_to_bytes
from service.brokers.pace import Pace
from service.brokers.redis.connection import BLOCK_MS, RedisConnection
from service.brokers.redis.waiting import Waited, Waiters
from service.errors import QueueUnavailable
from service.jobs import (
    FailureReason,
    Job,
    JobDone,
    JobFailed,
    JobOutcome,
    JobRecord,
    JobState,
    request_of,
    siblings,
    state_of,
)
from service.telemetry import log_event

if TYPE_CHECKING:
    from redis.asyncio import Redis

# A reply takes milliseconds: who has waited longer is worth a look at the truth.
_ASK_AFTER_S = 0.5
_MAX_ASKED = 500
_RECONNECT_S = 0.2


@dataclass(frozen=True)
class RedisOptions:
    """How the queue behaves; the same for every process at it.

    Attributes:
        max_depth: open jobs per model.
        lease_s: after which a job whose worker gave no sign of life is handed out again.
        max_deliveries: after which it fails for good.
        ageing_s: how much longer a background job waits.
    """

    max_depth: int = 256
    lease_s: float = 10.0
    max_deliveries: int = 3
    ageing_s: float = AGEING_S


class RedisBroker:
    """Implements `Broker` for API and worker processes that meet in Redis."""

    def __init__(self, url: str, models: Sequence[str], options: RedisOptions) -> None:
        self._connection = RedisConnection(url)
        self._models = tuple(models)
        self._options = options
        self._name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._waiters = Waiters()
        self._forgettable: list[tuple[str, str]] = []
        self._pace = Pace()
        self._num_workers = 0
        self._is_closed = False
        self._is_stopped = False
        self._news = asyncio.Event()
        self._looked_s = 0.0
        self._turn = 0
        self._readers: dict[str, asyncio.Task[None]] = {}

    async def start(self) -> None:
        """Compare clocks if the server is there; a later sweep does it otherwise.

        Raises:
            StartError: the server is too old.
        """
        with contextlib.suppress(QueueUnavailable):
            await self._connection.check()

    async def stop(self) -> None:
        """End the readers and close the connections."""
        self._is_stopped = True
        for task in self._readers.values():
            # Inside the client a cancellation may get lost; the flag ends the reader then.
            task.cancel()
        if self._readers:
            await asyncio.wait(self._readers.values(), timeout=2 * BLOCK_MS / 1000)
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
        self._listen_to_replies()
        arguments: list[Any] = [self._options.max_depth, keys.replies(model, self._name), len(jobs)]
        for job in jobs:
            arguments += [job.id, job_to_bytes(job), job.image or b"", keys.queue(job)]
            arguments += [job.created_s, job.deadline_s, job.owner, request_of(job.id)]
            arguments += [job.keep_s, job.digest, int(bool(job.webhook))]
        async with self._waiting(jobs) as futures:
            verdict, *rest = await self._connection.script("put", keys.prefix(model), arguments)
            if verdict == b"full":
                drain_s = self._pace.drain_s(rest[0], self._num_workers)
                raise full(rest[0], self._options.max_depth, drain_s)
            if verdict == b"mismatch":
                raise mismatch()
            if verdict == b"accepted":
                return futures
        ids = siblings(jobs[0])
        return lost_where_unknown(ids, await self.watch(ids))

    @contextlib.asynccontextmanager
    async def _waiting(
        self, jobs: Sequence[Job]
    ) -> AsyncIterator[list[asyncio.Future[JobOutcome]]]:
        """Futures from before the jobs are queued: a reply may overtake the answer to `put`."""
        futures = [self._waiters.add(j.id, j.key.model) for j in jobs]
        is_accepted = False
        try:
            yield futures
            is_accepted = True
        finally:
            if not is_accepted:
                for job, future in zip(jobs, futures, strict=True):
                    self._waiters.drop(job.id, future)

    async def watch(self, job_ids: Sequence[str]) -> list[asyncio.Future[JobOutcome] | None]:
        """Join those who wait, here and on the server."""
        self._listen_to_replies()
        futures: dict[str, asyncio.Future[JobOutcome]] = {}
        ended: list[Waited] = []
        for model in self._models:
            added = {i: self._waiters.add(i, model) for i in job_ids}
            arguments = [keys.replies(model, self._name), *job_ids]
            try:
                states = await self._connection.script("watch", keys.prefix(model), arguments)
            except BaseException:
                for job_id, future in (*futures.items(), *added.items()):
                    self._waiters.drop(job_id, future)
                raise
            for (job_id, future), state in zip(added.items(), states, strict=True):
                if state == b"unknown":
                    self._waiters.drop(job_id, future)
                    continue
                futures[job_id] = future
                if state == b"ended":
                    ended += self._waiters.known([job_id])
        await self._resolve(ended)
        return [futures.get(job_id) for job_id in job_ids]

    async def find(
        self, job_ids: Sequence[str], *, with_pictures: bool = True
    ) -> list[JobRecord | None]:
        """What the server has of jobs, whichever model they are of."""
        pairs = [(model, job_id) for job_id in job_ids for model in self._models]
        records = await self._read_records(pairs, with_pictures)
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
        if want.is_whole_only:
            # Taken ahead, jobs would wait here while another worker may be idle.
            return Taken(None)
        if "news" not in self._readers:
            self._readers["news"] = asyncio.create_task(self._read_news(want.models))
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
                *(self._name, max_jobs, options.ageing_s, int(options.lease_s * 1000)),
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
            arguments = [self._name, *_arguments_of(mine)]
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

    # Both.

    async def sweep(self) -> QueueDepth:
        """End what is overdue, find replies that got lost, and jobs that the server lost."""
        await self._connection.check()
        depths = [await self._sweep_of(model) for model in self._models]
        self._num_workers = max(depth.num_workers or 0 for depth in depths)
        await self._resolve(self._waiters.older_than(_ASK_AFTER_S, _MAX_ASKED))
        await self._forget()
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
        self._news.set()

    def _listen_to_replies(self) -> None:
        if "replies" not in self._readers:
            self._readers["replies"] = asyncio.create_task(self._read_replies())

    async def _read_replies(self) -> None:
        positions = {keys.replies(model, self._name): "0" for model in self._models}
        async for job_ids in self._follow(positions):
            await self._resolve(self._waiters.known(job_ids))

    async def _read_news(self, models: Sequence[str]) -> None:
        async for _ in self._follow({keys.wake(model): "0" for model in models}):
            self._news.set()

    async def _follow(self, positions: dict[str, str]) -> AsyncIterator[list[str]]:
        """Jobs named by new entries, for ever; what is missed while away, the sweep finds."""
        while not self._is_stopped:
            try:
                for stream, entries in (await self._connection.read(positions)).items():
                    positions[stream] = entries[-1][0]
                    yield [job_id for _, job_id in entries]
            except QueueUnavailable:
                await asyncio.sleep(_RECONNECT_S)

    async def _resolve(self, waited: Sequence[Waited]) -> None:
        """Tell those who wait for jobs that have ended, or that are gone."""
        if not waited:
            return
        try:
            records = await self._read_records([(one.model, one.job_id) for one in waited])
        except QueueUnavailable:
            return  # The sweep asks again.
        for one in waited:
            record = records.get((one.model, one.job_id))
            if record is None:
                log_event("job_lost", job_id=one.job_id)
                self._waiters.resolve(JobFailed(one.job_id, FailureReason.LOST))
            elif record.outcome is not None:
                if isinstance(record.outcome, JobDone):
                    self._pace.note(record.outcome)
                self._waiters.resolve(record.outcome)
                if not record.job.keep_s:
                    self._forgettable.append((one.model, one.job_id))

    async def _forget(self) -> None:
        """Delete outcomes that nobody asked to keep: all who waited have heard of them."""
        if not self._forgettable:
            return
        pairs, self._forgettable = self._forgettable, []
        names = [name(*pair) for pair in pairs for name in (keys.job, keys.image)]
        await self._connection.run(lambda client: client.unlink(*names))

    async def _read_records(
        self, pairs: Sequence[tuple[str, str]], with_pictures: bool = True
    ) -> dict[tuple[str, str], JobRecord]:
        async def read(client: Any) -> list[Any]:
            async with client.pipeline(transaction=False) as pipeline:
                for model, job_id in pairs:
                    fields = ["body", "state", "delivery", "outcome", "reason"]
                    pipeline.hmget(keys.job(model, job_id), fields)
                    image = keys.image(model, job_id)
                    if with_pictures:
                        pipeline.get(image)
                    else:
                        pipeline.exists(image)
                return list(await pipeline.execute())

        answers = await self._connection.run(read)
        records: dict[tuple[str, str], JobRecord] = {}
        for pair, fields, image in zip(pairs, answers[::2], answers[1::2], strict=True):
            if fields[0] is not None:
                picture = image if with_pictures else b"" if image else None
                records[pair] = _record(pair[1], fields, picture)
        return records


def _record(job_id: str, fields: Sequence[bytes | None], image: bytes | None) -> JobRecord:
    body, state, number, outcome, reason = fields
    assert body is not None and state is not None, "both are written with the job"
    ended: JobOutcome | None = None
    if outcome is not None and image is not None:
        ended = done_from_bytes(job_id, outcome, image)
    elif reason is not None:
        ended = JobFailed(job_id, FailureReason(reason.decode()))
    elif outcome is not None:
        ended = JobFailed(job_id, FailureReason.LOST)
    return JobRecord(job_from_bytes(body, None), JobState(state.decode()), int(number or 0), ended)


def _arguments_of(deliveries: Collection[Delivery]) -> list[Any]:
    """id, number, queue, entry of each."""
    rows = ((d.job.id, d.number, *d.receipt.split(" ")) for d in deliveries)
    return [value for row in rows for value in row]
