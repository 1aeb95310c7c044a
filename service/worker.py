"""The one loop beside the engine: take, batch, generate, encode, reply.

Owns the engine's thread, the encoders' threads and what happens when a batch fails: it is halved
until the picture at fault stands alone, so that no job fails because of its neighbours. Knows the
pipeline's face only; brokers and HTTP live elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from service.batching import Batch, Batcher
from service.brokers.base import Broker
from service.images import encode_image
from service.jobs import BatchKey, FailureReason, Job, JobDone, JobFailed
from service.starting import given_images, keep_what_is_masked
from service.telemetry import Telemetry, log_event

if TYPE_CHECKING:
    from engines.pipeline import Generated


class ImagePipeline(Protocol):
    """The face of `engines.pipeline.Pipeline` that the worker uses."""

    def generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        width: int,
        height: int,
        steps: int,
        images_BHWC: NDArray[np.uint8] | None = None,
        strength: float = 0.5,
    ) -> Generated:
        """Draw one picture per prompt and seed, from noise or from given pictures."""
        ...

    def warm_up(self, batch_sizes: Sequence[int]) -> None:
        """Run each batch size once, so that the first request finds everything in place."""
        ...


@dataclass(frozen=True)
class _Run:
    """One call of the engine, as every picture of it reports it."""

    batch_size: int
    dispatched_s: float
    run_ms: float
    stage_ms: Mapping[str, float]


class Worker:
    """Feeds one engine from one broker."""

    def __init__(
        self,
        broker: Broker,
        load: Callable[[], ImagePipeline],
        telemetry: Telemetry,
        *,
        max_batch_size: int,
        num_encode_threads: int,
    ) -> None:
        self._broker = broker
        self._load = load
        self._telemetry = telemetry
        self._max_batch_size = max_batch_size
        self._batcher = Batcher(max_batch_size, broker.now_s)
        # One thread for the engine: runtimes keep contexts per thread.
        self._engine_pool = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._encode_pool = ThreadPoolExecutor(num_encode_threads, thread_name_prefix="encode")
        self._encoding: set[asyncio.Task[None]] = set()
        self._pipeline: ImagePipeline | None = None

    async def start(self) -> None:
        """Load the model and warm it up, in the engine's own thread."""

        def load_and_warm() -> ImagePipeline:
            pipeline = self._load()
            pipeline.warm_up(sorted({1, self._max_batch_size}))
            return pipeline

        loop = asyncio.get_running_loop()
        self._pipeline = await loop.run_in_executor(self._engine_pool, load_and_warm)

    async def run(self) -> None:
        """Serve until the broker is closed and empty, then let the last pictures out."""
        try:
            while (batch := await self._next_batch()) is not None:
                self._telemetry.batch_close.labels(batch.close_reason).inc()
                await self._generate(batch.jobs, batch.key)
            if self._encoding:
                await asyncio.wait(self._encoding)
        finally:
            self._engine_pool.shutdown(wait=False, cancel_futures=True)
            self._encode_pool.shutdown(wait=False, cancel_futures=True)

    async def _next_batch(self) -> Batch | None:
        """Wait for work; None once there will be no more."""
        while True:
            must_wait = not self._batcher.job_ids
            jobs = await self._broker.take(self._batcher.room, wait=must_wait)
            if must_wait and not jobs:
                return None
            self._batcher.add(jobs)
            unwanted = await self._broker.cancelled(self._batcher.job_ids)
            num_dropped = len(self._batcher.drop_cancelled(unwanted))
            self._telemetry.cancelled.labels("taken").inc(num_dropped)
            for job in self._batcher.drop_expired():
                await self._fail(job, FailureReason.EXPIRED)
            batch = self._batcher.next_batch()
            if batch is not None:
                return batch

    async def _generate(self, jobs: Sequence[Job], key: BatchKey) -> None:
        """Run jobs of one key; on an error, each half by itself."""
        loop = asyncio.get_running_loop()
        dispatched_s = self._broker.now_s()
        started_s = time.perf_counter()
        try:
            generated = await loop.run_in_executor(self._engine_pool, self._run_engine, jobs, key)
        except Exception as error:
            await self._isolate(jobs, key, error)
            return
        run_ms = (time.perf_counter() - started_s) * 1000
        run = _Run(len(jobs), dispatched_s, run_ms, generated.stage_ms)
        self._note_run(jobs, key, run)
        for job, pixels_HWC in zip(jobs, generated.images_BHWC, strict=True):
            task = asyncio.create_task(self._encode_and_reply(job, pixels_HWC, run))
            self._encoding.add(task)
            task.add_done_callback(self._encoding.discard)

    def _run_engine(self, jobs: Sequence[Job], key: BatchKey) -> Generated:
        """In the engine's thread."""
        assert self._pipeline is not None, "start() comes before run()"
        generated = self._pipeline.generate(
            [job.prompt for job in jobs],
            [job.seed for job in jobs],
            width=key.width,
            height=key.height,
            steps=key.steps,
            images_BHWC=given_images(jobs, key),
            strength=key.strength or 1.0,
        )
        assert len(generated.images_BHWC) == len(jobs), "one picture per job"
        pictures = keep_what_is_masked(generated.images_BHWC, jobs, key)
        return replace(generated, images_BHWC=pictures)

    async def _isolate(self, jobs: Sequence[Job], key: BatchKey, error: Exception) -> None:
        """Halve a failed batch until the jobs at fault stand alone."""
        if len(jobs) == 1:
            log_event("job_failed", level=logging.ERROR, exc=error, job_id=jobs[0].id)
            await self._fail(jobs[0], FailureReason.ENGINE)
            return
        log_event("batch_split", level=logging.WARNING, num_jobs=len(jobs), error=type(error))
        self._telemetry.batch_retry.inc()
        middle = len(jobs) // 2
        await self._generate(jobs[:middle], key)
        await self._generate(jobs[middle:], key)

    async def _encode_and_reply(self, job: Job, pixels_HWC: NDArray[np.uint8], run: _Run) -> None:
        loop = asyncio.get_running_loop()
        started_s = time.perf_counter()
        try:
            image_bytes = await loop.run_in_executor(
                self._encode_pool, encode_image, pixels_HWC, job.format, job.quality
            )
        except Exception as error:
            log_event("encode_failed", level=logging.ERROR, exc=error, job_id=job.id)
            await self._fail(job, FailureReason.ENCODER)
            return
        done = JobDone(
            job_id=job.id,
            image_bytes=image_bytes,
            seed=job.seed,
            batch_size=run.batch_size,
            queue_ms=(run.dispatched_s - job.created_s) * 1000,
            run_ms=run.run_ms,
            encode_ms=(time.perf_counter() - started_s) * 1000,
            stage_ms=run.stage_ms,
        )
        if await self._broker.reply(done):
            self._telemetry.images.inc()
        else:
            self._telemetry.cancelled.labels("running").inc()

    async def _fail(self, job: Job, reason: FailureReason) -> None:
        self._telemetry.failed.labels(reason).inc()
        await self._broker.reply(JobFailed(job.id, reason))

    def _note_run(self, jobs: Sequence[Job], key: BatchKey, run: _Run) -> None:
        """One log line and one set of metrics per engine run."""
        queue_s = [run.dispatched_s - job.created_s for job in jobs]
        for wait_s in queue_s:
            self._telemetry.queue_wait.observe(wait_s)
        self._telemetry.batch_size.observe(run.batch_size)
        for stage, duration_ms in run.stage_ms.items():
            self._telemetry.stage_duration.labels(stage).observe(duration_ms / 1000)
        log_event(
            "batch",
            batch_size=run.batch_size,
            width=key.width,
            height=key.height,
            steps=key.steps,
            longest_queue_ms=round(max(queue_s) * 1000, 1),
            run_ms=round(run.run_ms, 1),
            stage_ms={stage: round(ms, 1) for stage, ms in run.stage_ms.items()},
        )
