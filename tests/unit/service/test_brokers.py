"""The promises of `service.brokers.base`, run against every broker.

A new broker joins the suite by one line in `BROKERS`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from service_fixtures import FakeClock, make_job

from service.brokers.base import Broker
from service.brokers.memory import FIRST_RETRY_AFTER_S, MemoryBroker
from service.errors import Draining, QueueFull
from service.jobs import FailureReason, JobDone, JobFailed

MAX_DEPTH = 4
BROKERS: dict[str, Callable[[FakeClock], Broker]] = {
    "memory": lambda clock: MemoryBroker(MAX_DEPTH, clock),
}


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(params=sorted(BROKERS))
def broker(request: pytest.FixtureRequest, clock: FakeClock) -> Broker:
    return BROKERS[request.param](clock)


def _done(job_id: str, **changes: float) -> JobDone:
    times = {"queue_ms": 1.0, "run_ms": 100.0, "encode_ms": 1.0} | changes
    return JobDone(job_id, b"picture", seed=1, batch_size=2, stage_ms={}, **times)


async def test_a_job_comes_out_once_and_its_outcome_comes_back(broker: Broker) -> None:
    job = make_job()
    (future,) = await broker.put([job])
    assert await broker.take(10, wait=True) == [job]
    assert await broker.take(10, wait=False) == []
    assert await broker.reply(_done(job.id))
    assert await future == _done(job.id)


async def test_jobs_come_out_in_order_and_no_more_than_asked_for(broker: Broker) -> None:
    jobs = [make_job() for _ in range(4)]
    await broker.put(jobs[:2])
    await broker.put(jobs[2:])
    assert await broker.take(3, wait=True) == jobs[:3]
    assert await broker.take(3, wait=True) == jobs[3:]


async def test_take_waits_for_the_first_job(broker: Broker) -> None:
    taking = asyncio.create_task(broker.take(1, wait=True))
    await asyncio.sleep(0.01)
    assert not taking.done()
    job = make_job()
    await broker.put([job])
    assert await taking == [job]


async def test_the_queue_is_bounded_until_an_outcome_frees_a_place(broker: Broker) -> None:
    jobs = [make_job() for _ in range(MAX_DEPTH)]
    await broker.put(jobs)
    await broker.take(MAX_DEPTH, wait=True)
    with pytest.raises(QueueFull):
        await broker.put([make_job()])
    await broker.reply(_done(jobs[0].id))
    await broker.put([make_job()])


async def test_a_request_is_accepted_whole_or_not_at_all(broker: Broker) -> None:
    await broker.put([make_job() for _ in range(MAX_DEPTH - 1)])
    with pytest.raises(QueueFull):
        await broker.put([make_job(), make_job()])
    assert (await broker.depth()).num_jobs == MAX_DEPTH - 1
    assert len(await broker.take(10, wait=False)) == MAX_DEPTH - 1


async def test_a_refusal_carries_the_time_to_drain(broker: Broker) -> None:
    jobs = [make_job() for _ in range(MAX_DEPTH)]
    await broker.put(jobs)
    with pytest.raises(QueueFull) as caught:
        await broker.put([make_job()])
    assert caught.value.retry_after_s == FIRST_RETRY_AFTER_S
    await broker.reply(_done(jobs[0].id, run_ms=4000.0))
    await broker.put([make_job()])
    with pytest.raises(QueueFull) as caught:
        await broker.put([make_job()])
    # Two pictures took 4 s together and four are open.
    assert caught.value.retry_after_s == pytest.approx(8.0)


async def test_the_first_outcome_stands(broker: Broker) -> None:
    job = make_job()
    (future,) = await broker.put([job])
    await broker.take(1, wait=True)
    assert await broker.reply(JobFailed(job.id, FailureReason.ENGINE))
    assert not await broker.reply(_done(job.id))
    assert await future == JobFailed(job.id, FailureReason.ENGINE)


async def test_a_waiting_job_that_is_cancelled_is_never_handed_out(broker: Broker) -> None:
    first, second, third = jobs = [make_job() for _ in range(3)]
    futures = await broker.put(jobs)
    assert await broker.cancel([second.id]) == 1
    assert await futures[1] == JobFailed(second.id, FailureReason.CANCELLED)
    assert await broker.take(10, wait=True) == [first, third]
    assert (await broker.depth()).num_jobs == 2


async def test_a_taken_job_that_is_cancelled_is_known_and_its_reply_has_no_effect(
    broker: Broker,
) -> None:
    first, second = jobs = [make_job() for _ in range(2)]
    futures = await broker.put(jobs)
    await broker.take(2, wait=True)
    assert await broker.cancel([first.id]) == 0
    assert await broker.cancelled([first.id, second.id]) == {first.id}
    assert not await broker.reply(_done(first.id))
    assert await futures[0] == JobFailed(first.id, FailureReason.CANCELLED)


async def test_cancelling_what_is_over_changes_nothing(broker: Broker) -> None:
    job = make_job()
    (future,) = await broker.put([job])
    await broker.take(1, wait=True)
    await broker.reply(_done(job.id))
    assert await broker.cancel([job.id, "unheard-of"]) == 0
    assert await future == _done(job.id)


async def test_an_outcome_for_a_waiter_that_is_gone_does_no_harm(broker: Broker) -> None:
    job = make_job()
    (future,) = await broker.put([job])
    await broker.take(1, wait=True)
    future.cancel()
    assert await broker.reply(_done(job.id))
    assert (await broker.depth()).num_jobs == 0


async def test_depth_tells_number_and_age_of_open_jobs(broker: Broker, clock: FakeClock) -> None:
    assert await broker.depth() == await broker.depth()
    assert (await broker.depth()).oldest_age_s == 0.0
    clock.now_s = 10.0
    await broker.put([make_job(created_s=10.0), make_job(created_s=11.0)])
    clock.now_s = 13.0
    depth = await broker.depth()
    assert (depth.num_jobs, depth.oldest_age_s) == (2, 3.0)


async def test_after_close_the_rest_is_handed_out_and_nothing_more(broker: Broker) -> None:
    job = make_job()
    await broker.put([job])
    await broker.close()
    with pytest.raises(Draining):
        await broker.put([make_job()])
    assert await broker.take(10, wait=True) == [job]
    assert await broker.take(10, wait=True) == []


async def test_close_wakes_a_waiting_take(broker: Broker) -> None:
    taking = asyncio.create_task(broker.take(1, wait=True))
    await asyncio.sleep(0.01)
    await broker.close()
    assert await asyncio.wait_for(taking, 5) == []
