"""A job's course as server-sent events: its document, each change of a picture, its end.

Owns the wording of the events and when one is sent. Ends arrive through the broker, whichever
process accepted the job; that a picture has begun is looked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import orjson
from fastapi import Response
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from service.errors import QueueUnavailable, TooManyConnections
from service.job_documents import (
    TERMINAL,
    job_document,
    picture_document,
    state_told,
    with_lost,
)
from service.jobs import JobOutcome, JobRecord
from service.routes.context import AppContext

# Proxies cut connections that are silent for longer than half a minute or so.
HEARTBEAT_S = 15.0
LOOK_S = 1.0
# A job has ended this long after its deadline, or nobody can tell.
_END_MARGIN_S = 60.0
_HEARTBEAT = b": heartbeat\n\n"


def answer_events(records: Sequence[JobRecord], context: AppContext, base_url: str) -> Response:
    """The answer that goes on until the job has ended.

    Raises:
        TooManyConnections: as many follow a job as may.
    """
    if len(context.streams) >= context.settings.max_event_streams:
        raise TooManyConnections(
            f"{len(context.streams)} clients follow jobs and more may not: ask for the job itself",
            retry_after_s=LOOK_S,
        )
    course = _Course(records, context, base_url)
    return _Stream(course, context)


class _Stream(StreamingResponse):
    """Has a seat among the streams from now until it has been answered."""

    def __init__(self, course: _Course, context: AppContext) -> None:
        self._events = course.events()
        super().__init__(
            self._events,
            media_type="text/event-stream",
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )
        self._seats = context.streams
        self._seats.add(self)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            # A client that leaves in the middle of an event leaves the course there.
            await self._events.aclose()
            self._seats.discard(self)


class _Course:
    """What a client has been told of a job, and what is to be told next."""

    def __init__(self, records: Sequence[JobRecord], context: AppContext, base_url: str) -> None:
        self._records = list(records)
        self._context = context
        self._base_url = base_url
        self._ids = [record.job.id for record in records]
        margin_s = records[0].job.deadline_s - context.broker.now_s() + _END_MARGIN_S
        self._until_s = time.monotonic() + margin_s

    async def events(self) -> AsyncGenerator[bytes]:
        """All events, in order."""
        futures: list[asyncio.Future[JobOutcome]] = []
        try:
            yield self._event("job", self._document())
            told_s = time.monotonic()
            if not self._has_ended():
                found = await self._context.broker.watch(self._ids)
                futures = [future for future in found if future is not None]
            while not self._has_ended() and time.monotonic() < self._until_s:
                changed = await self._changes(futures)
                for record in changed:
                    yield self._event("picture", picture_document(record, self._base_url))
                if changed:
                    told_s = time.monotonic()
                elif time.monotonic() - told_s >= HEARTBEAT_S:
                    told_s = time.monotonic()
                    yield _HEARTBEAT
            if self._has_ended():
                yield self._event("end", self._document())
        finally:
            for future in futures:
                future.cancel()

    async def _changes(self, futures: Sequence[asyncio.Future[JobOutcome]]) -> list[JobRecord]:
        """What is new of pictures, after the next end of one or a moment."""
        pending = [future for future in futures if not future.done()]
        if pending:
            await asyncio.wait(pending, timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED)
        else:
            await asyncio.sleep(LOOK_S)
        before = self._records
        # A queue that is away for a moment has nothing new.
        with contextlib.suppress(QueueUnavailable):
            found = await self._context.broker.find(self._ids, with_pictures=False)
            self._records = with_lost(found, before[0].job)
        return [
            record
            for record, old in zip(self._records, before, strict=True)
            if state_told(record) is not state_told(old)
        ]

    def _has_ended(self) -> bool:
        return TERMINAL.issuperset(state_told(record) for record in self._records)

    def _document(self) -> dict[str, Any]:
        return job_document(self._records, self._context.broker.now_s(), self._base_url)

    @staticmethod
    def _event(name: str, document: dict[str, Any]) -> bytes:
        return b"event: " + name.encode() + b"\ndata: " + orjson.dumps(document) + b"\n\n"
