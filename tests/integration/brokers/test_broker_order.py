"""What a worker is handed, and after what; of every broker."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from broker_work import KEY, WANT, MakeJob, done, jobs_of, take, take_nothing, within

from service.batching import CloseReason
from service.brokers.base import Broker, Want
from service.jobs import Priority


async def test_a_job_comes_out_once_and_its_outcome_comes_back(
    broker: Broker, worker: Broker, make_job: MakeJob
) -> None:
    job = make_job(image=bytes(range(256)) * 3, quality=80, owner="someone")
    (future,) = await broker.put([job])
    (delivery,) = await take(worker)
    assert (delivery.job, delivery.number) == (job, 1)
    await take_nothing(worker)
    assert await worker.reply(delivery, done(job))
    assert await within(future) == done(job)


async def test_a_picture_from_a_picture_has_a_batch_of_its_own(
    broker: Broker, worker: Broker, make_job: MakeJob
) -> None:
    keys = [KEY, replace(KEY, strength=0.5), replace(KEY, strength=0.55), KEY]
    jobs = [make_job(key=key) for key in keys]
    for job in jobs:
        await broker.put([job])
        # Streams tell times apart by milliseconds.
        await asyncio.sleep(0.002)
    assert [jobs_of(await take(worker)) for _ in range(3)] == [
        [jobs[0], jobs[3]],
        [jobs[1]],
        [jobs[2]],
    ]


async def test_jobs_come_out_in_order_and_no_more_than_asked_for(
    broker: Broker, worker: Broker, make_job: MakeJob
) -> None:
    jobs = [make_job() for _ in range(4)]
    await broker.put(jobs[:2])
    await broker.put(jobs[2:])
    taken = await worker.take(Want(("tiny",), 3), wait=True)
    assert taken is not None and taken.batch is not None
    assert jobs_of(list(taken.batch.deliveries)) == jobs[:3]
    assert taken.batch.close_reason is CloseReason.FULL
    taken = await worker.take(Want(("tiny",), 3), wait=True)
    assert taken is not None and taken.batch is not None
    assert jobs_of(list(taken.batch.deliveries)) == jobs[3:]
    assert taken.batch.close_reason is CloseReason.NO_MORE


async def test_take_waits_for_the_first_job(
    broker: Broker, worker: Broker, make_job: MakeJob
) -> None:
    taking = asyncio.create_task(take(worker))
    await asyncio.sleep(0.05)
    assert not taking.done()
    job = make_job()
    await broker.put([job])
    assert jobs_of(await taking) == [job]


async def test_owners_take_turns(broker: Broker, worker: Broker, make_job: MakeJob) -> None:
    many = [make_job(owner="many") for _ in range(3)]
    few = make_job(owner="few")
    await broker.put(many)
    await broker.put([few])
    jobs = jobs_of(await take(worker, Want(("tiny",), 2)))
    assert {job.owner for job in jobs} == {"many", "few"}


async def test_background_jobs_come_after_interactive_ones(
    broker: Broker, worker: Broker, make_job: MakeJob
) -> None:
    background = [make_job(priority=Priority.BACKGROUND) for _ in range(2)]
    interactive = make_job()
    await broker.put(background)
    await broker.put([interactive])
    assert jobs_of(await take(worker, Want(("tiny",), 2))) == [interactive, background[0]]


async def test_a_background_job_that_has_waited_long_enough_comes_first(
    broker: Broker, worker: Broker, make_job: MakeJob
) -> None:
    # Both brokers of the stand age within a second.
    background = make_job(priority=Priority.BACKGROUND)
    await broker.put([background])
    await asyncio.sleep(1.1)
    interactive = make_job()
    await broker.put([interactive])
    assert jobs_of(await take(worker, Want(("tiny",), 1))) == [background]


async def test_a_worker_gets_jobs_of_its_models_only(
    broker: Broker, worker: Broker, make_job: MakeJob
) -> None:
    await broker.put([make_job(key=replace(KEY, model="other"))])
    await take_nothing(worker)
    assert len(await take(worker, Want(("tiny", "other"), 4))) == 1


async def test_what_is_handed_back_comes_out_again_with_a_new_number(
    broker: Broker, worker: Broker, make_job: MakeJob
) -> None:
    await broker.put([make_job() for _ in range(2)])
    first, second = await take(worker)
    await worker.hand_back([first])
    (again,) = await take(worker)
    assert again.job == first.job
    assert again.number > first.number
    assert not await worker.reply(first, done(first.job))
    assert await worker.reply(again, done(first.job))
    assert await worker.reply(second, done(second.job))


async def test_close_wakes_a_waiting_take(worker: Broker) -> None:
    taking = asyncio.create_task(worker.take(WANT, wait=True))
    await asyncio.sleep(0.05)
    await worker.close()
    assert await asyncio.wait_for(taking, 5) is None
