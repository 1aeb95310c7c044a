"""Precision, recall, density and coverage: which pictures lie among the others' neighbours.

Owns the k-nearest-neighbour arithmetic on feature arrays. Knows nothing of pictures or networks.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

# Shape suffixes: N generated pictures, R real ones, D width of a feature vector.

NUM_NEIGHBOURS = 3  # arXiv:1904.06991, section 3.1
NUM_NEIGHBOURS_DENSITY = 5  # arXiv:2002.09797, section 5


def pairwise_distances(
    a_ND: NDArray[np.floating], b_RD: NDArray[np.floating], device: torch.device | None = None
) -> NDArray[np.floating]:
    """Euclidean distances, (N, R), in the inputs' precision."""
    a, b = torch.from_numpy(a_ND).to(device), torch.from_numpy(b_RD).to(device)
    rows = [torch.cdist(part, b).cpu() for part in a.split(512)]
    return torch.cat(rows).numpy() if rows else np.zeros((0, len(b_RD)))


class Manifolds:
    """Real and generated sets as unions of balls, each reaching to its centre's k-th neighbour.

    Source: arXiv:1904.06991 (precision and recall), arXiv:2002.09797 (density and coverage).
    """

    def __init__(self, real_RD: NDArray[np.float64], fake_ND: NDArray[np.float64]) -> None:
        """Measure all distances once.

        Both sets need more pictures than neighbours are counted; `is_possible` says whether.
        """
        self._fake_NN = pairwise_distances(fake_ND, fake_ND)
        self._cross_NR = pairwise_distances(fake_ND, real_RD)
        real_RR = pairwise_distances(real_RD, real_RD)
        self._real_radius_R = _radius(real_RR, NUM_NEIGHBOURS)
        self._density_radius_R = _radius(real_RR, NUM_NEIGHBOURS_DENSITY)

    @staticmethod
    def is_possible(num_real: int, num_fake: int) -> bool:
        """Whether the sets are large enough, also with a tenth of the generated ones left out."""
        return min(num_real, int(0.8 * num_fake)) > NUM_NEIGHBOURS_DENSITY

    def precision(self, keep: NDArray[np.int64]) -> float:
        """Share of generated pictures inside a real picture's ball: are they like real ones?"""
        return float((self._cross_NR[keep] <= self._real_radius_R).any(1).mean())

    def recall(self, keep: NDArray[np.int64]) -> float:
        """Share of real pictures inside a generated one's ball: is their variety reached?"""
        radius_N = _radius(self._fake_NN[np.ix_(keep, keep)], NUM_NEIGHBOURS)
        return float((self._cross_NR[keep] <= radius_N[:, None]).any(0).mean())

    def density(self, keep: NDArray[np.int64]) -> float:
        """Real balls around each generated picture, over k; unlike precision, an outlier counts
        little. About 1 for equal sets, above it where the pictures keep to the common ones.
        """
        inside = self._cross_NR[keep] <= self._density_radius_R
        return float(inside.sum(1).mean() / NUM_NEIGHBOURS_DENSITY)

    def coverage(self, keep: NDArray[np.int64]) -> float:
        """Share of real pictures with a generated one inside their ball."""
        return float((self._cross_NR[keep] <= self._density_radius_R).any(0).mean())


def _radius(distances_NN: NDArray[np.floating], num_neighbours: int) -> NDArray[np.floating]:
    """Distance to the k-th nearest other; the picture itself, at 0, is counted as the 0th."""
    k = min(num_neighbours, len(distances_NN) - 1)
    radius: NDArray[np.floating] = np.partition(distances_NN, k, axis=1)[:, k]
    return radius
