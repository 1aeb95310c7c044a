"""Noise belongs to a seed, never to a batch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.noise import MAX_SEED, unit_noise

SHAPE = (4, 3, 5)
_SEEDS = st.integers(0, MAX_SEED)


@given(seeds=st.lists(_SEEDS, min_size=1, max_size=6), step=st.integers(0, 3))
def test_a_picture_gets_the_same_noise_alone_and_in_any_batch(seeds: list[int], step: int) -> None:
    noise_BChw = unit_noise(seeds, SHAPE, step)
    assert noise_BChw.shape == (len(seeds), *SHAPE)
    assert noise_BChw.dtype == np.float32
    for seed, noise_Chw in zip(seeds, noise_BChw, strict=True):
        np.testing.assert_array_equal(noise_Chw, unit_noise([seed], SHAPE, step)[0])


@given(first=_SEEDS, second=_SEEDS)
def test_seeds_and_steps_differ(first: int, second: int) -> None:
    assert np.array_equal(unit_noise([first], SHAPE), unit_noise([second], SHAPE)) == (
        first == second
    )
    assert not np.array_equal(unit_noise([first], SHAPE, 0), unit_noise([first], SHAPE, 1))


def test_the_noise_is_unit_gaussian() -> None:
    noise = unit_noise(range(64), (16, 16, 16))
    assert abs(noise.mean()) < 0.01
    assert abs(noise.std() - 1) < 0.01


def test_the_noise_of_a_seed_never_changes_between_versions() -> None:
    # A seed is a promise to users: the same picture after an upgrade.
    expected = [-0.293339014, 1.703830600, 1.539191842]
    np.testing.assert_allclose(unit_noise([7], (1, 1, 3)).ravel(), expected, rtol=1e-6)


@pytest.mark.parametrize("seed", [-1, MAX_SEED + 1])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(ValueError, match=f"seed must be in 0..{MAX_SEED}"):
        unit_noise([0, seed], SHAPE)


def test_no_seeds_make_no_noise() -> None:
    assert unit_noise([], SHAPE).shape == (0, *SHAPE)
