"""A training of one number, to test what surrounds every training.

Owns the number, what may befall it, and how to train it in a folder.
"""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from distill_fixtures import tiny_config
from PIL import Image

from distill.config import OptimizerConfig
from distill.training.loop import run_training
from distill.training.run_folder import Resume, prepare_folder


class Walk:
    """A random walk: its number depends on every draw before it."""

    name = "teacher"
    device = torch.device("cpu")

    def __init__(self, iterations: int, stop_at: int = 0, crash_at: int = 0) -> None:
        self.optimizer = OptimizerConfig(iterations=iterations, warmup_iterations=1)
        self.position = torch.zeros(())
        self.num_done = 0
        self._stop_at, self._crash_at = stop_at, crash_at

    def iterate(self, lr_scale: float) -> dict[str, float]:
        self.num_done += 1
        if self.num_done == self._crash_at:
            raise RuntimeError("the power went out")
        if self.num_done == self._stop_at:
            signal.raise_signal(signal.SIGTERM)
        self.position = self.position + lr_scale * torch.randn(())
        return {"position": self.position.item()}

    def sample_grid(self) -> Image.Image:
        return Image.new("RGB", (1, 1))

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position, "num_done": self.num_done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]
        self.num_done = state["num_done"]

    def save_model(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "position").write_text(repr(self.position.item()))


class WatchedWalk(Walk):
    """A walk with an adversary, whose metrics are given by iteration from 1."""

    lr_d_scale = 1.0

    def __init__(
        self, iterations: int, metrics: Mapping[int, Mapping[str, float]], **kwargs: int
    ) -> None:
        super().__init__(iterations, **kwargs)
        self._metrics = metrics

    def iterate(self, lr_scale: float) -> dict[str, float]:
        return super().iterate(lr_scale) | dict(self._metrics.get(self.num_done, {}))


class ScoredWalk(Walk):
    """A walk whose scores are given by iteration from 1; measuring draws random numbers."""

    score_name = "distance"

    def __init__(self, iterations: int, scores: Mapping[int, float], **kwargs: int) -> None:
        super().__init__(iterations, **kwargs)
        self._scores = scores

    def score(self) -> float:
        torch.randn(3)
        return self._scores.get(self.num_done, math.inf)


class VariedWalk(Walk):
    """A walk whose diversities are given by iteration from 1; measuring draws random numbers."""

    def __init__(self, iterations: int, diversities: Mapping[int, float], **kwargs: int) -> None:
        super().__init__(iterations, **kwargs)
        self._diversities = diversities

    def diversity(self) -> float:
        torch.randn(3)
        return self._diversities[self.num_done]


def train(run: Path, walk: Walk, *, resume: Resume | None = None, **settings: object) -> Path:
    """Train a walk in `run` with some settings; return the training's folder."""
    quiet = {"track.tensorboard": "false", **settings}
    config = tiny_config(*(f"{name}={value}" for name, value in quiet.items()))
    torch.manual_seed(0)
    folder = prepare_folder(run, walk.name, config, resume)
    run_training(walk, folder, config, resume=resume)
    return folder


def lines_of(folder: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """The lines of metrics.jsonl or alarms.jsonl."""
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]
