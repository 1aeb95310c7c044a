"""What a training is to the loop that drives it, and how one ends early.

Owns the interface between the two. A trainer owes the loop `Trainer`; the other protocols are
offers that the loop takes where they are made.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from PIL import Image

from distill.config import OptimizerConfig


class Trainer(Protocol):
    """What the loop needs of a training."""

    name: str
    optimizer: OptimizerConfig
    device: torch.device

    def iterate(self, lr_scale: float) -> Mapping[str, float]:
        """Take one batch through one optimizer step; return metrics.

        `skipped` is 1 where the gradient was not finite and the weights were left alone;
        `grad_norm` and `d_accuracy`, where they are, are watched.
        """
        ...

    def sample_grid(self) -> Image.Image:
        """Draw what the model can do now."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Models, optimizers, averages and generators."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state."""
        ...

    def save_model(self, folder: Path) -> None:
        """Write the finished weights as diffusers and transformers folders."""
        ...


@runtime_checkable
class Scored(Protocol):
    """A trainer that can judge itself; the lowest score's snapshot is kept as the best."""

    score_name: str

    def score(self) -> float:
        """Measure, without drawing from the training's random numbers."""
        ...


@runtime_checkable
class Varied(Protocol):
    """A trainer that can tell how far apart its pictures of one prompt are."""

    def diversity(self) -> float:
        """Mean distance between pictures of one prompt from different seeds."""
        ...


@runtime_checkable
class Adversarial(Protocol):
    """A trainer with an adversary, whose learning rate it multiplies by `lr_d_scale`."""

    lr_d_scale: float


class Interrupted(Exception):
    """The run was asked to stop; its snapshot is written."""


class Aborted(Exception):
    """The run stopped by itself, because going on is of no use; its best snapshot is kept."""
