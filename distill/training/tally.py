"""Metrics of many iterations as the few lines that are reported.

Owns means between reports and the count of skipped iterations. Its state is part of a snapshot,
so that a resumed run writes the same lines.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

# A trainer reports 1 under this name for an iteration whose gradient was not finite.
SKIPPED = "skipped"


class Tally:
    """Sums since the last report, and skipped iterations since the start."""

    def __init__(self) -> None:
        """Start with nothing."""
        self.num_skipped = 0
        self.num_skipped_in_a_row = 0
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def add(self, metrics: Mapping[str, float]) -> None:
        """Count one iteration in; one that was skipped has no say in the means."""
        if metrics.get(SKIPPED):
            self.num_skipped += 1
            self.num_skipped_in_a_row += 1
            return
        self.num_skipped_in_a_row = 0
        self.note({name: value for name, value in metrics.items() if name != SKIPPED})

    def note(self, values: Mapping[str, float]) -> None:
        """Put values into the next report that not every iteration has."""
        for name, value in values.items():
            if math.isfinite(value):
                self._sums[name] = self._sums.get(name, 0.0) + value
                self._counts[name] = self._counts.get(name, 0) + 1

    def report(self) -> dict[str, float]:
        """Means since the last report, and all skipped iterations; then start again."""
        means = {name: total / self._counts[name] for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        return {**means, "num_skipped": float(self.num_skipped)}

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next report depends on."""
        return {
            "num_skipped": self.num_skipped,
            "num_skipped_in_a_row": self.num_skipped_in_a_row,
            "sums": dict(self._sums),
            "counts": dict(self._counts),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.num_skipped = int(state["num_skipped"])
        self.num_skipped_in_a_row = int(state["num_skipped_in_a_row"])
        self._sums, self._counts = dict(state["sums"]), dict(state["counts"])
