"""Deliveries over real sockets: signed, tried again, bounded in number, stopped in order."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import pytest
from standardwebhooks import Webhook
from webhook_receiver import (
    HOST,
    SECRET,
    TIMEOUT_S,
    Receiver,
    after,
    make_webhooks,
    outcome_of,
    raw,
    receiving,
    status,
    url_of,
    webhooks_to,
)

from service.settings import load_settings
from service.telemetry import Telemetry
from service.webhooks import delivery
from service.webhooks.delivery import DeliveryOutcome, DeliveryResult, Webhooks
from service.webhooks.retries import RetryPlan


async def test_what_arrives_is_signed_and_whole(receiver: Receiver) -> None:
    assert await outcome_of(receiver) == DeliveryOutcome(DeliveryResult.DELIVERED, 1, 204)
    (request,) = receiver.received
    assert request.line == "POST /hook?a=b HTTP/1.1"
    assert request.headers["host"] == f"{HOST}:{receiver.port}"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["user-agent"].startswith("onestep/")
    assert request.headers["webhook-id"] == "e-1"
    assert Webhook(SECRET).verify(request.body, request.headers) == {"a": "ä"}


@pytest.mark.parametrize(
    ("code", "result", "num_tries"),
    [
        *((200, "delivered", 1), (202, "delivered", 1), (299, "delivered", 1)),
        *((500, "given_up", 3), (503, "given_up", 3), (429, "given_up", 3), (408, "given_up", 3)),
        *((410, "gone", 1), (400, "refused", 1), (401, "refused", 1), (404, "refused", 1)),
        *((301, "refused", 1), (304, "refused", 1)),
    ],
)
async def test_what_each_answer_means(
    receiver: Receiver, code: int, result: str, num_tries: int
) -> None:
    outcome = await outcome_of(receiver, *[status(code)] * 3)
    assert outcome == DeliveryOutcome(DeliveryResult(result), num_tries, code)
    assert len(receiver.received) == num_tries


async def test_a_receiver_that_recovers_gets_the_same_event_newly_signed(
    receiver: Receiver,
) -> None:
    retries = RetryPlan(max_tries=3, first_wait_s=1.1, factor=1, draw=lambda: 0.0)
    outcome = await outcome_of(receiver, status(500), retries=retries)
    assert outcome == DeliveryOutcome(DeliveryResult.DELIVERED, 2, 204)
    first, second = receiver.received
    assert first.body == second.body
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert first.headers["webhook-timestamp"] != second.headers["webhook-timestamp"]
    Webhook(SECRET).verify(second.body, second.headers)


async def test_retry_after_is_obeyed(receiver: Receiver) -> None:
    started_s = time.monotonic()
    outcome = await outcome_of(receiver, status(503, "Retry-After: 1"))
    assert outcome.result is DeliveryResult.DELIVERED
    assert time.monotonic() - started_s >= 1


async def test_only_so_many_are_under_way_at_once(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with receiving() as other:
        slow = [after(0.1, status(204))] * 30
        receiver.answers, other.answers = list(slow), list(slow)
        entries = [f"{HOST}:{port}=127.0.0.0/8" for port in (receiver.port, other.port)]
        entries += [f"other.org:{other.port}=127.0.0.0/8"]
        webhooks = make_webhooks(*entries)
        tasks = [webhooks.submit(url_of(receiver), f"e-{i}", {}) for i in range(12)]
        tasks += [
            webhooks.submit(f"http://other.org:{other.port}/", f"o-{i}", {}) for i in range(2)
        ]
        outcomes = await asyncio.gather(*(task for task in tasks if task))
        assert [outcome.result for outcome in outcomes] == [DeliveryResult.DELIVERED] * 14
        assert receiver.most_at_once == delivery.MAX_AT_ONCE_PER_HOST
        # A slow host leaves room for another one.
        assert other.most_at_once == 2

    monkeypatch.setattr(delivery, "MAX_AT_ONCE", 2)
    webhooks = webhooks_to(receiver)
    receiver.answers, receiver.most_at_once = [after(0.05, status(204))] * 6, 0
    tasks = [webhooks.submit(url_of(receiver), f"e-{i}", {}) for i in range(6)]
    await asyncio.gather(*(task for task in tasks if task))
    assert receiver.most_at_once == 2


async def test_what_finds_no_room_is_not_taken(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(delivery, "MAX_OPEN", 2)
    telemetry = Telemetry()
    webhooks = webhooks_to(receiver, telemetry=telemetry)
    tasks = [webhooks.submit(url_of(receiver), f"e-{i}", {}) for i in range(3)]
    assert tasks[2] is None
    assert telemetry.registry.get_sample_value("onestep_webhooks_open") == 2
    assert [record.message for record in caplog.records] == ["webhook_not_taken"]
    await asyncio.gather(*(task for task in tasks if task))
    assert telemetry.registry.get_sample_value("onestep_webhooks_open") == 0
    assert webhooks.submit(url_of(receiver), "e-4", {}) is not None
    await webhooks.close(5)


async def test_a_stop_finishes_what_runs_and_ends_what_waits(receiver: Receiver) -> None:
    receiver.answers = [status(500), after(0.2, status(204))]
    webhooks = webhooks_to(receiver, retries=RetryPlan(3, first_wait_s=600, max_wait_s=600))
    waiting = webhooks.submit(url_of(receiver), "waits", {})
    while not receiver.received:
        await asyncio.sleep(0.01)
    running = webhooks.submit(url_of(receiver), "runs", {})
    while len(receiver.received) < 2:
        await asyncio.sleep(0.01)
    async with asyncio.timeout(5):
        await webhooks.close(timeout_s=3)
    assert waiting and waiting.result() == DeliveryOutcome(DeliveryResult.STOPPED, 1, 500)
    assert running and running.result() == DeliveryOutcome(DeliveryResult.DELIVERED, 1, 204)
    assert webhooks.submit(url_of(receiver), "late", {}) is None


async def test_a_stop_cuts_off_what_takes_too_long(receiver: Receiver) -> None:
    receiver.answers = [after(60, status(204))]
    webhooks = webhooks_to(receiver)
    task = webhooks.submit(url_of(receiver), "e-1", {})
    while not receiver.received:
        await asyncio.sleep(0.01)
    started_s = time.monotonic()
    await webhooks.close(timeout_s=0.05)
    assert time.monotonic() - started_s < TIMEOUT_S / 2
    assert task and task.result() == DeliveryOutcome(DeliveryResult.STOPPED, 1, None)


async def test_the_log_tells_the_end_and_neither_path_nor_body(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "onestep")
    receiver.answers = [raw(b""), status(410)]
    url = f"http://{HOST}:{receiver.port}/t0ken?key=t0ken"
    await webhooks_to(receiver).deliver(url, "e-1", {"secret": "t0ken"})
    events: list[Any] = [(record.message, vars(record)["fields"]) for record in caplog.records]
    assert [message for message, _ in events] == ["webhook_unanswered", "webhook_ended"]
    ending = {"event_id": "e-1", "host": HOST, "result": "gone", "num_tries": 2, "status": 410}
    assert events[-1][1] == ending
    assert "t0ken" not in repr(events) and SECRET not in repr(events)


async def test_metrics_count_ends_and_tries(receiver: Receiver) -> None:
    telemetry = Telemetry()
    await outcome_of(receiver, status(500), raw(b""), telemetry=telemetry)
    sample = telemetry.registry.get_sample_value
    assert sample("onestep_webhooks_total", {"result": "delivered"}) == 1
    tries = {
        kind: sample("onestep_webhook_tries_total", {"answer": kind}) for kind in ("none", "5xx")
    }
    assert tries == {"none": 1, "5xx": 1}


async def test_parts_are_joined_as_the_settings_say(receiver: Receiver) -> None:
    settings = load_settings(
        webhooks=True,
        webhook_secrets=(SECRET,),
        webhook_hosts=(f"127.0.0.1:{receiver.port}",),
        webhook_allow_http=True,
        webhook_timeout_s=TIMEOUT_S,
        webhook_max_tries=1,
    )
    webhooks = Webhooks.from_settings(settings, Telemetry())
    receiver.answers = [status(500)]
    outcome = await webhooks.deliver(f"http://127.0.0.1:{receiver.port}/", "e-1", {"a": 1})
    assert outcome == DeliveryOutcome(DeliveryResult.GIVEN_UP, 1, 500)
    (request,) = receiver.received
    assert Webhook(SECRET).verify(request.body, request.headers) == {"a": 1}
