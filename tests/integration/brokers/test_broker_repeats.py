"""A request that comes again; of every broker."""

from __future__ import annotations

from dataclasses import replace

import pytest
from broker_stands import MAX_DEPTH, Stand
from broker_work import MakeJob, done, jobs_of, new_job, take, take_nothing, within

from service.brokers.base import Broker
from service.errors import IdempotencyMismatch
from service.jobs import FailureReason, JobFailed, job_id


async def test_a_request_that_comes_again_is_drawn_once_and_both_hear_of_it(
    broker: Broker, worker: Broker, make_job: MakeJob
) -> None:
    jobs = [
        make_job(id=job_id("again", index), num_images=2, digest="d", keep_s=60, seed=index)
        for index in range(2)
    ]
    first = await broker.put(jobs)
    again = await broker.put([replace(job, seed=99, secret="other") for job in jobs])
    deliveries = await take(worker)
    assert jobs_of(deliveries) == jobs
    for delivery in deliveries:
        await worker.reply(delivery, done(delivery.job))
    for future, job in zip([*first, *again], jobs * 2, strict=True):
        assert await within(future) == done(job)
    once_more = await broker.put(jobs)
    assert [await within(future) for future in once_more] == [done(job) for job in jobs]
    await take_nothing(worker)


async def test_the_same_key_with_another_request_is_refused(
    broker: Broker, make_job: MakeJob
) -> None:
    job = make_job(digest="this", keep_s=60)
    await broker.put([job])
    with pytest.raises(IdempotencyMismatch):
        await broker.put([replace(job, digest="that")])


async def test_a_full_queue_still_answers_a_request_that_it_knows(
    broker: Broker, worker: Broker, make_job: MakeJob
) -> None:
    jobs = [make_job(keep_s=60) for _ in range(MAX_DEPTH)]
    for job in jobs:
        await broker.put([job])
    (again,) = await broker.put([jobs[0]])
    deliveries = await take(worker)
    await worker.reply(deliveries[0], done(jobs[0]))
    assert await within(again) == done(jobs[0])


async def test_what_is_not_kept_of_a_known_request_is_lost_and_the_rest_is_there(
    broker: Broker, worker: Broker, make_job: MakeJob
) -> None:
    jobs = [
        make_job(id=job_id("partly", index), num_images=2, digest="d", keep_s=keep_s)
        for index, keep_s in enumerate((60.0, 0.0))
    ]
    futures = await broker.put(jobs)
    for delivery in await take(worker):
        await worker.reply(delivery, done(delivery.job))
    assert [await within(future) for future in futures] == [done(job) for job in jobs]
    await broker.sweep()
    again = await broker.put(jobs)
    outcomes = [await within(future) for future in again]
    assert outcomes == [done(jobs[0]), JobFailed(jobs[1].id, FailureReason.LOST)]


async def test_the_api_process_that_asks_again_need_not_be_the_first(shared: Stand) -> None:
    job = new_job(shared.api, digest="d", keep_s=60)
    await shared.api.put([job])
    async with shared.another() as other:
        (again,) = await other.put([job])
        (delivery,) = await take(shared.worker)
        await shared.worker.reply(delivery, done(job))
        assert await within(again) == done(job)
        assert (await shared.worker.sweep()).num_jobs == 0
