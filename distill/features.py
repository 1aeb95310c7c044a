"""Frozen networks whose features the discriminator's heads look at.

Owns two sources: the teacher's own UNet at a drawn noise level (Source: arXiv:2403.12015,
section 3), and a vision transformer from a local folder, such as DINOv2 (Source:
arXiv:2311.17042, section 3.2). Gradients flow to the picture; no weight is ever trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from diffusers import UNet2DConditionModel
from torch import nn
from torch.nn import functional
from transformers import AutoModel

from distill.autoencoder import Codec
from distill.config import ConfigError, DiscriminatorConfig
from distill.diffusion import Diffusion

# Shape suffixes: B batch, C channel, h/w cells, L tokens, D width, N patches.

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


class Features(Protocol):
    """Latents to feature maps, with the number of channels of each."""

    channels: tuple[int, ...]

    def __call__(
        self, latents_BChw: torch.Tensor, text_embeds_BLD: torch.Tensor, timestep_B: torch.Tensor
    ) -> list[torch.Tensor]:
        """Feature maps (B, C, h, w), one per head."""
        ...


class TeacherFeatures:
    """Outputs of the teacher's down and middle blocks for latents noised to `timestep_B`."""

    def __init__(self, unet: UNet2DConditionModel, diffusion: Diffusion) -> None:
        """Use a frozen teacher; its up blocks are never run."""
        self._unet = unet
        self._diffusion = diffusion
        widths = tuple(unet.config.block_out_channels)
        self.channels = (*widths, widths[-1])

    def __call__(
        self, latents_BChw: torch.Tensor, text_embeds_BLD: torch.Tensor, timestep_B: torch.Tensor
    ) -> list[torch.Tensor]:
        """Noise the latents, then run the first half of the UNet."""
        unet = self._unet
        noisy_BChw = self._diffusion.add_noise(
            latents_BChw, torch.randn_like(latents_BChw), timestep_B
        )
        embedding = unet.time_embedding(unet.get_time_embed(noisy_BChw, timestep_B))
        extra = unet.get_aug_embed(embedding, text_embeds_BLD, {})
        if extra is not None:
            embedding = embedding + extra
        hidden = unet.conv_in(noisy_BChw)
        maps = []
        for block in unet.down_blocks:
            if getattr(block, "has_cross_attention", False):
                hidden, skips = block(hidden, embedding, encoder_hidden_states=text_embeds_BLD)
            else:
                hidden, skips = block(hidden, embedding)
            # The last skip before the block halves the map: its finest finished features.
            maps.append(skips[-2] if block.downsamplers is not None else skips[-1])
        maps.append(unet.mid_block(hidden, embedding, encoder_hidden_states=text_embeds_BLD))
        return maps


class FolderFeatures:
    """Hidden states of a vision transformer for the decoded picture; takes no noise, no text."""

    def __init__(self, config: DiscriminatorConfig, codec: Codec) -> None:
        """Load the frozen model that the config names.

        Raises:
            ConfigError: the folder is missing or the hooks do not exist in the model.
        """
        folder = Path(config.folder or "")
        if not (folder / "config.json").is_file():
            raise ConfigError(f"student.discriminator.folder: no model at {folder}")
        self._model = AutoModel.from_pretrained(folder, local_files_only=True).to(codec.device)
        self._model.eval().requires_grad_(False)
        num_layers = self._model.config.num_hidden_layers
        if not config.hooks or not all(0 <= hook < num_layers for hook in config.hooks):
            raise ConfigError(f"student.discriminator.hooks must lie in 0..{num_layers - 1}")
        self._hooks = config.hooks
        self._codec = codec
        patch = int(self._model.config.patch_size)
        self._side_px = max(patch, config.input_size_px // patch * patch)
        self._cells = self._side_px // patch
        self.channels = (int(self._model.config.hidden_size),) * (len(config.hooks) + 1)
        self._mean = torch.tensor(_IMAGENET_MEAN, device=codec.device).view(1, 3, 1, 1)
        self._std = torch.tensor(_IMAGENET_STD, device=codec.device).view(1, 3, 1, 1)

    def __call__(
        self, latents_BChw: torch.Tensor, text_embeds_BLD: torch.Tensor, timestep_B: torch.Tensor
    ) -> list[torch.Tensor]:
        """Decode, normalise without clamping (a clamp would stop gradients), and take the hooks."""
        images_BCHW = (self._codec.decode(latents_BChw).float() + 1) / 2
        images_BCHW = functional.interpolate(
            (images_BCHW - self._mean) / self._std,
            size=(self._side_px, self._side_px),
            mode="bilinear",
            antialias=True,
        )
        states = self._model(pixel_values=images_BCHW, output_hidden_states=True).hidden_states
        chosen = [states[0], *(states[hook + 1] for hook in self._hooks)]
        num_patches = self._cells**2
        return [
            state[:, -num_patches:].transpose(1, 2).unflatten(2, (self._cells, self._cells))
            for state in chosen
        ]


def build_features(
    config: DiscriminatorConfig, teacher: UNet2DConditionModel, diffusion: Diffusion, codec: Codec
) -> Features:
    """Return the source that the config names."""
    if config.features == "teacher":
        return TeacherFeatures(teacher, diffusion)
    return FolderFeatures(config, codec)


def freeze(module: nn.Module) -> nn.Module:
    """Stop training a module; gradients still flow through it to its inputs."""
    return module.eval().requires_grad_(False)
