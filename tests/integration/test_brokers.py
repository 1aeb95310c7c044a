"""The promises of `service.brokers.base`, run against every broker.

The one in Redis runs against a real server, which `redis_server` starts.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from dataclasses import replace
from itertools import count
from typing import Any, Protocol, TypeVar

import pytest
from broker_stands import LEASE_S, MAX_DELIVERIES, MAX_DEPTH, STANDS, Stand

from service.batching import CloseReason, Delivery
from service.brokers.base import Broker, Taken, Want
from service.brokers.pace import FIRST_RETRY_AFTER_S
from service.brokers.redis import RedisBroker
from service.errors import Draining, IdempotencyMismatch, QueueFull, QueueUnavailable
from service.jobs import (
    BatchKey,
    FailureReason,
    Job,
    JobDone,
    JobFailed,
    JobState,
    Priority,
    job_id,
)

KEY = BatchKey("tiny", 16, 16, 1)
WANT = Want(("tiny",), 10)
_ids = count()
T = TypeVar("T")


class MakeJob(Protocol):
    def __call__(self, **changes: Any) -> Job: ...


@pytest.fixture(params=sorted(STANDS))
async def stand(request: pytest.FixtureRequest, redis_url: str) -> AsyncIterator[Stand]:
    async with STANDS[request.param](redis_url) as stand:
        yield stand


@pytest.fixture
def broker(stand: Stand) -> Broker:
    """Where requests arrive."""
    return stand.api


@pytest.fixture
def worker(stand: Stand) -> Broker:
    """Where they are drawn; in memory, the same."""
    return stand.worker


@pytest.fixture
def make_job(broker: Broker) -> MakeJob:
    def make(**changes: Any) -> Job:
        now_s = broker.now_s()
        fields: dict[str, Any] = {
            "id": job_id(f"request{next(_ids)}", 0),
            "key": KEY,
            "prompt": "a red heart",
            "seed": 1,
            "format": "png",
            "created_s": now_s,
            "deadline_s": now_s + 60,
        }
        return Job(**(fields | changes))

    return make


def _done(job: Job, **changes: Any) -> JobDone:
    fields: dict[str, Any] = {
        "job_id": job.id,
        "image_bytes": b"picture",
        "seed": job.seed,
        "batch_size": 2,
        "queue_ms": 1.0,
        "run_ms": 100.0,
        "encode_ms": 1.0,
        "stage_ms": {"denoise": 60.0, "decode": 40.0},
    }
    return JobDone(**(fields | changes))


async def _take(worker: Broker, want: Want = WANT) -> list[Delivery]:
    """The next batch, which must be there."""
    async with asyncio.timeout(10):
        while True:
            taken = await worker.take(want, wait=True)
            assert taken is not None
            if taken.batch is not None:
                return list(taken.batch.deliveries)


async def _take_nothing(worker: Broker) -> None:
    taken = await worker.take(WANT, wait=False)
    assert taken is None or taken.batch is None


def _jobs(deliveries: list[Delivery]) -> list[Job]:
    return [delivery.job for delivery in deliveries]


async def _within(awaitable: Awaitable[T]) -> T:
    return await asyncio.wait_for(awaitable, 10)


async def test_a_job_comes_out_once_and_its_outcome_comes_back(
    broker: Broker, worker: Broker, make_job: MakeJob
) -> None:
    job = make_job(image=bytes(range(256)) * 3, quality=80, owner="someone")
    (future,) = await broker.put([job])
    (delivery,) = await _take(worker)
    assert (delivery.job, delivery.number) == (job, 1)
    await _take_nothing(worker)
    assert await worker.reply(delivery, _done(job))
    assert await _within(future) == _done(job)


async def test_a_picture_from_a_picture_has_a_batch_of_its_own(
    broker: Broker, worker: Broker, make_job: MakeJob
) -> None:
    keys = [KEY, replace(KEY, strength=0.5), replace(KEY, strength=0.55), KEY]
    jobs = [make_job(key=key) for key in keys]
    for job in jobs:
        await broker.put([job])
        # Streams tell times apart by milliseconds.
        await asyncio.sleep(0.002)
    assert [_jobs(await _take(worker)) for _ in range(3)] == [
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
    assert _jobs(list(taken.batch.deliveries)) == jobs[:3]
    assert taken.batch.close_reason is CloseReason.FULL
    taken = await worker.take(Want(("tiny",), 3), wait=True)
    assert taken is not None and taken.batch is not None
    assert _jobs(list(taken.batch.deliveries)) == jobs[3:]
    assert taken.batch.close_reason is CloseReason.NO_MORE


async def test_take_waits_for_the_first_job(
    broker: Broker, worker: Broker, make_job: MakeJob
) -> None:
    taking = asyncio.create_task(_take(worker))
    await asyncio.sleep(0.05)
    assert not taking.done()
    job = make_job()
    await broker.put([job])
    assert _jobs(await taking) == [job]


async def test_owners_take_turns(broker: Broker, worker: Broker, make_job: MakeJob) -> None:
    many = [make_job(owner="many") for _ in range(3)]
    few = make_job(owner="few")
    await broker.put(many)
    await broker.put([few])
    jobs = _jobs(await _take(worker, Want(("tiny",), 2)))
    assert {job.owner for job in jobs} == {"many", "few"}


async def test_background_jobs_come_after_interactive_ones(
    broker: Broker, worker: Broker, make_job: MakeJob
) -> None:
    background = [make_job(priority=Priority.BACKGROUND) for _ in range(2)]
    interactive = make_job()
    await broker.put(background)
    await broker.put([interactive])
    assert _jobs(await _take(worker, Want(("tiny",), 2))) == [interactive, background[0]]


async def test_a_background_job_that_has_waited_long_enough_comes_first(
    broker: Broker, worker: Broker, make_job: MakeJob
) -> None:
    # Both brokers of the stand age within a second.
    background = make_job(priority=Priority.BACKGROUND)
    await broker.put([background])
    await asyncio.sleep(1.1)
    interactive = make_job()
    await broker.put([interactive])
    assert _jobs(await _take(worker, Want(("tiny",), 1))) == [background]


async def test_a_worker_gets_jobs_of_its_models_only(
    broker: Broker, worker: Broker, make_job: MakeJob
) -> None:
    await broker.put([make_job(key=replace(KEY, model="other"))])
    await _take_nothing(worker)
    assert len(await _take(worker, Want(("tiny", "other"), 4))) == 1


async def test_the_queue_is_bounded_until_an_outcome_frees_a_place(
    broker: Broker, worker: Broker, make_job: MakeJob
) -> None:
    await broker.put([make_job() for _ in range(MAX_DEPTH)])
    deliveries = await _take(worker)
    with pytest.raises(QueueFull):
        await broker.put([make_job()])
    await worker.reply(deliveries[0], _done(deliveries[0].job))
    await broker.put([make_job()])


async def test_a_request_is_accepted_whole_or_not_at_all(
    broker: Broker, worker: Broker, make_job: MakeJob
) -> None:
    await broker.put([make_job() for _ in range(MAX_DEPTH - 1)])
    with pytest.raises(QueueFull):
        await broker.put([make_job(), make_job()])
    assert (await broker.sweep()).num_jobs == MAX_DEPTH - 1
    assert len(await _take(worker)) == MAX_DEPTH - 1


async def test_a_refusal_carries_the_time_to_drain(
    broker: Broker, worker: Broker, make_job: MakeJob
) -> None:
    futures = await broker.put([make_job() for _ in range(MAX_DEPTH)])
    with pytest.raises(QueueFull) as caught:
        await broker.put([make_job()])
    assert caught.value.retry_after_s == FIRST_RETRY_AFTER_S
    deliveries = await _take(worker)
    await worker.reply(deliveries[0], _done(deliveries[0].job, run_ms=4000.0))
    await _within(futures[0])
    await broker.put([make_job()])
    with pytest.raises(QueueFull) as caught:
        await broker.put([make_job()])
    # Two pictures took 4 s together and four are open.
    assert caught.value.retry_after_s == pytest.approx(8.0)


async def test_the_first_outcome_stands(broker: Broker, worker: Broker, make_job: MakeJob) -> None:
    job = make_job()
    (future,) = await broker.put([job])
    (delivery,) = await _take(worker)
    assert await worker.reply(delivery, JobFailed(job.id, FailureReason.ENGINE))
    assert not await worker.reply(delivery, _done(job))
    assert await _within(future) == JobFailed(job.id, FailureReason.ENGINE)


async def test_a_waiting_job_that_is_cancelled_is_never_handed_out(
    broker: Broker, worker: Broker, make_job: MakeJob
) -> None:
    first, second, third = jobs = [make_job() for _ in range(3)]
    futures = await broker.put(jobs)
    assert await broker.cancel([second.id]) == 1
    assert await _within(futures[1]) == JobFailed(second.id, FailureReason.CANCELLED)
    assert _jobs(await _take(worker)) == [first, third]
    assert (await broker.sweep()).num_jobs == 2


async def test_a_taken_job_that_is_cancelled_is_known_and_its_reply_has_no_effect(
    broker: Broker, worker: Broker, make_job: MakeJob
) -> None:
    futures = await broker.put([make_job() for _ in range(2)])
    first, second = await _take(worker)
    assert await broker.cancel([first.job.id]) == 0
    assert await worker.renew([first, second]) == {first.job.id}
    assert not await worker.reply(first, _done(first.job))
    assert await _within(futures[0]) == JobFailed(first.job.id, FailureReason.CANCELLED)


async def test_cancelling_what_is_over_changes_nothing(
    broker: Broker, worker: Broker, make_job: MakeJob
) -> None:
    job = make_job()
    (future,) = await broker.put([job])
    (delivery,) = await _take(worker)
    await worker.reply(delivery, _done(job))
    assert await broker.cancel([job.id, "unheard-of"]) == 0
    assert await _within(future) == _done(job)


async def test_an_outcome_for_a_waiter_that_is_gone_does_no_harm(
    broker: Broker, worker: Broker, make_job: MakeJob
) -> None:
    job = make_job()
    (future,) = await broker.put([job])
    (delivery,) = await _take(worker)
    future.cancel()
    assert await worker.reply(delivery, _done(job))
    assert (await broker.sweep()).num_jobs == 0


async def test_a_late_job_is_ended_instead_of_handed_out(
    broker: Broker, worker: Broker, make_job: MakeJob
) -> None:
    late = make_job(deadline_s=broker.now_s() + 0.05)
    (future,) = await broker.put([late])
    await asyncio.sleep(0.1)
    assert await worker.take(WANT, wait=False) == Taken(None, num_expired=1)
    assert await _within(future) == JobFailed(late.id, FailureReason.EXPIRED)


async def test_a_sweep_ends_what_no_worker_came_for(
    broker: Broker, worker: Broker, make_job: MakeJob
) -> None:
    (future,) = await broker.put([make_job(deadline_s=broker.now_s() + 0.05)])
    await asyncio.sleep(0.1)
    depth = await broker.sweep()
    assert (depth.num_jobs, depth.num_expired) == (0, 1)
    assert isinstance(await _within(future), JobFailed)
    await _take_nothing(worker)


async def test_a_sweep_tells_number_and_age_of_open_jobs(broker: Broker, make_job: MakeJob) -> None:
    assert (await broker.sweep()).oldest_age_s == 0.0
    await broker.put([make_job(created_s=broker.now_s() - 3.0), make_job()])
    depth = await broker.sweep()
    assert depth.num_jobs == 2
    assert depth.oldest_age_s == pytest.approx(3.0, abs=0.5)


async def test_a_request_that_comes_again_is_drawn_once_and_both_hear_of_it(
    broker: Broker, worker: Broker, make_job: MakeJob
) -> None:
    jobs = [
        make_job(id=job_id("again", index), num_images=2, digest="d", keep_s=60, seed=index)
        for index in range(2)
    ]
    first = await broker.put(jobs)
    again = await broker.put([replace(job, seed=99, secret="other") for job in jobs])
    deliveries = await _take(worker)
    assert _jobs(deliveries) == jobs
    for delivery in deliveries:
        await worker.reply(delivery, _done(delivery.job))
    for future, job in zip([*first, *again], jobs * 2, strict=True):
        assert await _within(future) == _done(job)
    once_more = await broker.put(jobs)
    assert [await _within(future) for future in once_more] == [_done(job) for job in jobs]
    await _take_nothing(worker)


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
    deliveries = await _take(worker)
    await worker.reply(deliveries[0], _done(jobs[0]))
    assert await _within(again) == _done(jobs[0])


async def test_a_job_can_be_followed_to_its_end(
    broker: Broker, worker: Broker, make_job: MakeJob
) -> None:
    job = make_job(keep_s=60, secret="s")
    await broker.put([job])
    (record,) = await broker.find([job.id])
    assert record is not None
    assert (record.job, record.state, record.outcome) == (job, JobState.QUEUED, None)
    (delivery,) = await _take(worker)
    (record,) = await broker.find([job.id])
    assert record is not None
    assert (record.state, record.num_deliveries) == (JobState.RUNNING, 1)
    (watched, unknown) = await broker.watch([job.id, "unheard-of"])
    assert watched is not None and unknown is None
    await worker.reply(delivery, _done(job))
    assert await _within(watched) == _done(job)
    (record,) = await broker.find([job.id])
    assert record is not None
    assert (record.state, record.outcome) == (JobState.SUCCEEDED, _done(job))


@pytest.mark.parametrize("keep_s", [0.0, 60.0])
async def test_an_outcome_is_kept_as_long_as_was_asked(
    broker: Broker, worker: Broker, make_job: MakeJob, keep_s: float
) -> None:
    job = make_job(keep_s=keep_s)
    (future,) = await broker.put([job])
    (delivery,) = await _take(worker)
    await worker.reply(delivery, JobFailed(job.id, FailureReason.ENGINE))
    assert await _within(future) == JobFailed(job.id, FailureReason.ENGINE)
    await broker.sweep()
    (record,) = await broker.find([job.id])
    assert (record is not None) == bool(keep_s)
    assert record is None or record.state is JobState.FAILED


async def test_a_picture_to_start_from_is_not_kept_with_the_outcome(
    broker: Broker, worker: Broker, make_job: MakeJob
) -> None:
    job = make_job(keep_s=60, image=b"\0" * 768)
    await broker.put([job])
    (delivery,) = await _take(worker)
    await worker.reply(delivery, _done(job))
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
    (delivery, *_) = await _take(worker, Want(("tiny",), 1))
    await worker.reply(delivery, _done(delivery.job))
    assert await broker.requests_of("me", 10) == ["r2", "r0"]
    assert await broker.requests_of("me", 1) == ["r2"]
    assert await broker.requests_of("nobody", 10) == []


async def test_what_is_handed_back_comes_out_again_with_a_new_number(
    broker: Broker, worker: Broker, make_job: MakeJob
) -> None:
    await broker.put([make_job() for _ in range(2)])
    first, second = await _take(worker)
    await worker.hand_back([first])
    (again,) = await _take(worker)
    assert again.job == first.job
    assert again.number > first.number
    assert not await worker.reply(first, _done(first.job))
    assert await worker.reply(again, _done(first.job))
    assert await worker.reply(second, _done(second.job))


async def test_after_close_nothing_is_accepted(broker: Broker, make_job: MakeJob) -> None:
    await broker.close()
    with pytest.raises(Draining):
        await broker.put([make_job()])


async def test_close_wakes_a_waiting_take(worker: Broker) -> None:
    taking = asyncio.create_task(worker.take(WANT, wait=True))
    await asyncio.sleep(0.05)
    await worker.close()
    assert await asyncio.wait_for(taking, 5) is None


# What only a queue between processes has to promise.


@pytest.fixture
async def shared(redis_url: str) -> AsyncIterator[Stand]:
    async with STANDS["redis"](redis_url) as stand:
        yield stand


def _shared_job(stand: Stand, **changes: Any) -> Job:
    now_s = stand.api.now_s()
    fields: dict[str, Any] = {
        "id": job_id(f"shared{next(_ids)}", 0),
        "key": KEY,
        "prompt": "a red heart",
        "seed": 1,
        "format": "png",
        "created_s": now_s,
        "deadline_s": now_s + 60,
    }
    return Job(**(fields | changes))


async def _take_after_lease(worker: Broker) -> list[Delivery]:
    await asyncio.sleep(LEASE_S * 1.2)
    return await _take(worker)


async def test_jobs_of_a_worker_that_died_come_out_singly_elsewhere(shared: Stand) -> None:
    jobs = [_shared_job(shared) for _ in range(3)]
    futures = await shared.api.put(jobs)
    assert len(await _take(shared.worker)) == 3
    async with shared.another() as other:
        again = [await _take_after_lease(other), await _take(other), await _take(other)]
        assert sorted(d.job.id for (d,) in again) == sorted(job.id for job in jobs)
        assert {d.number for (d,) in again} == {2}
        for (delivery,) in again:
            assert await other.reply(delivery, _done(delivery.job))
    for future in futures:
        assert isinstance(await _within(future), JobDone)


async def test_handing_back_is_no_failed_delivery(shared: Stand) -> None:
    await shared.api.put([_shared_job(shared)])
    for _ in range(MAX_DELIVERIES):
        await shared.worker.hand_back(await _take(shared.worker))
    await _take(shared.worker)
    # Its worker dies now: it has two more tries.
    (delivery,) = await _take_after_lease(shared.worker)
    assert await shared.worker.reply(delivery, _done(delivery.job))


async def test_a_lease_that_is_renewed_is_not_taken_away(shared: Stand) -> None:
    await shared.api.put([_shared_job(shared)])
    deliveries = await _take(shared.worker)
    async with shared.another() as other:
        for _ in range(6):
            await asyncio.sleep(LEASE_S / 3)
            assert await shared.worker.renew(deliveries) == frozenset()
            await _take_nothing(other)
    assert await shared.worker.reply(deliveries[0], _done(deliveries[0].job))


async def test_an_outcome_of_an_older_delivery_is_refused(shared: Stand) -> None:
    (future,) = await shared.api.put([_shared_job(shared)])
    (stale,) = await _take(shared.worker)
    async with shared.another() as other:
        (fresh,) = await _take_after_lease(other)
        assert await shared.worker.renew([stale]) == {stale.job.id}
        assert not await shared.worker.reply(stale, _done(stale.job, image_bytes=b"stale"))
        assert await other.reply(fresh, _done(fresh.job, image_bytes=b"fresh"))
        assert not await shared.worker.reply(stale, _done(stale.job, image_bytes=b"stale"))
    outcome = await _within(future)
    assert isinstance(outcome, JobDone) and outcome.image_bytes == b"fresh"


async def test_a_job_that_ends_every_worker_fails_for_good(shared: Stand) -> None:
    job = _shared_job(shared)
    (future,) = await shared.api.put([job])
    assert len(await _take(shared.worker)) == 1
    for number in range(2, MAX_DELIVERIES + 1):
        (delivery,) = await _take_after_lease(shared.worker)
        assert delivery.number == number
    await asyncio.sleep(LEASE_S * 1.2)
    await _take_nothing(shared.worker)
    assert await _within(future) == JobFailed(job.id, FailureReason.DELIVERIES)
    assert await shared.dead_letters() == [job.id]


async def test_the_api_process_that_asks_again_need_not_be_the_first(shared: Stand) -> None:
    job = _shared_job(shared, digest="d", keep_s=60)
    await shared.api.put([job])
    async with shared.another() as other:
        (again,) = await other.put([job])
        (delivery,) = await _take(shared.worker)
        await shared.worker.reply(delivery, _done(job))
        assert await _within(again) == _done(job)
        assert (await shared.worker.sweep()).num_jobs == 0


async def test_a_reply_that_got_lost_is_found_by_the_sweep(shared: Stand) -> None:
    (future,) = await shared.api.put([_shared_job(shared)])
    (delivery,) = await _take(shared.worker)
    await shared.lose_replies()
    await shared.worker.reply(delivery, _done(delivery.job))
    await shared.lose_replies()
    async with asyncio.timeout(10):
        while not future.done():
            await shared.api.sweep()
            await asyncio.sleep(0.1)
    assert isinstance(future.result(), JobDone)


async def test_jobs_that_the_server_lost_are_reported(shared: Stand) -> None:
    job = _shared_job(shared)
    (future,) = await shared.api.put([job])
    await shared.flush()
    async with asyncio.timeout(10):
        while not future.done():
            await shared.api.sweep()
            await asyncio.sleep(0.1)
    assert future.result() == JobFailed(job.id, FailureReason.LOST)
    # The queue works again without a restart.
    await shared.api.put([_shared_job(shared)])
    assert len(await _take(shared.worker)) == 1


async def test_what_is_over_leaves_no_entry_behind(shared: Stand) -> None:
    jobs = [_shared_job(shared, image=b"rgb") for _ in range(3)]
    futures = await shared.api.put(jobs)
    await shared.api.cancel([jobs[0].id])
    for delivery in await _take(shared.worker):
        await shared.worker.reply(delivery, _done(delivery.job))
    for future in futures:
        await _within(future)
    assert await shared.leftovers() == []
    assert not await shared.fields_of_jobs("image")


async def test_what_is_not_kept_of_a_known_request_is_lost_and_the_rest_is_there(
    broker: Broker, worker: Broker, make_job: MakeJob
) -> None:
    jobs = [
        make_job(id=job_id("partly", index), num_images=2, digest="d", keep_s=keep_s)
        for index, keep_s in enumerate((60.0, 0.0))
    ]
    futures = await broker.put(jobs)
    for delivery in await _take(worker):
        await worker.reply(delivery, _done(delivery.job))
    assert [await _within(future) for future in futures] == [_done(job) for job in jobs]
    await broker.sweep()
    again = await broker.put(jobs)
    outcomes = [await _within(future) for future in again]
    assert outcomes == [_done(jobs[0]), JobFailed(jobs[1].id, FailureReason.LOST)]


async def test_records_come_without_their_pictures_where_nobody_wants_them(
    broker: Broker, worker: Broker, make_job: MakeJob
) -> None:
    job = make_job(keep_s=60)
    await broker.put([job])
    (delivery,) = await _take(worker)
    await worker.reply(delivery, _done(job))
    (record,) = await broker.find([job.id], with_pictures=False)
    assert record is not None and record.state is JobState.SUCCEEDED
    assert isinstance(record.outcome, JobDone) and record.outcome.seed == job.seed


async def test_a_webhook_is_held_by_one_until_it_lets_go_or_is_done(
    broker: Broker, worker: Broker, make_job: MakeJob
) -> None:
    await broker.put([make_job(id=job_id("plain", 0))])
    jobs = [make_job(id=job_id("hooked", i), num_images=2, webhook="https://x.io/") for i in (0, 1)]
    await broker.put(jobs)
    assert (await _take(worker))[-1].job.webhook == "https://x.io/"
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


async def test_who_could_not_ask_waits_for_nothing(
    shared: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = _shared_job(shared)
    await shared.api.put([job])
    assert isinstance(shared.worker, RedisBroker)

    async def away(*given: Any) -> None:
        raise QueueUnavailable("the queue cannot be reached")

    monkeypatch.setattr(shared.worker._connection, "script", away)
    with pytest.raises(QueueUnavailable):
        await shared.worker.watch([job.id])
    assert not shared.worker._ends.is_awaited(job.id)
