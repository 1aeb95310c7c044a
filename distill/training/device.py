"""Where a training runs: the CPU or one CUDA GPU.

Owns the choice of the device, its precision context and its random state. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from distill.config import ConfigError


def pick_device(name: str) -> torch.device:
    """Return the device that a config names; "auto" takes a GPU where there is one.

    Raises:
        ConfigError: the name is not a device, or the device is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f'device must be "auto", "cpu" or "cuda[:N]", got {name!r}') from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f'device must be "auto", "cpu" or "cuda[:N]", got {name!r}')
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device {name!r} is not here: {torch.cuda.device_count()} GPUs are; "
            'set device to "cpu", or install a CUDA build of torch'
        )
    return device


def has_half_units(device: torch.device) -> bool:
    """Whether a device multiplies in bf16 faster than in float32.

    A CPU without AMX or AVX-512 BF16 emulates it, at more than ten times the cost of float32.
    """
    if device.type != "cpu":
        return True
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def half_precision(device: torch.device, *, enabled: bool) -> torch.autocast:
    """Matrix products in bf16 where `enabled` and of use; sums and losses stay float32."""
    is_half = enabled and has_half_units(device)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=is_half)


def precision_words(device: torch.device, *, enabled: bool) -> str:
    """The precision that `half_precision` gives, as reports name it."""
    return "bf16" if enabled and has_half_units(device) else "float32"


def full_precision(device: torch.device) -> torch.autocast:
    """Leave half precision for a while, inside it."""
    return torch.autocast(device.type, enabled=False)


def random_state(device: torch.device) -> dict[str, Any]:
    """State of every generator that a training draws from."""
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Continue from `random_state`; a run moved to another kind of device draws anew there."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Give the generators back as they were: looking at a training must not change it."""
    before = random_state(device)
    try:
        yield
    finally:
        set_random_state(before, device)
