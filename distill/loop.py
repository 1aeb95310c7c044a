"""The one training loop: resume, iterate, report, snapshot.

Owns a run's folder: config.json, metrics.jsonl, samples/, snapshot.pt. Every training
(autoencoder, teacher, student) is a `Trainer` that it drives; no trainer touches the disk.
"""

from __future__ import annotations

import json
import logging
import math
import signal
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Protocol

import torch
from PIL import Image
from tqdm import tqdm

from distill.checkpoint import SNAPSHOT_FILE, CheckpointError, load_snapshot, save_snapshot
from distill.config import ConfigError, OptimizerConfig, RunConfig
from distill.device import random_state, set_random_state

logger = logging.getLogger(__name__)


class Trainer(Protocol):
    """What the loop needs of a training."""

    name: str
    optimizer: OptimizerConfig
    device: torch.device

    def iterate(self, lr_scale: float) -> Mapping[str, float]:
        """Take one batch through one optimizer step; return metrics."""
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


class Interrupted(Exception):
    """The run was asked to stop; its snapshot is written."""


def lr_scale_at(iteration: int, config: OptimizerConfig) -> float:
    """Fraction of the peak learning rate: linear warm-up, plateau, cosine decay."""
    warmup = min(1.0, (iteration + 1) / max(1, config.warmup_iterations))
    decay_iterations = max(1.0, config.decay_fraction * config.iterations)
    progress = max(0.0, 1 - (config.iterations - iteration) / decay_iterations)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return warmup * (config.final_lr_fraction + (1 - config.final_lr_fraction) * cosine)


def set_up_torch(config: RunConfig) -> None:
    """Seed the global generator and set the number of threads (0 leaves torch's choice)."""
    torch.manual_seed(config.seed)
    if config.num_threads:
        torch.set_num_threads(config.num_threads)


def prepare_folder(run: Path, stage: str, config: RunConfig, resume: bool) -> Path:
    """Make `run`/`stage` with its config.json, refusing to mix two runs.

    Raises:
        ConfigError: a snapshot is there and `resume` is not asked for, or the saved config differs.
    """
    folder = run / stage
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    saved = folder / "config.json"
    if (folder / SNAPSHOT_FILE).exists() and not resume:
        raise ConfigError(f"{folder} holds a training: add --resume, or give another --out")
    if resume and saved.exists():
        try:
            before = RunConfig.from_json(saved.read_text()).that_shapes(stage)
        except ValueError as error:  # of JSON or of a field
            raise ConfigError(f"{saved} is damaged ({error}): give another --out") from error
        now = config.that_shapes(stage)
        changed = [name for name in now if now[name] != before[name]]
        if changed:
            raise ConfigError(
                f"{saved} differs in {', '.join(changed)}: resume with the same preset and --set"
            )
    _replace_text(saved, config.to_json())
    return folder


class _StopFlag(AbstractContextManager["_StopFlag"]):
    """Turns SIGINT and SIGTERM into a flag that the loop reads between iterations."""

    def __init__(self) -> None:
        self.is_set = False
        self._previous: dict[int, Any] = {}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.is_set = True

    def __enter__(self) -> _StopFlag:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def run_training(trainer: Trainer, folder: Path, config: RunConfig, *, resume: bool) -> None:
    """Train to the last iteration and write the finished model to `folder`/model.

    Raises:
        Interrupted: SIGINT or SIGTERM came; the snapshot holds everything up to it.
        CheckpointError: the snapshot to resume from is damaged.
    """
    start = 0
    if resume and (folder / SNAPSHOT_FILE).exists():
        state = load_snapshot(folder)
        if state.get("name") != trainer.name:
            raise CheckpointError(f"{folder / SNAPSHOT_FILE} belongs to {state.get('name')!r}")
        trainer.load_state_dict(state["trainer"])
        set_random_state(state["random"], trainer.device)
        start = int(state["iteration"])
    _cut_metrics(folder / "metrics.jsonl", start)
    total = trainer.optimizer.iterations

    def snapshot(iteration: int) -> None:
        save_snapshot(
            folder,
            {
                "name": trainer.name,
                "iteration": iteration,
                "random": random_state(trainer.device),
                "trainer": trainer.state_dict(),
            },
        )

    last_snapshot_s = time.monotonic()
    sums: dict[str, float] = {}
    num_sums = 0
    with _StopFlag() as stop, tqdm(total=total, initial=start, desc=trainer.name) as bar:
        for iteration in range(start, total):
            metrics = trainer.iterate(lr_scale_at(iteration, trainer.optimizer))
            done = iteration + 1
            for key, value in metrics.items():
                sums[key] = sums.get(key, 0.0) + value
            num_sums += 1
            bar.update()
            if done % config.report_every == 0 or done == total:
                means = {key: value / num_sums for key, value in sums.items()}
                _append_metrics(folder / "metrics.jsonl", done, means)
                bar.set_postfix({key: f"{value:.4f}" for key, value in means.items()})
                sums, num_sums = {}, 0
            if done % config.sample_every == 0 or done == total:
                trainer.sample_grid().save(folder / "samples" / f"{done:07d}.png")
            is_due = time.monotonic() - last_snapshot_s >= config.snapshot_every_s
            if stop.is_set or is_due or done == total:
                snapshot(done)
                last_snapshot_s = time.monotonic()
            if stop.is_set and done < total:
                raise Interrupted(f"stopped after {done} of {total}; continue with --resume")
    trainer.save_model(folder / "model")


def _append_metrics(path: Path, iteration: int, metrics: Mapping[str, float]) -> None:
    line = {"iteration": iteration, "time_s": round(time.time(), 3), **metrics}
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")


def _cut_metrics(path: Path, iteration: int) -> None:
    """Drop lines written after the snapshot, so that a resumed run has each one once."""
    if path.exists():
        # A line that a crash cut short was the last, and so is newer than the snapshot.
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]
        kept = [line for line in whole if json.loads(line)["iteration"] <= iteration]
        _replace_text(path, "".join(kept))


def _replace_text(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
