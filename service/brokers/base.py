"""The broker protocol: what stands between the routes and the workers.

Owns the promises that every broker keeps and that one contract suite checks:

- A job that `put` accepted reaches exactly one terminal state, whichever of a worker's outcome, a
  cancellation and the deadline comes first; everyone who waits for it hears of that one.
- `put` takes all jobs of a request or none, refuses once `max_depth` jobs are open, and takes a
  request once: ids that are known already are not queued again, their outcome is waited for.
- A request that names a webhook is handed to one process after the other, until one of them says
  that it has been told.
- `take` hands out a batch of one key by the rules of `service.batching`, never more than there is,
  and never waits for a batch to fill.
- A job is handed out again when its worker does not renew it within the lease; an outcome counts
  only with the number of the latest delivery. After `max_deliveries` it fails for good.
- After `close`, `put` refuses.

Jobs are plain records and outcomes arrive through futures that the broker resolves, so that the
two sides may live in one process or in many. Knows neither HTTP nor engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from service.batching import Batch, Delivery
from service.errors import Draining, IdempotencyMismatch, QueueFull
from service.jobs import FailureReason, Job, JobFailed, JobOutcome, JobRecord


@dataclass(frozen=True)
class QueueCounts:
    """What happened to deliveries, whichever process did it.

    Attributes:
        num_redelivered: handed out again after a worker's silence.
        num_dead: given up after the last delivery.
        num_late: outcomes that came after the job's end or after a newer delivery.
    """

    num_redelivered: int = 0
    num_dead: int = 0
    num_late: int = 0


@dataclass(frozen=True)
class StoreHealth:
    """How the server that keeps the queue stands.

    Attributes:
        max_bytes: that it may use; 0 without a limit.
        is_persistent: its last write to the disk succeeded.
    """

    used_bytes: int
    max_bytes: int
    is_persistent: bool


@dataclass(frozen=True)
class QueueDepth:
    """How full the queue is.

    Attributes:
        num_jobs: without an outcome.
        oldest_age_s: of the oldest of them; 0 when there is none.
        num_expired: ended just now because their deadline had passed.
        num_workers: alive; None where the worker is part of this process.
        heartbeat_age_s: since the last sign of life of the one that has been silent longest.
        counts: since the queue began.
    """

    num_jobs: int
    oldest_age_s: float
    num_expired: int = 0
    num_workers: int | None = None
    heartbeat_age_s: float = 0.0
    counts: QueueCounts = field(default_factory=QueueCounts)


@dataclass(frozen=True)
class Want:
    """What a worker can run now.

    Attributes:
        is_whole_only: nothing but a full batch, for an engine that is still busy with the one
            before. A broker that cannot tell, or whose jobs other workers could draw meanwhile,
            answers with nothing.
    """

    models: tuple[str, ...]
    max_jobs: int
    is_whole_only: bool = False


@dataclass(frozen=True)
class Taken:
    """What `take` found.

    Attributes:
        batch: None when there is nothing to run.
        num_expired: jobs that came out too late and were ended instead.
        num_cancelled: entries that nobody wanted any more.
    """

    batch: Batch | None
    num_expired: int = 0
    num_cancelled: int = 0


class Broker(Protocol):
    """Accepts jobs on one side, hands them out on the other, carries outcomes back.

    Raises:
        QueueUnavailable: from any call, when the queue lives elsewhere and cannot be reached.
    """

    @property
    def store(self) -> StoreHealth | None:
        """How the server that keeps the queue stood when it last told; None where there is none.

        A server that refuses to change anything still tells.
        """
        ...

    def now_s(self) -> float:
        """The clock that `Job.created_s` and `Job.deadline_s` are read on."""
        ...

    async def put(self, jobs: Sequence[Job]) -> list[asyncio.Future[JobOutcome]]:
        """Accept all jobs of a request or none; one future per job, in order.

        What is not kept any longer of a request that is known has failed as `LOST`.

        Raises:
            QueueFull: they do not fit; carries the estimated time until the queue is empty.
            Draining: the broker is closed.
            IdempotencyMismatch: the ids are known, the request was another.
        """
        ...

    async def watch(self, job_ids: Sequence[str]) -> list[asyncio.Future[JobOutcome] | None]:
        """Futures of jobs that were put by anyone; None for ids that are not known."""
        ...

    async def find(
        self, job_ids: Sequence[str], *, with_pictures: bool = True
    ) -> list[JobRecord | None]:
        """What is known of jobs, the outcome included as long as it is kept.

        Without pictures, those of the outcomes may be empty: they need not be carried here.
        """
        ...

    async def requests_of(self, owner: str, max_requests: int) -> list[str]:
        """Requests whose outcomes are kept, newest first."""
        ...

    async def cancel(self, job_ids: Collection[str]) -> int:
        """End jobs that have no outcome yet; how many of them had not been taken."""
        ...

    async def hold_webhooks(self, held: Collection[str], hold_s: float, max_new: int) -> list[str]:
        """Requests whose webhooks nobody holds, for this process to hold from now on.

        `held` are those that it holds already. After `hold_s` without another call that names it,
        a request is handed to whoever asks.
        """
        ...

    async def drop_webhook(self, request: str) -> None:
        """The request's webhook has come to its end, and nobody needs to hold it again."""
        ...

    async def take(self, want: Want, *, wait: bool) -> Taken | None:
        """Hand out a batch.

        With `wait`, returns once there is something to tell, and None once there will be nothing
        more. Without, returns what is there.
        """
        ...

    async def renew(self, deliveries: Collection[Delivery]) -> frozenset[str]:
        """Keep the lease on what is being drawn; ids that need not be drawn any more."""
        ...

    async def reply(self, delivery: Delivery, outcome: JobOutcome) -> bool:
        """Give a job its outcome; False when it has one, or a newer delivery."""
        ...

    async def hand_back(self, deliveries: Collection[Delivery]) -> None:
        """Return jobs undrawn; it does not count as one of their deliveries."""
        ...

    async def sweep(self) -> QueueDepth:
        """End what is overdue and say how deep the queue is; to be called every second or so."""
        ...

    async def close(self) -> None:
        """Refuse new jobs from here on, and let `take` come to its end."""
        ...


def lost_where_unknown(
    job_ids: Iterable[str], futures: Iterable[asyncio.Future[JobOutcome] | None]
) -> list[asyncio.Future[JobOutcome]]:
    """What `watch` answered, with the end of those jobs that are not known any longer."""
    return [
        _ended(JobFailed(job_id, FailureReason.LOST)) if future is None else future
        for job_id, future in zip(job_ids, futures, strict=True)
    ]


def _ended(outcome: JobOutcome) -> asyncio.Future[JobOutcome]:
    future: asyncio.Future[JobOutcome] = asyncio.get_running_loop().create_future()
    future.set_result(outcome)
    return future


# What every broker refuses with, in the same words.


def closed() -> Draining:
    """It takes no new jobs any more."""
    return Draining("the service is shutting down and takes no new requests")


def full(num_open: int, max_depth: int, drain_s: float) -> QueueFull:
    """The jobs do not fit beside those that are open; `drain_s` until those are drawn."""
    return QueueFull(
        f"{num_open} pictures are queued and at most {max_depth} may be", retry_after_s=drain_s
    )


def mismatch() -> IdempotencyMismatch:
    """The request is known by its key, and was another."""
    return IdempotencyMismatch(
        "idempotency-key: it came with another request before; use a new one",
        field="idempotency-key",
    )
