"""A job's course as server-sent events, over a real connection and both queues."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from jobs_fixtures import JOBS, create, ended, reaches, redis_broker, running_on
from service_stack import Stack, listening, problem, running

from engines.pipeline import Pipeline
from service.routes import job_events

Event = tuple[str, dict[str, Any]]


@pytest.fixture(params=["memory", "redis"])
async def stack(
    request: pytest.FixtureRequest, bundle: Path, pipeline: Pipeline, redis_url: str
) -> AsyncIterator[Stack]:
    async with running_on(request.param, bundle, pipeline, redis_url) as stack:
        yield stack


class Followed:
    """An open stream: its events, and its comments beside them."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self.comments: list[str] = []
        self._lines = response.aiter_lines()

    async def next(self) -> Event | None:
        """The next event; None at the end."""
        name = ""
        async with asyncio.timeout(20):
            async for line in self._lines:
                if line.startswith(":"):
                    self.comments.append(line)
                elif line.startswith("event: "):
                    name = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    return name, json.loads(line.removeprefix("data: "))
        return None

    async def rest(self) -> list[Event]:
        """All events up to the end."""
        events: list[Event] = []
        while (event := await self.next()) is not None:
            events.append(event)
        return events


@asynccontextmanager
async def following(stack: Stack, job: str) -> AsyncIterator[Followed]:
    async with listening(stack) as port:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            async with client.stream("GET", f"{JOBS}/{job}/events") as response:
                assert response.status_code == 200
                yield Followed(response)


async def test_a_job_is_followed_from_the_queue_to_its_end(stack: Stack) -> None:
    holding = await stack.hold_engine()
    job = (await create(stack, num_images=2))["id"]
    async with following(stack, job) as followed:
        assert followed.response.headers["content-type"].startswith("text/event-stream")
        assert followed.response.headers["cache-control"] == "no-store"
        name, document = await followed.next() or ("", {})
        assert (name, document["state"]) == ("job", "queued")
        stack.pipeline.gate.set()
        *changes, last = await followed.rest()
    assert last[0] == "end"
    assert last[1]["state"] == "succeeded"
    assert {name for name, _ in changes} == {"picture"}
    ends = [picture for _, picture in changes if picture["state"] == "succeeded"]
    assert sorted(ends, key=lambda one: one["index"]) == last[1]["pictures"]
    path = ends[0]["url"].partition("/v1/")[2]
    assert (await stack.client.get(f"/v1/{path}")).status_code == 200
    await holding


async def test_a_running_picture_is_told_of(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_events, "LOOK_S", 0.05)
    holding = await stack.hold_engine()
    job = (await create(stack))["id"]
    generate = stack.pipeline.generate
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()

    def slowly(prompts: Any, seeds: Any, **how: Any) -> Any:
        loop.call_soon_threadsafe(begun.set)
        stack.pipeline.gate.clear()
        return generate(prompts, seeds, **how)

    async with following(stack, job) as followed:
        await followed.next()
        monkeypatch.setattr(stack.pipeline, "generate", slowly)
        stack.pipeline.gate.set()
        await begun.wait()
        name, picture = await followed.next() or ("", {})
        assert (name, picture["index"], picture["state"]) == ("picture", 0, "running")
        stack.pipeline.gate.set()
        names = [name for name, _ in await followed.rest()]
    assert names == ["picture", "end"]
    await holding


async def test_a_job_that_has_ended_is_told_at_once(stack: Stack) -> None:
    job = (await create(stack))["id"]
    document = await ended(stack, job)
    async with following(stack, job) as followed:
        events = await followed.rest()
    assert [name for name, _ in events] == ["job", "end"]
    assert [event["state"] for _, event in events] == [document["state"]] * 2


async def test_a_cancelled_job_ends_its_stream(stack: Stack) -> None:
    holding = await stack.hold_engine()
    job = (await create(stack))["id"]
    async with following(stack, job) as followed:
        await followed.next()
        await stack.client.delete(f"{JOBS}/{job}")
        (name, picture), (last, document) = await followed.rest()
    assert (name, picture["error"]["code"]) == ("picture", "job_cancelled")
    assert (last, document["state"]) == ("end", "cancelled")
    stack.pipeline.gate.set()
    await holding


async def test_silence_is_broken_by_comments(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_events, "LOOK_S", 0.02)
    monkeypatch.setattr(job_events, "HEARTBEAT_S", 0.1)
    holding = await stack.hold_engine()
    job = (await create(stack))["id"]
    async with following(stack, job) as followed:
        await followed.next()
        opener = asyncio.get_running_loop().call_later(0.55, stack.pipeline.gate.set)
        await followed.rest()
        assert 3 <= len(followed.comments) <= 6
        assert set(followed.comments) == {": heartbeat"}
        opener.cancel()
    await holding


async def test_another_process_follows_what_this_one_accepted(
    bundle: Path, pipeline: Pipeline, redis_url: str
) -> None:
    async with (
        running_on("redis", bundle, pipeline, redis_url) as stack,
        redis_broker(bundle, redis_url) as broker,
    ):
        other = Stack(bundle, pipeline, stack.settings, broker)
        holding = await stack.hold_engine()
        job = (await create(stack))["id"]
        async with following(other, job) as followed:
            assert (await followed.next() or ("",))[0] == "job"
            stack.pipeline.gate.set()
            *_, last = await followed.rest()
        assert (last[0], last[1]["state"]) == ("end", "succeeded")
        await holding


async def test_so_many_follow_jobs_and_no_more(bundle: Path, pipeline: Pipeline) -> None:
    async with running(bundle, pipeline, max_event_streams=1) as stack:
        holding = await stack.hold_engine()
        job = (await create(stack))["id"]
        async with following(stack, job) as followed:
            await followed.next()
            response = await stack.client.get(f"{JOBS}/{job}/events")
            problem(response, 503, "too_many_connections")
            assert "retry-after" in response.headers
        # Whoever leaves makes room, and takes along the ends that were waited for.
        async with asyncio.timeout(5):
            while stack.context.streams:
                await asyncio.sleep(0.01)
        stack.pipeline.gate.set()
        await holding
        await reaches(stack, job, {"succeeded"})
        assert (await stack.client.get(f"{JOBS}/{job}/events")).status_code == 200


async def test_clients_that_come_and_go_leave_nothing_behind(stack: Stack) -> None:
    holding = await stack.hold_engine()
    job = (await create(stack))["id"]
    for _ in range(5):
        async with following(stack, job) as followed:
            await followed.next()
        async with asyncio.timeout(5):
            while stack.context.streams:
                await asyncio.sleep(0.01)
    waiting = _num_futures(stack, f"{job}-0")
    assert waiting <= 2
    stack.pipeline.gate.set()
    await holding


def _num_futures(stack: Stack, job: str) -> int:
    broker: Any = stack.broker
    if hasattr(broker, "_open"):
        return len(broker._open[job].futures)
    return len(broker._ends._waiters._waited[job].futures)
