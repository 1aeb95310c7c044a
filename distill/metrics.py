"""Judging pictures: a Fréchet distance and retrieval in a named feature network's space.

Owns the network (SqueezeNet 1.0 from an .npz of its 26 convolutions, in Caffe's form) and the two
scores. The network is for judging only; no training may look through it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from distill.config import ConfigError

# Shape suffixes: N pictures, C channel, H/W pixels, D width of a feature vector.

_CAFFE_MEAN_BGR = (104.0, 117.0, 123.0)
_POOL_BEFORE = ("fire2", "fire5", "fire9")
_PARTS = ("conv1x1_1", "conv1x1_2", "conv3x3_2")  # squeeze, and the two halves that expand
_FIRES = tuple(f"fire{i}" for i in range(2, 10))


class SqueezeNet:
    """SqueezeNet 1.0's convolutions as a function from pictures to features.

    Source: arXiv:1602.07360. Weights are read from `NAME_w` (out, in, kh, kw) and `NAME_b` arrays.
    """

    def __init__(self, path: Path) -> None:
        """Read the weights.

        Raises:
            ConfigError: the file is missing or damaged, or lacks a layer.
        """
        if not path.is_file():
            raise ConfigError(f"--features: no file at {path}")
        try:
            with path.open("rb") as stream, np.load(stream) as arrays:
                self._arrays = {key: torch.from_numpy(arrays[key]).float() for key in arrays.files}
        except Exception as error:  # damaged bytes can lead the reader to any error
            raise ConfigError(f"--features: {path} is no .npz archive of arrays") from error
        layers = ("conv1", *(f"{fire}_{part}" for fire in _FIRES for part in _PARTS))
        missing = [n for n in layers if not {f"{n}_w", f"{n}_b"} <= self._arrays.keys()]
        if missing:
            raise ConfigError(f"--features: {path} lacks {', '.join(missing)}")

    def _conv(self, x: torch.Tensor, name: str, stride: int = 1, padding: int = 0) -> torch.Tensor:
        weight, bias = self._arrays[f"{name}_w"], self._arrays[f"{name}_b"].flatten()
        return functional.relu(functional.conv2d(x, weight, bias, stride=stride, padding=padding))

    @torch.no_grad()
    def _fire_outputs(self, images_NHWC: torch.Tensor) -> list[torch.Tensor]:
        x = images_NHWC.permute(0, 3, 1, 2).float().flip(1)
        x = x - torch.tensor(_CAFFE_MEAN_BGR).view(1, 3, 1, 1)
        x = self._conv(x, "conv1", stride=2)
        outputs = []
        for fire in _FIRES:
            if fire in _POOL_BEFORE:
                x = functional.max_pool2d(x, 3, stride=2, ceil_mode=True)
            squeezed = self._conv(x, f"{fire}_{_PARTS[0]}")
            x = torch.cat(
                [
                    self._conv(squeezed, f"{fire}_{_PARTS[1]}"),
                    self._conv(squeezed, f"{fire}_{_PARTS[2]}", padding=1),
                ],
                dim=1,
            )
            outputs.append(x)
        return outputs

    def features(
        self, images_NHWC: NDArray[np.uint8], batch_size: int = 64
    ) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """Two descriptions of every picture.

        Returns:
            pooled_ND float64: the last block's mean over all cells, for the Fréchet distance;
            layout_ND float32: every block's output pooled to 4 x 4 cells, each block scaled to
            unit length, for retrieval.
        """
        pooled, layout = [], []
        for batch in torch.from_numpy(images_NHWC).split(batch_size):
            outputs = self._fire_outputs(batch)
            pooled.append(outputs[-1].mean((2, 3)).double())
            blocks = [functional.adaptive_avg_pool2d(o, 4).flatten(1) for o in outputs]
            layout.append(torch.cat([functional.normalize(b, dim=1) for b in blocks], dim=1))
        return torch.cat(pooled).numpy(), torch.cat(layout).numpy()


def frechet_distance(real_ND: NDArray[np.float64], fake_ND: NDArray[np.float64]) -> float:
    """Distance between two Gaussians fitted to features. Source: arXiv:1706.08500, eq. 6.

    The trace of the square root of the covariances' product comes from the eigenvalues of
    S_r^(1/2) S_f S_r^(1/2), which is symmetric, so that no imaginary part can arise.
    """
    mean_gap = real_ND.mean(0) - fake_ND.mean(0)
    real_cov = np.cov(real_ND, rowvar=False)
    fake_cov = np.cov(fake_ND, rowvar=False)
    values, vectors = np.linalg.eigh(real_cov)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    middle = np.linalg.eigvalsh(root @ fake_cov @ root)
    trace = real_cov.trace() + fake_cov.trace() - 2 * np.sqrt(np.clip(middle, 0, None)).sum()
    return float(mean_gap @ mean_gap + trace)


def retrieval_ranks(
    fake_ND: NDArray[np.float32],
    asked: Sequence[str],
    gallery_ND: NDArray[np.float32],
    gallery_names: Sequence[str],
    allowed: Sequence[NDArray[np.bool_]],
) -> NDArray[np.int64]:
    """Rank of the asked concept among real pictures, nearest first, counted over concepts.

    Args:
        fake_ND: one row per generated picture.
        asked: the concept of each.
        gallery_ND: one row per real picture.
        gallery_names: the concept of each.
        allowed: for each generated picture, which real ones compete (the asked style's).

    Returns:
        (N,) ranks from 1; a concept counts once, at its nearest picture.
    """
    names = np.asarray(gallery_names)
    ranks = np.empty(len(asked), dtype=np.int64)
    for i, (row, concept, mask) in enumerate(zip(fake_ND, asked, allowed, strict=True)):
        distances = np.linalg.norm(gallery_ND[mask] - row, axis=1)
        order = names[mask][np.argsort(distances, kind="stable")]
        seen = list(dict.fromkeys(order.tolist()))
        ranks[i] = seen.index(concept) + 1
    return ranks
