"""Jobs to batches, beside the engine.

Owns which jobs run together and in which order. Work-conserving: a batch is formed only when the
engine is free, out of whatever is there, and never waits for more. Knows no engine, no broker.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from enum import StrEnum

from service.jobs import BatchKey, Job

# Looking this many batches ahead lets jobs of one key find each other behind other keys, while
# what the worker holds stays small.
LOOKAHEAD_BATCHES = 4


class CloseReason(StrEnum):
    """Why a batch took no more jobs."""

    FULL = "full"
    NO_MORE = "no_more"


@dataclass(frozen=True)
class Batch:
    """Jobs of one key, in order of arrival."""

    key: BatchKey
    jobs: tuple[Job, ...]
    close_reason: CloseReason


class Batcher:
    """Holds taken jobs by key until the engine is free."""

    def __init__(self, max_batch_size: int, clock: Callable[[], float]) -> None:
        self._max_batch_size = max_batch_size
        self._clock = clock
        self._queues: dict[BatchKey, deque[Job]] = {}

    @property
    def job_ids(self) -> list[str]:
        """Every job held."""
        return [job.id for queue in self._queues.values() for job in queue]

    @property
    def room(self) -> int:
        """How many more jobs may be held."""
        return LOOKAHEAD_BATCHES * self._max_batch_size - len(self.job_ids)

    def add(self, jobs: Iterable[Job]) -> None:
        """Hold jobs, in order of arrival."""
        for job in jobs:
            self._queues.setdefault(job.key, deque()).append(job)

    def drop_cancelled(self, job_ids: Collection[str]) -> list[Job]:
        """Let go of jobs that nobody waits for."""
        return self._drop(lambda job: job.id in job_ids)

    def drop_expired(self) -> list[Job]:
        """Let go of jobs whose deadline has passed."""
        now_s = self._clock()
        return self._drop(lambda job: job.deadline_s <= now_s)

    def next_batch(self) -> Batch | None:
        """The batch that holds the job which has waited longest; None when nothing is held."""
        if not self._queues:
            return None
        key = min(self._queues, key=lambda key: self._queues[key][0].created_s)
        queue = self._queues[key]
        num_jobs = min(len(queue), self._max_batch_size)
        jobs = tuple(queue.popleft() for _ in range(num_jobs))
        if not queue:
            del self._queues[key]
        is_full = num_jobs == self._max_batch_size
        return Batch(key, jobs, CloseReason.FULL if is_full else CloseReason.NO_MORE)

    def _drop(self, is_unwanted: Callable[[Job], bool]) -> list[Job]:
        dropped: list[Job] = []
        for key, queue in list(self._queues.items()):
            unwanted = [job for job in queue if is_unwanted(job)]
            if not unwanted:
                continue
            dropped += unwanted
            kept = deque(job for job in queue if not is_unwanted(job))
            if kept:
                self._queues[key] = kept
            else:
                del self._queues[key]
        return dropped
