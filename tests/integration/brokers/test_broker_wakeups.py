"""Idle workers in Redis: one is woken for each batch, and no job stays behind when that one fails.

Leases are long here, and where a test says so nobody looks by himself, so that what happens is the
wake-ups' doing.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import pytest
import redis.asyncio
from broker_work import KEY, WANT, jobs_of, new_job, take

from service.brokers import keys
from service.brokers.base import Taken, Want
from service.brokers.redis import RedisBroker, RedisOptions, deliveries, wakeups
from service.jobs import Job

MODELS = ("tiny", "other")
ONE = Want(("tiny",), 1)
OTHER_KEY = replace(KEY, width=32)
# Long enough for whoever was woken to have asked.
SETTLE_S = 0.3


@dataclass
class Queue:
    """Processes at one server, and a client that sees behind them."""

    url: str
    client: redis.asyncio.Redis
    stack: contextlib.AsyncExitStack

    async def process(self, lease_s: float = 60.0) -> RedisBroker:
        broker = RedisBroker(self.url, MODELS, RedisOptions(lease_s=lease_s))
        await broker.start()
        self.stack.push_async_callback(broker.stop)
        return broker

    async def idle(
        self, want: Want = WANT, process: RedisBroker | None = None
    ) -> asyncio.Task[Taken | None]:
        """A worker's wait for work, once it has begun; the task is what the worker gets."""
        worker = process or await self.process()
        before = await self._num_blocked()
        waiting = asyncio.create_task(worker.take(want, wait=True))
        self.stack.push_async_callback(_cancel, waiting)
        await self._blocked_reach(before + 1)
        return waiting

    async def swallow(self, model: str = "tiny") -> None:
        """Wait in front of all who come later, as a worker that dies once it is woken."""
        before = await self._num_blocked()
        dying = redis.asyncio.from_url(self.url)
        self.stack.push_async_callback(dying.aclose)
        waiting = asyncio.ensure_future(dying.blpop([keys.wakeups(model)], timeout=30))
        self.stack.push_async_callback(_cancel, waiting)
        await self._blocked_reach(before + 1)

    async def num_wakeups(self) -> int:
        return int(await self.client.llen(keys.wakeups("tiny")))

    async def num_scripts(self) -> int:
        told = await self.client.info("commandstats")
        return int(told.get("cmdstat_evalsha", {"calls": 0})["calls"])

    async def _num_blocked(self) -> int:
        return int((await self.client.info("clients"))["blocked_clients"])

    async def _blocked_reach(self, num: int) -> None:
        async with asyncio.timeout(5):
            while await self._num_blocked() < num:
                await asyncio.sleep(0.005)


async def _cancel(task: asyncio.Future[object]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError, redis.asyncio.RedisError):
        await task


@pytest.fixture
async def queue(redis_url: str) -> AsyncIterator[Queue]:
    async with contextlib.AsyncExitStack() as stack, redis.asyncio.from_url(redis_url) as client:
        async with stack:
            yield Queue(redis_url, client, stack)


@pytest.fixture
def nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliveries, "look_s", lambda _: 5.0)


async def _got(waiting: asyncio.Task[Taken | None]) -> list[Job]:
    taken = await asyncio.wait_for(asyncio.shield(waiting), 2)
    assert taken is not None and taken.batch is not None
    return jobs_of(list(taken.batch.deliveries))


@pytest.mark.usefixtures("nobody_looks")
async def test_a_job_wakes_the_one_that_is_idle_longest_and_no_other(queue: Queue) -> None:
    api, worker = await queue.process(), await queue.process()
    await api.put([new_job(api)])
    await take(worker)  # the server knows the scripts now
    idle = [await queue.idle() for _ in range(4)]
    before = await queue.num_scripts()
    for waiting in idle[:2]:
        job = new_job(api)
        await api.put([job])
        assert await _got(waiting) == [job]
    await asyncio.sleep(SETTLE_S)
    assert await queue.num_scripts() - before == 4, "to put and to take, twice"
    assert [waiting.done() for waiting in idle] == [True, True, False, False]


async def test_a_request_has_a_wake_up_for_each_batch_of_who_was_idle_last(queue: Queue) -> None:
    api, worker = await queue.process(), await queue.process()
    for max_jobs, num_wakeups in ((1, 5), (2, 3), (8, 1)):
        await worker.take(Want(("tiny",), max_jobs), wait=False)
        await api.put([new_job(api) for _ in range(5)])
        assert await queue.num_wakeups() == num_wakeups
        await take(worker)


@pytest.mark.usefixtures("nobody_looks")
async def test_what_came_before_a_worker_waits_wakes_it_and_nobody_again(queue: Queue) -> None:
    api, worker = await queue.process(), await queue.process()
    await api.put([new_job(api)])
    await api.put([new_job(api)])
    assert len(await take(worker)) == 2
    # It asks once more before it waits, and finds that the wake-ups are of no use any more.
    idle = await queue.idle(process=worker)
    await asyncio.sleep(SETTLE_S)
    assert not idle.done() and await queue.num_wakeups() == 0


async def test_wake_ups_that_nobody_waits_for_are_bounded(queue: Queue) -> None:
    api = await queue.process()
    await api.put([new_job(api) for _ in range(100)])
    await api.put([new_job(api) for _ in range(100)])
    assert await queue.num_wakeups() == 64


@pytest.mark.parametrize(("num_dead", "within_s"), [(0, 1.4), (1, 0.5)])
async def test_a_job_whose_worker_died_once_it_was_woken_is_found_by_another(
    queue: Queue, num_dead: int, within_s: float
) -> None:
    api = await queue.process()
    for _ in range(num_dead):
        await (await queue.process()).take(WANT, wait=False)
    await queue.swallow()
    idle = await queue.idle()
    job = new_job(api)
    started_s = time.monotonic()
    await api.put([job])
    assert await _got(idle) == [job]
    assert time.monotonic() - started_s < within_s


@pytest.mark.parametrize("keys_of_jobs", [(KEY, KEY), (KEY, OTHER_KEY)])
@pytest.mark.usefixtures("nobody_looks")
async def test_who_leaves_jobs_behind_wakes_the_next(
    queue: Queue, keys_of_jobs: tuple[object, object]
) -> None:
    api = await queue.process()
    await queue.swallow()
    idle = [await queue.idle(ONE) for _ in range(2)]
    jobs = [new_job(api, key=key) for key in keys_of_jobs]
    await api.put(jobs[:1])  # its wake-up is lost
    await asyncio.sleep(0.01)
    await api.put(jobs[1:])
    assert [await _got(waiting) for waiting in idle] == [jobs[:1], jobs[1:]]


async def test_who_takes_the_last_jobs_wakes_nobody(queue: Queue) -> None:
    api, worker = await queue.process(), await queue.process()
    await api.put([new_job(api), new_job(api)])
    await queue.client.delete(keys.wakeups("tiny"))
    assert len(await take(worker, Want(("tiny",), 2))) == 2
    assert await queue.num_wakeups() == 0


async def test_who_finds_a_lost_job_instead_wakes_the_next(queue: Queue) -> None:
    api, dead, worker = [await queue.process(lease_s=0.2) for _ in range(3)]
    lost = new_job(api)
    await api.put([lost])
    await take(dead)
    await asyncio.sleep(0.3)
    await api.put([new_job(api)])
    await queue.client.delete(keys.wakeups("tiny"))  # taken by the worker that asks now
    assert jobs_of(await take(worker)) == [lost]
    assert await queue.num_wakeups() == 1


@pytest.mark.usefixtures("nobody_looks")
async def test_jobs_that_are_handed_back_wake_another_worker(queue: Queue) -> None:
    api, worker = await queue.process(), await queue.process()
    job = new_job(api)
    await api.put([job])
    taken = await take(worker)
    idle = await queue.idle()
    await worker.hand_back(taken)
    assert await _got(idle) == [job]


@pytest.mark.parametrize("num_turns", [0, 1])
@pytest.mark.usefixtures("nobody_looks")
async def test_a_wake_up_is_spent_on_the_model_that_it_was_for(
    queue: Queue, num_turns: int
) -> None:
    api, worker = await queue.process(), await queue.process()
    for _ in range(num_turns):
        await worker.take(WANT, wait=False)
    await queue.swallow("tiny")
    idle = await queue.idle(Want(MODELS, 10), worker)
    await api.put([new_job(api)])
    job = new_job(api, key=replace(KEY, model="other"))
    await api.put([job])
    assert await _got(idle) == [job]


@pytest.mark.usefixtures("nobody_looks")
async def test_a_worker_that_stops_does_not_wait_for_a_wake_up(queue: Queue) -> None:
    worker = await queue.process()
    idle = await queue.idle(process=worker)
    await worker.close()
    assert await asyncio.wait_for(idle, 1) is None


@pytest.mark.usefixtures("nobody_looks")
async def test_a_worker_that_stops_while_it_asks_does_not_begin_to_wait(queue: Queue) -> None:
    worker = await queue.process()
    taking = asyncio.create_task(worker.take(WANT, wait=True))
    await asyncio.sleep(0)
    await worker.close()
    assert await asyncio.wait_for(taking, 1) is None


@pytest.mark.usefixtures("nobody_looks")
async def test_a_worker_that_stops_passes_its_wake_up_on(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def too_late(_: wakeups.WakeUps) -> None:
        """The job comes before the word that ends the wait."""

    monkeypatch.setattr(wakeups.WakeUps, "end", too_late)
    api, stopping = await queue.process(), await queue.process()
    first = await queue.idle(process=stopping)
    second = await queue.idle()
    await stopping.close()
    job = new_job(api)
    await api.put([job])
    assert await _got(second) == [job]
    assert await asyncio.wait_for(first, 1) is None


@pytest.mark.usefixtures("nobody_looks")
async def test_a_wait_goes_on_when_its_connection_breaks(queue: Queue) -> None:
    api = await queue.process()
    idle = await queue.idle()
    for client in await queue.client.client_list():
        if client["cmd"] == "blpop":
            await queue.client.client_kill_filter(_id=client["id"])
    await asyncio.sleep(SETTLE_S)
    job = new_job(api)
    await api.put([job])
    assert await _got(idle) == [job]
