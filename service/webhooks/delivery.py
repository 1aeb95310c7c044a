"""Delivering webhooks: signed, tried again, a bounded number at once, ended in an orderly way.

Owns when a delivery is at its end and what is said of it. What must survive this process lies with
whoever submits: a delivery that the stop interrupted ends as `stopped` and may be submitted again
under the same event id. A URL's path and a body are never logged.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import version
from typing import Any
from weakref import WeakValueDictionary

import orjson

from service.errors import InvalidRequest, StartError, WebhookBlocked, WebhookUnreachable
from service.settings import ENV_PREFIX, Settings
from service.tasks import end_tasks
from service.telemetry import Telemetry, log_event
from service.webhooks.allowed import parse_allowed
from service.webhooks.caller import Answer, Caller
from service.webhooks.guard import Guard, Target
from service.webhooks.retries import RetryPlan, is_retried
from service.webhooks.sign import Signer

MAX_OPEN = 1000
MAX_AT_ONCE = 16
# A receiver that answers slowly must leave room for the others.
MAX_AT_ONCE_PER_HOST = 4
_GONE = 410
_USER_AGENT = f"onestep/{version('onestep')}"


class DeliveryResult(StrEnum):
    """How a delivery ended."""

    DELIVERED = "delivered"
    GONE = "gone"  # the receiver wants no more of them (410)
    REFUSED = "refused"  # an answer that trying again would not change, a redirect among them
    BLOCKED = "blocked"  # the address must not be called
    GIVEN_UP = "given_up"  # after the last try
    STOPPED = "stopped"  # by the end of this process


@dataclass(frozen=True)
class DeliveryOutcome:
    """A delivery's end; `status` is the last answer's, None where there was none."""

    result: DeliveryResult
    num_tries: int
    status: int | None = None


@dataclass(frozen=True)
class _Letter:
    """What every try of one delivery shares."""

    target: Target
    event_id: str
    body: bytes


class Webhooks:
    """Delivers documents to the URLs that clients named."""

    def __init__(
        self,
        guard: Guard,
        caller: Caller,
        signer: Signer,
        retries: RetryPlan,
        telemetry: Telemetry,
    ) -> None:
        self.guard = guard
        self._caller = caller
        self._signer = signer
        self._retries = retries
        self._telemetry = telemetry
        self._open: set[asyncio.Task[DeliveryOutcome]] = set()
        self._slots = asyncio.Semaphore(MAX_AT_ONCE)
        # A host's entry lives as long as one of its deliveries holds it.
        self._host_slots: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._stopping = asyncio.Event()
        self._cut: frozenset[asyncio.Task[DeliveryOutcome]] = frozenset()
        # Rates need every series from the start.
        for result in DeliveryResult:
            telemetry.webhooks.labels(result)

    @classmethod
    def from_settings(cls, settings: Settings, telemetry: Telemetry) -> Webhooks:
        """Join the parts as the settings say.

        Raises:
            StartError: a listed host or a secret is malformed, or there is no secret.
        """
        try:
            allowed = [parse_allowed(entry) for entry in settings.webhook_hosts]
        except ValueError as error:
            raise StartError(
                f"setting webhook_hosts ({ENV_PREFIX}WEBHOOK_HOSTS): {error}"
            ) from error
        try:
            signer = Signer([secret.get_secret_value() for secret in settings.webhook_secrets])
        except ValueError as error:
            raise StartError(
                f"setting webhook_secrets ({ENV_PREFIX}WEBHOOK_SECRETS): {error}"
            ) from None
        guard = Guard(allowed, settings.webhook_allow_http)
        caller = Caller(guard, settings.webhook_timeout_s)
        return cls(guard, caller, signer, RetryPlan(settings.webhook_max_tries), telemetry)

    def submit(
        self, url: str, event_id: str, document: Mapping[str, Any]
    ) -> asyncio.Task[DeliveryOutcome] | None:
        """Begin a delivery and return the task of its outcome; None when there is no room."""
        if self._stopping.is_set() or len(self._open) >= MAX_OPEN:
            log_event("webhook_not_taken", level=logging.WARNING, event_id=event_id)
            return None
        task = asyncio.create_task(self.deliver(url, event_id, document))
        self._open.add(task)
        self._telemetry.webhooks_open.inc()
        task.add_done_callback(self._forget)
        return task

    async def deliver(
        self, url: str, event_id: str, document: Mapping[str, Any]
    ) -> DeliveryOutcome:
        """Deliver a document, with every try that it takes.

        The URL is checked again: it may have been accepted under other settings.
        """
        host = ""
        try:
            target = self.guard.check(url)
        except InvalidRequest:
            outcome = DeliveryOutcome(DeliveryResult.BLOCKED, 0)
        else:
            host = target.host
            outcome = await self._try_until_end(_Letter(target, event_id, orjson.dumps(document)))
        self._telemetry.webhooks.labels(outcome.result).inc()
        is_good = outcome.result is DeliveryResult.DELIVERED
        log_event(
            "webhook_ended",
            level=logging.INFO if is_good else logging.WARNING,
            event_id=event_id,
            host=host,
            result=outcome.result,
            num_tries=outcome.num_tries,
            status=outcome.status,
        )
        return outcome

    async def close(self, timeout_s: float) -> None:
        """Take nothing new, end what waits for another try, give running tries this long."""
        self._stopping.set()
        if self._open:
            await asyncio.wait(self._open, timeout=timeout_s)
        self._cut = frozenset(self._open)
        await end_tasks(*self._cut)

    async def _try_until_end(self, letter: _Letter) -> DeliveryOutcome:
        num_tries = 0
        status: int | None = None
        while not self._stopping.is_set():
            num_tries += 1
            try:
                answer = await self._try(letter)
            except WebhookBlocked:
                return DeliveryOutcome(DeliveryResult.BLOCKED, num_tries)
            except asyncio.CancelledError:
                if asyncio.current_task() not in self._cut:
                    raise
                break
            status = answer.status if answer else None
            if answer and (result := _end_by(answer)):
                return DeliveryOutcome(result, num_tries, status)
            wait_s = self._retries.wait_s(num_tries, answer.retry_after_s if answer else None)
            if wait_s is None:
                return DeliveryOutcome(DeliveryResult.GIVEN_UP, num_tries, status)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), wait_s)
        return DeliveryOutcome(DeliveryResult.STOPPED, num_tries, status)

    async def _try(self, letter: _Letter) -> Answer | None:
        """One call; None when nobody answered."""
        headers = {"content-type": "application/json", "user-agent": _USER_AGENT}
        host = letter.target.host
        host_slots = self._host_slots.get(host)
        if host_slots is None:
            host_slots = self._host_slots[host] = asyncio.Semaphore(MAX_AT_ONCE_PER_HOST)
        kind = "none"
        try:
            async with host_slots, self._slots:
                # Signed now, not when it was submitted: receivers refuse what is old.
                headers |= self._signer.headers(letter.event_id, int(time.time()), letter.body)
                answer = await self._caller.post(letter.target, headers, letter.body)
            kind = f"{answer.status // 100}xx"
            return answer
        except WebhookUnreachable as error:
            log_event("webhook_unanswered", event_id=letter.event_id, reason=str(error))
            return None
        except WebhookBlocked:
            kind = "blocked"
            raise
        finally:
            self._telemetry.webhook_tries.labels(kind).inc()

    def _forget(self, task: asyncio.Task[DeliveryOutcome]) -> None:
        self._open.discard(task)
        self._telemetry.webhooks_open.dec()
        if not task.cancelled() and (error := task.exception()) is not None:
            log_event("webhook_failed", level=logging.ERROR, exc=error)


def _end_by(answer: Answer) -> DeliveryResult | None:
    """What an answer ends a delivery with; None when it is tried again."""
    if 200 <= answer.status < 300:
        return DeliveryResult.DELIVERED
    if answer.status == _GONE:
        return DeliveryResult.GONE
    return None if is_retried(answer.status) else DeliveryResult.REFUSED
