"""How long an open queue takes to empty, from the pictures seen.

Owns the estimate that a refused client is told. Knows no queue.
"""

from __future__ import annotations

from service.jobs import JobDone

# Until the first picture is done there is no measured pace to estimate from.
FIRST_RETRY_AFTER_S = 1.0
# Weight of the newest measurement: the estimate follows a change of pace within some ten jobs.
PACE_WEIGHT = 0.1


class Pace:
    """Seconds of an engine per picture, as a moving average."""

    def __init__(self) -> None:
        self._pace_s: float | None = None

    def note(self, done: JobDone) -> None:
        """Learn from one picture."""
        pace_s = done.run_ms / 1000 / done.batch_size
        if self._pace_s is None:
            self._pace_s = pace_s
        else:
            self._pace_s += PACE_WEIGHT * (pace_s - self._pace_s)

    def drain_s(self, num_jobs: int, num_engines: int = 1) -> float:
        """Seconds until `num_jobs` are drawn."""
        if self._pace_s is None:
            return FIRST_RETRY_AFTER_S
        return num_jobs * self._pace_s / max(num_engines, 1)
