"""How an idle worker learns that there is something to take.

Owns the wait for wake-ups, what becomes of one that its worker cannot use, and how long to trust
that one comes. A wake-up is a hint: it goes to one worker, and is lost with it. So every idle
worker asks from time to time without one, and whoever takes jobs and leaves some wakes the next
(`take.lua`).
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Sequence

from service.brokers import keys
from service.brokers.redis.connection import RedisConnection
from service.errors import QueueUnavailable

# Among all idle workers, one asks about this often without being woken.
_LOOK_S = 0.1
_MAX_LOOK_S = 1.0
# Whom it was for is gone by then, or has asked.
_KEEP_S = 60


class WakeUps:
    """Those of one worker."""

    def __init__(self, connection: RedisConnection, worker: str) -> None:
        self._connection = connection
        self._worker = worker
        self._own: str | None = None

    async def wait(self, models: Sequence[str], wait_s: float) -> str | None:
        """The model that this worker was woken for; None after `wait_s` or `end`.

        Raises:
            QueueUnavailable: the server is away.
        """
        self._own = keys.own_wakeups(models[0], self._worker)
        lists = {keys.wakeups(model): model for model in models}
        try:
            found = await self._connection.pop([self._own, *lists], wait_s)
        finally:
            self._own = None
        return None if found is None else lists.get(found)

    async def end(self) -> None:
        """Let `wait` return at once."""
        if self._own is not None:
            with contextlib.suppress(QueueUnavailable):
                await self._connection.push(self._own, _KEEP_S)

    async def pass_on(self, model: str) -> None:
        """Wake another worker: this one takes nothing more."""
        with contextlib.suppress(QueueUnavailable):
            await self._connection.push(keys.wakeups(model), _KEEP_S)


def look_s(num_workers: int) -> float:
    """How long to wait for a wake-up before asking without one.

    Somebody else may have died with it. However many are idle, one of them soon asks; who is alone
    has nobody to stand in for. Chance keeps them from asking all at once.
    """
    if num_workers < 2:
        return _MAX_LOOK_S
    return min(_LOOK_S * num_workers, _MAX_LOOK_S) * random.uniform(0.5, 1.0)
