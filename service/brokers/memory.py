"""The broker inside one process: a bounded queue and a table of futures.

Owns open jobs and the outcomes that are kept. A worker in the same process cannot die alone, so
there is no lease. Not thread-safe: every call comes from the event loop's own thread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

from cachetools import TLRUCache

from service.batching import AGEING_S, Batch, CloseReason, Delivery, WaitingJobs
from service.brokers.base import (
    QueueDepth,
    StoreHealth,
    Taken,
    Want,
    closed,
    full,
    lost_where_unknown,
    mismatch,
)
from service.brokers.pace import Pace
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

# What a kept outcome takes beside its picture.
_RECORD_BYTES = 2048


@dataclass
class _Open:
    job: Job
    futures: list[asyncio.Future[JobOutcome]] = field(default_factory=list)
    num_deliveries: int = 0
    state: JobState = JobState.QUEUED


class MemoryBroker:
    """Implements `Broker` for API and worker in one process."""

    def __init__(
        self,
        max_depth: int,
        clock: Callable[[], float] = time.monotonic,
        *,
        max_kept_bytes: int = 2**28,
        ageing_s: float = AGEING_S,
    ) -> None:
        self._max_depth = max_depth
        self._clock = clock
        # In order of arrival, so the first is the oldest.
        self._open: dict[str, _Open] = {}
        self._waiting = WaitingJobs(ageing_s)
        self._ended: TLRUCache[str, JobRecord] = TLRUCache(
            max_kept_bytes,
            ttu=lambda _, record, now_s: now_s + record.job.keep_s,
            timer=clock,
            getsizeof=_size_of,
        )
        # Requests by when their webhooks may be handed out.
        self._webhooks: dict[str, float] = {}
        self._changed = asyncio.Event()
        self._is_closed = False
        self._pace = Pace()

    @property
    def store(self) -> StoreHealth | None:
        """There is no server."""
        return None

    def now_s(self) -> float:
        """The injected clock; monotonic by default."""
        return self._clock()

    async def put(self, jobs: Sequence[Job]) -> list[asyncio.Future[JobOutcome]]:
        """Accept all jobs or none; a request that is known is waited for."""
        known = self._known(jobs[0].id)
        if known is not None:
            if known.digest != jobs[0].digest:
                raise mismatch()
            ids = siblings(known)
            return lost_where_unknown(ids, await self.watch(ids))
        if self._is_closed:
            raise closed()
        if len(self._open) + len(jobs) > self._max_depth:
            num_open = len(self._open)
            raise full(num_open, self._max_depth, self._pace.drain_s(num_open))
        for job in jobs:
            self._open[job.id] = _Open(job)
            self._waiting.add(job)
            if job.webhook:
                self._webhooks[request_of(job.id)] = self.now_s()
        self._changed.set()
        return [self._future(self._open[job.id]) for job in jobs]

    async def watch(self, job_ids: Sequence[str]) -> list[asyncio.Future[JobOutcome] | None]:
        """Join those who wait."""
        return [self._watch(job_id) for job_id in job_ids]

    async def find(
        self, job_ids: Sequence[str], *, with_pictures: bool = True
    ) -> list[JobRecord | None]:
        """Open jobs and kept outcomes; pictures cost nothing here."""
        return [self._find(job_id) for job_id in job_ids]

    async def requests_of(self, owner: str, max_requests: int) -> list[str]:
        """Newest first."""
        jobs = [entry.job for entry in self._open.values()]
        jobs += [record.job for record in list(self._ended.values())]
        kept = (job for job in jobs if job.owner == owner and job.keep_s > 0)
        newest_first = sorted(kept, key=lambda job: -job.created_s)
        return list(dict.fromkeys(request_of(job.id) for job in newest_first))[:max_requests]

    async def cancel(self, job_ids: Collection[str]) -> int:
        """End open jobs at once, so that their places in the queue are free again."""
        num_waiting = 0
        for job_id in job_ids:
            num_waiting += self._waiting.remove(job_id) is not None
            self._finish(JobFailed(job_id, FailureReason.CANCELLED))
        return num_waiting

    async def hold_webhooks(self, held: Collection[str], hold_s: float, max_new: int) -> list[str]:
        """There is one process; what it let go of, it gets again."""
        now_s = self.now_s()
        for request in self._webhooks.keys() & held:
            self._webhooks[request] = now_s + hold_s
        free = [request for request, from_s in self._webhooks.items() if from_s <= now_s][:max_new]
        self._webhooks |= dict.fromkeys(free, now_s + hold_s)
        return free

    async def drop_webhook(self, request: str) -> None:
        """Forget it."""
        self._webhooks.pop(request, None)

    async def take(self, want: Want, *, wait: bool) -> Taken | None:
        """Hand out the next batch, once there is one."""
        num_expired = 0
        while True:
            jobs = self._waiting.next_jobs(want.max_jobs, want.models, want.is_whole_only)
            late = [job for job in jobs if job.deadline_s <= self.now_s()]
            for job in late:
                self._finish(JobFailed(job.id, FailureReason.EXPIRED))
            num_expired += len(late)
            if in_time := [job for job in jobs if job not in late]:
                reason = CloseReason.FULL if len(jobs) == want.max_jobs else CloseReason.NO_MORE
                deliveries = tuple(self._deliver(job) for job in in_time)
                return Taken(Batch(in_time[0].key, deliveries, reason), num_expired)
            if jobs:
                continue
            if not wait or num_expired:
                return Taken(None, num_expired)
            if self._is_closed:
                return None
            self._changed.clear()
            await self._changed.wait()

    async def renew(self, deliveries: Collection[Delivery]) -> frozenset[str]:
        """Those without an open entry: a taken job leaves the table only by its end."""
        return frozenset(d.job.id for d in deliveries if d.job.id not in self._open)

    async def reply(self, delivery: Delivery, outcome: JobOutcome) -> bool:
        """Resolve the job's futures."""
        if isinstance(outcome, JobDone):
            self._pace.note(outcome)
        entry = self._open.get(outcome.job_id)
        if entry is None or entry.num_deliveries != delivery.number:
            return False
        return self._finish(outcome)

    async def hand_back(self, deliveries: Collection[Delivery]) -> None:
        """Put jobs at the head of their lines."""
        for delivery in deliveries:
            entry = self._open.get(delivery.job.id)
            if entry is not None and entry.num_deliveries == delivery.number:
                entry.state = JobState.QUEUED
                self._waiting.put_back(delivery.job)
        self._changed.set()

    async def sweep(self) -> QueueDepth:
        """End jobs past their deadline and forget outcomes past their time."""
        now_s = self.now_s()
        overdue = [e.job for e in self._open.values() if e.job.deadline_s <= now_s]
        for job in overdue:
            self._waiting.remove(job.id)
            self._finish(JobFailed(job.id, FailureReason.EXPIRED))
        self._ended.expire()
        oldest = next(iter(self._open.values()), None)
        age_s = 0.0 if oldest is None else max(0.0, now_s - oldest.job.created_s)
        return QueueDepth(len(self._open), age_s, len(overdue))

    async def close(self) -> None:
        """Refuse new jobs; `take` hands out what is left, then nothing."""
        self._is_closed = True
        self._changed.set()

    def _deliver(self, job: Job) -> Delivery:
        entry = self._open[job.id]
        entry.state = JobState.RUNNING
        entry.num_deliveries += 1
        return Delivery(job, entry.num_deliveries)

    def _known(self, job_id: str) -> Job | None:
        record = self._find(job_id)
        return None if record is None else record.job

    def _find(self, job_id: str) -> JobRecord | None:
        entry = self._open.get(job_id)
        if entry is None:
            return self._ended.get(job_id)
        return JobRecord(entry.job, entry.state, entry.num_deliveries, None)

    def _watch(self, job_id: str) -> asyncio.Future[JobOutcome] | None:
        entry = self._open.get(job_id)
        if entry is not None:
            return self._future(entry)
        record = self._ended.get(job_id)
        if record is None:
            return None
        future: asyncio.Future[JobOutcome] = asyncio.get_running_loop().create_future()
        assert record.outcome is not None, "a kept record has its outcome"
        future.set_result(record.outcome)
        return future

    def _future(self, entry: _Open) -> asyncio.Future[JobOutcome]:
        future: asyncio.Future[JobOutcome] = asyncio.get_running_loop().create_future()
        # Whoever came and went while the job waits must not fill the list.
        entry.futures = [waiting for waiting in entry.futures if not waiting.done()]
        entry.futures.append(future)
        return future

    def _finish(self, outcome: JobOutcome) -> bool:
        entry = self._open.pop(outcome.job_id, None)
        if entry is None:
            return False
        # A handler that was torn down cancels its futures; its job still ends here.
        for future in entry.futures:
            if not future.done():
                future.set_result(outcome)
        if entry.job.keep_s > 0:
            job = replace(entry.job, image=None)
            record = JobRecord(job, state_of(outcome), entry.num_deliveries, outcome)
            if _size_of(record) <= self._ended.maxsize:
                self._ended[job.id] = record
        return True


def _size_of(record: JobRecord) -> int:
    image = record.outcome.image_bytes if isinstance(record.outcome, JobDone) else b""
    return _RECORD_BYTES + len(image) + len(record.job.prompt)
