"""The limiter decides like an exact model of what was promised, whatever comes in which order."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from limits_model import DAY_US, Model, Step, run_steps, worlds

from service.limits.base import Claim, Verdict
from service.limits.memory import MemoryLimiter
from service.principal import Allowance


class _Clock:
    def __init__(self, now_us: int = 20_000 * DAY_US) -> None:
        self.now_us = now_us

    def __call__(self) -> int:
        return self.now_us


def _claim(allowance: Allowance, cost: int, *jobs: str, owner: str = "a") -> Claim:
    return Claim(owner, allowance, cost, jobs or ("job",), open_s=30.0)


@given(worlds())
def test_memory_decides_like_the_model(world: tuple[Allowance, list[Step]]) -> None:
    allowance, steps = world
    clock = _Clock()
    limiter = MemoryLimiter(clock)

    async def set_clock(now_us: int) -> None:
        clock.now_us = now_us

    asyncio.run(run_steps(limiter, set_clock, Model(allowance), steps))


async def test_owners_do_not_share() -> None:
    allowance = Allowance(rate_pixel_steps_per_s=10, burst_pixel_steps=10)
    limiter = MemoryLimiter(_Clock())
    assert (await limiter.take(_claim(allowance, 10))).verdict is Verdict.ALLOWED
    assert (await limiter.take(_claim(allowance, 10))).verdict is Verdict.RATE
    assert (await limiter.take(_claim(allowance, 10, owner="b"))).verdict is Verdict.ALLOWED


async def test_waiting_as_long_as_told_is_enough_and_less_is_not() -> None:
    allowance = Allowance(rate_pixel_steps_per_s=7, burst_pixel_steps=20)
    clock = _Clock()
    limiter = MemoryLimiter(clock)
    await limiter.take(_claim(allowance, 20))
    refused = await limiter.take(_claim(allowance, 3))
    assert refused.retry_after_s == pytest.approx(3 / 7, abs=2e-6)
    clock.now_us += round(refused.retry_after_s * 1e6) - 1
    assert (await limiter.take(_claim(allowance, 3))).verdict is Verdict.RATE
    clock.now_us += 1
    assert (await limiter.take(_claim(allowance, 3))).verdict is Verdict.ALLOWED


async def test_a_clock_that_is_set_back_locks_nobody_out() -> None:
    allowance = Allowance(rate_pixel_steps_per_s=10, burst_pixel_steps=10)
    clock = _Clock()
    limiter = MemoryLimiter(clock)
    await limiter.take(_claim(allowance, 10))
    clock.now_us -= 3_600_000_000
    assert (await limiter.take(_claim(allowance, 10))).verdict is Verdict.RATE
    clock.now_us += 1_000_000
    assert (await limiter.take(_claim(allowance, 10))).verdict is Verdict.ALLOWED


async def test_the_day_begins_at_midnight_utc() -> None:
    allowance = Allowance(daily_pixel_steps=10)
    clock = _Clock(20_000 * DAY_US - 2_000_000)
    limiter = MemoryLimiter(clock)
    await limiter.take(_claim(allowance, 10))
    refused = await limiter.take(_claim(allowance, 1))
    assert (refused.verdict, refused.retry_after_s, refused.remaining) == (Verdict.DAY, 2.0, None)
    clock.now_us += 2_000_000
    assert (await limiter.take(_claim(allowance, 10))).verdict is Verdict.ALLOWED


@pytest.mark.parametrize(
    ("given", "burst"),
    [
        (Allowance(rate_pixel_steps_per_s=5), 50),
        (Allowance(rate_pixel_steps_per_s=5, burst_pixel_steps=7), 7),
        (Allowance(rate_pixel_steps_per_s=2**31), 2**31),
    ],
)
def test_a_rate_without_a_burst_has_ten_seconds_of_it(given: Allowance, burst: int) -> None:
    assert given.effective_burst == burst


def test_nothing_set_is_no_limit() -> None:
    assert Allowance().is_unlimited
    assert Allowance(burst_pixel_steps=5).is_unlimited
    for limited in (Allowance(1), Allowance(daily_pixel_steps=1), Allowance(max_open_pictures=1)):
        assert not limited.is_unlimited
