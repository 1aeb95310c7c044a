"""How far two sets of feature vectors lie apart: Fréchet distance and kernel distance.

Owns the arithmetic on feature arrays. Knows nothing of pictures, networks or prompts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Shape suffixes: N/R pictures, D width of a feature vector.


class FrechetReference:
    """A Gaussian fitted to the real features, kept so that many sets can be held against it.

    Source: arXiv:1706.08500, eq. 6. The trace of the square root of the covariances' product comes
    from the eigenvalues of S_r^(1/2) S_f S_r^(1/2), which is symmetric, so that no imaginary part
    can arise.
    """

    def __init__(self, real_ND: NDArray[np.float64]) -> None:
        """Fit mean and covariance."""
        self._mean_D = real_ND.mean(0)
        covariance_DD = np.cov(real_ND, rowvar=False)
        self.variance = float(covariance_DD.trace())
        values_D, vectors_DD = np.linalg.eigh(covariance_DD)
        self._root_DD = (vectors_DD * np.sqrt(np.clip(values_D, 0, None))) @ vectors_DD.T

    def distance(self, fake_ND: NDArray[np.float64]) -> float:
        """Distance of the Gaussian fitted to other features; depends on their number."""
        gap_D = self._mean_D - fake_ND.mean(0)
        fake_DD = np.cov(fake_ND, rowvar=False)
        middle_D = np.linalg.eigvalsh(self._root_DD @ fake_DD @ self._root_DD)
        cross = 2 * np.sqrt(np.clip(middle_D, 0, None)).sum()
        return float(gap_D @ gap_D + self.variance + fake_DD.trace() - cross)


def frechet_distance(real_ND: NDArray[np.float64], fake_ND: NDArray[np.float64]) -> float:
    """Distance between two Gaussians fitted to features. Source: arXiv:1706.08500, eq. 6."""
    return FrechetReference(real_ND).distance(fake_ND)


@dataclass(frozen=True)
class Subsets:
    """The kernel distance over random subsets, as the literature reports it.

    Attributes:
        mean: over subsets.
        std: over subsets; it says how much one subset tells, not how sure the mean is.
        size: pictures of each side in a subset.
        num: of subsets.
    """

    mean: float
    std: float
    size: int
    num: int


class KernelDistance:
    """Squared maximum mean discrepancy with the kernel (x·y / D + 1)³.

    Source: arXiv:1801.01401, section 4 (KID). Unlike the Fréchet distance it has no bias in the
    number of pictures; it may be a little below 0 for equal sets.
    """

    def __init__(self, real_RD: NDArray[np.float64], fake_ND: NDArray[np.float64]) -> None:
        """Evaluate the kernel between all pictures once."""
        self._real_RR = _cubic(real_RD, real_RD)
        self._fake_NN = _cubic(fake_ND, fake_ND)
        self._cross_RN = _cubic(real_RD, fake_ND)
        self._num_real, self._num_fake = len(real_RD), len(fake_ND)
        self._real_mean = _mean_off_diagonal(self._real_RR)

    def unbiased(self, keep: NDArray[np.int64] | None = None) -> float:
        """The unbiased estimate from all real pictures and the generated ones at `keep`."""
        if keep is None or len(keep) == self._num_fake:
            fake_NN, cross_RN = self._fake_NN, self._cross_RN
        else:
            fake_NN, cross_RN = self._fake_NN[np.ix_(keep, keep)], self._cross_RN[:, keep]
        return float(self._real_mean + _mean_off_diagonal(fake_NN) - 2 * cross_RN.mean())

    def subsets(self, size: int | None = None, num: int = 100, seed: int = 0) -> Subsets:
        """Mean and deviation over random subsets.

        Args:
            size: of a subset; by default 1000 as in the literature, or half the smaller set.
            num: of subsets.
            seed: of the choice.
        """
        smaller = min(self._num_real, self._num_fake)
        size = size or max(2, min(1000, smaller // 2))
        rng = np.random.default_rng(seed)
        values = []
        for _ in range(num):
            real = rng.choice(self._num_real, size, replace=False)
            fake = rng.choice(self._num_fake, size, replace=False)
            values.append(
                _mean_off_diagonal(self._real_RR[np.ix_(real, real)])
                + _mean_off_diagonal(self._fake_NN[np.ix_(fake, fake)])
                - 2 * self._cross_RN[np.ix_(real, fake)].mean()
            )
        return Subsets(float(np.mean(values)), float(np.std(values)), size, num)


def _cubic(a_ND: NDArray[np.float64], b_ND: NDArray[np.float64]) -> NDArray[np.float64]:
    kernel: NDArray[np.float64] = (a_ND @ b_ND.T / a_ND.shape[1] + 1) ** 3
    return kernel


def _mean_off_diagonal(kernel_NN: NDArray[np.float64]) -> float:
    num = len(kernel_NN)
    return float((kernel_NN.sum() - np.trace(kernel_NN)) / (num * (num - 1)))
