"""Intervals against tables, closed forms and their own promise of 95 in 100."""

from __future__ import annotations

import numpy as np
import pytest

from distill.evaluation.intervals import (
    Estimate,
    bootstrap_mean,
    jackknife,
    over_seeds,
    t_quantile,
)


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    # Of 0.975, from the tables of Abramowitz and Stegun, 26.10.
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (9, 2.262), (30, 2.042)],
)
def test_student_quantiles_are_those_of_the_tables(degrees: int, quantile: float) -> None:
    assert t_quantile(0.975, degrees) == pytest.approx(quantile, abs=5e-4)


def test_three_seeds_have_a_wide_interval() -> None:
    found = over_seeds([1.0, 2.0, 3.0])
    # Standard error 1 / sqrt(3), two degrees of freedom.
    assert found.value == 2.0
    assert found.high == pytest.approx(2 + 4.3027 / 3**0.5, abs=1e-4)
    assert found.low == pytest.approx(2 - 4.3027 / 3**0.5, abs=1e-4)


def test_one_seed_has_no_interval() -> None:
    assert over_seeds([0.5]) == Estimate(0.5)


def _prompts(num: int) -> list[str]:
    return [f"prompt {i}" for i in range(num)]


def test_the_bootstrap_of_a_mean_is_its_standard_error() -> None:
    values = np.random.default_rng(0).standard_normal(400)
    found = bootstrap_mean(values, _prompts(400))
    assert found.low is not None and found.high is not None
    half = 1.96 * values.std(ddof=1) / 400**0.5
    assert found.value == pytest.approx(values.mean())
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.1)
    assert bootstrap_mean(values, _prompts(400)) == found


def test_seeds_of_one_prompt_are_no_further_evidence() -> None:
    """Four equal pictures per prompt: the interval of one per prompt, not of four times as many."""
    values = np.random.default_rng(0).standard_normal(100)
    once = bootstrap_mean(values, _prompts(100))
    fourfold = bootstrap_mean(np.repeat(values, 4), [p for p in _prompts(100) for _ in range(4)])
    assert fourfold.value == pytest.approx(once.value)
    assert once.low is not None and fourfold.low is not None
    assert fourfold.value - fourfold.low == pytest.approx(once.value - once.low, rel=1e-6)


def test_one_prompt_has_no_interval() -> None:
    assert bootstrap_mean(np.array([1.0, 3.0]), ["a", "a"]) == Estimate(2.0)
    assert jackknife(lambda keep: float(len(keep)), ["a", "b"]) == Estimate(2.0)


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = np.random.default_rng(0).standard_normal(20)
    found = jackknife(lambda keep: float(values[keep].mean()), _prompts(20))
    assert found.low is not None
    # With ten groups of two the error is that of the groups' means.
    groups = [values[np.argsort(np.argsort(_prompts(20))) % 10 == g].mean() for g in range(10)]
    error = np.std(groups, ddof=1) / 10**0.5
    assert found.value - found.low == pytest.approx(1.95996 * error, rel=1e-4)


def test_pictures_of_a_prompt_leave_together() -> None:
    prompts = ["a", "a", "b", "b", "c", "c", "d", "d"]
    seen: list[set[str]] = []

    def statistic(keep: np.ndarray) -> float:
        left = {prompts[i] for i in keep}
        assert len(keep) == 2 * len(left)
        seen.append(left)
        return float(len(keep))

    jackknife(statistic, prompts)
    assert len(seen) == 3
    assert seen[1] | seen[2] == {"a", "b", "c", "d"}


def test_a_share_stays_a_share() -> None:
    values = np.array([1.0] * 19 + [0.0])
    found = jackknife(lambda keep: float(values[keep].mean()), _prompts(20), (0.0, 1.0))
    assert found.high == 1.0
    free = jackknife(lambda keep: float(values[keep].mean()), _prompts(20))
    assert free.high is not None and free.high > 1.0


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """200 sets of 40 draws from a normal: the true mean 0 lies inside about 190 times."""
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        values = rng.standard_normal(40)
        found = jackknife(lambda keep, v=values: float(v[keep].mean()), _prompts(40))
        assert found.low is not None and found.high is not None
        held += found.low <= 0 <= found.high
    assert 180 <= held <= 199
