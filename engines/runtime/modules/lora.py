"""Low-rank adapters, added to the weights before anything is traced.

Owns which file goes on which part and that all of it goes on. Files are those of diffusers, peft
and kohya-ss, as `load_lora_weights` of a diffusers pipeline reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import peft
from diffusers.loaders import StableDiffusionLoraLoaderMixin, StableDiffusionXLLoraLoaderMixin
from diffusers.utils.peft_utils import recurse_remove_peft_layers
from peft.tuners.lora import LoraLayer
from torch import nn

from engines.errors import ExportError

_PARTS = ("unet", "text_encoder", "text_encoder_2")


@dataclass(frozen=True)
class Lora:
    """An adapter's file or folder, and how many times its difference counts."""

    path: Path
    scale: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Lora:
        """Read "PATH" or "PATH:SCALE"; a path that has a colon itself is found as it is."""
        path, colon, scale = text.rpartition(":")
        if not colon or Path(text).exists():
            return cls(Path(text))
        try:
            return cls(Path(path), float(scale))
        except ValueError:
            return cls(Path(text))


def fuse_loras(network: nn.Module, part: str, loras: Sequence[Lora], *, is_dual: bool) -> None:
    """Add to a network, in place, what adapters hold for it.

    Args:
        network: a UNet or text encoder in float32.
        part: its folder's name.
        loras: in order; each may hold something for some parts only.
        is_dual: whether the model has two text encoders, as SDXL.

    Raises:
        ExportError: an adapter cannot be read, holds nothing for a known part, or does not fit.
    """
    loader: Any = StableDiffusionXLLoraLoaderMixin if is_dual else StableDiffusionLoraLoaderMixin
    for lora in loras:
        state, alphas = _read(loader, lora, network if part == "unet" else None)
        names = [name for name in state if name.startswith(f"{part}.") and "lora" in name]
        if not names:
            continue
        adapted: Any = network
        try:
            if part == "unet":
                loader.load_lora_into_unet(state, alphas, network)
            else:
                adapted.load_adapter = partial(_load_adapter, network)
                loader.load_lora_into_text_encoder(state, alphas, network, prefix=part)
        except Exception as error:  # three libraries, no common base class
            raise ExportError(
                f"--lora {lora.path}: does not fit this model's {part} ({_line(error)})"
            ) from error
        layers = [layer for layer in network.modules() if isinstance(layer, LoraLayer)]
        if 2 * len(layers) != len(names):
            raise ExportError(
                f"--lora {lora.path}: is of another model: of its {len(names) // 2} layers for the "
                f"{part}, {len(layers)} are there"
            )
        for layer in layers:
            merged: Any = layer
            merged.scale_layer(lora.scale)
            merged.merge()
        recurse_remove_peft_layers(network)
        # The next adapter is put on a network that never had one.
        for name in ("peft_config", "_hf_peft_config_loaded", "load_adapter"):
            if name in vars(network):
                delattr(network, name)


def _read(loader: Any, lora: Lora, unet: Any) -> tuple[dict[str, Any], Any]:
    """An adapter's factors and its alphas, in the names of diffusers whatever the file's are."""
    if not lora.path.exists():
        raise ExportError(f"--lora {lora.path}: no such file or folder")
    try:
        state, alphas = loader.lora_state_dict(
            str(lora.path),
            local_files_only=True,
            use_safetensors=True,
            unet_config=None if unet is None else unet.config,
        )
    except Exception as error:  # three libraries, no common base class
        raise ExportError(f"--lora {lora.path}: cannot be read ({_line(error)})") from error
    if not any(name.partition(".")[0] in _PARTS for name in state):
        raise ExportError(f"--lora {lora.path}: holds nothing for {', '.join(_PARTS)}")
    return state, alphas


def _load_adapter(
    network: nn.Module, adapter_name: str, adapter_state_dict: Any, peft_config: Any
) -> None:
    """Put layers on a text encoder by peft alone: transformers asks for a peft to come."""
    peft.inject_adapter_in_model(peft_config, network, adapter_name)
    peft.set_peft_model_state_dict(network, adapter_state_dict, adapter_name)


def _line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
