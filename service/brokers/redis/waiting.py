"""Those in this process who wait for jobs' ends.

Owns the futures and what is known of each job that they wait for. Knows no connection.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from service.jobs import JobOutcome


@dataclass
class Waited:
    """A job whose end is waited for here."""

    job_id: str
    model: str
    since_s: float = field(default_factory=time.monotonic)
    futures: list[asyncio.Future[JobOutcome]] = field(default_factory=list)


class Waiters:
    """Futures by job."""

    def __init__(self) -> None:
        self._waited: dict[str, Waited] = {}

    def add(self, job_id: str, model: str) -> asyncio.Future[JobOutcome]:
        """A future for a job's end."""
        waited = self._waited.setdefault(job_id, Waited(job_id, model))
        future: asyncio.Future[JobOutcome] = asyncio.get_running_loop().create_future()
        # Whoever came and went while the job waits must not fill the list.
        waited.futures = [waiting for waiting in waited.futures if not waiting.done()]
        waited.futures.append(future)
        return future

    def drop(self, job_id: str, future: asyncio.Future[JobOutcome]) -> None:
        """Wait no more: the job was not accepted, or is not known."""
        waited = self._waited.get(job_id)
        if waited is None:
            return
        waited.futures = [waiting for waiting in waited.futures if waiting is not future]
        if not waited.futures:
            del self._waited[job_id]

    def known(self, job_ids: Iterable[str]) -> list[Waited]:
        """Those of the jobs that somebody waits for."""
        return [self._waited[job_id] for job_id in job_ids if job_id in self._waited]

    def older_than(self, age_s: float, max_jobs: int) -> list[Waited]:
        """Jobs waited for since long enough to ask after them, oldest first."""
        now_s = time.monotonic()
        old = [one for one in self._waited.values() if now_s - one.since_s >= age_s]
        return old[:max_jobs]

    def resolve(self, outcome: JobOutcome) -> Waited | None:
        """Tell everyone who waits; None when nobody does."""
        waited = self._waited.pop(outcome.job_id, None)
        if waited is None:
            return None
        for future in waited.futures:
            if not future.done():
                future.set_result(outcome)
        return waited
