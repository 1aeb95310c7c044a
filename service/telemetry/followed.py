"""Counters that something else keeps, shown as what they grew by since this process began.

A process that starts must not show all that ever happened as if it had happened just now.
"""

from __future__ import annotations

from prometheus_client import Counter


class FollowedCounter:
    """A counter that is told totals instead of steps."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._last: int | None = None

    def reach(self, total: int) -> None:
        """Grow by what the total has grown; a smaller one means that it began again at 0."""
        if self._last is not None:
            self._counter.inc(total - self._last if total >= self._last else total)
        self._last = total
