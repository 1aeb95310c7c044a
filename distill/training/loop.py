"""The one training loop: resume, iterate, report, watch, snapshot.

Owns the order of things around an iteration, and the signals that end it. What each of them does
is `distill.training.progress`'s.
"""

from __future__ import annotations

import math
import signal
import time
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from tqdm import tqdm

from distill.config import OptimizerConfig, RunConfig
from distill.training.processes import ALONE, Processes
from distill.training.progress import Progress
from distill.training.run_folder import Resume
from distill.training.tracking import tracking
from distill.training.trainer import Interrupted, Trainer


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


def run_training(
    trainer: Trainer,
    folder: Path,
    config: RunConfig,
    *,
    resume: Resume | None = None,
    processes: Processes = ALONE,
) -> None:
    """Train to the last iteration and write the finished model to `folder`/model.

    Args:
        trainer: at its beginning.
        folder: prepared.
        config: of the run.
        resume: continue from the last whole snapshot, or from the best one.
        processes: that train together; the first one writes and is shown.

    Raises:
        Interrupted: SIGINT or SIGTERM came to one of them; the snapshot holds everything up to it.
        Aborted: the training was going wrong; the best snapshot is kept.
        CheckpointError: the snapshot to resume from is damaged, or the disk is full.
        ConfigError: another training is running in the folder.
    """
    run = Progress(trainer, folder, config, processes)
    total, is_main = trainer.optimizer.iterations, processes.is_main
    with ExitStack() as stack:
        if is_main:
            stack.enter_context(run.files.locked())
        run.begin(resume)
        last_snapshot_s = time.monotonic()
        with (
            _StopFlag() as stop,
            tracking(folder, config, run.iteration) if is_main else nullcontext(()) as run.trackers,
            tqdm(total=total, initial=run.iteration, desc=trainer.name, disable=not is_main) as bar,
        ):
            while run.iteration < total:
                run.iterate(lr_scale_at(run.iteration, trainer.optimizer))
                done, is_last = run.iteration, run.iteration == total
                bar.update()
                if done % config.sample_every == 0 or is_last:
                    run.look()
                is_judged = done % config.guard.score_every == 0 or is_last
                has_best_score = is_judged and run.is_best_yet()
                if done % config.report_every == 0 or is_last:
                    means = run.report()
                    bar.set_postfix({name: f"{value:.4f}" for name, value in means.items()})
                # Clocks and signals differ between processes; what follows must not.
                is_stopped, is_due = processes.any(
                    stop.is_set, time.monotonic() - last_snapshot_s >= config.snapshot_every_s
                )
                if is_stopped or is_due or has_best_score or is_last:
                    run.snapshot(has_best_score=has_best_score)
                    last_snapshot_s = time.monotonic()
                if is_stopped and not is_last:
                    raise Interrupted(f"stopped after {done} of {total}; continue with --resume")
        run.write_model()
