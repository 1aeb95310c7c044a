"""The denoising network: built, read from a folder, put on a device.

Owns which UNet a run trains, how one runs on a CPU, and how a network is kept from training.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import nn

from distill.config import ConfigError, TextConfig, UnetConfig


def build_unet(config: UnetConfig, latent_channels: int, text: TextConfig) -> UNet2DConditionModel:
    """Return an untrained UNet with cross-attention to the text and its pooled vector."""
    down = ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in config.attention]
    up = ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(config.attention)]
    return UNet2DConditionModel(
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=config.block_out_channels,
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        layers_per_block=config.layers_per_block,
        attention_head_dim=tuple(c // config.head_width for c in config.block_out_channels),
        norm_num_groups=config.norm_num_groups,
        resnet_time_scale_shift=config.time_scale_shift,
        cross_attention_dim=text.width,
        addition_embed_type="text",
        addition_embed_type_num_heads=text.num_heads,
        encoder_hid_dim=None,
    )


def load_unet(folder: Path, device: torch.device | None = None) -> UNet2DConditionModel:
    """Read `folder`/unet.

    Raises:
        ConfigError: it is not there.
    """
    if not (folder / "unet" / "config.json").is_file():
        raise ConfigError(f"no teacher in {folder}: run `onestep-distill teacher` first")
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", local_files_only=True)
    unet.register_to_config(_name_or_path="")  # else the student's config tells where it lay
    return to_device(unet, device or torch.device("cpu"))


def to_device(unet: UNet2DConditionModel, device: torch.device) -> UNet2DConditionModel:
    """Move a UNet; on a CPU its attention is spelt out in matrix products.

    At a few hundred latent cells the fused kernel's backward pass on a CPU takes a quarter of a
    training step; the plain products take a tenth of that. A GPU keeps the fused kernel.
    """
    if device.type == "cpu":
        unet.set_attn_processor(AttnProcessor())
    return unet.to(device)


def freeze(module: nn.Module) -> nn.Module:
    """Stop training a module; gradients still flow through it to its inputs."""
    return module.eval().requires_grad_(False)
