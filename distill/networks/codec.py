"""One interface between pixels and scaled latents, over every autoencoder of diffusers.

Owns encoding and decoding with AutoencoderDC, AutoencoderTiny and AutoencoderKL alike, so that
Stable Diffusion's fits as well. Knows nothing of text or diffusion.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm

from distill.config import ConfigError
from distill.dataset import Pictures, to_model_range

# Shape suffixes: B batch, C channel, H/W pixels, h/w latent cells.


class Codec:
    """A frozen autoencoder seen as two functions between pixels and scaled latents."""

    def __init__(self, model: Any) -> None:
        """Freeze a diffusers model; its config gives the scale and shift of the latents."""
        self.model = model.eval().requires_grad_(False)
        settings = model.config
        self.scale = float(getattr(settings, "scaling_factor", None) or 1.0)
        self.shift = float(getattr(settings, "shift_factor", None) or 0.0)

    @classmethod
    def load(cls, folder: Path, device: torch.device | None = None) -> Codec:
        """Read a diffusers autoencoder folder; the class is the one its config names.

        Raises:
            ConfigError: the folder is missing or names an unknown class.
        """
        path = folder / "config.json"
        if not path.is_file():
            raise ConfigError(f"no autoencoder at {folder}: run `onestep-distill autoencoder`")
        name = json.loads(path.read_text())["_class_name"]
        if not hasattr(diffusers, name):
            raise ConfigError(f"{path}: diffusers has no class {name!r}")
        # float32 whatever the files hold: SDXL's autoencoder overflows in float16.
        model = getattr(diffusers, name).from_pretrained(
            folder, local_files_only=True, dtype=torch.float32
        )
        return cls(model.to(device or torch.device("cpu")))

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        return int(self.model.config.latent_channels)

    @property
    def downscale(self) -> int:
        """Pixels per latent cell along one axis; every level but the first halves."""
        settings = self.model.config
        widths = settings.get("block_out_channels") or settings.get("encoder_block_out_channels")
        return int(2 ** (len(widths) - 1))

    def recompute(self) -> None:
        """Keep no activations of decoding for the backward pass, but compute them again.

        Block by block: a decoder computed again as a whole would hold all of them at once.

        Raises:
            ConfigError: the autoencoder has no blocks to go by.
        """
        if self.model._supports_gradient_checkpointing:
            self.model.enable_gradient_checkpointing()
            return
        blocks = getattr(getattr(self.model, "decoder", None), "up_blocks", None)
        if blocks is None:
            raise ConfigError(
                f"{type(self.model).__name__} cannot be computed again in parts: leave "
                '"decoder" out of scale.recompute'
            )
        for block in blocks:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)

    def encode(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Pixels in [-1, 1] to latents_BChw, scaled to about unit variance."""
        return (raw_encode(self.model, images_BCHW) - self.shift) * self.scale

    def decode(self, latents_BChw: torch.Tensor) -> torch.Tensor:
        """Scaled latents to pixels, about in [-1, 1]; gradients flow through."""
        images_BCHW: torch.Tensor = self.model.decode(latents_BChw / self.scale + self.shift).sample
        return images_BCHW


def raw_encode(model: Any, images_BCHW: torch.Tensor) -> torch.Tensor:
    """Unscaled latents; the mean, where the model gives a distribution."""
    output: Any = model.encode(images_BCHW)
    for attribute in ("latent", "latents"):
        if hasattr(output, attribute):
            latents: torch.Tensor = getattr(output, attribute)
            return latents
    mean: torch.Tensor = output.latent_dist.mode()
    return mean


@torch.no_grad()
def encode_all(codec: Codec, pictures: Pictures, batch_size: int = 64) -> torch.Tensor:
    """Latents of every picture, latents_NChw float32."""
    batches = torch.from_numpy(pictures.images_NHWC).split(batch_size)
    # A set that is done in a moment shows no bar.
    bar = tqdm(batches, desc="encoding pictures", unit="batch", delay=2, leave=False)
    return torch.cat(
        [codec.encode(to_model_range(batch.to(codec.device))).float() for batch in bar]
    )
