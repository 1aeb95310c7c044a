"""How jobs end, who hears of it, and what is kept; of every broker."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from broker_work import MakeJob, done, jobs_of, take, within

from service.brokers.base import Broker, Want
from service.jobs import FailureReason, JobDone, JobFailed, JobState, job_id


async def test_the_first_outcome_stands(broker: Broker, worker: Broker, make_job: MakeJob) -> None:
    job = make_job()
    (future,) = await broker.put([job])
    (delivery,) = await take(worker)
    assert await worker.reply(delivery, JobFailed(job.id, FailureReason.ENGINE))
    assert not await worker.reply(delivery, done(job))
    assert await within(future) == JobFailed(job.id, FailureReason.ENGINE)


async def test_a_waiting_job_that_is_cancelled_is_never_handed_out(
    broker: Broker, worker: Broker, make_job: MakeJob
) -> None:
    first, second, third = jobs = [make_job() for _ in range(3)]
    futures = await broker.put(jobs)
    assert await broker.cancel([second.id]) == 1
    assert await within(futures[1]) == JobFailed(second.id, FailureReason.CANCELLED)
    assert jobs_of(await take(worker)) == [first, third]
    assert (await broker.sweep()).num_jobs == 2


async def test_a_taken_job_that_is_cancelled_is_known_and_its_reply_has_no_effect(
    broker: Broker, worker: Broker, make_job: MakeJob
) -> None:
    futures = await broker.put([make_job() for _ in range(2)])
    first, second = await take(worker)
    assert await broker.cancel([first.job.id]) == 0
    assert await worker.renew([first, second]) == {first.job.id}
    assert not await worker.reply(first, done(first.job))
    assert await within(futures[0]) == JobFailed(first.job.id, FailureReason.CANCELLED)


async def test_cancelling_what_is_over_changes_nothing(
    broker: Broker, worker: Broker, make_job: MakeJob
) -> None:
    job = make_job()
    (future,) = await broker.put([job])
    (delivery,) = await take(worker)
    await worker.reply(delivery, done(job))
    assert await broker.cancel([job.id, "unheard-of"]) == 0
    assert await within(future) == done(job)


async def test_an_outcome_for_a_waiter_that_is_gone_does_no_harm(
    broker: Broker, worker: Broker, make_job: MakeJob
) -> None:
    job = make_job()
    (future,) = await broker.put([job])
    (delivery,) = await take(worker)
    future.cancel()
    assert await worker.reply(delivery, done(job))
    assert (await broker.sweep()).num_jobs == 0


async def test_a_job_can_be_followed_to_its_end(
    broker: Broker, worker: Broker, make_job: MakeJob
) -> None:
    job = make_job(keep_s=60, secret="s")
    await broker.put([job])
    (record,) = await broker.find([job.id])
    assert record is not None
    assert (record.job, record.state, record.outcome) == (job, JobState.QUEUED, None)
    (delivery,) = await take(worker)
    (record,) = await broker.find([job.id])
    assert record is not None
    assert (record.state, record.num_deliveries) == (JobState.RUNNING, 1)
    (watched, unknown) = await broker.watch([job.id, "unheard-of"])
    assert watched is not None and unknown is None
    await worker.reply(delivery, done(job))
    assert await within(watched) == done(job)
    (record,) = await broker.find([job.id])
    assert record is not None
    assert (record.state, record.outcome) == (JobState.SUCCEEDED, done(job))


@pytest.mark.parametrize("keep_s", [0.0, 60.0])
async def test_an_outcome_is_kept_as_long_as_was_asked(
    broker: Broker, worker: Broker, make_job: MakeJob, keep_s: float
) -> None:
    job = make_job(keep_s=keep_s)
    (future,) = await broker.put([job])
    (delivery,) = await take(worker)
    await worker.reply(delivery, JobFailed(job.id, FailureReason.ENGINE))
    assert await within(future) == JobFailed(job.id, FailureReason.ENGINE)
    await broker.sweep()
    (record,) = await broker.find([job.id])
    assert (record is not None) == bool(keep_s)
    assert record is None or record.state is JobState.FAILED


async def test_a_picture_to_start_from_is_not_kept_with_the_outcome(
    broker: Broker, worker: Broker, make_job: MakeJob
) -> None:
    job = make_job(keep_s=60, image=b"\0" * 768)
    await broker.put([job])
    (delivery,) = await take(worker)
    await worker.reply(delivery, done(job))
    (record,) = await broker.find([job.id])
    assert record is not None and record.job == replace(job, image=None)


async def test_requests_are_listed_per_owner_newest_first(
    broker: Broker, worker: Broker, make_job: MakeJob
) -> None:
    now_s = broker.now_s()
    for index, owner in enumerate(["me", "you", "me"]):
        await broker.put(
            [make_job(id=job_id(f"r{index}", 0), owner=owner, keep_s=60, created_s=now_s + index)]
        )
    (delivery, *_) = await take(worker, Want(("tiny",), 1))
    await worker.reply(delivery, done(delivery.job))
    assert await broker.requests_of("me", 10) == ["r2", "r0"]
    assert await broker.requests_of("me", 1) == ["r2"]
    assert await broker.requests_of("nobody", 10) == []


async def test_records_come_without_their_pictures_where_nobody_wants_them(
    broker: Broker, worker: Broker, make_job: MakeJob
) -> None:
    job = make_job(keep_s=60)
    await broker.put([job])
    (delivery,) = await take(worker)
    await worker.reply(delivery, done(job))
    (record,) = await broker.find([job.id], with_pictures=False)
    assert record is not None and record.state is JobState.SUCCEEDED
    assert isinstance(record.outcome, JobDone) and record.outcome.seed == job.seed


async def test_a_webhook_is_held_by_one_until_it_lets_go_or_isdone(
    broker: Broker, worker: Broker, make_job: MakeJob
) -> None:
    await broker.put([make_job(id=job_id("plain", 0))])
    jobs = [make_job(id=job_id("hooked", i), num_images=2, webhook="https://x.io/") for i in (0, 1)]
    await broker.put(jobs)
    assert (await take(worker))[-1].job.webhook == "https://x.io/"
    assert await broker.hold_webhooks([], 0.3, 0) == []
    assert await broker.hold_webhooks([], 0.3, 10) == ["hooked"]
    assert await worker.hold_webhooks([], 0.3, 10) == []
    await asyncio.sleep(0.2)
    assert await broker.hold_webhooks(["hooked", "unheard-of"], 0.3, 10) == []
    await asyncio.sleep(0.2)
    assert await worker.hold_webhooks([], 0.3, 10) == []  # it was renewed
    await asyncio.sleep(0.2)
    assert await worker.hold_webhooks([], 0.3, 10) == ["hooked"]
    await worker.drop_webhook("hooked")
    await asyncio.sleep(0.4)
    assert await broker.hold_webhooks(["hooked"], 0.3, 10) == []
