"""WS /v1/realtime over a real server: the newest wins, one in flight, shared batches."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from realtime_client import RealtimeClient, connected
from service_fixtures import make_job
from service_stack import PNG, Stack, listening, pixels, running

from engines.pipeline import Pipeline
from service.errors import QueueFull
from service.jobs import BatchKey, Job, JobOutcome
from service.routes.context import Phase


@pytest.fixture
async def port(stack: Stack) -> AsyncIterator[int]:
    async with listening(stack) as port:
        yield port


@pytest.fixture
async def client(port: int) -> AsyncIterator[RealtimeClient]:
    async with connected(port) as client:
        yield client


async def hold_with(client: RealtimeClient, stack: Stack, prompt: str, **fields: int) -> None:
    """Keep the engine busy with a client's own prompt until the gate opens."""
    stack.pipeline.gate.clear()
    stack.pipeline.entered.clear()
    await client.ask(prompt, **fields)
    assert await asyncio.to_thread(stack.pipeline.entered.wait, 20)


async def picture_for(client: RealtimeClient) -> None:
    """Wait for a picture, whatever is told meanwhile."""
    while (await client.receive())[0].get("type") == "waiting":
        pass


async def messages_reach(stack: Stack, outcome: str, count: int) -> None:
    async with asyncio.timeout(20):
        while (stack.metric("onestep_realtime_messages_total", outcome=outcome) or 0) < count:
            await asyncio.sleep(0.005)


async def test_hello_says_what_may_be_asked(client: RealtimeClient, stack: Stack) -> None:
    model = (await stack.client.get("/v1/models")).json()["data"][0]
    assert client.hello["model"] == model["id"]
    for name in ("sizes", "max_steps", "max_prompt_chars", "max_tokens"):
        assert client.hello[name] == model[name]
    assert client.hello["max_message_bytes"] == stack.settings.realtime_max_message_bytes


async def test_a_picture_is_the_one_that_generate_draws(
    client: RealtimeClient, stack: Stack
) -> None:
    await client.ask("heart", id=7, seed=3, format="png", steps=2)
    header, picture = await client.receive()
    over_http = await stack.draw(PNG, seed=3, steps=2)
    assert np.abs(pixels(picture) - pixels(over_http.content)).max() <= 1
    assert {"id": 7, "seed": 3, "format": "png", "batch_size": 1}.items() <= header.items()
    assert (header["width"], header["height"]) == Image.open(io.BytesIO(picture)).size
    assert header["total_ms"] >= header["run_ms"] > 0


async def test_typing_changes_the_picture_by_the_prompt_alone(client: RealtimeClient) -> None:
    headers = []
    for seed in ({}, {"seed": None}):
        await client.ask("heart", **seed)
        header, picture = await client.receive()
        headers.append(header)
        assert Image.open(io.BytesIO(picture)).format == "JPEG"
    assert headers[0]["id"] is None
    assert [header["seed"] for header in headers] == [client.hello["seed"]] * 2


async def test_two_connections_have_seeds_of_their_own(port: int) -> None:
    async with connected(port) as one, connected(port) as other:
        assert one.hello["seed"] != other.hello["seed"]


async def test_the_newest_prompt_wins_and_one_is_in_flight(
    client: RealtimeClient, stack: Stack
) -> None:
    await hold_with(client, stack, "first", id=0)
    for index in range(1, 10):
        await client.ask(f"typed {index}", id=index)
    await messages_reach(stack, "stale", 8)
    assert (await stack.broker.sweep()).num_jobs == 1
    stack.pipeline.gate.set()
    ids = [(await client.receive())[0]["id"] for _ in range(2)]
    assert ids == [0, 9], "what is in flight shows that the page follows, then only the newest"
    assert stack.pipeline.prompts == ["first", "typed 9"]
    assert stack.metric("onestep_realtime_messages_total", outcome="stale") == 8
    assert stack.metric("onestep_realtime_messages_total", outcome="drawn") == 2


async def test_no_picture_comes_after_a_newer_one(client: RealtimeClient) -> None:
    for index in range(60):
        await client.ask(f"typed {index}", id=index)
        if index % 7 == 0:
            await asyncio.sleep(0.02)
    ids = []
    while not ids or ids[-1] < 59:
        ids.append((await client.receive())[0]["id"])
    assert ids == sorted(set(ids))
    assert len(ids) > 2, "pictures follow the typing"


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ("{", None),
        ("[1]", None),
        ('{"id": 4}', "prompt"),
        ('{"id": 4, "prompt": "  "}', "prompt"),
        ('{"id": 4, "prompt": "a", "steps": 99}', "steps"),
        ('{"id": 4, "prompt": "a", "width": 7}', "width"),
        ('{"id": 4, "prompt": "a", "num_images": 2}', "num_images"),
        ('{"id": 4, "prompt": "a", "colour": "red"}', "colour"),
        ('{"id": true, "prompt": "a"}', "id"),
        ('{"id": -1, "prompt": "a"}', "id"),
    ],
)
async def test_a_wrong_message_is_explained_and_the_connection_stays(
    client: RealtimeClient, message: str, field: str | None
) -> None:
    await client.socket.send(message)
    error = await client.error("invalid_request")
    assert error.get("field") == field
    assert error["status"] == 400
    assert error["id"] == (4 if '"id": 4' in message else None)
    assert error["request_id"] == client.socket.response.headers["x-request-id"]
    await client.ask("heart", id=5)
    assert (await client.receive())[0]["id"] == 5


@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.DRAINING])
async def test_a_service_that_is_not_ready_says_when_it_may_be(
    client: RealtimeClient, stack: Stack, phase: Phase
) -> None:
    stack.readiness.set(phase, "for a moment")
    await client.ask("heart", id=1)
    code = "not_ready" if phase is Phase.STARTING else "draining"
    assert (await client.error(code))["retry_after_ms"] >= 1000
    stack.readiness.set(Phase.READY, "")
    await client.ask("heart", id=2)
    assert (await client.receive())[0]["id"] == 2


async def test_a_full_queue_keeps_the_newest_prompt_and_tells_of_it_once(
    bundle: Path, pipeline: Pipeline
) -> None:
    async with (
        running(bundle, pipeline, max_queue_depth=1) as stack,
        listening(stack) as port,
        connected(port) as client,
    ):
        holding = await stack.hold_engine()
        await client.ask("early", id=1)
        waiting, _ = await client.receive()
        assert (waiting["type"], waiting["id"]) == ("waiting", 1)
        assert 20 <= waiting["retry_after_ms"] <= 1000
        await asyncio.sleep(2 * waiting["retry_after_ms"] / 1000)
        await client.ask("newer", id=2)
        assert (await client.receive())[0] | {"retry_after_ms": 0} == {
            "type": "waiting",
            "id": 2,
            "retry_after_ms": 0,
        }, "several tries were made, and nothing was said of them"
        stack.pipeline.gate.set()
        assert (await client.receive())[0]["id"] == 2
        assert (await holding).status_code == 200
        assert stack.pipeline.prompts == ["holding", "newer"]
        assert stack.metric("onestep_realtime_messages_total", outcome="stale") == 1
        assert stack.metric("onestep_realtime_messages_total", outcome="delayed") == 2


async def test_a_full_queue_serves_its_connections_in_turn(
    bundle: Path, pipeline: Pipeline
) -> None:
    """More connections than places, and each wants its next picture at once."""
    num_clients, num_rounds = 12, 12
    counts = [0] * num_clients
    is_over = asyncio.Event()

    async def keep_asking(number: int, client: RealtimeClient) -> None:
        while not is_over.is_set():
            await client.ask(f"client {number}", id=counts[number])
            await picture_for(client)
            counts[number] += 1
            if sum(counts) == num_clients * num_rounds:
                # An equal share is as many as there are rounds; who is refused gets none.
                assert min(counts) >= num_rounds // 2, counts
                is_over.set()

    async with (
        running(bundle, pipeline, max_queue_depth=6, realtime_max_fps=1000) as stack,
        listening(stack) as port,
        AsyncExitStack() as opened,
    ):
        clients = [await opened.enter_async_context(connected(port)) for _ in counts]
        # Without a word of room made, each would wait for its own timer.
        async with asyncio.timeout(15):
            await asyncio.gather(*(keep_asking(*one) for one in enumerate(clients)))
    assert is_over.is_set()


async def test_nobody_passes_those_who_wait_for_room(bundle: Path, pipeline: Pipeline) -> None:
    async with (
        running(bundle, pipeline, max_queue_depth=1) as stack,
        listening(stack) as port,
        connected(port) as early,
        connected(port) as late,
    ):
        stack.pipeline.gate.clear()
        limits = stack.context.limits
        key = BatchKey(limits.name, *limits.sizes_px[0], 1)
        job = make_job(key=key, prompt="elsewhere")
        await stack.broker.put([job])
        assert await asyncio.to_thread(stack.pipeline.entered.wait, 20)
        await early.ask("early")
        assert (await early.receive())[0]["type"] == "waiting"
        # Room that nobody here hears of.
        await stack.broker.cancel([job.id])
        await late.ask("late")
        stack.pipeline.gate.set()
        await asyncio.gather(picture_for(early), picture_for(late))
        assert stack.pipeline.prompts == ["elsewhere", "early", "late"]


async def test_a_wish_that_meets_a_full_queue_makes_way_for_a_newer_one(
    client: RealtimeClient, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = stack.broker.put
    is_asked, has_come = asyncio.Event(), asyncio.Event()

    async def full_at_first(jobs: Sequence[Job]) -> list[asyncio.Future[JobOutcome]]:
        """A queue elsewhere, that answers only when something newer has come."""
        if is_asked.is_set():
            return await put(jobs)
        is_asked.set()
        await has_come.wait()
        raise QueueFull("full", retry_after_s=0.02)

    monkeypatch.setattr(stack.broker, "put", full_at_first)
    await client.ask("early", id=1)
    await is_asked.wait()
    await client.ask("newer", id=2)
    # The server answers pings itself; the message before this one has reached the connection.
    await (await client.socket.ping())
    await asyncio.sleep(0.05)
    has_come.set()
    header, _ = await client.receive()
    assert header["id"] == 2, header
    assert stack.metric("onestep_realtime_messages_total", outcome="stale") == 1


async def test_a_missed_deadline_is_told(bundle: Path, pipeline: Pipeline) -> None:
    async with (
        running(bundle, pipeline, deadline_s=0.3) as stack,
        listening(stack) as port,
        connected(port) as client,
    ):
        holding = await stack.hold_engine()
        await client.ask("late", id=1)
        assert (await client.error("deadline_exceeded"))["id"] == 1
        stack.pipeline.gate.set()
        await holding
        await client.ask("after", id=2)
        assert (await client.receive())[0]["id"] == 2
        assert "late" not in stack.pipeline.prompts


async def test_who_leaves_takes_the_queued_picture_along(stack: Stack, port: int) -> None:
    holding = await stack.hold_engine()
    async with connected(port) as client:
        await client.ask("gone")
        await stack.queue_depth_reaches(2)
        await client.ask("never parsed")
    # The engine is still held: the place is free before it takes the next batch.
    await stack.queue_depth_reaches(1)
    stack.pipeline.gate.set()
    await holding
    await stack.draw(prompt="next")
    assert stack.pipeline.prompts == ["holding", "next"]
    assert stack.metric("onestep_cancelled_total", phase="queued") == 1
    async with asyncio.timeout(20):
        while stack.metric("onestep_realtime_connections") != 0:
            await asyncio.sleep(0.005)
    assert stack.metric("onestep_realtime_closed_total", reason="client") == 1


async def test_twenty_connections_share_batches(stack: Stack, port: int) -> None:
    async with AsyncExitStack() as opened:
        clients = [await opened.enter_async_context(connected(port)) for _ in range(20)]
        assert stack.metric("onestep_realtime_connections") == 20
        holding = await stack.hold_engine()
        for index, client in enumerate(clients):
            await client.ask(f"shared {index}", id=index)
        await stack.queue_depth_reaches(21)
        stack.pipeline.gate.set()
        headers = [(await client.receive())[0] for client in clients]
        assert [header["id"] for header in headers] == list(range(20))
        assert [header["batch_size"] for header in headers] == [4] * 20
        await holding
    await stack.batches_are_told(6)
    assert stack.metric("onestep_batch_size_sum") == 21


async def test_a_service_that_stops_closes_its_connections(
    bundle: Path, pipeline: Pipeline
) -> None:
    async with running(bundle, pipeline) as stack:
        server = AsyncExitStack()
        port = await server.enter_async_context(listening(stack))
        async with connected(port) as client:
            await client.ask("heart")
            await client.receive()
            await server.aclose()
            assert await client.close_code() == 1012
