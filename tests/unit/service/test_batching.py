"""Batches hold jobs of one key in order, never too many, and nothing is lost or drawn twice."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from service_fixtures import KEY, FakeClock, make_job

from service.batching import LOOKAHEAD_BATCHES, Batcher, CloseReason
from service.jobs import BatchKey

OTHER_KEY = BatchKey("tiny", 32, 32, 1)


def test_nothing_held_makes_no_batch() -> None:
    assert Batcher(4, FakeClock()).next_batch() is None


def test_one_job_is_a_batch_at_once() -> None:
    batcher = Batcher(4, FakeClock())
    job = make_job()
    batcher.add([job])
    batch = batcher.next_batch()
    assert batch is not None
    assert (batch.jobs, batch.close_reason) == ((job,), CloseReason.NO_MORE)
    assert batcher.next_batch() is None


def test_a_full_batch_leaves_the_rest_for_the_next() -> None:
    batcher = Batcher(4, FakeClock())
    jobs = [make_job() for _ in range(6)]
    batcher.add(jobs)
    first, second = batcher.next_batch(), batcher.next_batch()
    assert first is not None and second is not None
    assert (first.jobs, first.close_reason) == (tuple(jobs[:4]), CloseReason.FULL)
    assert (second.jobs, second.close_reason) == (tuple(jobs[4:]), CloseReason.NO_MORE)


def test_keys_do_not_mix_and_the_oldest_goes_first() -> None:
    batcher = Batcher(4, FakeClock())
    jobs = [
        make_job(key=OTHER_KEY if index % 2 else KEY, created_s=float(index)) for index in range(4)
    ]
    batcher.add(jobs)
    first, second = batcher.next_batch(), batcher.next_batch()
    assert first is not None and second is not None
    assert (first.key, first.jobs) == (KEY, (jobs[0], jobs[2]))
    assert (second.key, second.jobs) == (OTHER_KEY, (jobs[1], jobs[3]))


def test_a_rare_key_is_not_starved_by_a_busy_one() -> None:
    batcher = Batcher(2, FakeClock())
    batcher.add([make_job(created_s=float(index)) for index in range(2)])
    rare = make_job(key=OTHER_KEY, created_s=2.0)
    batcher.add([rare])
    batcher.add([make_job(created_s=3.0 + index) for index in range(4)])
    batcher.next_batch()
    second = batcher.next_batch()
    assert second is not None and second.jobs == (rare,)


def test_expired_jobs_are_dropped_at_their_deadline() -> None:
    clock = FakeClock()
    batcher = Batcher(4, clock)
    short, long = make_job(deadline_s=1.0), make_job(deadline_s=2.0)
    batcher.add([short, long])
    clock.now_s = 0.999
    assert batcher.drop_expired() == []
    clock.now_s = 1.0
    assert batcher.drop_expired() == [short]
    batch = batcher.next_batch()
    assert batch is not None and batch.jobs == (long,)


def test_cancelled_jobs_are_dropped_and_an_emptied_key_leaves() -> None:
    batcher = Batcher(4, FakeClock())
    job = make_job()
    batcher.add([job])
    assert batcher.drop_cancelled({job.id, "unheard-of"}) == [job]
    assert batcher.job_ids == []
    assert batcher.next_batch() is None


def test_room_shrinks_with_every_job() -> None:
    batcher = Batcher(2, FakeClock())
    batcher.add([make_job() for _ in range(3)])
    assert batcher.room == LOOKAHEAD_BATCHES * 2 - 3


@given(
    st.integers(1, 5),
    st.lists(st.tuples(st.sampled_from([KEY, OTHER_KEY]), st.floats(0, 10), st.booleans())),
)
def test_every_job_leaves_exactly_once(
    max_batch_size: int, plan: list[tuple[BatchKey, float, bool]]
) -> None:
    clock = FakeClock()
    batcher = Batcher(max_batch_size, clock)
    jobs = [
        make_job(key=key, created_s=float(index), deadline_s=deadline_s)
        for index, (key, deadline_s, _) in enumerate(plan)
    ]
    cancelled = {
        job.id for job, (_, _, is_cancelled) in zip(jobs, plan, strict=True) if is_cancelled
    }
    batcher.add(jobs)
    clock.now_s = 5.0
    left = batcher.drop_cancelled(cancelled) + batcher.drop_expired()
    while (batch := batcher.next_batch()) is not None:
        assert 1 <= len(batch.jobs) <= max_batch_size
        assert {job.key for job in batch.jobs} == {batch.key}
        assert [job.created_s for job in batch.jobs] == sorted(job.created_s for job in batch.jobs)
        assert all(job.deadline_s > 5.0 and job.id not in cancelled for job in batch.jobs)
        assert (batch.close_reason is CloseReason.FULL) == (len(batch.jobs) == max_batch_size)
        left += batch.jobs
    assert sorted(job.id for job in left) == sorted(job.id for job in jobs)
