"""Snapshots of a training and the weights that leave it.

Owns the files of a run folder that hold tensors. A snapshot is written whole or not at all, and
the one before it stays until the new one is complete. Knows nothing of losses or data.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

SNAPSHOT_FILE = "snapshot.pt"


class CheckpointError(RuntimeError):
    """A snapshot or model folder is missing or damaged; the message names it and the remedy."""


def save_snapshot(folder: Path, state: dict[str, Any]) -> None:
    """Replace `folder`/snapshot.pt with `state` (tensors, numbers, strings, lists, dicts)."""
    partial = folder / (SNAPSHOT_FILE + ".partial")
    try:
        with partial.open("wb") as stream:
            torch.save(state, stream)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(folder / SNAPSHOT_FILE)
    finally:
        partial.unlink(missing_ok=True)


def load_snapshot(folder: Path) -> dict[str, Any]:
    """Read `folder`/snapshot.pt; tensors and plain values only, never code.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    path = folder / SNAPSHOT_FILE
    if not path.is_file():
        raise CheckpointError(f"no snapshot at {path}: train without --resume first")
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load compares no checksums itself
            damaged = archive.testzip()
        if damaged:
            raise zipfile.BadZipFile(f"checksum of {damaged}")
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes can lead the unpickler to any error
        raise CheckpointError(f"{path} is damaged: remove it and train again") from error
    return state


class Ema:
    """Exponential moving average of a model's parameters, kept beside it.

    The decay ramps up as (1 + n) / (10 + n) so that the first iterations do not linger.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Start from the model's present weights."""
        self.decay = decay
        self.num_updates = 0
        self.weights = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model's weights."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        current = model.state_dict()
        floats = [k for k, v in self.weights.items() if v.is_floating_point()]
        torch._foreach_lerp_(
            [self.weights[k] for k in floats], [current[k] for k in floats], 1 - decay
        )
        for key in self.weights.keys() - set(floats):
            self.weights[key].copy_(current[key])

    def copy_to(self, model: nn.Module) -> None:
        """Give the averaged weights to a model of the same form."""
        model.load_state_dict(self.weights)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        return {"num_updates": self.num_updates, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved average."""
        self.num_updates = state["num_updates"]
        for key, value in state["weights"].items():
            self.weights[key].copy_(value)


@contextmanager
def averaged(model: nn.Module, ema: Ema) -> Iterator[None]:
    """Lend the averaged weights to a model for a while."""
    own = {key: value.detach().clone() for key, value in model.state_dict().items()}
    was_training = model.training
    ema.copy_to(model)
    model.eval()
    try:
        yield
    finally:
        model.load_state_dict(own)
        model.train(was_training)
