"""The decode and encode stages: latents to pictures, and back.

Owns scale, shift and rounding around an autoencoder of diffusers. Knows nothing of diffusion.

Shape suffixes: B batch, C channel, H/W pixels, h/w latent.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from engines.spec import LatentSpec


class DecodeStage(nn.Module):
    """latents_BChw float32 -> images_BHWC uint8."""

    def __init__(
        self, autoencoder: nn.Module, latent: LatentSpec, dtype: torch.dtype = torch.float32
    ) -> None:
        """Wrap an autoencoder whose decoder computes in dtype and gives pixels in [-1, 1]."""
        super().__init__()
        self.autoencoder = autoencoder
        self.latent = latent
        self.dtype = dtype

    def forward(self, latents_BChw: Tensor) -> Tensor:
        """Unscale, decode, clamp, round; the cast comes last, as TensorRT asks of uint8."""
        raw_BChw = (latents_BChw / self.latent.scale + self.latent.shift).to(self.dtype)
        pixels_BCHW = cast(Any, self.autoencoder).decode(raw_BChw, return_dict=False)[0].float()
        levels_BHWC = (pixels_BCHW * 127.5 + 127.5).clamp(0.0, 255.0).permute(0, 2, 3, 1)
        return cast(Tensor, levels_BHWC.round().to(torch.uint8))


class EncodeStage(nn.Module):
    """images_BHWC uint8 -> latents_BChw float32, the posterior's mean where there is one."""

    def __init__(
        self, autoencoder: nn.Module, latent: LatentSpec, dtype: torch.dtype = torch.float32
    ) -> None:
        """Wrap an autoencoder whose encoder computes in dtype and takes pixels in [-1, 1]."""
        super().__init__()
        self.autoencoder = autoencoder
        self.latent = latent
        self.dtype = dtype

    def forward(self, images_BHWC: Tensor) -> Tensor:
        """Encode and scale; the cast comes first, as TensorRT asks of uint8."""
        pixels_BCHW = (images_BHWC.float() / 127.5 - 1.0).permute(0, 3, 1, 2).to(self.dtype)
        encoded = cast(Any, self.autoencoder).encode(pixels_BCHW, return_dict=False)[0]
        raw_BChw = encoded if isinstance(encoded, Tensor) else encoded.mode()
        return cast(Tensor, (raw_BChw.float() - self.latent.shift) * self.latent.scale)
