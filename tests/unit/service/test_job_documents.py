"""What a request's pictures make of it, and what is asked for by Prefer."""

from __future__ import annotations

import pytest
from service_fixtures import make_job

from service.errors import STATUS_TABLE
from service.job_documents import failure, job_document, request_state
from service.jobs import FailureReason, JobFailed, JobRecord, JobState
from service.routes.generate import prefers_async


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ("queued queued", "queued"),
        ("queued running", "running"),
        ("queued succeeded", "running"),
        ("failed running", "running"),
        ("queued cancelled", "running"),
        ("succeeded succeeded", "succeeded"),
        ("succeeded failed", "failed"),
        ("succeeded expired", "expired"),
        ("succeeded cancelled", "cancelled"),
        ("cancelled expired", "expired"),
        ("cancelled failed expired", "failed"),
    ],
)
def test_a_request_is_in_the_state_that_its_pictures_make(states: str, expected: str) -> None:
    assert request_state([JobState(state) for state in states.split()]) == expected


@pytest.mark.parametrize("reason", FailureReason)
def test_every_reason_of_failure_has_words_and_a_status(reason: FailureReason) -> None:
    error = failure(reason)
    assert type(error) in STATUS_TABLE and error.detail


def test_a_picture_that_is_gone_is_not_told_as_there() -> None:
    job = make_job(id="r-0", keep_s=60.0)
    record = JobRecord(job, JobState.SUCCEEDED, 1, JobFailed(job.id, FailureReason.LOST))
    document = job_document([record], 0.0, "")
    assert (document["state"], document["pictures"][0]["state"]) == ("failed", "failed")
    assert "url" not in document["pictures"][0]


def test_a_document_holds_no_prompt_and_no_secret() -> None:
    job = make_job(id="r-0", prompt="PROMPT", secret="SECRET", webhook="https://x.io/TOKEN")
    text = str(job_document([JobRecord(job, JobState.QUEUED, 0, None)], 0.0, ""))
    assert not any(hidden in text for hidden in ("PROMPT", "SECRET", "TOKEN"))


@pytest.mark.parametrize(
    ("prefer", "expected"),
    [
        ([], False),
        (["respond-async"], True),
        (["Respond-Async"], True),
        (["wait=10, respond-async"], True),
        (["respond-async; priority=5"], True),
        (["wait=10", "respond-async"], True),
        (['foo="a, b", respond-async'], True),
        (['foo="a, respond-async"'], False),
        (['foo="a, respond-async, b"'], False),
        (['foo="a\\", respond-async"'], False),
        (["foo; respond-async"], False),
        (["respond-async=no"], False),
        (["respond-asynchronously"], False),
        ([""], False),
        ([",,;=,"], False),
    ],
)
def test_a_preference_is_read_as_rfc_7240_has_it(prefer: list[str], expected: bool) -> None:
    assert prefers_async(prefer) is expected
