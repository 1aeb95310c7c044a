"""The broker protocol: what stands between the routes and the worker.

Owns the promises that every broker keeps and that one contract suite checks:

- A job that `put` accepted reaches exactly one outcome, whichever of `reply` and `cancel` is first.
- `put` takes all jobs of a request or none, and refuses once `max_depth` jobs have no outcome.
- `take` hands out each job once, oldest first.
- After `close`, `put` refuses, and `take` hands out what is left, then nothing.

Jobs are plain records and outcomes arrive through futures that the broker resolves, so that the
two sides may live in one process or in many. Knows neither HTTP nor engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from service.jobs import Job, JobOutcome


@dataclass(frozen=True)
class QueueDepth:
    """Jobs without an outcome, and the age of the oldest (0 when there is none)."""

    num_jobs: int
    oldest_age_s: float


class Broker(Protocol):
    """Accepts jobs on one side, hands them out on the other, carries outcomes back."""

    def now_s(self) -> float:
        """The clock that `Job.created_s` and `Job.deadline_s` are read on."""
        ...

    async def put(self, jobs: Sequence[Job]) -> list[asyncio.Future[JobOutcome]]:
        """Accept all jobs or none; one future per job, in order.

        Raises:
            QueueFull: they do not fit; carries the estimated time until the queue is empty.
            Draining: the broker is closed.
        """
        ...

    async def take(self, max_jobs: int, *, wait: bool) -> list[Job]:
        """Hand out up to `max_jobs`.

        With `wait`, returns at least one, or none once the broker is closed and empty. Without,
        returns what is there.
        """
        ...

    async def cancelled(self, job_ids: Collection[str]) -> frozenset[str]:
        """Those of the taken jobs that nobody waits for any more."""
        ...

    async def reply(self, outcome: JobOutcome) -> bool:
        """Give a job its outcome; False when it already had one."""
        ...

    async def cancel(self, job_ids: Collection[str]) -> int:
        """End jobs that have no outcome yet; how many of them had not been taken."""
        ...

    async def depth(self) -> QueueDepth:
        """How many jobs have no outcome yet, and since when."""
        ...

    async def close(self) -> None:
        """Refuse new jobs from here on."""
        ...
