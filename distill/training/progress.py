"""One training on its way: its trainer, and all that a snapshot holds beside it.

Owns what reporting, looking, judging, an alarm and a snapshot mean. When each is due is the
loop's.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from distill.config import RunConfig
from distill.training.alarms import Alarm, Alarms
from distill.training.checkpoint import (
    CheckpointError,
    load_snapshot,
    read_snapshot,
    save_snapshot,
    snapshot_path,
    snapshot_paths,
)
from distill.training.device import random_state, set_random_state, undisturbed
from distill.training.processes import ALONE, Processes, whole
from distill.training.run_folder import ALARMS, METRICS, Resume, RunFolder
from distill.training.tally import Tally
from distill.training.tracking import Tracker
from distill.training.trainer import Aborted, Adversarial, Scored, Trainer, Varied

logger = logging.getLogger(__name__)


class Progress:
    """A trainer, the iterations that it has done, and what watched them."""

    def __init__(
        self, trainer: Trainer, folder: Path, config: RunConfig, processes: Processes = ALONE
    ) -> None:
        """Start at iteration 0 in a prepared folder, whose files the first process writes."""
        self.trainer, self.config, self._processes = trainer, config, processes
        self.files = RunFolder(folder)
        self.trackers: Sequence[Tracker] = ()
        self.iteration = 0
        self._alarms = Alarms(config.guard.alarms)
        self._tally = Tally()
        self._best_score: float | None = None
        self._reported = (time.monotonic(), 0)

    def begin(self, resume: Resume | None) -> None:
        """Start, or continue from the last whole snapshot or the best one.

        Going back to the best gives up the later ones. A run that was stopped before its first
        snapshot starts anew.

        Raises:
            CheckpointError: no snapshot is whole, or it belongs to something else.
        """
        folder = self.files.path
        if self._processes.is_main:
            self.files.mend()
        self._processes.wait()
        state = None
        if resume == "best":
            if self.files.best() is None:
                raise CheckpointError(f"no best snapshot in {folder / 'best'}: use --resume alone")
            state = read_snapshot(folder / "best" / "snapshot.pt")
        elif resume == "last" and snapshot_paths(folder):
            state = load_snapshot(folder)
        if state is not None:
            self._continue_from(state)
            self._processes.wait()  # until all have read, before files change
            is_best = state.get("is_best")
            is_kept = (self.files.best() or {}).get("iteration") == self.iteration
            if resume == "best" and self._processes.is_main:
                save_snapshot(folder, state, self.config.guard.num_snapshots)
            elif resume == "last" and is_best and not is_kept:  # killed between the two
                self._keep_best(snapshot_path(folder, self.iteration))
        if self._processes.is_main:
            self.files.cut(self.iteration)
            self.files.save_config(self.config)

    def _continue_from(self, state: dict[str, Any]) -> None:
        folder = self.files.path
        if state.get("name") != self.trainer.name:
            raise CheckpointError(f"the snapshot in {folder} belongs to {state.get('name')!r}")
        try:
            self._load(state)
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"the snapshot in {folder} does not fit this model or version ({error}): "
                "resume with the preset, settings and version that wrote it"
            ) from error

    def _load(self, state: dict[str, Any]) -> None:
        self.trainer.load_state_dict(state["trainer"])
        set_random_state(state["random"], self.trainer.device)
        self.iteration = int(state["iteration"])
        self._reported = (time.monotonic(), self.iteration)
        if "guard" in state:  # not in snapshots of version 0.1
            self._alarms.load_state_dict(state["guard"]["alarms"])
            self._tally.load_state_dict(state["guard"]["tally"])
            self._best_score = state["guard"]["best_score"]
            if isinstance(self.trainer, Adversarial):
                self.trainer.lr_d_scale = float(state["guard"]["lr_d_scale"])

    def _state(self, *, is_best: bool) -> dict[str, Any]:
        adversary = self.trainer if isinstance(self.trainer, Adversarial) else None
        return {
            "name": self.trainer.name,
            "iteration": self.iteration,
            "is_best": is_best,
            "random": random_state(self.trainer.device),
            "trainer": whole(self.trainer.state_dict()),
            "guard": {
                "alarms": self._alarms.state_dict(),
                "tally": self._tally.state_dict(),
                "best_score": self._best_score,
                "lr_d_scale": 1.0 if adversary is None else adversary.lr_d_scale,
            },
        }

    def iterate(self, lr_scale: float) -> None:
        """One iteration under watch.

        Raises:
            Aborted: too many iterations in a row had to be skipped, or an alarm asks for it.
        """
        metrics = self.trainer.iterate(lr_scale)
        self.iteration += 1
        self._tally.add(metrics)
        num_skipped = self._tally.num_skipped_in_a_row
        if num_skipped >= self.config.guard.max_skipped_in_a_row:
            self._abort(
                f"{num_skipped} iterations in a row had no finite gradient. Set bf16=false, lower "
                f"{self.trainer.name}.optimizer.lr, or look for damaged pictures with "
                "`onestep-distill data`"
            )
        if not num_skipped:
            self._act_on(self._alarms.observe(self.iteration, metrics))

    def look(self) -> None:
        """Draw a sheet, and measure how varied the pictures are."""
        with undisturbed(self.trainer.device):
            sheet = self.trainer.sample_grid()
            varied = None
            if isinstance(self.trainer, Varied):
                varied = self._processes.of_main(self.trainer.diversity())
        if self._processes.is_main:
            self.files.save_sheet(self.iteration, sheet)
        for tracker in self.trackers:
            tracker.sheet(self.iteration, sheet)
        if varied is not None:
            self._tally.note({"diversity": varied})
            self._act_on(self._alarms.observe_diversity(self.iteration, varied))

    def report(self) -> dict[str, float]:
        """Write the means since the last report."""
        means = self._tally.report()
        if self._processes.is_main:
            self.files.append(METRICS, self.iteration, means)
        before_s, num_before = self._reported
        self._reported = (time.monotonic(), self.iteration)
        rate = (self.iteration - num_before) / max(1e-9, self._reported[0] - before_s)
        shown = {**means, "images_per_s": rate * self.trainer.optimizer.batch_size}
        if self.trainer.device.type == "cuda":
            shown["peak_gpu_gib"] = torch.cuda.max_memory_allocated(self.trainer.device) / 2**30
        for tracker in self.trackers:
            tracker.scalars(self.iteration, shown)
        return means

    def is_best_yet(self) -> bool:
        """Measure the trainer's score, where it has one, and compare."""
        if not isinstance(self.trainer, Scored):
            return False
        with undisturbed(self.trainer.device):
            score = self._processes.of_main(self.trainer.score())
        self._tally.note({self.trainer.score_name: score})
        is_better = self._best_score is None or score < self._best_score
        if not (math.isfinite(score) and is_better):
            return False
        self._best_score = score
        return True

    def snapshot(self, *, has_best_score: bool) -> None:
        """Write everything down; keep it as the best too, where it is.

        Without a score, the best is the last that was written while no alarm was in sight.
        """
        for tracker in self.trackers:
            tracker.flush()
        is_sound = self._alarms.is_quiet and not self._tally.num_skipped_in_a_row
        is_best = has_best_score if isinstance(self.trainer, Scored) else is_sound
        state = self._state(is_best=is_best)
        path = snapshot_path(self.files.path, self.iteration)
        if self._processes.is_main:
            save_snapshot(self.files.path, state, self.config.guard.num_snapshots)
        if is_best:
            self._keep_best(path)

    def write_model(self) -> None:
        """Write the finished model; every process has its part in gathering it."""
        if self._processes.is_main:
            self.files.write_model(self.trainer.save_model)
        else:
            self.trainer.save_model(self.files.path)

    def _keep_best(self, path: Path) -> None:
        if not self._processes.is_main:
            if isinstance(self.trainer, Scored):
                self.trainer.save_model(self.files.path)
        elif isinstance(self.trainer, Scored):
            facts = {"iteration": self.iteration, self.trainer.score_name: self._best_score}
            self.files.keep_best(path, facts, self.trainer.save_model)
        else:  # every snapshot of a sound run comes by here; its model is written on demand
            self.files.keep_best(path, {"iteration": self.iteration})

    def _act_on(self, alarms: Sequence[Alarm]) -> None:
        for alarm in alarms:
            what = {"action": alarm.action, "alarm": alarm.name, "words": alarm.words}
            if self._processes.is_main:
                self.files.append(ALARMS, alarm.iteration, what)
            if alarm.action == "abort":
                self._abort(f"{alarm.words}. Or let it pass: guard.alarms.{alarm.name}_action=warn")
            logger.warning("iteration %d: %s", alarm.iteration, alarm.words)
            if alarm.action == "halve_lr_d" and isinstance(self.trainer, Adversarial):
                self.trainer.lr_d_scale /= 2
                logger.warning(
                    "the discriminator's learning rate is now %g times its own",
                    self.trainer.lr_d_scale,
                )

    def _abort(self, words: str) -> None:
        best = self.files.best()
        folder = self.files.path / "best"
        if best is None:
            kept = "no snapshot was good yet: start again with another --out"
        else:
            if not (folder / "model").exists():
                self.trainer.load_state_dict(read_snapshot(folder / "snapshot.pt")["trainer"])
                self.files.keep_best(folder / "snapshot.pt", best, self.trainer.save_model)
            kept = (
                f"the best model, of iteration {best['iteration']}, is {folder / 'model'}; "
                "continue from it with --resume best and other settings of this training"
            )
        raise Aborted(
            f"{self.trainer.name}: stopped at iteration {self.iteration} of "
            f"{self.trainer.optimizer.iterations}: {words}. {kept[0].upper()}{kept[1:]}"
        )
