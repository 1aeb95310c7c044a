"""Every error has a place on the wire, and nothing but what it says gets there."""

from __future__ import annotations

import pytest

from service.errors import (
    STATUS_TABLE,
    InvalidRequest,
    ProblemError,
    QueueFull,
    problem_document,
    retry_headers,
    status_of,
)


def _subclasses(kind: type[ProblemError]) -> set[type[ProblemError]]:
    direct = set(kind.__subclasses__())
    return direct.union(*(_subclasses(child) for child in direct))


def test_every_error_is_in_the_status_table() -> None:
    assert _subclasses(ProblemError) == set(STATUS_TABLE)


def test_codes_are_unique_and_statuses_are_errors() -> None:
    codes = [row.code for row in STATUS_TABLE.values()]
    assert len(set(codes)) == len(codes)
    assert all(400 <= row.status < 600 for row in STATUS_TABLE.values())


@pytest.mark.parametrize("kind", sorted(STATUS_TABLE, key=lambda kind: kind.__name__))
def test_a_problem_document_holds_what_rfc_9457_asks_for(kind: type[ProblemError]) -> None:
    document = problem_document(kind("why"), "r-1")
    assert document == {
        "type": f"urn:onestep:problem:{document['code']}",
        "title": document["title"],
        "status": status_of(kind("why")).status,
        "detail": "why",
        "code": document["code"],
        "request_id": "r-1",
    }


def test_field_and_allowed_travel() -> None:
    document = problem_document(InvalidRequest("why", field="seed", allowed={"min": 0}), "r-1")
    assert (document["field"], document["allowed"]) == ("seed", {"min": 0})


@pytest.mark.parametrize(
    ("wait_s", "seconds", "milliseconds"),
    [(0.0, "1", "1"), (0.25, "1", "250"), (2.1, "3", "2100"), (9999.0, "120", "120000")],
)
def test_retry_after_is_whole_seconds_that_clients_still_honour(
    wait_s: float, seconds: str, milliseconds: str
) -> None:
    headers = retry_headers(QueueFull("full", retry_after_s=wait_s))
    assert headers == {"retry-after": seconds, "retry-after-ms": milliseconds}


def test_no_retry_header_where_waiting_mends_nothing() -> None:
    assert retry_headers(InvalidRequest("no")) == {}
