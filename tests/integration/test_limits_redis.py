"""The limiter in a real Redis: the same decisions, shared, and what happens without it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from limits_model import DAY_US, Model, Step, run_steps, worlds
from redis.asyncio import Redis
from redis_server import RedisServer

from service.limits import redis as limits_redis
from service.limits.base import Claim, Verdict
from service.limits.redis import PAUSE_S, RedisLimiter
from service.principal import Allowance

RATE = Allowance(rate_pixel_steps_per_s=1, burst_pixel_steps=10)
_TIME = "redis.call('TIME')"
_CLOCK_KEY = "test:clock"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("limits-redis"))
    yield server
    server.close()


@pytest.fixture
async def client(server: RedisServer) -> AsyncIterator[Redis]:
    async with Redis.from_url(server.url, retry_on_timeout=False) as client:
        await client.flushall()
        yield client


def _claim(cost: int, *jobs: str, allowance: Allowance = RATE, owner: str = "a") -> Claim:
    return Claim(owner, allowance, cost, jobs or ("job",), open_s=30.0)


@settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(world=worlds())
def test_the_script_decides_like_the_model(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch, world: tuple[Allowance, list[Step]]
) -> None:
    """Only where the script reads its clock is it given another: one that the test sets."""
    script = limits_redis._SCRIPT
    if _CLOCK_KEY not in script:
        assert script.count(_TIME) == 1
        clocked = script.replace(_TIME, f"redis.call('LRANGE', '{_CLOCK_KEY}', 0, -1)")
        monkeypatch.setattr(limits_redis, "_SCRIPT", clocked)
    asyncio.run(_compare(server.url, *world))


async def _compare(url: str, allowance: Allowance, steps: list[Step]) -> None:
    async with Redis.from_url(url) as client:
        await client.flushall()
        limiter = RedisLimiter(client)

        async def set_clock(now_us: int) -> None:
            await client.delete(_CLOCK_KEY)
            await client.rpush(_CLOCK_KEY, *(str(part) for part in divmod(now_us, 1_000_000)))

        async def settle() -> None:
            await asyncio.gather(*limiter._releasing)

        # Keys must not run out by Redis' own clock while the test's stands still.
        assert all(step.pause_us <= DAY_US for step in steps)
        await run_steps(limiter, set_clock, Model(allowance), steps, settle)
        assert not limiter._is_down


async def test_two_processes_share_one_allowance(client: Redis) -> None:
    first, second = RedisLimiter(client), RedisLimiter(client)
    assert (await first.take(_claim(6))).remaining == 4
    refused = await second.take(_claim(6))
    assert refused.verdict is Verdict.RATE
    assert 1.5 < refused.retry_after_s <= 2.0
    assert (await second.take(_claim(6, owner="b"))).verdict is Verdict.ALLOWED


async def test_what_nobody_uses_leaves_nothing_behind(client: Redis) -> None:
    limiter = RedisLimiter(client)
    allowance = Allowance(1000, 1000, 0, 5)
    await limiter.take(Claim("a", allowance, 500, ("j",), open_s=0.1))
    names = {name.decode() for name in await client.keys("*")}
    assert names == {"onestep:limits:{a}:spent", "onestep:limits:{a}:open"}
    for name in names:
        assert 0 < await client.pttl(name) < 1700


async def test_a_longer_wait_is_not_cut_by_a_shorter_one(client: Redis) -> None:
    limiter = RedisLimiter(client)
    allowance = Allowance(max_open_pictures=2)
    await limiter.take(Claim("a", allowance, 1, ("long",), open_s=60.0))
    await limiter.take(Claim("a", allowance, 1, ("short",), open_s=0.001))
    assert await client.pttl("onestep:limits:{a}:open") > 50_000


async def test_a_released_picture_makes_room(client: Redis) -> None:
    limiter = RedisLimiter(client)
    allowance = Allowance(max_open_pictures=1)
    assert (await limiter.take(_claim(1, "x", allowance=allowance))).verdict is Verdict.ALLOWED
    assert (await limiter.take(_claim(1, "y", allowance=allowance))).verdict is Verdict.OPEN
    limiter.release("a", ("x",))
    async with asyncio.timeout(5):
        while (await limiter.take(_claim(1, "y", allowance=allowance))).verdict is Verdict.OPEN:
            await asyncio.sleep(0.01)


async def test_without_redis_each_process_counts_for_itself_and_soon(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = RedisServer(tmp_path)
    clock_s = 0.0
    try:
        async with Redis.from_url(own.url) as client:
            limiter = RedisLimiter(client, clock=lambda: clock_s)
            await limiter.take(_claim(10))
            own.pause()
            loop = asyncio.get_running_loop()
            before_s = loop.time()
            with caplog.at_level(logging.INFO, "onestep"):
                verdicts = [(await limiter.take(_claim(5))).verdict for _ in range(4)]
            assert loop.time() - before_s < 1.0
            # Bounded, not open: the allowance once more, and no further.
            assert verdicts == [Verdict.ALLOWED, Verdict.ALLOWED, Verdict.RATE, Verdict.RATE]
            assert [record.message for record in caplog.records] == ["limits_counted_locally"]
            own.resume()
            clock_s += PAUSE_S
            with caplog.at_level(logging.INFO, "onestep"):
                again = await limiter.take(_claim(10))
            assert again.verdict is Verdict.RATE
            assert caplog.records[-1].message == "limits_counted_in_redis"
    finally:
        own.close()
