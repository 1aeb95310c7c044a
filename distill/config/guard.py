"""What watches over a training: snapshots, alarms, tracking.

None of these fields decides what a healthy run learns, so a resumed run may change them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

AlarmAction = Literal["warn", "halve_lr_d", "abort"]


@dataclass(frozen=True)
class AlarmConfig:
    """When a training counts as going wrong, and what then happens. Values are our proposals.

    An action is "warn"; "halve_lr_d", which halves the learning rate of what is trained against
    the student (and is a warning where there is no such thing); or "abort", which keeps the best
    snapshot and ends with exit code 3.

    Attributes:
        accuracy_limit: share of the heads' logits with the right sign, above which the
            discriminator has won and teaches nothing more.
        accuracy_iterations: for how many iterations without a break.
        diversity_fraction: pictures of one prompt differ by less than this fraction of the most
            they ever did in this run, at two sheets one after the other.
        spike_factor: a gradient norm above this many times the median of the last
            `spike_window` is a spike; `num_spikes` of them within the window raise the alarm.
    """

    accuracy_limit: float = 0.95
    accuracy_iterations: int = 500
    accuracy_action: AlarmAction = "halve_lr_d"
    diversity_fraction: float = 0.5
    diversity_action: AlarmAction = "warn"
    spike_factor: float = 10.0
    spike_window: int = 200
    num_spikes: int = 5
    spike_action: AlarmAction = "warn"


@dataclass(frozen=True)
class GuardConfig:
    """What is kept of a run, and when it stops by itself.

    Attributes:
        num_snapshots: how many of the last snapshots are kept beside the best one.
        score_every: iterations between two measurements of the score that chooses the best
            snapshot, for a training that has one.
        max_skipped_in_a_row: iterations without a finite gradient after which the run ends.
    """

    num_snapshots: int = 2
    score_every: int = 500
    max_skipped_in_a_row: int = 20
    alarms: AlarmConfig = field(default_factory=AlarmConfig)


@dataclass(frozen=True)
class TrackConfig:
    """Where metrics are shown beside metrics.jsonl.

    Attributes:
        tensorboard: write event files to the run's tensorboard/ folder, where the package is.
        wandb_project: also log to this Weights & Biases project; None does not.
        wandb_name: name of the run there; None takes the run's and the stage's.
    """

    tensorboard: bool = True
    wandb_project: str | None = None
    wandb_name: str | None = None


def guard_rules(guard: GuardConfig) -> Iterator[tuple[bool, str]]:
    """Conditions that must not hold, each with the words that name the remedy."""
    alarms = guard.alarms
    for name in ("num_snapshots", "score_every", "max_skipped_in_a_row"):
        yield getattr(guard, name) < 1, f"guard.{name} must be at least 1"
    for name in ("accuracy_iterations", "spike_window", "num_spikes"):
        yield getattr(alarms, name) < 1, f"guard.alarms.{name} must be at least 1"
    yield alarms.spike_factor <= 1, "guard.alarms.spike_factor must be above 1"
