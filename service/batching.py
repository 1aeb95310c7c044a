"""Which waiting jobs run next, and together.

Owns the order: priority with ageing, a fair share per owner, one batch key at a time. Work is never
held back to wait for more of it. Knows no engine and no broker; brokers that keep their queue
elsewhere follow the same rules, which one contract suite checks.

The rules, for whoever is free to draw:

1. The job that has waited longest decides which priority is served, a background job's wait being
   shortened by `ageing_s`: it goes after the interactive ones until it has waited that much longer.
2. Among the owners with a job of that priority, the one that was served least recently decides the
   batch key: by its oldest job.
3. The batch is filled with jobs of that key, one owner after the other, and with the other
   priority's once this one's are used up.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from service.jobs import BatchKey, Job, Priority

# A background job has waited long enough after this many seconds more than an interactive one.
AGEING_S = 5.0


class CloseReason(StrEnum):
    """Why a batch took no more jobs."""

    FULL = "full"
    NO_MORE = "no_more"
    DEADLINE = "deadline"
    REDELIVERY = "redelivery"


@dataclass(frozen=True)
class Delivery:
    """A job in a worker's hands.

    Attributes:
        number: 1 for the first time that the job was handed out; an outcome counts only with the
            latest number.
        receipt: what the broker needs to find its own entry again.
    """

    job: Job
    number: int = 1
    receipt: str = ""


@dataclass(frozen=True)
class Batch:
    """Jobs of one key, in order of arrival."""

    key: BatchKey
    deliveries: tuple[Delivery, ...]
    close_reason: CloseReason


class _Lane(NamedTuple):
    """One owner's jobs of one key and priority wait in one line."""

    owner: str
    priority: Priority
    key: BatchKey


class WaitingJobs:
    """Jobs that no worker has taken, and the choice among them."""

    def __init__(self, ageing_s: float = AGEING_S) -> None:
        self._ageing_s = ageing_s
        self._lanes: dict[_Lane, OrderedDict[str, Job]] = {}
        self._lane_of: dict[str, _Lane] = {}
        # Owners in the order in which they were served; who waits for the first time is first.
        self._served: dict[str, int] = {}
        self._num_served = 0

    def __len__(self) -> int:
        return len(self._lane_of)

    def __iter__(self) -> Iterator[Job]:
        for jobs in self._lanes.values():
            yield from jobs.values()

    def add(self, job: Job) -> None:
        """Put a job at its line's end."""
        lane = _Lane(job.owner, job.priority, job.key)
        self._lanes.setdefault(lane, OrderedDict())[job.id] = job
        self._lane_of[job.id] = lane

    def put_back(self, job: Job) -> None:
        """Put a job at its line's head: it had been taken and was not drawn."""
        self.add(job)
        self._lanes[self._lane_of[job.id]].move_to_end(job.id, last=False)

    def remove(self, job_id: str) -> Job | None:
        """Let go of a job wherever it stands."""
        lane = self._lane_of.pop(job_id, None)
        if lane is None:
            return None
        jobs = self._lanes[lane]
        job = jobs.pop(job_id)
        if not jobs:
            del self._lanes[lane]
            self._forget(lane.owner)
        return job

    def next_jobs(
        self, max_jobs: int, models: Collection[str], is_whole_only: bool = False
    ) -> list[Job]:
        """Take out the jobs to run now, at most `max_jobs` and all of one key.

        With `is_whole_only` exactly `max_jobs`, or none.
        """
        if len(self) == 1:  # nothing to choose from, and an engine waits
            return self._only_job(models) if max_jobs == 1 or not is_whole_only else []
        lanes = [lane for lane in self._lanes if lane.key.model in models]
        if not lanes:
            return []
        priority = min(lanes, key=self._rank).priority
        chosen = min(
            (lane for lane in lanes if lane.priority is priority),
            key=lambda lane: (self._served.get(lane.owner, 0), self._rank(lane)),
        )
        if is_whole_only:
            num_fitting = sum(len(self._lanes[lane]) for lane in lanes if lane.key == chosen.key)
            if num_fitting < max_jobs:
                return []
        jobs: list[Job] = []
        for served_first in (priority, *(other for other in Priority if other is not priority)):
            line = [
                lane for lane in lanes if (lane.key, lane.priority) == (chosen.key, served_first)
            ]
            line.sort(key=lambda lane: self._served.get(lane.owner, 0))
            while line and len(jobs) < max_jobs:
                lane = line.pop(0)
                self._num_served += 1
                self._served[lane.owner] = self._num_served
                job = self.remove(next(iter(self._lanes[lane])))
                assert job is not None, "a lane that is kept holds a job"
                jobs.append(job)
                if lane in self._lanes:
                    line.append(lane)
        return jobs

    def _only_job(self, models: Collection[str]) -> list[Job]:
        (job_id,) = self._lane_of
        if self._lane_of[job_id].key.model not in models:
            return []
        job = self.remove(job_id)
        assert job is not None, "its lane holds it"
        return [job]

    def _rank(self, lane: _Lane) -> float:
        head = next(iter(self._lanes[lane].values()))
        return head.created_s + (self._ageing_s if lane.priority is Priority.BACKGROUND else 0.0)

    def _forget(self, owner: str) -> None:
        """Keep no mark of an owner who has nothing here: the table must stay bounded."""
        if all(lane.owner != owner for lane in self._lanes):
            self._served.pop(owner, None)


class RunTimes:
    """How long a batch takes by its size: a + b·n, fitted to the runs seen.

    Source: least squares over (n, seconds) in running sums, newer runs weighing more.
    """

    # A run's weight is halved after some 14 later ones: a new clock or neighbour is noticed.
    DECAY = 0.95

    def __init__(self) -> None:
        self._weight = self._n = self._s = self._nn = self._ns = 0.0

    def note(self, num_jobs: int, run_s: float) -> None:
        """Learn from one run."""
        self._weight = self._weight * self.DECAY + 1.0
        self._n = self._n * self.DECAY + num_jobs
        self._s = self._s * self.DECAY + run_s
        self._nn = self._nn * self.DECAY + num_jobs**2
        self._ns = self._ns * self.DECAY + num_jobs * run_s

    def expected_s(self, num_jobs: int) -> float:
        """Seconds that a batch of this size takes; 0 before anything was seen."""
        if not self._weight:
            return 0.0
        spread = self._weight * self._nn - self._n**2
        if spread < 1e-6 * self._weight**2:
            # One size alone says nothing of the others: take its cost as all per job.
            return num_jobs * self._s / self._n
        per_job_s = max((self._weight * self._ns - self._n * self._s) / spread, 0.0)
        fixed_s = max((self._s - per_job_s * self._n) / self._weight, 0.0)
        return fixed_s + per_job_s * num_jobs


def num_in_time(times: RunTimes, num_jobs: int, time_left_s: float) -> int:
    """How many of `num_jobs` run first, so that the most urgent of them meets its deadline.

    All of them where that is possible, and where it is not even possible alone: a smaller batch
    would then be of no use to it and a loss for the others.
    """
    if times.expected_s(num_jobs) <= time_left_s or times.expected_s(1) > time_left_s:
        return num_jobs
    low, high = 1, num_jobs
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if times.expected_s(middle) <= time_left_s else (low, middle)
    return low


def parts_in_time(
    batch: Batch, now_s: float, expected: Callable[[BatchKey], RunTimes]
) -> tuple[Batch, Batch | None]:
    """What of a batch runs now, and what right after it."""
    if len(batch.deliveries) == 1:
        return batch, None
    deliveries = sorted(batch.deliveries, key=lambda delivery: delivery.job.deadline_s)
    left_s = deliveries[0].job.deadline_s - now_s if deliveries else math.inf
    num = num_in_time(expected(batch.key), len(deliveries), left_s)
    if num == len(deliveries):
        return batch, None
    first: Sequence[Delivery] = deliveries[:num]
    rest = Batch(batch.key, tuple(deliveries[num:]), batch.close_reason)
    return Batch(batch.key, tuple(first), CloseReason.DEADLINE), rest
