"""How sure a figure is: over prompts of one run, and over seeds of several.

Owns the three kinds of intervals and their level. Knows nothing of pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Shape suffixes: N pictures, P prompts, R replicates.

LEVEL = 0.95
_NORMAL_QUANTILE = 1.959963984540054  # of (1 + LEVEL) / 2
NUM_GROUPS = 20
NUM_RESAMPLES = 1000


@dataclass(frozen=True)
class Estimate:
    """A figure and the interval that holds the true one in 95 of 100 repetitions.

    Attributes:
        value: the figure.
        low: lower end, or None where there is nothing to estimate it from.
        high: upper end.
    """

    value: float
    low: float | None = None
    high: float | None = None


def bootstrap_mean(
    values_N: NDArray[np.float64], prompts: Sequence[str], seed: int = 0
) -> Estimate:
    """Mean over pictures, its interval from drawing prompts anew (percentiles).

    Pictures of one prompt are no independent evidence: a prompt is drawn with all its pictures.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3.
    """
    values_N = np.asarray(values_N, dtype=np.float64)
    _, which_N = np.unique(np.asarray(prompts), return_inverse=True)
    sums_P = np.bincount(which_N, weights=values_N)
    counts_P = np.bincount(which_N)
    value = float(values_N.mean())
    if len(sums_P) < 2:
        return Estimate(value)
    drawn_RP = np.random.default_rng(seed).integers(
        0, len(sums_P), (NUM_RESAMPLES, len(sums_P)), dtype=np.int32
    )
    means_R = sums_P[drawn_RP].sum(1) / counts_P[drawn_RP].sum(1)
    low, high = np.quantile(means_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high))


def jackknife(
    statistic: Callable[[NDArray[np.int64]], float],
    prompts: Sequence[str],
    bounds: tuple[float, float] | None = None,
) -> Estimate:
    """A score of the whole set, its interval from leaving out one part of the prompts at a time.

    For distances between sets and for neighbour counts the bootstrap is no use: it draws pictures
    twice, and a set with twins lies closer together than any real one.
    Source: Shao and Wu, Annals of Statistics 17 (1989), the delete-d jackknife by groups.

    Args:
        statistic: the score of the pictures at some indices.
        prompts: of every picture; all pictures of a prompt leave together.
        bounds: of what the score can be, where it has some.
    """
    everything = np.arange(len(prompts))
    value = statistic(everything)
    names, which_N = np.unique(np.asarray(prompts), return_inverse=True)
    num_groups = min(NUM_GROUPS, len(names) // 2)
    if num_groups < 2:
        return Estimate(value)
    group_N = which_N % num_groups
    replicates = np.array([statistic(everything[group_N != g]) for g in range(num_groups)])
    spread = float(((replicates - replicates.mean()) ** 2).sum())
    half = _NORMAL_QUANTILE * math.sqrt((num_groups - 1) / num_groups * spread)
    low, high = bounds or (-math.inf, math.inf)
    return Estimate(value, max(low, value - half), min(high, value + half))


def over_seeds(values: Sequence[float]) -> Estimate:
    """Mean of one figure over runs with different seeds; Student's t interval.

    For a difference between two settings trained on the same seeds, give the differences.
    """
    num = len(values)
    mean = math.fsum(values) / num
    if num < 2:
        return Estimate(mean)
    variance = math.fsum((v - mean) ** 2 for v in values) / (num - 1)
    half = t_quantile((1 + LEVEL) / 2, num - 1) * math.sqrt(variance / num)
    return Estimate(mean, mean - half, mean + half)


def t_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t distribution above the median, by bisection of its distribution."""
    assert 0.5 <= probability < 1
    assert degrees >= 1
    low, high = 0.0, 1.0
    while _t_distribution(high, degrees) < probability:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if _t_distribution(middle, degrees) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _t_distribution(t: float, degrees: int) -> float:
    """P(T <= t) for t >= 0. Source: Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    angle = math.atan2(t, math.sqrt(degrees))
    cosine, sine = math.cos(angle), math.sin(angle)
    term, total = 1.0, 0.0
    if degrees % 2:
        for k in range(1, degrees - 1, 2):
            term *= cosine if k == 1 else cosine**2 * (k - 1) / k
            total += term
        inside = 2 / math.pi * (angle + sine * total)
    else:
        for k in range(0, degrees - 1, 2):
            term *= 1.0 if k == 0 else cosine**2 * (k - 1) / k
            total += term
        inside = sine * total
    return 0.5 + inside / 2
