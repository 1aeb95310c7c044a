"""How much is accepted, and how long it may wait; of every broker."""

from __future__ import annotations

import asyncio

import pytest
from broker_stands import MAX_DEPTH
from broker_work import WANT, MakeJob, done, take, take_nothing, within

from service.brokers.base import Broker, Taken
from service.brokers.pace import FIRST_RETRY_AFTER_S
from service.errors import Draining, QueueFull
from service.jobs import FailureReason, JobFailed


async def test_the_queue_is_bounded_until_an_outcome_frees_a_place(
    broker: Broker, worker: Broker, make_job: MakeJob
) -> None:
    await broker.put([make_job() for _ in range(MAX_DEPTH)])
    deliveries = await take(worker)
    with pytest.raises(QueueFull):
        await broker.put([make_job()])
    await worker.reply(deliveries[0], done(deliveries[0].job))
    await broker.put([make_job()])


async def test_a_request_is_accepted_whole_or_not_at_all(
    broker: Broker, worker: Broker, make_job: MakeJob
) -> None:
    await broker.put([make_job() for _ in range(MAX_DEPTH - 1)])
    with pytest.raises(QueueFull):
        await broker.put([make_job(), make_job()])
    assert (await broker.sweep()).num_jobs == MAX_DEPTH - 1
    assert len(await take(worker)) == MAX_DEPTH - 1


async def test_a_refusal_carries_the_time_to_drain(
    broker: Broker, worker: Broker, make_job: MakeJob
) -> None:
    futures = await broker.put([make_job() for _ in range(MAX_DEPTH)])
    with pytest.raises(QueueFull) as caught:
        await broker.put([make_job()])
    assert caught.value.retry_after_s == FIRST_RETRY_AFTER_S
    deliveries = await take(worker)
    await worker.reply(deliveries[0], done(deliveries[0].job, run_ms=4000.0))
    await within(futures[0])
    await broker.put([make_job()])
    with pytest.raises(QueueFull) as caught:
        await broker.put([make_job()])
    # Two pictures took 4 s together and four are open.
    assert caught.value.retry_after_s == pytest.approx(8.0)


async def test_a_late_job_is_ended_instead_of_handed_out(
    broker: Broker, worker: Broker, make_job: MakeJob
) -> None:
    late = make_job(deadline_s=broker.now_s() + 0.05)
    (future,) = await broker.put([late])
    await asyncio.sleep(0.1)
    assert await worker.take(WANT, wait=False) == Taken(None, num_expired=1)
    assert await within(future) == JobFailed(late.id, FailureReason.EXPIRED)


async def test_a_sweep_ends_what_no_worker_came_for(
    broker: Broker, worker: Broker, make_job: MakeJob
) -> None:
    (future,) = await broker.put([make_job(deadline_s=broker.now_s() + 0.05)])
    await asyncio.sleep(0.1)
    depth = await broker.sweep()
    assert (depth.num_jobs, depth.num_expired) == (0, 1)
    assert isinstance(await within(future), JobFailed)
    await take_nothing(worker)


async def test_a_sweep_tells_number_and_age_of_openjobs_of(
    broker: Broker, make_job: MakeJob
) -> None:
    assert (await broker.sweep()).oldest_age_s == 0.0
    await broker.put([make_job(created_s=broker.now_s() - 3.0), make_job()])
    depth = await broker.sweep()
    assert depth.num_jobs == 2
    assert depth.oldest_age_s == pytest.approx(3.0, abs=0.5)


async def test_after_close_nothing_is_accepted(broker: Broker, make_job: MakeJob) -> None:
    await broker.close()
    with pytest.raises(Draining):
        await broker.put([make_job()])
