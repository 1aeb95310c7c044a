"""The random start of a picture.

Owns the map from seed to unit Gaussian noise. A picture's noise depends on its own seed, step
and shape alone, never on batch-mates, so that a redelivered job draws the same picture again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MAX_SEED = 2**32 - 1


def unit_noise(
    seeds: Sequence[int], shape: tuple[int, int, int], step: int = 0
) -> NDArray[np.float32]:
    """Draw unit Gaussian noise, one counter-based generator per seed and step.

    Args:
        seeds: B integers in 0..MAX_SEED.
        shape: (C, h, w) of one picture's latents.
        step: index of the denoise step that will consume the noise, from 0.

    Returns:
        noise_BChw, float32.

    Raises:
        ValueError: a seed is out of range.
    """
    for seed in seeds:
        if not 0 <= seed <= MAX_SEED:
            raise ValueError(f"seed must be in 0..{MAX_SEED}, got {seed}")
    if not seeds:
        return np.empty((0, *shape), dtype=np.float32)
    return np.stack(
        [
            np.random.Generator(
                np.random.Philox(key=np.array([seed, step], dtype=np.uint64))
            ).standard_normal(shape, dtype=np.float32)
            for seed in seeds
        ]
    )
