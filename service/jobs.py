"""What travels through a broker: a job on the way in, its outcome on the way out.

Owns the frozen records and the reasons a job can fail. Knows neither queue nor engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

ImageFormat = Literal["png", "jpeg", "webp"]


@dataclass(frozen=True)
class BatchKey:
    """What jobs must share to run together."""

    model: str
    width: int
    height: int
    steps: int


@dataclass(frozen=True)
class Job:
    """One picture to draw.

    `quality` is 0 to 100, of lossy formats; None is the service's own choice.
    `created_s` and `deadline_s` are readings of the broker's clock (`Broker.now_s`).
    """

    id: str
    key: BatchKey
    prompt: str
    seed: int
    format: ImageFormat
    created_s: float
    deadline_s: float
    quality: int | None = None


class FailureReason(StrEnum):
    """Why a job ended without a picture."""

    ENGINE = "engine"
    ENCODER = "encoder"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


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
