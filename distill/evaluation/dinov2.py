"""A DINOv2 folder as a judge: reported, and never used to choose.

The discriminator may look through the same kind of network, and who is judged must not have
trained on the judge.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from distill.config import ConfigError
from distill.evaluation.networks import Description, NetworkCard, sha256_of
from distill.networks.vision import VisionModel

_SIDE_PX = 224
_OPTION = "--dino"


class Dino:
    """The class token of a vision transformer from a local transformers folder."""

    def __init__(self, folder: Path, device: torch.device | None = None) -> None:
        """Load the model.

        Raises:
            ConfigError: no model lies there.
        """
        device = device or torch.device("cpu")
        self._device = device
        self._vision = VisionModel(str(folder), _OPTION, _SIDE_PX, device)
        weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
        if not weights:
            raise ConfigError(f"{_OPTION}: no weights in {folder}")
        self.card = NetworkCard(
            name="dinov2",
            weights_sha256=sha256_of(weights[0]),
            resize=f"{self._vision.side_px} px, bilinear with antialiasing",
            features="the class token",
            is_neutral=False,
            note="shares its features with the paper's discriminator: reported, never used to "
            "choose between models",
        )

    @torch.no_grad()
    def describe(self, images_NHWC: NDArray[np.uint8], batch_size: int = 64) -> Description:
        """The class token, for sets and for pictures alike."""
        rows = []
        for batch in torch.from_numpy(images_NHWC).split(batch_size):
            images_NCHW = batch.permute(0, 3, 1, 2).to(self._device).float() / 127.5 - 1
            rows.append(self._vision.described(images_NCHW).cpu())
        pooled_ND = torch.cat(rows)
        return Description(pooled_ND.double().numpy(), pooled_ND.float().numpy())
