"""When a delivery is tried again, and how long it waits before that.

Owns arithmetic only: no clock, no network.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

# What the receiver may ask for; one that wants more time than that has lost the event.
MAX_RETRY_AFTER_S = 900.0
_TIMEOUT, _TOO_MANY = 408, 429


@dataclass(frozen=True)
class RetryPlan:
    """Exponential waits: 1, 4, 16, 64 and 256 s before the tries 2 to 6, each shortened by chance.

    Attributes:
        draw: a number in [0, 1) that scatters the waits, so that receivers which come back are not
            called by everybody at once.
    """

    max_tries: int
    first_wait_s: float = 1.0
    factor: float = 4.0
    max_wait_s: float = 300.0
    draw: Callable[[], float] = random.random

    def wait_s(self, num_tries: int, retry_after_s: float | None) -> float | None:
        """How long to wait after so many tries; None when there were enough."""
        if num_tries >= self.max_tries:
            return None
        full_s = min(self.first_wait_s * self.factor ** (num_tries - 1), self.max_wait_s)
        asked_s = min(max(retry_after_s or 0.0, 0.0), MAX_RETRY_AFTER_S)
        return max(full_s * (1 - self.draw() / 2), asked_s)


def is_retried(status: int) -> bool:
    """Whether an answer may be another one later."""
    return status >= 500 or status in (_TIMEOUT, _TOO_MANY)


def parse_retry_after(value: str, now: datetime) -> float | None:
    """Seconds that a Retry-After header asks for: a number, or a date. None for anything else.

    Source: RFC 9110, section 10.2.3.
    """
    if value.isascii() and value.isdigit():
        # More digits than this is past every cap, and quadratic to read.
        return float(value[:12])
    try:
        until = parsedate_to_datetime(value)
    except ValueError:
        return None
    if until.tzinfo is None:
        until = until.replace(tzinfo=UTC)
    return (until - now).total_seconds()
