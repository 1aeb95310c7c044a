"""The limiter of one process: numbers in a table.

A restart forgets them, the day's included, and each process counts for itself. There is one entry
per owner, and owners are the keys of a file, so the table is as bounded as that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from service.limits.base import (
    OPEN_RETRY_S,
    US_PER_DAY,
    US_PER_S,
    Claim,
    Decision,
    Verdict,
)


@dataclass
class _Spent:
    """One owner's numbers; `level` is in millionths of pixel-steps, as of `at_us`."""

    level: int = 0
    at_us: int = 0
    day: int = 0
    used: int = 0
    open_until_us: dict[str, int] = field(default_factory=dict)


class MemoryLimiter:
    """Implements `Limiter`.

    Args:
        now_us: the wall clock in whole microseconds.
    """

    def __init__(self, now_us: Callable[[], int] = lambda: time.time_ns() // 1000) -> None:
        self._now_us = now_us
        self._owners: dict[str, _Spent] = {}

    async def take(self, claim: Claim) -> Decision:
        """Charge a claim, or refuse it and charge nothing."""
        now_us = self._now_us()
        spent = self._up_to_date(claim, now_us)
        allowance = claim.allowance
        rate, burst = allowance.rate_pixel_steps_per_s, allowance.effective_burst * US_PER_S
        level = spent.level + claim.cost * US_PER_S
        is_rated = rate > 0
        left = max(0, burst - spent.level) // US_PER_S if is_rated else None
        num_open = len(spent.open_until_us) + len(claim.job_ids)
        if 0 < allowance.max_open_pictures < num_open:
            return Decision(Verdict.OPEN, left, OPEN_RETRY_S)
        if is_rated and level > burst:
            wait_us = -((burst - level) // rate)
            return Decision(Verdict.RATE, left, wait_us / US_PER_S)
        if 0 < allowance.daily_pixel_steps < spent.used + claim.cost:
            return Decision(Verdict.DAY, left, (US_PER_DAY - now_us % US_PER_DAY) / US_PER_S)
        if is_rated:
            spent.level = level
            left = (burst - level) // US_PER_S
        spent.used += claim.cost
        if allowance.max_open_pictures:
            until_us = now_us + int(claim.open_s * US_PER_S)
            spent.open_until_us.update(dict.fromkeys(claim.job_ids, until_us))
        return Decision(Verdict.ALLOWED, left)

    async def give_back(self, claim: Claim) -> None:
        """Undo a charge."""
        spent = self._up_to_date(claim, self._now_us())
        spent.level = max(0, spent.level - claim.cost * US_PER_S)
        spent.used = max(0, spent.used - claim.cost)
        self.release(claim.owner, claim.job_ids)

    def release(self, owner: str, job_ids: Collection[str]) -> None:
        """These pictures are open no more."""
        spent = self._owners.get(owner)
        if spent is not None:
            for job_id in job_ids:
                spent.open_until_us.pop(job_id, None)

    def _up_to_date(self, claim: Claim, now_us: int) -> _Spent:
        """The owner's numbers as of now."""
        spent = self._owners.setdefault(claim.owner, _Spent(at_us=now_us))
        # A clock that was set back lets nothing drain and nobody wait for the old time to return.
        elapsed_us = max(0, now_us - spent.at_us)
        spent.level = max(0, spent.level - elapsed_us * claim.allowance.rate_pixel_steps_per_s)
        spent.at_us = now_us
        if spent.day != now_us // US_PER_DAY:
            spent.day, spent.used = now_us // US_PER_DAY, 0
        overdue = [job_id for job_id, until in spent.open_until_us.items() if until <= now_us]
        for job_id in overdue:
            del spent.open_until_us[job_id]
        return spent
