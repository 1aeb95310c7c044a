"""What only a queue between processes has to promise: leases, fences, and what gets lost."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from broker_stands import LEASE_S, MAX_DELIVERIES, Stand
from broker_work import done, new_job, take, take_nothing, within

from service.batching import Delivery
from service.brokers.base import Broker
from service.brokers.redis import RedisBroker
from service.errors import QueueUnavailable
from service.jobs import FailureReason, JobDone, JobFailed, job_id


async def _take_after_lease(worker: Broker) -> list[Delivery]:
    await asyncio.sleep(LEASE_S * 1.2)
    return await take(worker)


async def test_jobs_of_a_worker_that_died_come_out_singly_elsewhere(shared: Stand) -> None:
    jobs = [new_job(shared.api) for _ in range(3)]
    futures = await shared.api.put(jobs)
    assert len(await take(shared.worker)) == 3
    async with shared.another() as other:
        again = [await _take_after_lease(other), await take(other), await take(other)]
        assert sorted(d.job.id for (d,) in again) == sorted(job.id for job in jobs)
        assert {d.number for (d,) in again} == {2}
        for (delivery,) in again:
            assert await other.reply(delivery, done(delivery.job))
    for future in futures:
        assert isinstance(await within(future), JobDone)


async def test_handing_back_is_no_failed_delivery(shared: Stand) -> None:
    await shared.api.put([new_job(shared.api)])
    for _ in range(MAX_DELIVERIES):
        await shared.worker.hand_back(await take(shared.worker))
    await take(shared.worker)
    # Its worker dies now: it has two more tries.
    (delivery,) = await _take_after_lease(shared.worker)
    assert await shared.worker.reply(delivery, done(delivery.job))


async def test_a_lease_that_is_renewed_is_not_taken_away(shared: Stand) -> None:
    await shared.api.put([new_job(shared.api)])
    deliveries = await take(shared.worker)
    async with shared.another() as other:
        for _ in range(6):
            await asyncio.sleep(LEASE_S / 3)
            assert await shared.worker.renew(deliveries) == frozenset()
            await take_nothing(other)
    assert await shared.worker.reply(deliveries[0], done(deliveries[0].job))


async def test_an_outcome_of_an_older_delivery_is_refused(shared: Stand) -> None:
    (future,) = await shared.api.put([new_job(shared.api)])
    (stale,) = await take(shared.worker)
    async with shared.another() as other:
        (fresh,) = await _take_after_lease(other)
        assert await shared.worker.renew([stale]) == {stale.job.id}
        assert not await shared.worker.reply(stale, done(stale.job, image_bytes=b"stale"))
        assert await other.reply(fresh, done(fresh.job, image_bytes=b"fresh"))
        assert not await shared.worker.reply(stale, done(stale.job, image_bytes=b"stale"))
    outcome = await within(future)
    assert isinstance(outcome, JobDone) and outcome.image_bytes == b"fresh"


async def test_a_job_that_ends_every_worker_fails_for_good(shared: Stand) -> None:
    job = new_job(shared.api)
    (future,) = await shared.api.put([job])
    assert len(await take(shared.worker)) == 1
    for number in range(2, MAX_DELIVERIES + 1):
        (delivery,) = await _take_after_lease(shared.worker)
        assert delivery.number == number
    await asyncio.sleep(LEASE_S * 1.2)
    await take_nothing(shared.worker)
    assert await within(future) == JobFailed(job.id, FailureReason.DELIVERIES)
    assert await shared.dead_letters() == [job.id]


async def test_a_reply_that_got_lost_is_found_by_the_sweep(shared: Stand) -> None:
    (future,) = await shared.api.put([new_job(shared.api)])
    (delivery,) = await take(shared.worker)
    await shared.lose_replies()
    await shared.worker.reply(delivery, done(delivery.job))
    await shared.lose_replies()
    async with asyncio.timeout(10):
        while not future.done():
            await shared.api.sweep()
            await asyncio.sleep(0.1)
    assert isinstance(future.result(), JobDone)


async def test_jobs_that_the_server_lost_are_reported(shared: Stand) -> None:
    job = new_job(shared.api)
    (future,) = await shared.api.put([job])
    await shared.flush()
    async with asyncio.timeout(10):
        while not future.done():
            await shared.api.sweep()
            await asyncio.sleep(0.1)
    assert future.result() == JobFailed(job.id, FailureReason.LOST)
    # The queue works again without a restart.
    await shared.api.put([new_job(shared.api)])
    assert len(await take(shared.worker)) == 1


async def test_what_is_over_leaves_no_entry_behind(shared: Stand) -> None:
    jobs = [new_job(shared.api, image=b"rgb") for _ in range(3)]
    futures = await shared.api.put(jobs)
    await shared.api.cancel([jobs[0].id])
    for delivery in await take(shared.worker):
        await shared.worker.reply(delivery, done(delivery.job))
    for future in futures:
        await within(future)
    assert await shared.leftovers() == []
    assert not await shared.fields_of_jobs("image")


async def test_who_could_not_ask_waits_for_nothing(
    shared: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = new_job(shared.api)
    await shared.api.put([job])
    assert isinstance(shared.worker, RedisBroker)

    async def away(*given: Any) -> None:
        raise QueueUnavailable("the queue cannot be reached")

    monkeypatch.setattr(shared.worker._connection, "script", away)
    with pytest.raises(QueueUnavailable):
        await shared.worker.watch([job.id])
    assert not shared.worker._ends.is_awaited(job.id)


async def test_nobody_goes_on_waiting_for_what_is_gone_of_a_known_request(shared: Stand) -> None:
    jobs = [
        new_job(shared.api, id=job_id("gone", index), num_images=2, digest="d", keep_s=keep_s)
        for index, keep_s in enumerate((60.0, 0.0))
    ]
    futures = await shared.api.put(jobs)
    for delivery in await take(shared.worker):
        await shared.worker.reply(delivery, done(delivery.job))
    for future in futures:
        await within(future)
    await shared.api.sweep()
    await shared.api.put(jobs)
    assert isinstance(shared.api, RedisBroker)
    assert not shared.api._ends.is_awaited(jobs[1].id)
