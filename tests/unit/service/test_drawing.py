"""The wait for pictures: which of its ends it tells of, and what it leaves in the queue."""

from __future__ import annotations

import asyncio

import pytest
from service_fixtures import make_job, make_limits
from starlette.types import Message

from service.brokers.memory import MemoryBroker
from service.errors import ClientClosed, DeadlineExceeded
from service.jobs import JobDone
from service.routes.access import Accepted
from service.routes.context import AppContext, Readiness
from service.routes.drawing import wait_for
from service.settings import load_settings
from service.telemetry import Telemetry


class _Wait:
    """One request's jobs in a queue that nobody serves, and who waits for them."""

    def __init__(self, num_jobs: int = 1, *, deadline_s: float = 1e9, keep_s: float = 0.0) -> None:
        self.broker = MemoryBroker(10, lambda: 0.0)
        telemetry = Telemetry()
        self._context = AppContext(
            load_settings(), make_limits(), self.broker, telemetry, Readiness(telemetry)
        )
        self.jobs = [make_job(deadline_s=deadline_s, keep_s=keep_s) for _ in range(num_jobs)]
        self.has_left = asyncio.Event()

    async def begin(self) -> asyncio.Task[list[JobDone]]:
        accepted = Accepted(self.jobs, await self.broker.put(self.jobs))
        waiting = asyncio.create_task(wait_for(self._receive, accepted, self._context))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        return waiting

    async def num_queued(self) -> int:
        return (await self.broker.sweep()).num_jobs

    async def _receive(self) -> Message:
        await self.has_left.wait()
        return {"type": "http.disconnect"}


async def _ended(waiting: asyncio.Task[list[JobDone]]) -> None:
    async with asyncio.timeout(20):
        await asyncio.wait({waiting})


@pytest.mark.parametrize(
    ("num_jobs", "keep_s", "num_left"),
    [(1, 0.0, 0), (3, 0.0, 0), pytest.param(1, 60.0, 1, id="others may want it, too")],
)
async def test_a_client_that_leaves_takes_along_what_nobody_else_may_want(
    num_jobs: int, keep_s: float, num_left: int
) -> None:
    wait = _Wait(num_jobs, keep_s=keep_s)
    waiting = await wait.begin()
    wait.has_left.set()
    await _ended(waiting)
    assert isinstance(waiting.exception(), ClientClosed)
    assert await wait.num_queued() == num_left


async def test_a_deadline_ends_the_wait_and_the_jobs() -> None:
    wait = _Wait(2, deadline_s=0.05)
    waiting = await wait.begin()
    await _ended(waiting)
    assert isinstance(waiting.exception(), DeadlineExceeded)
    assert await wait.num_queued() == 0


async def test_a_handler_that_is_torn_down_ends_as_such_and_takes_its_jobs_along() -> None:
    wait = _Wait()
    waiting = await wait.begin()
    waiting.cancel()
    await _ended(waiting)
    assert waiting.cancelled()
    assert await wait.num_queued() == 0
