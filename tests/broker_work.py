"""What tests of brokers do at either end: jobs to put, the next batch, an answer to a job."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from itertools import count
from typing import Any, Protocol, TypeVar

from service.batching import Delivery
from service.brokers.base import Broker, Want
from service.jobs import BatchKey, Job, JobDone, job_id

KEY = BatchKey("tiny", 16, 16, 1)
WANT = Want(("tiny",), 10)
_ids = count()
T = TypeVar("T")


class MakeJob(Protocol):
    """`new_job` for the broker of the test."""

    def __call__(self, **changes: Any) -> Job: ...


def new_job(broker: Broker, **changes: Any) -> Job:
    """A job that nobody has put yet, created now and with a minute's time."""
    now_s = broker.now_s()
    fields: dict[str, Any] = {
        "id": job_id(f"request{next(_ids)}", 0),
        "key": KEY,
        "prompt": "a red heart",
        "seed": 1,
        "format": "png",
        "created_s": now_s,
        "deadline_s": now_s + 60,
    }
    return Job(**(fields | changes))


def done(job: Job, **changes: Any) -> JobDone:
    """A picture of the job."""
    fields: dict[str, Any] = {
        "job_id": job.id,
        "image_bytes": b"picture",
        "seed": job.seed,
        "batch_size": 2,
        "queue_ms": 1.0,
        "run_ms": 100.0,
        "encode_ms": 1.0,
        "stage_ms": {"denoise": 60.0, "decode": 40.0},
    }
    return JobDone(**(fields | changes))


async def take(worker: Broker, want: Want = WANT) -> list[Delivery]:
    """The next batch, which must be there."""
    async with asyncio.timeout(10):
        while True:
            taken = await worker.take(want, wait=True)
            assert taken is not None
            if taken.batch is not None:
                return list(taken.batch.deliveries)


async def take_nothing(worker: Broker) -> None:
    """There must be no batch."""
    taken = await worker.take(WANT, wait=False)
    assert taken is None or taken.batch is None


def jobs_of(deliveries: list[Delivery]) -> list[Job]:
    """In the same order."""
    return [delivery.job for delivery in deliveries]


async def within(awaitable: Awaitable[T]) -> T:
    """What comes of it, soon."""
    return await asyncio.wait_for(awaitable, 10)
