"""What many timed runs say: quantiles, and how sure a ratio of two medians is.

Owns the arithmetic. Knows nothing of pipelines.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Shape suffixes: N runs, R resamples.

_LEVEL = 0.95
_NUM_RESAMPLES = 2000


@dataclass(frozen=True)
class Ratio:
    """How many times as fast, with the ends of its 95 % interval; None with fewer than two runs."""

    value: float
    low: float | None
    high: float | None


def quantile(spans_ms: Sequence[float], fraction: float) -> float:
    """Nearest rank: with few runs the p99 is the slowest one."""
    ordered = sorted(spans_ms)
    return ordered[math.ceil(fraction * len(ordered)) - 1]


def median(spans_ms: Sequence[float]) -> float:
    """The middle run, or the mean of the two middle ones."""
    return float(np.median(spans_ms))


def speed_ratio(reference_ms: Sequence[float], other_ms: Sequence[float], seed: int = 0) -> Ratio:
    """Median of the reference over median of the other: above 1 the other is faster.

    Runs of one round were timed beside each other, so rounds are drawn anew, not single runs.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3.

    Args:
        reference_ms: one time per round.
        other_ms: the same rounds.
        seed: of the resampling.
    """
    assert len(reference_ms) == len(other_ms)
    reference_N, other_N = np.asarray(reference_ms), np.asarray(other_ms)
    value = float(np.median(reference_N) / np.median(other_N))
    num = len(reference_N)
    if num < 2:
        return Ratio(value, None, None)
    drawn_RN = np.random.default_rng(seed).integers(0, num, (_NUM_RESAMPLES, num))
    ratios_R: NDArray[np.float64] = np.median(reference_N[drawn_RN], axis=1) / np.median(
        other_N[drawn_RN], axis=1
    )
    low, high = np.quantile(ratios_R, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return Ratio(value, float(low), float(high))
