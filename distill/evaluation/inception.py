"""Inception v3 as the FID of the literature has it, through torch-fidelity and local weights."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from distill.config import ConfigError
from distill.evaluation.networks import (
    Description,
    NetworkCard,
    needs,
    require_file,
    sha256_of,
)

_OPTION = "--inception"
_LAYER = "2048"


class Inception:
    """The 2048 pooled features of torch-fidelity's Inception v3."""

    def __init__(self, path: Path, device: torch.device | None = None) -> None:
        """Load the weights, torch-fidelity's weights-inception-2015-12-05-6726825d.pth.

        Raises:
            ConfigError: the file is missing or holds something else, or the package is missing.
        """
        require_file(path, _OPTION)
        try:
            module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
        except ImportError as error:
            raise needs("torch-fidelity", _OPTION, error) from error
        try:
            # torch-fidelity would run code that a file holds; this refuses such a file before.
            torch.load(path, map_location="cpu", weights_only=True)
            self._model = module.FeatureExtractorInceptionV3(
                "inception-v3-compat", [_LAYER], feature_extractor_weights_path=str(path)
            )
        except Exception as error:  # damaged bytes can lead the reader to any error
            raise ConfigError(f"{_OPTION}: {path} holds no weights of Inception v3") from error
        self._device = device or torch.device("cpu")
        self._model.to(self._device)
        self.card = NetworkCard(
            name="inception",
            weights_sha256=sha256_of(path),
            resize="299 px, bilinear as TensorFlow 1 does it, in torch-fidelity",
            features="the 2048 pooled features",
        )

    @torch.no_grad()
    def describe(self, images_NHWC: NDArray[np.uint8], batch_size: int = 64) -> Description:
        """The pooled features, for sets and for pictures alike."""
        rows = []
        for batch in torch.from_numpy(images_NHWC).split(batch_size):
            inputs = batch.permute(0, 3, 1, 2).contiguous().to(self._device)
            rows.append(self._model(inputs)[0].cpu())
        pooled_ND = torch.cat(rows)
        return Description(pooled_ND.double().numpy(), pooled_ND.float().numpy())
