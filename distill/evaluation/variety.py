"""What one prompt brings forth: diversity over seeds, and whether styles are kept apart.

Owns the arithmetic on feature arrays. Knows nothing of pictures or networks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from distill.evaluation.manifolds import pairwise_distances

# Shape suffixes: N pictures, D width of a feature vector, S styles.


def spread_within(features_ND: NDArray[np.floating], groups: Sequence[str]) -> dict[str, float]:
    """Mean distance between the pictures of each group that has several."""
    rows: dict[str, list[int]] = {}
    for i, group in enumerate(groups):
        rows.setdefault(group, []).append(i)
    spread = {}
    for group, indices in rows.items():
        if len(indices) > 1:
            distances = pairwise_distances(features_ND[indices], features_ND[indices])
            spread[group] = float(distances[np.triu_indices(len(indices), 1)].mean())
    return spread


def style_purity(
    fake_D: NDArray[np.floating], real_SD: NDArray[np.floating], styles: Sequence[str]
) -> float | None:
    """How clearly a picture belongs to one of the styles that its concept is drawn in.

    On the line between the real picture nearest to it, in one style, and another style's, a
    picture with the share t of the way to the other has purity 1 - 2t: 1 at the nearest, 0
    half-way, where a student lands that answers with the average of several right pictures. How
    far off that line the picture lies does not count; that is the other scores' part. The lowest
    value over the other styles is given, but styles whose picture lies less than half as far from
    the nearest as the farthest one's are taken for the same drawing and left out.

    Args:
        fake_D: the picture.
        real_SD: the real pictures of its concept.
        styles: of each real picture.

    Returns:
        0 to 1, or None where the concept has one style only.
    """
    gap_S = ((real_SD - fake_D) ** 2).sum(1)
    nearest = int(gap_S.argmin())
    between_S = ((real_SD - real_SD[nearest]) ** 2).sum(1)
    is_other = np.array([style != styles[nearest] for style in styles])
    if not is_other.any() or not between_S[is_other].max() > 0:
        return None
    is_clear = is_other & (between_S >= between_S[is_other].max() / 4)
    position_S = (gap_S[is_clear] - gap_S[nearest]) / between_S[is_clear]
    return float(np.clip(position_S.min(), 0, 1))
