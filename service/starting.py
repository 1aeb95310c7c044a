"""Jobs' pictures to start from, as the engine takes them, and what of them stays.

Owns the layout of `Job.image`. Knows neither engine nor queue.

Shape suffixes: B batch, H/W pixels, C channel.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from service.jobs import BatchKey, Job


def given_images(jobs: Sequence[Job], key: BatchKey) -> NDArray[np.uint8] | None:
    """images_BHWC in RGB, one per job; None where jobs of this key start from nothing."""
    if key.strength is None:
        return None
    return np.stack([_channels(job, key)[:, :, :3] for job in jobs])


def keep_what_is_masked(
    drawn_BHWC: NDArray[np.uint8], jobs: Sequence[Job], key: BatchKey
) -> NDArray[np.uint8]:
    """The drawn pictures, and where a job's mask is opaque its given one, to the byte."""
    if key.strength is None:
        return drawn_BHWC
    return np.stack(
        [_kept(drawn, _channels(job, key)) for drawn, job in zip(drawn_BHWC, jobs, strict=True)]
    )


def _kept(drawn_HWC: NDArray[np.uint8], given_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if given_HWC.shape[2] == 3:
        return drawn_HWC
    opacity_HW1 = given_HWC[:, :, 3:].astype(np.uint16)
    mixed_HWC = given_HWC[:, :, :3] * opacity_HW1 + drawn_HWC * (255 - opacity_HW1)
    rounded_HWC: NDArray[np.uint8] = ((mixed_HWC + 127) // 255).astype(np.uint8)
    return rounded_HWC


def _channels(job: Job, key: BatchKey) -> NDArray[np.uint8]:
    assert job.image is not None, "a key with a strength comes with a picture"
    return np.frombuffer(job.image, dtype=np.uint8).reshape(key.height, key.width, -1)
