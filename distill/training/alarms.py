"""Signs that a training is going wrong: a won discriminator, pictures alike, gradient spikes.

Owns when an alarm is raised and what it says. Sees metrics only; acting on an alarm is the
loop's. Its state is part of a snapshot, so that a resumed run raises the same alarms.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distill.config import AlarmConfig
from distill.config.guard import AlarmAction


@dataclass(frozen=True)
class Alarm:
    """One alarm: what happened, and what the config wants done."""

    name: str
    iteration: int
    action: AlarmAction
    words: str


class Alarms:
    """Watches the metrics of each iteration and the diversity of each sheet."""

    def __init__(self, config: AlarmConfig) -> None:
        """Start with nothing seen."""
        self.config = config
        self._num_won = 0
        self._norms: deque[float] = deque(maxlen=config.spike_window)
        self._spikes: list[int] = []
        self._most_diverse = 0.0
        self._num_alike = 0

    @property
    def is_quiet(self) -> bool:
        """Whether the last iteration and the last sheet gave no ground for an alarm."""
        return not self._num_won and not self._num_alike

    def observe(self, iteration: int, metrics: Mapping[str, float]) -> list[Alarm]:
        """Look at one iteration's metrics (`d_accuracy` and `grad_norm`, where they are)."""
        found = []
        if "d_accuracy" in metrics:
            found.append(self._accuracy(iteration, metrics["d_accuracy"]))
        if "grad_norm" in metrics:
            found.append(self._norm(iteration, metrics["grad_norm"]))
        return [alarm for alarm in found if alarm is not None]

    def _accuracy(self, iteration: int, accuracy: float) -> Alarm | None:
        config = self.config
        self._num_won = self._num_won + 1 if accuracy > config.accuracy_limit else 0
        if self._num_won < config.accuracy_iterations:
            return None
        self._num_won = 0
        words = (
            f"the discriminator was right on more than {config.accuracy_limit:.0%} of its logits "
            f"for {config.accuracy_iterations} iterations: it teaches the student nothing more. "
            "Lower student.discriminator.lr, or raise student.discriminator.r1_gamma"
        )
        return Alarm("accuracy", iteration, config.accuracy_action, words)

    def _norm(self, iteration: int, norm: float) -> Alarm | None:
        config = self.config
        # A median of a few first iterations would call every later one a spike.
        has_seen_enough = len(self._norms) >= max(2, config.spike_window // 4)
        limit = config.spike_factor * statistics.median(self._norms) if has_seen_enough else 0.0
        self._norms.append(norm)
        self._spikes = [at for at in self._spikes if at > iteration - config.spike_window]
        if not has_seen_enough or norm <= limit:
            return None
        self._spikes.append(iteration)
        if len(self._spikes) < config.num_spikes:
            return None
        self._spikes = []
        words = (
            f"{config.num_spikes} gradients within {config.spike_window} iterations were more "
            f"than {config.spike_factor:g} times as long as usual, the last {norm:.3g}. "
            "Lower the learning rate or optimizer.grad_clip, or look for bad pictures"
        )
        return Alarm("spike", iteration, config.spike_action, words)

    def observe_diversity(self, iteration: int, diversity: float) -> list[Alarm]:
        """Look at how far apart pictures of one prompt are, in any unit that stays the same."""
        config = self.config
        self._most_diverse = max(self._most_diverse, diversity)
        is_alike = diversity < config.diversity_fraction * self._most_diverse
        self._num_alike = self._num_alike + 1 if is_alike else 0
        if self._num_alike < 2:
            return []
        words = (
            f"pictures of one prompt differ by {diversity:.3g}, less than "
            f"{config.diversity_fraction:.0%} of the {self._most_diverse:.3g} that they once did: "
            "the seed may soon not matter. Lower both learning rates, or raise "
            "student.lambda_distill; on a set with one picture per prompt this is no fault"
        )
        return [Alarm("diversity", iteration, config.diversity_action, words)]

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides the next alarm."""
        return {
            "num_won": self._num_won,
            "norms": list(self._norms),
            "spikes": list(self._spikes),
            "most_diverse": self._most_diverse,
            "num_alike": self._num_alike,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`; a window made shorter keeps its newest part."""
        self._num_won = int(state["num_won"])
        self._norms = deque(state["norms"], maxlen=self.config.spike_window)
        self._spikes = list(state["spikes"])
        self._most_diverse = float(state["most_diverse"])
        self._num_alike = int(state["num_alike"])
