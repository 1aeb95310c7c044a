"""What a webhook tells: one event per job, when the job has come to its end.

Owns the document and the event's id. Knows neither addresses nor delivery.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from service.jobs import JobState

_ENDS = (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED)


def event_id(job_id: str, state: JobState) -> str:
    """The same for every delivery of an event, also of another process: receivers drop repeats."""
    return f"{job_id}-{state}"


def job_event(
    job_id: str, state: JobState, ended_at: datetime, fields: dict[str, Any]
) -> dict[str, Any]:
    """The document of a job's end; `fields` are what else `data` says of the job."""
    assert state in _ENDS
    return {
        "type": f"job.{state}",
        "timestamp": ended_at.astimezone(UTC).isoformat(timespec="milliseconds"),
        "data": {"id": job_id, "state": str(state), **fields},
    }
