"""Whether a picture shows what was asked: the rank of the asked concept among real pictures.

Owns the ranking of distances. Knows nothing of pictures or networks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# Shape suffixes: N generated pictures, G real pictures of the gallery, K concepts.


def retrieval_ranks(
    distances_NG: NDArray[np.floating],
    asked: Sequence[str],
    gallery_names: Sequence[str],
) -> NDArray[np.int64]:
    """Rank of the asked concept among real pictures, nearest first, counted over concepts.

    Args:
        distances_NG: from every generated picture to every real one; infinite where the real one
            does not compete, as it is of another style than the asked one.
        asked: the concept of each generated picture; the gallery holds it.
        gallery_names: the concept of each real picture.

    Returns:
        (N,) ranks from 1; a concept counts once, at its nearest picture.
    """
    names_K, which_G = np.unique(np.asarray(gallery_names), return_inverse=True)
    order_G = np.argsort(which_G, kind="stable")
    starts_K = np.searchsorted(which_G[order_G], np.arange(len(names_K)))
    nearest_NK = np.minimum.reduceat(distances_NG[:, order_G], starts_K, axis=1)
    column_of = {name: k for k, name in enumerate(names_K.tolist())}
    assert column_of.keys() >= set(asked), "a concept is not in the gallery"
    column_N = [column_of[name] for name in asked]
    own_N = nearest_NK[np.arange(len(asked)), column_N]
    assert np.isfinite(own_N).all(), "a concept has no picture that may compete"
    ranks_N: NDArray[np.int64] = 1 + (nearest_NK < own_N[:, None]).sum(1)
    return ranks_N
