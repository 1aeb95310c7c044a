"""What the server has of jobs, as records.

Owns the reading of jobs' hashes and pictures, and their deletion. Changes no job's state: that is
the scripts' part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from service.brokers import keys
from service.brokers.codec import done_from_bytes, job_from_bytes
from service.brokers.redis.connection import RedisConnection
from service.jobs import FailureReason, JobFailed, JobOutcome, JobRecord, JobState

# (model, job id)
Named = tuple[str, str]


async def read_records(
    connection: RedisConnection, named: Sequence[Named], *, with_pictures: bool = True
) -> dict[Named, JobRecord]:
    """Those of the jobs that the server knows.

    Raises:
        QueueUnavailable: as `RedisConnection.run`.
    """

    async def read(client: Any) -> list[Any]:
        async with client.pipeline(transaction=False) as pipeline:
            for model, job_id in named:
                fields = ["body", "state", "delivery", "outcome", "reason"]
                pipeline.hmget(keys.job(model, job_id), fields)
                image = keys.image(model, job_id)
                if with_pictures:
                    pipeline.get(image)
                else:
                    pipeline.exists(image)
            return list(await pipeline.execute())

    answers = await connection.run(read)
    records: dict[Named, JobRecord] = {}
    for one, fields, image in zip(named, answers[::2], answers[1::2], strict=True):
        if fields[0] is not None:
            picture = image if with_pictures else b"" if image else None
            records[one] = _record(one[1], fields, picture)
    return records


async def delete_records(connection: RedisConnection, named: Sequence[Named]) -> None:
    """Forget jobs and their pictures.

    Raises:
        QueueUnavailable: as `RedisConnection.run`.
    """
    names = [name(*one) for one in named for name in (keys.job, keys.image)]
    await connection.run(lambda client: client.unlink(*names))


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
