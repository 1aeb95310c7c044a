"""The worker's loop against a scripted engine: batches, isolation, cancellation, drain."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from service_fixtures import KEY, SIZE_PX, FakeClock, ScriptedPipeline, make_job

from service import encoders
from service.brokers.memory import MemoryBroker
from service.jobs import FailureReason, Job, JobDone, JobFailed, JobOutcome
from service.telemetry import Telemetry
from service.worker import Worker, WorkerOptions


class Bench:
    """A worker with its broker, clock, telemetry and engine."""

    def __init__(self, pipeline: ScriptedPipeline, max_batch_size: int) -> None:
        self.clock = FakeClock()
        self.broker = MemoryBroker(1000, self.clock)
        self.telemetry = Telemetry()
        self.pipeline = pipeline
        self.worker = Worker(
            self.broker,
            {"tiny": lambda: pipeline},
            self.telemetry,
            WorkerOptions(max_batch_size, num_encode_threads=1),
        )

    async def draw(self, jobs: Sequence[Job]) -> list[JobOutcome]:
        async with asyncio.timeout(20):
            return list(await asyncio.gather(*await self.broker.put(jobs)))

    def metric(self, name: str, **labels: str) -> float | None:
        return self.telemetry.registry.get_sample_value(name, labels)


@asynccontextmanager
async def running(pipeline: ScriptedPipeline, max_batch_size: int = 8) -> AsyncIterator[Bench]:
    bench = Bench(pipeline, max_batch_size)
    await bench.worker.start()
    task = asyncio.create_task(bench.worker.run())
    yield bench
    pipeline.gate.set()
    await bench.broker.close()
    await asyncio.wait_for(task, 20)


async def _engine_is_busy(pipeline: ScriptedPipeline) -> None:
    assert await asyncio.to_thread(pipeline.entered.wait, 20)


def _grey(outcome: JobOutcome) -> int:
    assert isinstance(outcome, JobDone)
    with Image.open(io.BytesIO(outcome.image_bytes)) as image:
        return int(np.asarray(image)[0, 0, 0])


async def test_every_job_gets_its_own_picture() -> None:
    async with running(ScriptedPipeline()) as bench:
        outcomes = await bench.draw([make_job(seed=seed) for seed in range(20)])
    assert [_grey(outcome) for outcome in outcomes] == list(range(20))


async def test_an_idle_engine_starts_at_once_and_a_busy_one_gathers() -> None:
    pipeline = ScriptedPipeline()
    async with running(pipeline) as bench:
        pipeline.gate.clear()
        first = await bench.broker.put([make_job(prompt="first")])
        await _engine_is_busy(pipeline)
        rest = await bench.broker.put([make_job(prompt="rest") for _ in range(10)])
        pipeline.gate.set()
        outcomes = await asyncio.gather(*first, *rest)
    assert [len(run) for run in pipeline.runs] == [1, 8, 2]
    assert [outcome.batch_size for outcome in outcomes if isinstance(outcome, JobDone)] == (
        [1] + [8] * 8 + [2] * 2
    )
    assert bench.metric("onestep_batch_close_total", reason="full") == 1
    assert bench.metric("onestep_batch_close_total", reason="no_more") == 2
    assert bench.metric("onestep_batch_size_sum") == 11


@pytest.mark.parametrize("poison_index", [0, 3, 7])
async def test_one_bad_job_does_not_fail_its_neighbours(poison_index: int) -> None:
    pipeline = ScriptedPipeline(is_poison=lambda prompts: "poison" in prompts)
    jobs = [make_job(prompt="good", seed=index) for index in range(8)]
    jobs[poison_index] = make_job(prompt="poison", seed=poison_index)
    async with running(pipeline) as bench:
        outcomes = await bench.draw(jobs)
        # The engine goes on after it.
        assert _grey((await bench.draw([make_job(seed=99)]))[0]) == 99
    assert outcomes[poison_index] == JobFailed(jobs[poison_index].id, FailureReason.ENGINE)
    assert [_grey(outcome) for outcome in outcomes if isinstance(outcome, JobDone)] == [
        index for index in range(8) if index != poison_index
    ]
    # Halving: 8, 4 + 4, 2 + 2, 1 + 1, then the single job above.
    assert [len(run) for run in sorted(pipeline.runs, key=len, reverse=True)] == (
        [8, 4, 4, 2, 2, 1, 1, 1]
    )
    assert bench.metric("onestep_batch_retry_total") == 3
    assert bench.metric("onestep_failed_total", reason="engine") == 1


async def test_a_batch_that_is_too_large_succeeds_in_halves() -> None:
    pipeline = ScriptedPipeline(is_poison=lambda prompts: len(prompts) > 2)
    async with running(pipeline) as bench:
        outcomes = await bench.draw([make_job(seed=index) for index in range(8)])
    assert [_grey(outcome) for outcome in outcomes] == list(range(8))


async def test_an_engine_that_always_fails_fails_every_job_and_nothing_hangs() -> None:
    async with running(ScriptedPipeline(is_poison=lambda prompts: True)) as bench:
        outcomes = await bench.draw([make_job() for _ in range(8)])
    assert {type(outcome) for outcome in outcomes} == {JobFailed}


async def test_a_picture_that_cannot_be_encoded_fails_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail_on_webp(pixels_HWC: Any, format: str, quality: int | None) -> bytes:
        if format == "webp":
            raise OSError("encoder")
        return b"picture"

    monkeypatch.setattr(encoders, "encode_image", fail_on_webp)
    bad, good = make_job(format="webp"), make_job()
    async with running(ScriptedPipeline()) as bench:
        outcomes = await bench.draw([bad, good])
    assert outcomes[0] == JobFailed(bad.id, FailureReason.ENCODER)
    assert isinstance(outcomes[1], JobDone)


async def test_cancelled_and_expired_jobs_never_reach_the_engine() -> None:
    pipeline = ScriptedPipeline()
    async with running(pipeline, max_batch_size=2) as bench:
        pipeline.gate.clear()
        blocking = asyncio.create_task(bench.draw([make_job(prompt="blocking")]))
        await _engine_is_busy(pipeline)
        cancelled = make_job(prompt="cancelled")
        expired = make_job(prompt="expired", deadline_s=5.0)
        wanted = make_job(prompt="wanted")
        futures = await bench.broker.put([cancelled, expired, wanted])
        bench.clock.now_s = 5.0
        await bench.broker.cancel([cancelled.id])
        pipeline.gate.set()
        await blocking
        outcomes = await asyncio.gather(*futures)
    assert pipeline.runs == [["blocking"], ["wanted"]]
    assert outcomes[0] == JobFailed(cancelled.id, FailureReason.CANCELLED)
    assert outcomes[1] == JobFailed(expired.id, FailureReason.EXPIRED)
    assert isinstance(outcomes[2], JobDone)


async def test_a_job_cancelled_while_it_is_drawn_keeps_its_end() -> None:
    pipeline = ScriptedPipeline()
    async with running(pipeline, max_batch_size=2) as bench:
        pipeline.gate.clear()
        jobs = [make_job(prompt=name) for name in ("first", "second")]
        futures = await bench.broker.put(jobs)
        await _engine_is_busy(pipeline)
        assert await bench.broker.cancel([jobs[0].id]) == 0
        pipeline.gate.set()
        outcomes = await asyncio.gather(*futures)
    assert outcomes[0] == JobFailed(jobs[0].id, FailureReason.CANCELLED)
    assert isinstance(outcomes[1], JobDone)
    assert bench.metric("onestep_cancelled_total", phase="running") == 1


async def test_a_drain_finishes_what_was_accepted() -> None:
    pipeline = ScriptedPipeline()
    async with running(pipeline, max_batch_size=2) as bench:
        pipeline.gate.clear()
        futures = await bench.broker.put([make_job() for _ in range(9)])
        await _engine_is_busy(pipeline)
        await bench.broker.close()
        pipeline.gate.set()
    outcomes = [future.result() for future in futures]
    assert {type(outcome) for outcome in outcomes} == {JobDone}


async def test_the_model_is_warmed_up_for_the_smallest_and_the_largest_batch() -> None:
    async with running(ScriptedPipeline(), max_batch_size=8) as bench:
        assert bench.pipeline.warmed == [1, 8]


async def test_pictures_to_start_from_reach_the_engine_with_their_strength() -> None:
    pipeline = ScriptedPipeline()
    key = replace(KEY, strength=0.25)
    images = [bytes([grey]) * (3 * SIZE_PX * SIZE_PX) for grey in (10, 20)]
    async with running(pipeline) as bench:
        await bench.draw([make_job(), *(make_job(key=key, image=image) for image in images)])
    given = dict(zip(pipeline.strengths, pipeline.given, strict=True))
    images_BHWC = given.pop(0.25)
    assert images_BHWC is not None and images_BHWC[:, 0, 0, 0].tolist() == [10, 20]
    assert list(given.values()) == [None]


async def test_a_job_with_half_a_picture_fails_alone() -> None:
    key = replace(KEY, strength=0.5)
    whole = bytes(3 * SIZE_PX * SIZE_PX)
    async with running(ScriptedPipeline()) as bench:
        outcomes = await bench.draw(
            [make_job(key=key, image=image) for image in (whole, whole[:-1], whole)]
        )
    assert [isinstance(outcome, JobFailed) for outcome in outcomes] == [False, True, False]
