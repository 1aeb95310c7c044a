"""Tasks that go on for ever are ended, whatever a library makes of a cancellation."""

from __future__ import annotations

import asyncio

from service.processes.life import background
from service.tasks import end_tasks


class Forever:
    """A task that loses its first cancellations, as the client of Redis can."""

    def __init__(self, num_lost: int) -> None:
        self.num_left = num_lost

    async def run(self) -> None:
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                if not self.num_left:
                    raise
                self.num_left -= 1


async def test_a_lost_cancellation_is_sent_again() -> None:
    tasks = [asyncio.create_task(Forever(num).run()) for num in (0, 1, 2)]
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await end_tasks(*tasks)
    assert all(task.cancelled() for task in tasks)


async def test_what_a_task_raised_is_nobodys_trouble() -> None:
    async def fail() -> None:
        raise RuntimeError("by hand")

    failed = asyncio.create_task(fail())
    await asyncio.sleep(0)
    await end_tasks(failed)
    await end_tasks()
    assert isinstance(failed.exception(), RuntimeError)


async def test_a_process_ends_though_its_sweep_lost_a_cancellation() -> None:
    async with asyncio.timeout(10):
        async with background(asyncio.create_task(Forever(1).run())):
            await asyncio.sleep(0)
