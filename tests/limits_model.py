"""What limiters are compared with: their promises as an exact model, and random histories.

Owns no test. The model is a token bucket in fractions, a list of what was charged and a list of
what is open; no limiter is written like that.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

from hypothesis import strategies as st

from service.limits.base import Claim, Decision, Limiter, Verdict
from service.principal import Allowance

DAY_US = 86_400_000_000
OWNER = "owner"


@dataclass(frozen=True)
class Step:
    """Let time pass, then do something."""

    pause_us: int
    kind: Literal["take", "take_and_give_back", "release"]
    cost: int
    num_jobs: int
    open_ms: int


def worlds() -> st.SearchStrategy[tuple[Allowance, list[Step]]]:
    """An allowance, and a history in which its limits are often met."""
    allowances = st.builds(
        Allowance,
        st.sampled_from([0, 1, 3, 7, 1000, 262_144, 2**31]),
        st.sampled_from([0, 1, 10, 50, 5000, 2**20, 2**31]),
        st.sampled_from([0, 20, 100, 2**21, 2**50]),
        st.sampled_from([0, 1, 3, 8]),
    )
    pauses = st.one_of(
        st.just(0),
        st.integers(1, 2_000_000),
        st.sampled_from([1, 1_000_000, 3_600_000_000, DAY_US // 2, DAY_US]),
    )
    costs = st.one_of(
        st.integers(1, 60), st.integers(1, 2**21), st.sampled_from([2**20, 2**31 - 1, 2**31])
    )
    steps = st.builds(
        Step,
        pauses,
        st.sampled_from(["take", "take", "take", "take_and_give_back", "release"]),
        costs,
        st.integers(1, 4),
        st.sampled_from([1, 500, 30_000]),
    )
    return st.tuples(allowances, st.lists(steps, min_size=1, max_size=25))


@dataclass
class Model:
    """The promises, word by word."""

    allowance: Allowance
    tokens: Fraction = Fraction(-1)
    at_us: int = 0
    charges: list[tuple[int, int]] = field(default_factory=list)
    open_until_us: dict[str, int] = field(default_factory=dict)

    def _refill(self, now_us: int) -> None:
        burst = Fraction(self.allowance.effective_burst)
        if self.tokens < 0:
            self.tokens = burst
        else:
            gained = Fraction(
                (now_us - self.at_us) * self.allowance.rate_pixel_steps_per_s, 1_000_000
            )
            self.tokens = min(burst, self.tokens + gained)
        self.at_us = now_us
        self.open_until_us = {job: end for job, end in self.open_until_us.items() if end > now_us}

    def take(self, claim: Claim, now_us: int) -> Decision:
        self._refill(now_us)
        allowance = self.allowance
        is_rated = allowance.rate_pixel_steps_per_s > 0
        left = math.floor(self.tokens) if is_rated else None
        if allowance.max_open_pictures:
            if len(self.open_until_us) + len(claim.job_ids) > allowance.max_open_pictures:
                return Decision(Verdict.OPEN, left, 1.0)
        if is_rated and self.tokens < claim.cost:
            missing = (claim.cost - self.tokens) * 1_000_000
            wait_us = math.ceil(missing / allowance.rate_pixel_steps_per_s)
            return Decision(Verdict.RATE, left, wait_us / 1_000_000)
        today = now_us // DAY_US
        spent = sum(cost for day, cost in self.charges if day == today)
        if allowance.daily_pixel_steps and spent + claim.cost > allowance.daily_pixel_steps:
            return Decision(Verdict.DAY, left, ((today + 1) * DAY_US - now_us) / 1_000_000)
        self.charges.append((today, claim.cost))
        if is_rated:
            self.tokens -= claim.cost
            left = math.floor(self.tokens)
        if allowance.max_open_pictures:
            end_us = now_us + round(claim.open_s * 1_000_000)
            self.open_until_us |= dict.fromkeys(claim.job_ids, end_us)
        return Decision(Verdict.ALLOWED, left)

    def give_back(self, claim: Claim) -> None:
        self.charges.pop()
        self.tokens = min(Fraction(self.allowance.effective_burst), self.tokens + claim.cost)
        self.release(claim.job_ids)

    def release(self, job_ids: tuple[str, ...]) -> None:
        for job_id in job_ids:
            self.open_until_us.pop(job_id, None)


async def run_steps(
    limiter: Limiter,
    set_clock: Callable[[int], Awaitable[None]],
    model: Model,
    steps: list[Step],
    settle: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Lead both through the same history and compare every decision."""
    now_us = 20_000 * DAY_US + 12_345
    taken: list[Claim] = []
    for number, step in enumerate(steps):
        now_us += step.pause_us
        await set_clock(now_us)
        if step.kind == "release":
            if taken:
                claim = taken.pop(0)
                limiter.release(OWNER, claim.job_ids)
                model.release(claim.job_ids)
                if settle is not None:
                    await settle()
            continue
        jobs = tuple(f"{number}-{index}" for index in range(step.num_jobs))
        claim = Claim(OWNER, model.allowance, step.cost, jobs, step.open_ms / 1000)
        decision, wanted = await limiter.take(claim), model.take(claim, now_us)
        assert decision == wanted, step
        if decision.verdict is not Verdict.ALLOWED:
            continue
        if step.kind == "take_and_give_back":
            await limiter.give_back(claim)
            model.give_back(claim)
        else:
            taken.append(claim)
