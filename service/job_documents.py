"""What clients are told of jobs: a request's state, its document, and why a picture is missing.

Owns the words for each reason of failure and how the states of pictures make the state of their
request. Knows neither queue nor web framework.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from service.errors import (
    DeadlineExceeded,
    GenerationFailed,
    JobCancelled,
    ProblemError,
    problem_document,
)
from service.jobs import (
    FailureReason,
    Job,
    JobDone,
    JobFailed,
    JobRecord,
    JobState,
    job_id,
    request_of,
    state_of,
)

TERMINAL = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED})
# Of several ends the first of these is the request's: what went wrong outweighs what was wanted.
_BY_WEIGHT = (JobState.FAILED, JobState.EXPIRED, JobState.CANCELLED)
_FAILURES: dict[FailureReason, tuple[type[ProblemError], str]] = {
    FailureReason.ENGINE: (
        GenerationFailed,
        "the engine failed on this picture; the log has the cause",
    ),
    FailureReason.ENCODER: (
        GenerationFailed,
        "the picture could not be encoded; the log has the cause",
    ),
    FailureReason.EXPIRED: (DeadlineExceeded, "no picture before the deadline"),
    FailureReason.CANCELLED: (JobCancelled, "the job was cancelled"),
    FailureReason.DELIVERIES: (
        GenerationFailed,
        "every worker that drew this picture stopped; it is not tried again",
    ),
    FailureReason.LOST: (
        GenerationFailed,
        "the picture was lost or is not kept any longer; send the request again, with a new "
        "idempotency key if it had one",
    ),
}


def failure(reason: FailureReason) -> ProblemError:
    """The error that a reason is answered with."""
    kind, detail = _FAILURES[reason]
    return kind(detail)


def with_lost(records: Sequence[JobRecord | None], job: Job) -> list[JobRecord]:
    """A request's records, where those that are not kept any longer have failed as lost.

    Args:
        records: of all its pictures, in order.
        job: any of them.
    """
    request = request_of(job.id)
    return [record or _lost(job, job_id(request, i)) for i, record in enumerate(records)]


def _lost(job: Job, missing: str) -> JobRecord:
    outcome = JobFailed(missing, FailureReason.LOST)
    return JobRecord(replace(job, id=missing), state_of(outcome), 0, outcome)


def state_told(record: JobRecord) -> JobState:
    """A picture's state; a picture that was drawn and is gone has failed."""
    return record.state if record.outcome is None else state_of(record.outcome)


def request_state(states: Sequence[JobState]) -> JobState:
    """What a request is in whose pictures are in these states."""
    if set(states) == {JobState.QUEUED}:
        return JobState.QUEUED
    if not TERMINAL.issuperset(states):
        return JobState.RUNNING
    return next((state for state in _BY_WEIGHT if state in states), JobState.SUCCEEDED)


def created_at(job: Job, now_s: float) -> int:
    """When a job was accepted, in seconds since 1970; `now_s` is the broker's clock."""
    # Which may count from anywhere.
    return int(time.time() - (now_s - job.created_s))


def job_document(records: Sequence[JobRecord], now_s: float, base_url: str) -> dict[str, Any]:
    """All that a client is told of a request.

    Args:
        records: of all its pictures, in order.
        now_s: the broker's clock.
        base_url: what the pictures' addresses begin with.
    """
    job = records[0].job
    key = job.key
    return {
        "id": request_of(job.id),
        "state": str(request_state([state_told(record) for record in records])),
        "created": created_at(job, now_s),
        "model": key.model,
        "width": key.width,
        "height": key.height,
        "steps": key.steps,
        **({} if key.strength is None else {"strength": key.strength}),
        "num_images": job.num_images,
        "pictures": [picture_document(record, base_url) for record in records],
    }


def picture_document(record: JobRecord, base_url: str) -> dict[str, Any]:
    """One picture of a request; its address is there once it is drawn."""
    job, outcome = record.job, record.outcome
    index = int(job.id.rpartition("-")[2])
    state = str(state_told(record))
    document: dict[str, Any] = {"index": index, "state": state, "seed": job.seed}
    if isinstance(outcome, JobDone):
        document["media_type"] = f"image/{job.format}"
        document["url"] = f"{base_url}/v1/jobs/{request_of(job.id)}/images/{index}"
    elif outcome is not None:
        document["error"] = problem_document(failure(outcome.reason))
    return document
