"""Low-rank factors beside a UNet's frozen weights: put on, read off, fused, written.

Owns the form of an adapter, in memory that of peft, on disk that of diffusers. Knows nothing of
training. Source: arXiv:2106.09685.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import peft
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from peft.tuners.lora import LoraLayer
from torch import nn

from distill.config import ConfigError, LoraConfig

# What diffusers looks for in a folder that `load_lora_weights` is given.
LORA_FILE = "pytorch_lora_weights.safetensors"
# Where it lies in the folder of a student.
LORA_FOLDER = "lora"
# Layers that a product of two smaller ones can stand beside.
LAYERS = (nn.Linear, nn.Conv2d)

_ADAPTER = "default"


def with_lora(unet: UNet2DConditionModel, config: LoraConfig) -> UNet2DConditionModel:
    """A UNet of the same weights, with trained factors beside them that change nothing yet.

    The weights are not copied: both networks hold the same tensors, and both are frozen.

    Raises:
        ConfigError: a target is the name of no linear or convolution layer.
    """
    _check_targets(unet, config.target_modules)
    adapted: UNet2DConditionModel = copy.deepcopy(unet, {id(p): p for p in unet.parameters()})
    adapted.requires_grad_(False)
    alpha = config.rank if config.alpha is None else config.alpha
    adapted.add_adapter(
        peft.LoraConfig(
            r=config.rank, lora_alpha=alpha, target_modules=list(config.target_modules)
        ),
        _ADAPTER,
    )
    return adapted


def _check_targets(unet: nn.Module, targets: tuple[str, ...]) -> None:
    parts = dict(unet.named_modules())
    for target in targets:
        found = [
            isinstance(part, LAYERS)
            for name, part in parts.items()
            if name == target or name.endswith(f".{target}")
        ]
        if not found or not all(found):
            known = {_ending(name) for name, part in parts.items() if isinstance(part, LAYERS)}
            said = "names more than linear and convolution layers" if found else "names no layer"
            raise ConfigError(
                f"student.lora.target_modules: {target!r} {said} of this UNet; its layers' names "
                f"end in {', '.join(sorted(known))}"
            )


def _ending(name: str) -> str:
    """The last word of a layer's name, with the one before a number."""
    before, _, last = name.rpartition(".")
    return f"{_ending(before)}.{last}" if last.isdigit() else last


def lora_state(unet: nn.Module) -> dict[str, torch.Tensor]:
    """The factors by name, alpha / rank multiplied in: their product is the whole difference."""
    state = {}
    for name, layer in unet.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        down, up = layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight
        state[f"{name}.lora_A.weight"] = down.detach()
        state[f"{name}.lora_B.weight"] = up.detach() * layer.scaling[_ADAPTER]
    return state


@torch.no_grad()
def fused(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """A copy of its own in which the factors' product is added to the weights."""
    whole: UNet2DConditionModel = copy.deepcopy(unet)
    whole.fuse_lora()
    whole.unload_lora()
    return whole


def save_lora(folder: Path, state: Mapping[str, torch.Tensor]) -> None:
    """Write factors so that `load_lora_weights(folder)` of a diffusers pipeline finds them.

    Args:
        folder: to write.
        state: as `lora_state` gives it. One rank for all layers, and no alpha: what reads the
            file then multiplies by 1.
    """
    contiguous = {name: value.contiguous() for name, value in state.items()}
    StableDiffusionLoraLoaderMixin.save_lora_weights(folder, unet_lora_layers=contiguous)
