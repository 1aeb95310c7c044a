"""Webhooks of jobs: refused, delivered, taken over by another process, told by the real command."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from jobs_fixtures import JOBS, create, ended, redis_broker, running_on
from service_process import running_service
from service_stack import Stack, problem, running
from standardwebhooks import Webhook
from webhook_receiver import SECRET, Received, Receiver, after, status, url_of, webhooks_to
from webhook_urls import all_refused_urls

from engines.pipeline import Pipeline
from service.job_webhooks import JobWebhooks
from service.tasks import end_tasks
from service.webhooks.retries import RetryPlan

HOLD_S = 0.4
ON = {"webhooks": True, "webhook_secrets": SECRET}


def _desk(stack: Stack, receiver: Receiver, **parts: Any) -> JobWebhooks:
    webhooks = webhooks_to(receiver, **parts)
    return JobWebhooks(stack.broker, webhooks, "https://pics.example/", hold_s=HOLD_S, look_s=0.05)


@asynccontextmanager
async def _telling(stack: Stack, receiver: Receiver, **parts: Any) -> AsyncIterator[JobWebhooks]:
    """A process's webhooks, up to its orderly end."""
    desk = _desk(stack, receiver, **parts)
    # In the place of the one that the settings would make.
    stack.context.__dict__["job_webhooks"] = desk
    desk.start()
    try:
        yield desk
    finally:
        await desk.close()


@pytest.fixture(params=["memory", "redis"])
async def stack(
    request: pytest.FixtureRequest, bundle: Path, pipeline: Pipeline, redis_url: str
) -> AsyncIterator[Stack]:
    async with running_on(request.param, bundle, pipeline, redis_url) as stack:
        yield stack


async def _received(receiver: Receiver, num: int) -> list[Received]:
    async with asyncio.timeout(20):
        while len(receiver.received) < num:
            await asyncio.sleep(0.01)
    return receiver.received


def _verified(received: Received) -> dict[str, Any]:
    event: dict[str, Any] = Webhook(SECRET).verify(received.body, received.headers)
    return event


async def test_the_end_of_a_job_is_delivered_once_and_signed(
    stack: Stack, receiver: Receiver
) -> None:
    async with _telling(stack, receiver):
        job = (await create(stack, webhook=url_of(receiver), num_images=2))["id"]
        (received,) = await _received(receiver, 1)
        event = _verified(received)
        assert event["type"] == "job.succeeded"
        document = await ended(stack, job)
        names = ("id", "state", "num_images")
        assert [event["data"][name] for name in names] == [job, "succeeded", 2]
        urls = [picture.pop("url") for picture in event["data"]["pictures"]]
        assert urls == [f"https://pics.example{JOBS}/{job}/images/{i}" for i in range(2)]
        for picture in document["pictures"]:
            del picture["url"]
        assert event["data"]["pictures"] == document["pictures"]
        assert received.headers["webhook-id"] == f"{job}-succeeded"
        await asyncio.sleep(2 * HOLD_S)
        assert len(receiver.received) == 1


async def test_a_cancelled_job_is_told_of_when_it_is_cancelled(
    stack: Stack, receiver: Receiver
) -> None:
    async with _telling(stack, receiver):
        holding = await stack.hold_engine()
        job = (await create(stack, webhook=url_of(receiver)))["id"]
        await asyncio.sleep(2 * HOLD_S)  # held on, and not told of before its end
        assert receiver.received == []
        await stack.client.delete(f"{JOBS}/{job}")
        (received,) = await _received(receiver, 1)
        assert _verified(received)["type"] == "job.cancelled"
        stack.pipeline.gate.set()
        await holding


async def test_a_job_that_comes_again_is_told_of_once(stack: Stack, receiver: Receiver) -> None:
    key = {"idempotency-key": "told"}
    async with _telling(stack, receiver):
        for _ in range(3):
            await create(stack, key, webhook=url_of(receiver))
            await _received(receiver, 1)
        await asyncio.sleep(2 * HOLD_S)
        assert len(receiver.received) == 1


async def test_a_slow_delivery_is_not_handed_to_another_process(
    bundle: Path, pipeline: Pipeline, redis_url: str, receiver: Receiver
) -> None:
    receiver.answers = [status(503), after(0.3, status(503))]
    slow = RetryPlan(max_tries=5, first_wait_s=3 * HOLD_S, factor=1.0, draw=lambda: 0.0)
    async with (
        running_on("redis", bundle, pipeline, redis_url) as stack,
        redis_broker(bundle, redis_url) as broker,
    ):
        other = Stack(bundle, pipeline, stack.settings, broker)
        async with _telling(stack, receiver, retries=slow):
            await create(stack, webhook=url_of(receiver))
            await _received(receiver, 1)
            async with _telling(other, receiver):
                await _received(receiver, 3)
                await asyncio.sleep(2 * HOLD_S)
        assert len(receiver.received) == 3


@pytest.mark.parametrize("has_ended", [False, True])
async def test_what_a_dead_process_held_is_delivered_by_another(
    bundle: Path, pipeline: Pipeline, redis_url: str, receiver: Receiver, has_ended: bool
) -> None:
    async with (
        running_on("redis", bundle, pipeline, redis_url) as stack,
        redis_broker(bundle, redis_url) as broker,
    ):
        holding = await stack.hold_engine()
        other = Stack(bundle, pipeline, stack.settings, broker)
        dying = _desk(stack, receiver)
        stack.context.__dict__["job_webhooks"] = dying
        dying.start()
        job = (await create(stack, webhook=url_of(receiver)))["id"]
        async with asyncio.timeout(5):
            while not dying._held:
                await asyncio.sleep(0.01)
        # As a kill leaves it: nothing is said to anyone.
        assert dying._looking is not None
        await end_tasks(dying._looking, *dying._held.values())
        if has_ended:
            stack.pipeline.gate.set()
            await ended(stack, job)
        async with _telling(other, receiver):
            stack.pipeline.gate.set()
            (received,) = await _received(receiver, 1)
            assert _verified(received)["data"]["id"] == job
        await holding


async def test_what_the_stop_interrupts_is_delivered_by_the_next_process(
    bundle: Path, pipeline: Pipeline, redis_url: str, receiver: Receiver
) -> None:
    receiver.answers = [status(503)]
    patient = RetryPlan(max_tries=5, first_wait_s=60.0)
    async with running_on("redis", bundle, pipeline, redis_url) as stack:
        async with _telling(stack, receiver, retries=patient):
            await create(stack, webhook=url_of(receiver))
            await _received(receiver, 1)
            await asyncio.sleep(0.1)
        async with _telling(stack, receiver):
            first, again = await _received(receiver, 2)
            assert first.headers["webhook-id"] == again.headers["webhook-id"]
            assert _verified(again)["data"] == json.loads(first.body)["data"]


@pytest.mark.parametrize("answer", [410, 404, 302])
async def test_a_receiver_that_refuses_is_not_asked_again(
    stack: Stack, receiver: Receiver, answer: int
) -> None:
    receiver.answers = [status(answer)] * 5
    async with _telling(stack, receiver):
        await create(stack, webhook=url_of(receiver))
        await _received(receiver, 1)
        await asyncio.sleep(3 * HOLD_S)
        assert len(receiver.received) == 1


async def test_a_job_that_is_not_kept_any_longer_ends_its_webhook(
    stack: Stack, receiver: Receiver
) -> None:
    await _put_orphan(stack)
    async with _telling(stack, receiver):
        async with asyncio.timeout(5):
            while await _num_webhooks(stack):
                await asyncio.sleep(0.02)
    assert receiver.received == []


async def _put_orphan(stack: Stack) -> None:
    broker: Any = stack.broker
    if hasattr(broker, "_webhooks"):
        broker._webhooks["gone"] = 0.0
        return
    key = f"onestep:{{{stack.context.limits.name}}}:webhooks"
    await broker._connection.run(lambda client: client.zadd(key, {"gone": 0}))


async def _num_webhooks(stack: Stack) -> int:
    broker: Any = stack.broker
    if hasattr(broker, "_webhooks"):
        return len(broker._webhooks)
    key = f"onestep:{{{stack.context.limits.name}}}:webhooks"
    num: int = await broker._connection.run(lambda client: client.zcard(key))
    return num


async def test_without_webhooks_the_field_is_refused_with_the_reason(
    bundle: Path, pipeline: Pipeline
) -> None:
    async with running(bundle, pipeline) as stack:
        body = {"prompt": "heart", "webhook": "https://hooks.example.com/"}
        document = problem(await stack.client.post(JOBS, json=body), 400, "invalid_request")
        assert document["field"] == "webhook"
        assert "sends no webhooks" in document["detail"]
        # The request that waits for its pictures has no such field.
        document = problem(await stack.draw(webhook=body["webhook"]), 400, "invalid_request")
        assert document["field"] == "webhook"


async def test_urls_that_must_not_be_called_are_refused_at_admission(
    bundle: Path, pipeline: Pipeline
) -> None:
    async with running(bundle, pipeline, **ON) as stack:
        for kind, url in all_refused_urls():
            body = json.dumps({"prompt": "heart", "webhook": url}).encode()
            response = await stack.client.post(JOBS, content=body)
            assert response.status_code == 400, (kind, url)
            # Half a character makes the whole body no JSON.
            is_text = not any(0xD800 <= ord(char) < 0xE000 for char in url)
            assert response.json().get("field") == ("webhook" if is_text else None), (kind, url)
        job = await create(stack, webhook="https://hooks.example.com/path?a=b")
        await ended(stack, job["id"])
        assert stack.pipeline.prompts == ["heart"]


def test_the_command_delivers(bundle: Path, tmp_path: Path) -> None:
    async def deliver() -> None:
        from webhook_receiver import receiving

        async with receiving() as receiver:
            settings = {
                **ON,
                "webhook_hosts": f"127.0.0.1:{receiver.port}",
                "webhook_allow_http": True,
                "public_url": "https://pics.example",
            }
            manager = running_service(bundle, tmp_path, **settings)
            service = await asyncio.to_thread(manager.__enter__)
            try:
                async with httpx.AsyncClient(base_url=service.url) as client:
                    hook = f"http://127.0.0.1:{receiver.port}/hook"
                    body = {"prompt": "heart", "webhook": hook}
                    response = await client.post(JOBS, json=body)
                    assert response.status_code == 202, response.text
                    (received,) = await _received(receiver, 1)
                    event = _verified(received)
                    assert event["data"]["id"] == response.json()["id"]
                    assert event["data"]["pictures"][0]["url"].startswith("https://pics.example/")
                assert await asyncio.to_thread(service.stop) == 0
            finally:
                await asyncio.to_thread(manager.__exit__, None, None, None)

    asyncio.run(deliver())
