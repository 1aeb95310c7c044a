"""The broker inside one process: a bounded queue and a table of futures.

Owns the order of waiting jobs, the bound and the drain estimate. Not thread-safe: every call
comes from the event loop's own thread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from service.brokers.base import QueueDepth
from service.errors import Draining, QueueFull
from service.jobs import FailureReason, Job, JobDone, JobFailed, JobOutcome

# Until the first picture is done there is no measured pace to estimate from.
FIRST_RETRY_AFTER_S = 1.0
# Weight of the newest measurement: the estimate follows a change of pace within some ten jobs.
PACE_WEIGHT = 0.1


@dataclass(frozen=True)
class _Open:
    job: Job
    future: asyncio.Future[JobOutcome]


class MemoryBroker:
    """Implements `Broker` for API and worker in one process."""

    def __init__(self, max_depth: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_depth = max_depth
        self._clock = clock
        self._open: dict[str, _Open] = {}
        # A dict keeps arrival order and lets a cancelled job leave from the middle.
        self._waiting: dict[str, Job] = {}
        self._changed = asyncio.Event()
        self._is_closed = False
        self._pace_s: float | None = None

    def now_s(self) -> float:
        """The injected clock; monotonic by default."""
        return self._clock()

    async def put(self, jobs: Sequence[Job]) -> list[asyncio.Future[JobOutcome]]:
        """Accept all jobs or none."""
        if self._is_closed:
            raise Draining("the service is shutting down and takes no new requests")
        if len(self._open) + len(jobs) > self._max_depth:
            raise QueueFull(
                f"{len(self._open)} pictures are queued and at most {self._max_depth} may be",
                retry_after_s=self._drain_s(),
            )
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[JobOutcome]] = []
        for job in jobs:
            assert job.id not in self._open, "job ids are unique"
            future: asyncio.Future[JobOutcome] = loop.create_future()
            self._open[job.id] = _Open(job, future)
            self._waiting[job.id] = job
            futures.append(future)
        self._changed.set()
        return futures

    async def take(self, max_jobs: int, *, wait: bool) -> list[Job]:
        """Hand out up to `max_jobs`, oldest first."""
        while wait and not self._waiting and not self._is_closed:
            self._changed.clear()
            await self._changed.wait()
        ids = list(self._waiting)[:max_jobs]
        return [self._waiting.pop(job_id) for job_id in ids]

    async def cancelled(self, job_ids: Collection[str]) -> frozenset[str]:
        """Those without an open entry: a taken job leaves the table only by reply or cancel."""
        return frozenset(job_id for job_id in job_ids if job_id not in self._open)

    async def reply(self, outcome: JobOutcome) -> bool:
        """Resolve the job's future."""
        if isinstance(outcome, JobDone):
            self._note_pace(outcome)
        return self._finish(outcome)

    async def cancel(self, job_ids: Collection[str]) -> int:
        """End open jobs at once, so that their places in the queue are free again."""
        num_waiting = 0
        for job_id in job_ids:
            num_waiting += self._waiting.pop(job_id, None) is not None
            self._finish(JobFailed(job_id, FailureReason.CANCELLED))
        return num_waiting

    async def depth(self) -> QueueDepth:
        """Open jobs; the table is in order of arrival, so the first is the oldest."""
        oldest = next(iter(self._open.values()), None)
        age_s = 0.0 if oldest is None else max(0.0, self.now_s() - oldest.job.created_s)
        return QueueDepth(len(self._open), age_s)

    async def close(self) -> None:
        """Refuse new jobs and wake a waiting `take`."""
        self._is_closed = True
        self._changed.set()

    def _finish(self, outcome: JobOutcome) -> bool:
        entry = self._open.pop(outcome.job_id, None)
        if entry is None:
            return False
        # A handler that was torn down cancels its futures; its job still ends here.
        if not entry.future.done():
            entry.future.set_result(outcome)
        return True

    def _note_pace(self, done: JobDone) -> None:
        pace_s = done.run_ms / 1000 / done.batch_size
        if self._pace_s is None:
            self._pace_s = pace_s
        else:
            self._pace_s += PACE_WEIGHT * (pace_s - self._pace_s)

    def _drain_s(self) -> float:
        if self._pace_s is None:
            return FIRST_RETRY_AFTER_S
        return len(self._open) * self._pace_s
