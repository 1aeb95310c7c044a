"""Jobs and outcomes as bytes, for a queue between processes.

Owns the layout: msgpack arrays whose first item is a version, so that two versions of the service
can meet in one queue during an upgrade. Pictures travel beside it, untouched.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import msgpack

from service.jobs import BatchKey, Job, JobDone, Priority

_VERSION = 1


def job_to_bytes(job: Job) -> bytes:
    """Everything but the picture to start from."""
    key = job.key
    return cast(
        bytes,
        msgpack.packb(
            [
                *(_VERSION, job.id, key.model, key.width, key.height, key.steps, key.strength),
                *(job.prompt, job.seed, job.format, job.created_s, job.deadline_s, job.quality),
                *(job.owner, int(job.priority), job.num_images, job.keep_s, job.secret, job.digest),
                *(job.webhook, job.traceparent),
            ]
        ),
    )


def job_from_bytes(body: bytes, image: bytes | None) -> Job:
    """The job that `job_to_bytes` was given; fields that a newer version appended are left out."""
    fields = cast(list[Any], msgpack.unpackb(body))
    _, job_id, model, width, height, steps, strength, *rest = fields
    prompt, seed, image_format, created_s, deadline_s, quality, *rest = rest
    owner, priority, num_images, keep_s, secret, digest, *rest = rest
    # Both were appended later.
    webhook, traceparent, *_ = (*rest, "", "")[: max(2, len(rest))]
    return Job(
        id=job_id,
        key=BatchKey(model, width, height, steps, strength),
        prompt=prompt,
        seed=seed,
        format=image_format,
        created_s=created_s,
        deadline_s=deadline_s,
        quality=quality,
        owner=owner,
        priority=Priority(priority),
        num_images=num_images,
        keep_s=keep_s,
        secret=secret,
        digest=digest,
        image=image,
        webhook=webhook,
        traceparent=traceparent,
    )


def done_to_bytes(done: JobDone) -> bytes:
    """Everything but the picture."""
    return cast(
        bytes,
        msgpack.packb(
            [
                *(_VERSION, done.seed, done.batch_size, done.queue_ms, done.run_ms),
                *(done.encode_ms, dict(done.stage_ms)),
            ]
        ),
    )


def done_from_bytes(job_id: str, body: bytes, image_bytes: bytes) -> JobDone:
    """The outcome that `done_to_bytes` was given."""
    fields = cast(list[Any], msgpack.unpackb(body))
    _, seed, batch_size, queue_ms, run_ms, encode_ms, stage_ms, *_ = fields
    return JobDone(
        job_id=job_id,
        image_bytes=image_bytes,
        seed=seed,
        batch_size=batch_size,
        queue_ms=queue_ms,
        run_ms=run_ms,
        encode_ms=encode_ms,
        stage_ms=cast(Mapping[str, float], stage_ms),
    )
