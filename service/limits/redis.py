"""The limiter that several API processes share: the same arithmetic as a script in Redis.

Owns the script, its keys and what happens when Redis does not answer: the process then counts for
itself with the same limits, so that an outage lets each owner spend at most its allowance once per
process, and tries Redis again after a while. Takes a client and closes none.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from service.limits.base import OPEN_RETRY_S, US_PER_DAY, US_PER_S, Claim, Decision, Verdict
from service.limits.memory import MemoryLimiter
from service.telemetry import log_event

# A limit must not cost more than the picture it guards.
TIMEOUT_S = 0.25
# After a failure requests are counted here for so long before the next one asks Redis again.
PAUSE_S = 1.0
_UNREACHABLE = (RedisError, OSError, TimeoutError)

# KEYS: the owner's numbers (hash), its open pictures (sorted set, by when they count no more).
# Doubles hold every whole number here exactly; as text they would lose digits without %.0f.
_SCRIPT = f"""
local mode, cost, rate, burst = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local daily, max_open, open_us = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local time = redis.call('TIME')
local now = time[1] * {US_PER_S} + time[2]
local day = math.floor(now / {US_PER_DAY})
local function text(number) return string.format('%.0f', number) end

local kept = redis.call('HMGET', KEYS[1], 'level', 'at', 'day', 'used')
local level = tonumber(kept[1] or 0) - math.max(0, now - tonumber(kept[2] or now)) * rate
level = math.max(0, level)
local used = 0
if tonumber(kept[3] or 0) == day then used = tonumber(kept[4]) end
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', text(now))

local units, num_jobs = cost * {US_PER_S}, #ARGV - 7
local left = rate > 0 and math.floor(math.max(0, burst - level) / {US_PER_S}) or -1
if mode == 'give_back' then
  level, used = math.max(0, level - units), math.max(0, used - cost)
  for i = 8, #ARGV do redis.call('ZREM', KEYS[2], ARGV[i]) end
else
  if max_open > 0 and redis.call('ZCARD', KEYS[2]) + num_jobs > max_open then
    return {{{Verdict.OPEN:d}, left, {OPEN_RETRY_S * US_PER_S:.0f}}}
  end
  if rate > 0 and level + units > burst then
    return {{{Verdict.RATE:d}, left, math.ceil((level + units - burst) / rate)}}
  end
  if daily > 0 and used + cost > daily then
    return {{{Verdict.DAY:d}, left, (day + 1) * {US_PER_DAY} - now}}
  end
  used = used + cost
  if rate > 0 then
    level = level + units
    left = math.floor((burst - level) / {US_PER_S})
  end
  if max_open > 0 then
    for i = 8, #ARGV do redis.call('ZADD', KEYS[2], text(now + open_us), ARGV[i]) end
    local longest = math.max(redis.call('PTTL', KEYS[2]), math.ceil(open_us / 1000) + 1000)
    redis.call('PEXPIRE', KEYS[2], longest)
  end
end
redis.call('HSET', KEYS[1], 'level', text(level), 'at', text(now), 'day', day, 'used', text(used))
local drained_us = rate > 0 and math.ceil(level / rate) or 0
local day_us = daily > 0 and (day + 1) * {US_PER_DAY} - now or 0
redis.call('PEXPIRE', KEYS[1], math.ceil(math.max(drained_us, day_us) / 1000) + 1000)
return {{{Verdict.ALLOWED:d}, left, 0}}
"""


class RedisLimiter:
    """Implements `Limiter` over a client of one Redis.

    Args:
        client: answers in bytes or text, both will do.
        prefix: what its keys begin with.
        clock: a clock that never jumps, for the pause after a failure.
    """

    def __init__(
        self,
        client: Redis,
        *,
        prefix: str = "onestep:limits:",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._script = client.register_script(_SCRIPT)
        self._prefix = prefix
        self._clock = clock
        self._local = MemoryLimiter()
        self._paused_until_s = 0.0
        self._is_down = False
        self._releasing: set[asyncio.Task[None]] = set()

    async def take(self, claim: Claim) -> Decision:
        """Charge a claim in Redis, or here while Redis does not answer."""
        found = await self._run("take", claim)
        if found is None:
            return await self._local.take(claim)
        verdict, left, wait_us = found
        return Decision(Verdict(verdict), None if left < 0 else left, wait_us / US_PER_S)

    async def give_back(self, claim: Claim) -> None:
        """Undo a charge where it was made."""
        if await self._run("give_back", claim) is None:
            await self._local.give_back(claim)

    def release(self, owner: str, job_ids: Collection[str]) -> None:
        """Forget open pictures here at once, and in Redis soon."""
        self._local.release(owner, job_ids)
        task = asyncio.get_running_loop().create_task(self._forget(owner, tuple(job_ids)))
        # The loop itself holds tasks only weakly.
        self._releasing.add(task)
        task.add_done_callback(self._releasing.discard)

    async def _forget(self, owner: str, job_ids: tuple[str, ...]) -> None:
        # Nothing depends on it: without an answer they leave when their time is over.
        await self._guarded(lambda: self._client.zrem(self._keys(owner)[1], *job_ids))

    async def _run(self, mode: str, claim: Claim) -> list[int] | None:
        allowance = claim.allowance
        arguments: list[str | int] = [
            mode,
            claim.cost,
            allowance.rate_pixel_steps_per_s,
            allowance.effective_burst * US_PER_S,
            allowance.daily_pixel_steps,
            allowance.max_open_pictures,
            int(claim.open_s * US_PER_S),
            *claim.job_ids,
        ]
        found: list[int] | None = await self._guarded(
            lambda: self._script(keys=self._keys(claim.owner), args=arguments)
        )
        return found

    async def _guarded(self, ask: Callable[[], Any]) -> Any:
        """What Redis answers, or None when it does not or did not a moment ago."""
        if self._clock() < self._paused_until_s:
            return None
        try:
            async with asyncio.timeout(TIMEOUT_S):
                answer = await ask()
        except _UNREACHABLE as error:
            self._paused_until_s = self._clock() + PAUSE_S
            if not self._is_down:
                self._is_down = True
                log_event("limits_counted_locally", level=logging.WARNING, error=repr(error))
            return None
        if self._is_down:
            self._is_down = False
            log_event("limits_counted_in_redis")
        return answer

    def _keys(self, owner: str) -> list[str]:
        # The braces keep an owner's keys on one node of a cluster.
        name = f"{self._prefix}{{{owner or 'anonymous'}}}"
        return [f"{name}:spent", f"{name}:open"]
