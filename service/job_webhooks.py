"""Webhooks of jobs: from the queue's list of them to a delivery.

Owns which requests this process tells of: it holds a webhook while it waits for the request's
pictures and while it delivers, and lets go of it when the delivery has come to its end. What is
held by a process that ends is handed to another one, so that every webhook is told at least once,
as long as the outcomes are kept. Knows the broker's protocol; nothing of routes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from service.brokers.base import Broker, lost_where_unknown
from service.errors import QueueUnavailable
from service.job_documents import job_document, with_lost
from service.jobs import JobState, job_id, siblings, state_of
from service.tasks import end_tasks
from service.telemetry import log_event
from service.webhooks.delivery import MAX_OPEN, DeliveryResult, Webhooks
from service.webhooks.events import event_id, job_event
from service.webhooks.guard import Guard

# How soon another process takes over from one that has died.
HOLD_S = 30.0
LOOK_S = 1.0
# Running tries at the end of the process.
_CLOSE_S = 3.0


class JobWebhooks:
    """Waits for requests' ends and has them delivered.

    Args:
        broker: where the requests are.
        webhooks: what delivers.
        base_url: what addresses of pictures begin with; empty makes them relative.
    """

    def __init__(
        self,
        broker: Broker,
        webhooks: Webhooks,
        base_url: str,
        *,
        hold_s: float = HOLD_S,
        look_s: float = LOOK_S,
    ) -> None:
        self._broker = broker
        self._webhooks = webhooks
        self._base_url = base_url.rstrip("/")
        self._hold_s = hold_s
        self._look_s = look_s
        self._held: dict[str, asyncio.Task[None]] = {}
        self._delivering: set[str] = set()
        self._news = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None

    @property
    def guard(self) -> Guard:
        """Which URLs may be called."""
        return self._webhooks.guard

    def start(self) -> None:
        """Begin to look after webhooks."""
        self._looking = asyncio.create_task(self._look())

    def look_soon(self) -> None:
        """A request with a webhook was accepted: it may end before the next look."""
        self._news.set()

    async def close(self) -> None:
        """Let go of what has not ended, and give running deliveries a moment."""
        idle = [task for request, task in self._held.items() if request not in self._delivering]
        await end_tasks(*idle, *([self._looking] if self._looking is not None else []))
        await self._webhooks.close(_CLOSE_S)
        await asyncio.gather(*self._held.values(), return_exceptions=True)

    async def _look(self) -> None:
        while True:
            self._news.clear()
            with contextlib.suppress(QueueUnavailable):
                room = MAX_OPEN - len(self._held)
                new = await self._broker.hold_webhooks(list(self._held), self._hold_s, room)
                for request in new:
                    self._begin(request)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), self._look_s)

    def _begin(self, request: str) -> None:
        # One that was let go of for too long comes again while its delivery goes on.
        if request not in self._held:
            task = asyncio.create_task(self._tell(request))
            self._held[request] = task
            task.add_done_callback(lambda done: self._let_go(request, done))

    def _let_go(self, request: str, task: asyncio.Task[None]) -> None:
        self._held.pop(request, None)
        self._delivering.discard(request)
        if task.cancelled() or (error := task.exception()) is None:
            return
        # It is handed out again, to this process or another.
        is_away = isinstance(error, QueueUnavailable)
        level = logging.WARNING if is_away else logging.ERROR
        log_event("webhook_let_go", level=level, exc=None if is_away else error, job=request)

    async def _tell(self, request: str) -> None:
        """Wait for a request's end and deliver it; its webhook is at its end then."""
        letter = await self._wait_for_end(request)
        if letter is None:
            log_event("webhook_without_job", level=logging.WARNING, job=request)
            await self._broker.drop_webhook(request)
            return
        self._delivering.add(request)
        task = self._webhooks.submit(*letter)
        if task is not None and (await task).result is not DeliveryResult.STOPPED:
            await self._broker.drop_webhook(request)

    async def _wait_for_end(self, request: str) -> tuple[str, str, dict[str, Any]] | None:
        """URL, event id and document of a request that has ended; None when it is not kept."""
        (first,) = await self._broker.find([job_id(request, 0)], with_pictures=False)
        if first is None:
            return None
        ids = siblings(first.job)
        found = await self._broker.find(ids, with_pictures=False)
        futures = lost_where_unknown(ids, await self._broker.watch(ids))
        await asyncio.wait(futures)
        records = [
            replace(record, state=state_of(future.result()), outcome=future.result())
            for record, future in zip(with_lost(found, first.job), futures, strict=True)
        ]
        document = job_document(records, self._broker.now_s(), self._base_url)
        state = JobState(document.pop("state"))
        event = job_event(document.pop("id"), state, datetime.now(UTC), document)
        return first.job.webhook, event_id(request, state), event
