"""A job's picture as the engine takes it, and what of it stays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from service_fixtures import KEY, SIZE_PX, make_job

from service.jobs import Job
from service.starting import given_images, keep_what_is_masked

FROM_IMAGE = replace(KEY, strength=0.5)
RNG = np.random.default_rng(0)


def _job(channels: int, **changes: object) -> tuple[Job, np.ndarray]:
    image_HWC = RNG.integers(0, 256, (SIZE_PX, SIZE_PX, channels), dtype=np.uint8)
    return make_job(key=FROM_IMAGE, image=image_HWC.tobytes()), image_HWC


def test_from_noise_nothing_is_given_and_nothing_kept() -> None:
    drawn = np.zeros((1, SIZE_PX, SIZE_PX, 3), np.uint8)
    assert given_images([make_job()], KEY) is None
    assert keep_what_is_masked(drawn, [make_job()], KEY) is drawn


def test_each_job_gives_its_own_picture() -> None:
    (plain, plain_HWC), (masked, masked_HWC) = _job(3), _job(4)
    images_BHWC = given_images([plain, masked], FROM_IMAGE)
    assert images_BHWC is not None and images_BHWC.shape == (2, SIZE_PX, SIZE_PX, 3)
    assert (images_BHWC[0] == plain_HWC).all()
    assert (images_BHWC[1] == masked_HWC[..., :3]).all()


def test_what_is_opaque_stays_what_is_transparent_is_drawn_and_between_they_mix() -> None:
    (plain, _), (masked, masked_HWC) = _job(3), _job(4)
    masked_HWC = masked_HWC.copy()
    masked_HWC[:4, :, 3], masked_HWC[4:8, :, 3], masked_HWC[8:, :, 3] = 255, 0, 51
    masked = replace(masked, image=masked_HWC.tobytes())
    drawn = RNG.integers(0, 256, (2, SIZE_PX, SIZE_PX, 3), dtype=np.uint8)
    kept = keep_what_is_masked(drawn, [plain, masked], FROM_IMAGE)
    assert (kept[0] == drawn[0]).all()
    assert (kept[1, :4] == masked_HWC[:4, :, :3]).all()
    assert (kept[1, 4:8] == drawn[1, 4:8]).all()
    mixed = 0.2 * masked_HWC[8:, :, :3] + 0.8 * drawn[1, 8:]
    assert np.abs(kept[1, 8:] - mixed).max() <= 0.5


def test_a_picture_of_another_size_is_an_error() -> None:
    job = make_job(key=FROM_IMAGE, image=b"\0" * (SIZE_PX * SIZE_PX * 3 - 1))
    with pytest.raises(ValueError):
        given_images([job], FROM_IMAGE)
