"""What travels through a broker: a job on the way in, its outcome on the way out.

Owns the frozen records, the reasons a job can fail and the names of a request's jobs. Knows neither
queue nor engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Literal

ImageFormat = Literal["png", "jpeg", "webp"]


class Priority(IntEnum):
    """The smaller goes first; the larger overtakes once it has waited long enough."""

    INTERACTIVE = 0
    BACKGROUND = 1


@dataclass(frozen=True)
class BatchKey:
    """What jobs must share to run together.

    `strength` is how much of a given picture is drawn anew, in (0, 1]; None draws from the prompt
    alone.
    """

    model: str
    width: int
    height: int
    steps: int
    strength: float | None = None


@dataclass(frozen=True)
class Job:
    """One picture to draw.

    `created_s` and `deadline_s` are readings of the broker's clock (`Broker.now_s`).

    Attributes:
        id: `job_id` of its request and of its place among that request's pictures.
        quality: 0 to 100, of lossy formats; None is the service's own choice.
        owner: id of the API key that asked; empty where none is needed.
        num_images: how many pictures its request asked for.
        keep_s: how long its outcome can be read once it has one; with 0 only those who wait for it
            hear of it.
        secret: whoever knows it may see the picture; an id is no secret.
        digest: of the request, where it came with an idempotency key: the same key with another
            request is refused.
        image: what to start from where the key has a strength: RGB rows of `key.width` by
            `key.height` pixels, three bytes each; or RGBA, four bytes each, where it came with a
            mask: what is opaque stays as it is.
        traceparent: its request's place in a trace; empty where none is kept.
        webhook: where to tell that all pictures of its request have ended; empty tells nobody.
    """

    id: str
    key: BatchKey
    prompt: str
    seed: int
    format: ImageFormat
    created_s: float
    deadline_s: float
    quality: int | None = None
    owner: str = ""
    priority: Priority = Priority.INTERACTIVE
    num_images: int = 1
    keep_s: float = 0.0
    secret: str = ""
    digest: str = ""
    image: bytes | None = None
    webhook: str = ""
    traceparent: str = ""


def job_id(request: str, index: int) -> str:
    """The id of a request's picture."""
    return f"{request}-{index}"


def request_of(job_id: str) -> str:
    """The request that a job belongs to."""
    return job_id.rpartition("-")[0]


def siblings(job: Job) -> list[str]:
    """The ids of all pictures of a job's request."""
    return [job_id(request_of(job.id), index) for index in range(job.num_images)]


class JobState(StrEnum):
    """Where a job is; the last four are terminal, and a job enters one of them once."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class FailureReason(StrEnum):
    """Why a job ended without a picture."""

    ENGINE = "engine"
    ENCODER = "encoder"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    DELIVERIES = "deliveries"
    LOST = "lost"


@dataclass(frozen=True)
class JobDone:
    """A picture and how long each part of it took."""

    job_id: str
    image_bytes: bytes
    seed: int
    batch_size: int
    queue_ms: float
    run_ms: float
    encode_ms: float
    stage_ms: Mapping[str, float]


@dataclass(frozen=True)
class JobFailed:
    """A job's end without a picture."""

    job_id: str
    reason: FailureReason


JobOutcome = JobDone | JobFailed


def state_of(outcome: JobOutcome) -> JobState:
    """The terminal state that an outcome stands for."""
    if isinstance(outcome, JobDone):
        return JobState.SUCCEEDED
    if outcome.reason is FailureReason.EXPIRED:
        return JobState.EXPIRED
    if outcome.reason is FailureReason.CANCELLED:
        return JobState.CANCELLED
    return JobState.FAILED


@dataclass(frozen=True)
class JobRecord:
    """What a broker knows of a job."""

    job: Job
    state: JobState
    num_deliveries: int
    outcome: JobOutcome | None
