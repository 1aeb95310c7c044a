"""Presets: whole run configurations by name, each a function."""

from __future__ import annotations

from collections.abc import Callable

from distill.config import ConfigError, RunConfig
from distill.presets.miniatures import ablation_cpu, ablation_gpu, ablation_tiny
from distill.presets.paper import add_m, add_xl
from distill.presets.small import emoji_cpu, emoji_gpu, emoji_many, own_cpu, shapes_tiny

PRESETS: dict[str, Callable[[], RunConfig]] = {
    "add_m": add_m,
    "add_xl": add_xl,
    "ablation_cpu": ablation_cpu,
    "ablation_gpu": ablation_gpu,
    "ablation_tiny": ablation_tiny,
    "emoji_many": emoji_many,
    "emoji_cpu": emoji_cpu,
    "emoji_gpu": emoji_gpu,
    "own_cpu": own_cpu,
    "shapes_tiny": shapes_tiny,
}


def preset(name: str) -> RunConfig:
    """Return a preset by name.

    Raises:
        ConfigError: no preset has that name.
    """
    if name not in PRESETS:
        raise ConfigError(f"no preset {name!r}: choose one of {', '.join(sorted(PRESETS))}")
    return PRESETS[name]()
