"""What the worker's loop does first: the engine's next work, answers, its own end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from service_fixtures import ScriptedPipeline, make_job

from engines.pipeline import Generated
from service.brokers.base import Taken, Want
from service.brokers.memory import MemoryBroker
from service.engine_thread import Drawn, EngineThread, Run
from service.jobs import JobDone, JobOutcome
from service.tasks import end_tasks
from service.telemetry import Telemetry
from service.worker import Worker, WorkerOptions


class _Queue(MemoryBroker):
    """A queue whose answer to an engine that has just drawn can be slow, or met by a stop."""

    def __init__(self) -> None:
        super().__init__(100)
        self.is_asked = asyncio.Event()
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.on_asked: Callable[[], object] = lambda: None

    async def take(self, want: Want, *, wait: bool) -> Taken | None:
        if want.is_whole_only:
            return Taken(None)
        if not wait:
            self.is_asked.set()
            self.on_asked()
            await self.may_answer.wait()
        return await super().take(want, wait=wait)


class _Lines(np.ndarray[Any, Any]):
    """Pictures that tell when somebody looks at them."""

    on_look: Callable[[], object]

    def __iter__(self) -> Iterator[Any]:
        self.on_look()
        return super().__iter__()


class _WatchedPipeline(ScriptedPipeline):
    def __init__(self, on_look: Callable[[str], object]) -> None:
        super().__init__()
        self._on_look = on_look

    def generate(self, prompts: Sequence[str], seeds: Sequence[int], **how: Any) -> Generated:
        generated = super().generate(prompts, seeds, **how)
        pictures = generated.images_BHWC.view(_Lines)
        pictures.on_look = lambda: self._on_look(prompts[0])
        return Generated(pictures, generated.stage_ms)


class _Worker(Worker):
    """A worker that sees what it leaves behind."""

    left: frozenset[str] | None = None

    async def run(self) -> None:
        around = asyncio.all_tasks()
        try:
            await super().run()
        finally:
            left = asyncio.all_tasks() - around
            names = {getattr(task.get_coro(), "__name__", "") for task in left}
            # It has been cancelled, and holds nothing.
            self.left = frozenset(names - {"_renew_leases"})


async def _working(
    queue: MemoryBroker, pipeline: ScriptedPipeline, *, max_batch_size: int = 1
) -> tuple[_Worker, asyncio.Task[None]]:
    options = WorkerOptions(max_batch_size=max_batch_size, num_encode_threads=1)
    worker = _Worker(queue, {"tiny": lambda: pipeline}, Telemetry(), options)
    await worker.start()
    return worker, asyncio.create_task(worker.run())


async def _put_while_drawing(
    queue: MemoryBroker, pipeline: ScriptedPipeline, *prompts: str, num_each: int = 1
) -> list[asyncio.Future[JobOutcome]]:
    """The first prompt's jobs are in the engine when the others come."""
    pipeline.gate.clear()
    jobs = [make_job(prompt=prompt) for prompt in prompts for _ in range(num_each)]
    first, others = jobs[:num_each], jobs[num_each:]
    futures = await queue.put(first)
    assert await asyncio.to_thread(pipeline.entered.wait, 20)
    if others:
        futures += await queue.put(others)
    return futures


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was given to the engine, in order; a test adds to it."""
    events: list[str] = []
    begin = EngineThread.begin

    def begin_noted(self: EngineThread, deliveries: Sequence[Any], *rest: Any) -> Run:
        events.append(f"engine: {deliveries[0].job.prompt}")
        return begin(self, deliveries, *rest)

    monkeypatch.setattr(EngineThread, "begin", begin_noted)
    return events


@pytest.mark.parametrize("num_jobs", [1, 2])
async def test_only_a_lone_picture_goes_to_its_encoder_past_the_event_loop(
    num_jobs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_begun = threading.Event()

    def encode(*_: object) -> bytes:
        has_begun.set()
        return b"a file"

    monkeypatch.setattr("service.encoders.encode_image", encode)
    queue, pipeline = _Queue(), ScriptedPipeline()
    _, working = await _working(queue, pipeline, max_batch_size=2)
    pipeline.gate.clear()
    futures = await queue.put([make_job(prompt="one of them") for _ in range(num_jobs)])
    assert await asyncio.to_thread(pipeline.entered.wait, 20)
    pipeline.gate.set()
    # Nothing else runs in the event loop's thread meanwhile.
    assert has_begun.wait(20 if num_jobs == 1 else 0.3) == (num_jobs == 1)
    async with asyncio.timeout(20):
        outcomes = await asyncio.gather(*futures)
        await queue.close()
        await working
    assert [one.image_bytes for one in outcomes if isinstance(one, JobDone)] == (
        num_jobs * [b"a file"]
    )


async def test_a_lone_file_that_is_there_does_not_wait_for_the_loop_to_come_to_its_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    outcome = EngineThread.outcome
    may_end = asyncio.Event()

    async def outcome_later(self: EngineThread, *rest: Any) -> list[Drawn]:
        await may_end.wait()
        return await outcome(self, *rest)

    monkeypatch.setattr(EngineThread, "outcome", outcome_later)
    queue, pipeline = _Queue(), ScriptedPipeline()
    _, working = await _working(queue, pipeline)
    (only,) = await queue.put([make_job()])
    async with asyncio.timeout(20):
        assert isinstance(await only, JobDone)
        may_end.set()
        # Nor is it handed out again.
        (after,) = await queue.put([make_job()])
        assert isinstance(await after, JobDone)
        await queue.close()
        await working


async def test_the_engine_has_its_next_work_before_the_last_pictures_are_looked_at(
    events: list[str],
) -> None:
    queue = _Queue()
    pipeline = _WatchedPipeline(lambda prompt: events.append(f"looked at: {prompt}"))
    _, working = await _working(queue, pipeline, max_batch_size=2)
    futures = await _put_while_drawing(queue, pipeline, "first", "second", num_each=2)
    pipeline.gate.set()
    async with asyncio.timeout(20):
        await asyncio.gather(*futures)
        await queue.close()
        await working
    assert events == [
        *("engine: first", "engine: second", "looked at: first", "looked at: second"),
    ]


async def test_a_finished_picture_is_not_kept_back_by_a_slow_queue() -> None:
    queue, pipeline = _Queue(), ScriptedPipeline()
    queue.may_answer.clear()
    _, working = await _working(queue, pipeline)
    first, second = await _put_while_drawing(queue, pipeline, "first", "second")
    pipeline.gate.set()
    async with asyncio.timeout(20):
        await queue.is_asked.wait()
        assert isinstance(await first, JobDone)
        assert not second.done()
        queue.may_answer.set()
        assert isinstance(await second, JobDone)
        await queue.close()
        await working


async def _stop(working: asyncio.Task[None]) -> None:
    async with asyncio.timeout(20):
        await asyncio.wait({working})
    assert working.cancelled()


async def _is_whole(
    queue: MemoryBroker, worker: _Worker, *futures: asyncio.Future[JobOutcome]
) -> bool:
    """Whether nothing was left behind, and each job has its picture or can be drawn by another."""
    await worker.hand_back()
    taken = await MemoryBroker.take(queue, Want(("tiny",), 8), wait=False)
    num_left = 0 if taken is None or taken.batch is None else len(taken.batch.deliveries)
    ends = [future.result() for future in futures if future.done()]
    has_failed = not all(isinstance(end, JobDone) for end in ends)
    return worker.left == frozenset() and not has_failed and len(ends) + num_left == len(futures)


async def test_a_stop_leaves_no_question_to_a_slow_queue_behind() -> None:
    queue, pipeline = _Queue(), ScriptedPipeline()
    queue.may_answer.clear()
    worker, working = await _working(queue, pipeline)
    futures = await _put_while_drawing(queue, pipeline, "first", "second")
    pipeline.gate.set()
    await asyncio.wait_for(queue.is_asked.wait(), 20)
    working.cancel()
    await _stop(working)
    queue.may_answer.set()
    assert await _is_whole(queue, worker, *futures)
    assert not futures[1].done()


async def test_a_stop_as_a_batch_arrives_fails_none_of_its_jobs() -> None:
    queue, pipeline = _Queue(), ScriptedPipeline()
    worker, working = await _working(queue, pipeline, max_batch_size=2)
    queue.on_asked = working.cancel
    futures = await _put_while_drawing(queue, pipeline, "first", "second", num_each=2)
    pipeline.gate.set()
    await _stop(working)
    assert await _is_whole(queue, worker, *futures)


async def test_a_stop_as_pictures_are_handed_out_fails_none_of_their_jobs() -> None:
    queue = _Queue()
    queue.may_answer.clear()
    pipeline = _WatchedPipeline(lambda prompt: working.cancel())
    worker, working = await _working(queue, pipeline, max_batch_size=2)
    futures = await _put_while_drawing(queue, pipeline, "first", num_each=2)
    pipeline.gate.set()
    await _stop(working)
    assert await _is_whole(queue, worker, *futures)


async def test_a_stop_leaves_a_lone_picture_that_comes_too_late_to_its_queue(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    queue, pipeline = _Queue(), ScriptedPipeline()
    worker, working = await _working(queue, pipeline)
    has_file = asyncio.Event()
    loop = asyncio.get_running_loop()

    def encode(*_: object) -> bytes:
        loop.call_soon_threadsafe(has_file.set)
        return b"a file"

    async def end_late(*tasks: asyncio.Task[Any]) -> None:
        pipeline.gate.set()
        await has_file.wait()
        await asyncio.sleep(0.05)  # what the file would set off
        await end_tasks(*tasks)

    monkeypatch.setattr("service.encoders.encode_image", encode)
    monkeypatch.setattr("service.worker.end_tasks", end_late)
    (only,) = await _put_while_drawing(queue, pipeline, "only")
    working.cancel()
    await _stop(working)
    assert await _is_whole(queue, worker, only)
    assert not only.done()


async def test_a_queue_that_breaks_is_told_of_and_nothing_is_left_behind() -> None:
    queue, pipeline = _Queue(), ScriptedPipeline()

    def break_() -> None:
        raise RuntimeError("the queue broke")

    queue.on_asked = break_
    worker, working = await _working(queue, pipeline)
    futures = await _put_while_drawing(queue, pipeline, "first", "second")
    pipeline.gate.set()
    with pytest.raises(RuntimeError, match="the queue broke"):
        await asyncio.wait_for(working, 20)
    assert await _is_whole(queue, worker, *futures)
