"""Distances between sets against closed forms, double loops and another library's code."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from distill.evaluation.distances import FrechetReference, KernelDistance, frechet_distance


def _features(num: int = 50, width: int = 6, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).standard_normal((num, width))


def test_equal_sets_have_no_distance() -> None:
    features = _features()
    assert frechet_distance(features, features) == pytest.approx(0.0, abs=1e-9)


def test_a_shift_costs_its_squared_length() -> None:
    shift = np.array([1.0, -2.0, 0.0, 0.5, 0.0, 0.0])
    features = _features()
    assert frechet_distance(features, features + shift) == pytest.approx(5.25)


def test_a_stretch_costs_the_gap_of_the_deviations() -> None:
    """Between N(0, S) and N(0, 9 S) lies trace(S) (1 + 9 - 2 * 3)."""
    features = _features()
    features -= features.mean(0)
    trace = np.cov(features, rowvar=False).trace()
    assert frechet_distance(features, 3 * features) == pytest.approx(4 * trace)


def test_gaussians_along_the_axes_have_the_distance_of_their_deviations() -> None:
    """Diagonal covariances: the squared gaps of means and of standard deviations, per axis."""
    corners = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    unit = corners * np.sqrt(3 / 4)  # sample variance 1 along both axes, no covariance
    a = unit * np.array([1.0, 4.0]) + np.array([0.0, 1.0])
    b = unit * np.array([3.0, 2.0]) + np.array([2.0, 1.0])
    assert frechet_distance(a, b) == pytest.approx(2**2 + (3 - 1) ** 2 + (4 - 2) ** 2)


def test_fewer_pictures_than_features_still_have_a_distance() -> None:
    a, b = _features(5, 20, 0), _features(5, 20, 1) + 1
    assert np.isfinite(frechet_distance(a, b))
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a))


def test_the_reference_can_be_asked_again() -> None:
    real, reference = _features(), FrechetReference(_features())
    for seed in (1, 2):
        fake = _features(40, seed=seed)
        assert reference.distance(fake) == pytest.approx(frechet_distance(real, fake))
    assert reference.variance == pytest.approx(real.var(0, ddof=1).sum())


def _kernel_by_loops(real: NDArray[np.float64], fake: NDArray[np.float64]) -> float:
    """Squared MMD with nothing shared with the code under test but the formula."""

    def kernel(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
        return float((sum(a * b for a, b in zip(x, y, strict=True)) / len(x) + 1) ** 3)

    def mean_within(rows: NDArray[np.float64]) -> float:
        pairs = [(i, j) for i in range(len(rows)) for j in range(len(rows)) if i != j]
        return sum(kernel(rows[i], rows[j]) for i, j in pairs) / len(pairs)

    across = sum(kernel(x, y) for x in real for y in fake) / (len(real) * len(fake))
    return mean_within(real) + mean_within(fake) - 2 * across


def test_the_kernel_distance_is_the_double_sum() -> None:
    real, fake = _features(9, 4, 0), _features(7, 4, 1) + 0.3
    distance = KernelDistance(real, fake)
    assert distance.unbiased() == pytest.approx(_kernel_by_loops(real, fake))
    keep = np.array([0, 2, 3, 6])
    assert distance.unbiased(keep) == pytest.approx(_kernel_by_loops(real, fake[keep]))


def test_the_kernel_distance_has_no_bias() -> None:
    """Sets of one distribution: 0 in the mean, however small they are."""
    values = [
        KernelDistance(_features(8, 3, 2 * k), _features(8, 3, 2 * k + 1)).unbiased()
        for k in range(400)
    ]
    error = np.std(values) / len(values) ** 0.5
    assert abs(np.mean(values)) < 3 * error
    # The biased form, with the diagonal, would be off by many times that.
    assert error < 0.2


def test_subsets_of_everything_are_the_whole() -> None:
    distance = KernelDistance(_features(20, 4, 0), _features(20, 4, 1))
    whole = distance.subsets(size=20, num=3)
    assert whole.mean == pytest.approx(distance.unbiased())
    assert whole.std == pytest.approx(0, abs=1e-12)
    by_default = distance.subsets(num=200)
    assert by_default.size == 10
    assert by_default.mean == pytest.approx(distance.unbiased(), abs=4 * by_default.std / 200**0.5)
    assert by_default.std > 0


def test_another_library_finds_the_same_distances() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its import warns of packages it can do without
        from torchmetrics.image.fid import _compute_fid
        from torchmetrics.image.kid import poly_mmd
    real, fake = _features(30, 5, 0), 1.3 * _features(30, 5, 1) + 0.2
    theirs = poly_mmd(torch.from_numpy(real), torch.from_numpy(fake))
    assert KernelDistance(real, fake).unbiased() == pytest.approx(float(theirs))
    means = [torch.from_numpy(x.mean(0)) for x in (real, fake)]
    covariances = [torch.from_numpy(np.cov(x, rowvar=False)) for x in (real, fake)]
    fid = _compute_fid(means[0], covariances[0], means[1], covariances[1])
    assert frechet_distance(real, fake) == pytest.approx(float(fid), rel=1e-6)
