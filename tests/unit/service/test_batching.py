"""The choice among waiting jobs: one key, fair to owners, background jobs later; and run times."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from service_fixtures import KEY, make_job

from service.batching import (
    Batch,
    CloseReason,
    Delivery,
    RunTimes,
    WaitingJobs,
    num_in_time,
    parts_in_time,
)
from service.jobs import BatchKey, Job, Priority

OTHER_KEY = BatchKey("tiny", 32, 32, 1)
MODELS = ("tiny",)


def _waiting(jobs: list[Job]) -> WaitingJobs:
    waiting = WaitingJobs(ageing_s=5.0)
    for job in jobs:
        waiting.add(job)
    return waiting


def test_nothing_waiting_makes_no_batch() -> None:
    assert WaitingJobs().next_jobs(4, MODELS) == []


def test_jobs_of_one_owner_come_in_order_and_no_more_than_asked_for() -> None:
    jobs = [make_job(created_s=float(index)) for index in range(6)]
    waiting = _waiting(jobs)
    assert waiting.next_jobs(4, MODELS) == jobs[:4]
    assert waiting.next_jobs(4, MODELS) == jobs[4:]
    assert len(waiting) == 0


def test_keys_do_not_mix_and_the_oldest_decides() -> None:
    jobs = [
        make_job(key=KEY if index % 2 else OTHER_KEY, created_s=float(index)) for index in range(4)
    ]
    waiting = _waiting(jobs)
    assert waiting.next_jobs(4, MODELS) == [jobs[0], jobs[2]]
    assert waiting.next_jobs(4, MODELS) == [jobs[1], jobs[3]]


def test_a_worker_gets_jobs_of_its_models_only() -> None:
    job = make_job(key=BatchKey("other", 16, 16, 1))
    waiting = _waiting([job])
    assert waiting.next_jobs(4, MODELS) == []
    assert waiting.next_jobs(4, ("tiny", "other")) == [job]


def test_an_owner_with_many_jobs_shares_the_batch_with_one_who_has_few() -> None:
    many = [make_job(owner="many", created_s=0.0) for _ in range(20)]
    few = [make_job(owner="few", created_s=1.0) for _ in range(2)]
    waiting = _waiting(many + few)
    batch = waiting.next_jobs(4, MODELS)
    assert batch == [many[0], few[0], many[1], few[1]]
    assert waiting.next_jobs(4, MODELS) == many[2:6]


def test_turns_go_on_from_batch_to_batch_and_from_key_to_key() -> None:
    first = [make_job(owner="a", created_s=0.0) for _ in range(4)]
    second = [make_job(owner="b", key=OTHER_KEY, created_s=1.0) for _ in range(4)]
    waiting = _waiting(first + second)
    owners = [waiting.next_jobs(1, MODELS)[0].owner for _ in range(6)]
    assert owners == ["a", "b", "a", "b", "a", "b"]


def test_background_jobs_fill_what_is_left_and_overtake_when_they_have_waited() -> None:
    background = [make_job(priority=Priority.BACKGROUND, created_s=0.0) for _ in range(3)]
    soon = [make_job(created_s=4.0) for _ in range(2)]
    late = [make_job(created_s=6.0) for _ in range(2)]
    waiting = _waiting(background + soon)
    assert waiting.next_jobs(4, MODELS) == [*soon, *background[:2]]
    waiting = _waiting(background + late)
    assert waiting.next_jobs(3, MODELS) == background


def test_a_whole_batch_or_none() -> None:
    jobs = [make_job(owner=owner) for owner in "abc"]
    waiting = _waiting([*jobs, make_job(key=OTHER_KEY, created_s=1.0)])
    assert waiting.next_jobs(4, MODELS, is_whole_only=True) == []
    assert len(waiting) == 4
    assert waiting.next_jobs(3, MODELS, is_whole_only=True) == jobs


def test_a_job_that_left_is_not_handed_out_and_one_put_back_comes_first() -> None:
    jobs = [make_job() for _ in range(3)]
    waiting = _waiting(jobs)
    assert waiting.remove(jobs[1].id) == jobs[1]
    assert waiting.remove(jobs[1].id) is None
    taken = waiting.next_jobs(1, MODELS)
    waiting.put_back(taken[0])
    assert waiting.next_jobs(4, MODELS) == [jobs[0], jobs[2]]


@given(
    st.lists(
        st.tuples(
            st.sampled_from([KEY, OTHER_KEY]),
            st.sampled_from(Priority),
            st.sampled_from(["a", "b", "c"]),
            st.floats(0, 20),
        ),
        max_size=30,
    ),
    st.integers(1, 9),
)
def test_every_job_comes_out_once_in_batches_of_one_key(
    drawn: list[tuple[BatchKey, Priority, str, float]], max_jobs: int
) -> None:
    jobs = [
        make_job(key=key, priority=priority, owner=owner, created_s=created_s)
        for key, priority, owner, created_s in sorted(drawn, key=lambda fields: fields[3])
    ]
    waiting = _waiting(jobs)
    seen: list[str] = []
    while batch := waiting.next_jobs(max_jobs, MODELS):
        assert len(batch) <= max_jobs
        assert len({job.key for job in batch}) == 1
        seen += [job.id for job in batch]
    assert sorted(seen) == sorted(job.id for job in jobs)
    assert len(waiting) == 0


def _times(fixed_s: float, per_job_s: float, sizes: tuple[int, ...] = (1, 8, 4)) -> RunTimes:
    times = RunTimes()
    for _ in range(5):
        for num_jobs in sizes:
            times.note(num_jobs, fixed_s + per_job_s * num_jobs)
    return times


def test_run_times_are_a_line_through_what_was_seen() -> None:
    assert RunTimes().expected_s(8) == 0.0
    times = _times(0.002, 0.003)
    assert times.expected_s(2) == pytest.approx(0.008)
    assert times.expected_s(16) == pytest.approx(0.050)
    assert _times(0.002, 0.003, sizes=(8,)).expected_s(4) == pytest.approx(0.013)


def test_run_times_follow_a_slower_engine() -> None:
    times = _times(0.002, 0.003)
    for _ in range(40):
        for num_jobs in (1, 8):
            times.note(num_jobs, 2 * (0.002 + 0.003 * num_jobs))
    assert times.expected_s(8) == pytest.approx(0.052, rel=0.1)


@pytest.mark.parametrize(
    ("time_left_s", "num"), [(1.0, 8), (0.026, 8), (0.0255, 7), (0.012, 3), (0.0051, 1), (0.004, 8)]
)
def test_as_many_run_first_as_let_the_most_urgent_meet_its_deadline(
    time_left_s: float, num: int
) -> None:
    assert num_in_time(_times(0.002, 0.003), 8, time_left_s + 1e-9) == num


def test_a_batch_is_parted_for_its_most_urgent_jobs() -> None:
    jobs = [make_job(deadline_s=deadline_s) for deadline_s in (9.0, 10.0, 0.012, 9.5)]
    batch = Batch(KEY, tuple(Delivery(job) for job in jobs), CloseReason.FULL)
    part, rest = parts_in_time(batch, 0.0, lambda key: _times(0.002, 0.003))
    assert rest is not None
    assert [d.job for d in part.deliveries] == [jobs[2], jobs[0], jobs[3]]
    assert part.close_reason is CloseReason.DEADLINE
    assert [d.job for d in rest.deliveries] == [jobs[1]]
    whole, none = parts_in_time(rest, 0.0, lambda key: _times(0.002, 0.003))
    assert (whole, none) == (rest, None)
