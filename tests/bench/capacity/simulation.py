"""The queue and its engines, event by event: the service's own choice of jobs, emulated engines.

Owns the clock. The line is the real `WaitingJobs`; an engine does what a worker does: as soon as it
is free it takes what is there, at most a full batch, and is busy for a time known beforehand.
Knows nothing of the model that it judges.
"""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass

from service.batching import WaitingJobs
from service.jobs import BatchKey, Job
from tests.bench.capacity.load import EngineTime, OfferedLoad

_MODEL = "simulated"
_KEY = BatchKey(_MODEL, 512, 512, 1)
# The line is empty at the start, as it will never be again.
_WARM_UP_SHARE = 0.1


@dataclass(frozen=True)
class Simulated:
    """What happened, after a warm-up.

    Attributes:
        latencies_s: from a job's arrival to the end of its batch, ascending.
        utilisation: share of the engines' time in which they ran.
        mean_batch_size: over batches.
    """

    latencies_s: list[float]
    utilisation: float
    mean_batch_size: float

    def latency_s(self, quantile: float) -> float:
        """What this share of the jobs stayed within."""
        return self.latencies_s[min(len(self.latencies_s) - 1, int(quantile * len(self)))]

    def __len__(self) -> int:
        return len(self.latencies_s)


def simulate(engine: EngineTime, offered: OfferedLoad, num_jobs: int, seed: int) -> Simulated:
    """Let jobs arrive at random times, until so many have arrived.

    Args:
        engine: how long a batch takes, and its largest size.
        offered: arrivals and the number of engines.
        num_jobs: that arrive.
        seed: of the arrivals.
    """
    draw = random.Random(seed)
    waiting = WaitingJobs()
    num_free = offered.num_engines
    busy_until_s: list[float] = []
    latencies_s: list[float] = []
    run_sizes: list[int] = []
    num_warm_up = int(_WARM_UP_SHARE * num_jobs)
    arrival_s, num_arrived = draw.expovariate(offered.rate_per_s), 0
    while num_arrived < num_jobs or busy_until_s:
        if num_arrived < num_jobs and (not busy_until_s or arrival_s < busy_until_s[0]):
            now_s = arrival_s
            waiting.add(_job(num_arrived, now_s))
            num_arrived += 1
            arrival_s += draw.expovariate(offered.rate_per_s)
        else:
            now_s = heapq.heappop(busy_until_s)
            num_free += 1
        while num_free and len(waiting):
            jobs = waiting.next_jobs(engine.max_batch_size, (_MODEL,))
            end_s = now_s + engine.batch_s(len(jobs))
            heapq.heappush(busy_until_s, end_s)
            num_free -= 1
            if int(jobs[0].id) >= num_warm_up:
                latencies_s += [end_s - job.created_s for job in jobs]
                run_sizes.append(len(jobs))
    busy_s = sum(map(engine.batch_s, run_sizes))
    whole_s = offered.num_engines * sum(run_sizes) / offered.rate_per_s
    return Simulated(sorted(latencies_s), busy_s / whole_s, sum(run_sizes) / len(run_sizes))


def _job(number: int, now_s: float) -> Job:
    return Job(str(number), _KEY, "", number, "jpeg", created_s=now_s, deadline_s=now_s + 1e9)
