"""SqueezeNet 1.0 from an .npz of its 26 convolutions, in Caffe's form.

Owns the network. It is small enough for a CPU, and no discriminator looks through it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from distill.config import ConfigError
from distill.evaluation.networks import Description, NetworkCard, require_file, sha256_of

# Shape suffixes: N pictures, C channel, H/W pixels, D width of a feature vector.

SIDE_PX = 128
_CAFFE_MEAN_BGR = (104.0, 117.0, 123.0)
_POOL_BEFORE = ("fire2", "fire5", "fire9")
_PARTS = ("conv1x1_1", "conv1x1_2", "conv3x3_2")  # squeeze, and the two halves that expand
_FIRES = tuple(f"fire{i}" for i in range(2, 10))


class SqueezeNet:
    """SqueezeNet 1.0's convolutions as a function from pictures to features.

    Source: arXiv:1602.07360. Weights are read from `NAME_w` (out, in, kh, kw) and `NAME_b` arrays.
    """

    def __init__(self, path: Path, device: torch.device | None = None) -> None:
        """Read the weights.

        Raises:
            ConfigError: the file is missing or damaged, or lacks a layer.
        """
        require_file(path, "--features")
        self._device = device or torch.device("cpu")
        try:
            with path.open("rb") as stream, np.load(stream) as arrays:
                self._arrays = {
                    key: torch.from_numpy(arrays[key]).float().to(self._device)
                    for key in arrays.files
                }
        except Exception as error:  # damaged bytes can lead the reader to any error
            raise ConfigError(f"--features: {path} is no .npz archive of arrays") from error
        layers = ("conv1", *(f"{fire}_{part}" for fire in _FIRES for part in _PARTS))
        missing = [n for n in layers if not {f"{n}_w", f"{n}_b"} <= self._arrays.keys()]
        if missing:
            raise ConfigError(f"--features: {path} lacks {', '.join(missing)}")
        self.card = NetworkCard(
            name="squeezenet",
            weights_sha256=sha256_of(path),
            resize=f"{SIDE_PX} px, bicubic with antialiasing (none at {SIDE_PX} px)",
            features="fire9's mean over cells for sets; fire2 to fire9 on 4 x 4 cells for pictures",
            is_scaled=True,
        )

    def _conv(self, x: torch.Tensor, name: str, stride: int = 1, padding: int = 0) -> torch.Tensor:
        weight, bias = self._arrays[f"{name}_w"], self._arrays[f"{name}_b"].flatten()
        return functional.relu(functional.conv2d(x, weight, bias, stride=stride, padding=padding))

    @torch.no_grad()
    def _fire_outputs(self, images_NHWC: torch.Tensor) -> list[torch.Tensor]:
        images_NCHW = images_NHWC.permute(0, 3, 1, 2).to(self._device).float()
        x = resized(images_NCHW, SIDE_PX).flip(1)
        x = x - torch.tensor(_CAFFE_MEAN_BGR, device=self._device).view(1, 3, 1, 1)
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

    def describe(self, images_NHWC: NDArray[np.uint8], batch_size: int = 64) -> Description:
        """Two descriptions of every picture.

        pooled_ND is the last block's mean over all cells; layout_ND every block's output pooled
        to 4 x 4 cells, each block scaled to unit length.
        """
        pooled, layout = [], []
        for batch in torch.from_numpy(images_NHWC).split(batch_size):
            outputs = self._fire_outputs(batch)
            pooled.append(outputs[-1].mean((2, 3)).double().cpu())
            blocks = [functional.adaptive_avg_pool2d(o, 4).flatten(1) for o in outputs]
            layout.append(torch.cat([functional.normalize(b, dim=1) for b in blocks], dim=1).cpu())
        return Description(torch.cat(pooled).numpy(), torch.cat(layout).numpy())


def resized(images_NCHW: torch.Tensor, side_px: int) -> torch.Tensor:
    """Pictures in 0..255 at another size, as Pillow's bicubic filter makes them, unrounded.

    Without antialiasing a smaller picture depends on where its pixels happen to fall.
    Source: arXiv:2104.11222.
    """
    if images_NCHW.shape[-2:] == (side_px, side_px):
        return images_NCHW
    size = (side_px, side_px)
    larger = functional.interpolate(images_NCHW, size=size, mode="bicubic", antialias=True)
    return larger.clamp(0, 255)
