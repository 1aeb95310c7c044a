"""The one loop beside the engine: take, generate, encode, reply.

Owns the engine's thread, the encoders' threads, the leases on what is being drawn and what happens
when a batch fails: it is halved until the picture at fault stands alone, so that no job fails
because of its neighbours. Knows the pipeline's face only; brokers and HTTP live elsewhere.
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

from service.batching import Batch, CloseReason, Delivery, RunTimes, parts_in_time
from service.brokers.base import Broker, Want
from service.errors import QueueUnavailable
from service.images import encode_image
from service.jobs import BatchKey, FailureReason, JobDone, JobFailed, JobOutcome, Priority
from service.starting import given_images, keep_what_is_masked
from service.telemetry import BatchRun, Telemetry, exemplar_of, log_event, prompt_digest

if TYPE_CHECKING:
    from engines.pipeline import Generated

# As metrics call them: an engine's "encode" is that of the picture to start from.
_STAGES = ("text", "encode_input", "denoise", "decode", "draw", "encode")
# Between two attempts to reach a queue that is away.
_AWAY_S = 0.5
# Of the event loop, from a job's outcome until its answer has been written.
_NUM_TURNS_TO_ANSWER = 3


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
class WorkerOptions:
    """How a worker works.

    Attributes:
        max_batch_size: pictures per run of the engine.
        num_encode_threads: that turn pixels into files while the engine goes on.
        lease_s: how long a job stays this worker's without a sign of life.
    """

    max_batch_size: int = 8
    num_encode_threads: int = 2
    lease_s: float = 10.0


@dataclass(frozen=True)
class _Run:
    """One call of the engine, as every picture of it reports it."""

    batch_size: int
    dispatched_s: float
    run_ms: float
    stage_ms: Mapping[str, float]


@dataclass(frozen=True)
class _Drawn:
    """What a call of the engine brought, on its way to files and to those who wait."""

    deliveries: Sequence[Delivery]
    key: BatchKey
    images_BHWC: NDArray[np.uint8]
    run: _Run


class Worker:
    """Feeds one engine from one broker."""

    def __init__(
        self,
        broker: Broker,
        loaders: Mapping[str, Callable[[], ImagePipeline]],
        telemetry: Telemetry,
        options: WorkerOptions,
    ) -> None:
        """Join the parts; `loaders` loads each model that is served, by its name."""
        self._broker = broker
        self._loaders = dict(loaders)
        self._telemetry = telemetry
        self._options = options
        # One thread for the engine: runtimes keep contexts per thread.
        self._engine_pool = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._encode_pool = ThreadPoolExecutor(
            options.num_encode_threads, thread_name_prefix="encode"
        )
        self._pipelines: dict[str, ImagePipeline] = {}
        self._run_times: dict[BatchKey, RunTimes] = {}
        self._held: dict[str, Delivery] = {}
        self._unwanted: set[str] = set()
        self._finishing: set[asyncio.Task[None]] = set()
        self._busy_since_s: float | None = None
        # When the engine will be free, as far as its earlier runs tell.
        self._free_s = 0.0
        self._begin_series()

    def _begin_series(self) -> None:
        """Rates need every series from the start."""
        telemetry = self._telemetry
        telemetry.engine_run_age.set_function(lambda: self.busy_s)
        for reason in CloseReason:
            telemetry.batch_close.labels(reason)
        for failure in (FailureReason.ENGINE, FailureReason.ENCODER, FailureReason.EXPIRED):
            telemetry.failed.labels(failure)
        for phase in ("taken", "running"):
            telemetry.cancelled.labels(phase)
        for priority in Priority:
            telemetry.queue_wait.labels(priority.name.lower())
        for stage in _STAGES:
            telemetry.stage_duration.labels(stage)

    @property
    def busy_s(self) -> float:
        """How long the engine has been in its present run; a healthy one ends within seconds."""
        return 0.0 if self._busy_since_s is None else time.monotonic() - self._busy_since_s

    async def start(self) -> None:
        """Load the models and warm them up, in the engine's own thread."""
        loop = asyncio.get_running_loop()
        for name in self._loaders:
            self._pipelines[name] = await loop.run_in_executor(
                self._engine_pool, self._load_and_warm, name
            )

    async def reload(self, model: str) -> None:
        """Load a model anew and put it in place of the old one between two batches.

        The old one serves until the new one has drawn its first pictures; when the new one cannot
        be loaded, it goes on serving and the error is raised.
        """
        new = await asyncio.to_thread(self._loaders[model])
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._engine_pool, self._warm_up, new)
        self._pipelines[model] = new
        self._run_times = {k: times for k, times in self._run_times.items() if k.model != model}

    async def hand_back(self) -> None:
        """Return what is still in hand, so that nobody has to wait for its lease to end."""
        await self._broker.hand_back(list(self._held.values()))

    async def run(self) -> None:
        """Serve until the broker has nothing more, then let the last pictures out."""
        renewing = asyncio.create_task(self._renew_leases())
        try:
            current = await self._begin_next(wait=True)
            while current is not None:
                # A whole batch is handed over while the engine is busy: it then never waits for
                # the event loop. Less than a whole one may still grow.
                following = await self._begin_next(wait=False, is_whole_only=True)
                drawn = await current
                # The engine has its next work before this one's pictures are looked at.
                following = following or await self._begin_next(wait=False)
                self._hand_out(drawn)
                current = following or await self._begin_next(wait=True)
            if self._finishing:
                await asyncio.wait(self._finishing)
        finally:
            renewing.cancel()
            self._engine_pool.shutdown(wait=False, cancel_futures=True)
            self._encode_pool.shutdown(wait=False, cancel_futures=True)

    async def _begin_next(
        self, *, wait: bool, is_whole_only: bool = False
    ) -> asyncio.Task[list[_Drawn]] | None:
        """Take a batch and hand it to the engine.

        With `wait`, the next one there is, or None once there will be no more; without, one if
        there is one.
        """
        want = Want(tuple(self._pipelines), self._options.max_batch_size, is_whole_only)
        while True:
            try:
                taken = await self._broker.take(want, wait=wait)
            except QueueUnavailable as error:
                if not wait:  # what has been drawn is not to wait for the queue
                    return None
                log_event("queue_away", level=logging.WARNING, error=error.detail)
                await asyncio.sleep(_AWAY_S)
                continue
            if taken is None:
                return None
            self._telemetry.failed.labels(FailureReason.EXPIRED).inc(taken.num_expired)
            self._telemetry.cancelled.labels("taken").inc(taken.num_cancelled)
            if taken.batch is not None:
                self._held |= {d.job.id: d for d in taken.batch.deliveries}
                return asyncio.create_task(self._draw(taken.batch))
            if not wait:
                return None

    async def _draw(self, batch: Batch) -> list[_Drawn]:
        """Run a batch, in parts where its most urgent job would otherwise come too late.

        What is returned is still to be handed out.
        """
        rest: Batch | None = batch
        drawn: list[_Drawn] = []
        while rest is not None:
            if rest is not batch:
                self._hand_out(drawn)
                # The part before it took its time.
                self._unwanted |= await self._renew(rest.deliveries)
            start_s = max(self._broker.now_s(), self._free_s)
            part, rest = parts_in_time(rest, start_s, self._times_of)
            self._free_s = start_s + self._times_of(part.key).expected_s(len(part.deliveries))
            self._telemetry.batch_close.labels(part.close_reason).inc()
            wanted = [d for d in part.deliveries if d.job.id not in self._unwanted]
            for delivery in part.deliveries:
                if delivery not in wanted:
                    self._let_go(delivery)
            drawn = await self._generate(wanted, part.key) if wanted else []
        return drawn

    def _times_of(self, key: BatchKey) -> RunTimes:
        return self._run_times.setdefault(key, RunTimes())

    async def _generate(self, deliveries: Sequence[Delivery], key: BatchKey) -> list[_Drawn]:
        """Run jobs of one key; on an error, each half by itself."""
        loop = asyncio.get_running_loop()
        try:
            generated, dispatched_s, run_s = await loop.run_in_executor(
                self._engine_pool, self._run_engine, deliveries, key
            )
        except Exception as error:
            return await self._isolate(deliveries, key, error)
        self._times_of(key).note(len(deliveries), run_s)
        run = _Run(len(deliveries), dispatched_s, run_s * 1000, generated.stage_ms)
        return [_Drawn(deliveries, key, generated.images_BHWC, run)]

    def _hand_out(self, drawn: Sequence[_Drawn]) -> None:
        """Begin to encode pictures and to answer for them, then tell of the run."""
        for one in drawn:
            task = asyncio.create_task(self._finish(one))
            self._finishing.add(task)
            task.add_done_callback(self._finishing.discard)

    async def _finish(self, drawn: _Drawn) -> None:
        """Encode pictures and answer for them, then tell of the run."""
        pictures = zip(drawn.deliveries, drawn.images_BHWC, strict=True)
        await asyncio.gather(*(self._encode_and_reply(*one, drawn.run) for one in pictures))
        # Log and metrics take a tenth of what a lone request does, and nobody waits for them.
        for _ in range(_NUM_TURNS_TO_ANSWER):
            await asyncio.sleep(0)
        self._note_run(drawn)

    def _run_engine(
        self, deliveries: Sequence[Delivery], key: BatchKey
    ) -> tuple[Generated, float, float]:
        """In the engine's thread; the broker's time at the start and the seconds it took, too."""
        jobs = [delivery.job for delivery in deliveries]
        dispatched_s = self._broker.now_s()
        started_s = self._busy_since_s = time.monotonic()
        try:
            generated = self._pipelines[key.model].generate(
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
        finally:
            self._busy_since_s = None
            run_s = time.monotonic() - started_s
            self._telemetry.engine_busy.inc(run_s)
        return replace(generated, images_BHWC=pictures), dispatched_s, run_s

    async def _isolate(
        self, deliveries: Sequence[Delivery], key: BatchKey, error: Exception
    ) -> list[_Drawn]:
        """Halve a failed batch until the jobs at fault stand alone."""
        if len(deliveries) == 1:
            job = deliveries[0].job
            # The digest shows whether it is one prompt that fails again and again.
            digest = prompt_digest(job.prompt)
            log_event(
                "job_failed", level=logging.ERROR, exc=error, job_id=job.id, prompt_digest=digest
            )
            await self._fail(deliveries[0], FailureReason.ENGINE)
            return []
        log_event("batch_split", level=logging.WARNING, num_jobs=len(deliveries), error=type(error))
        self._telemetry.batch_retry.inc()
        middle = len(deliveries) // 2
        first = await self._generate(deliveries[:middle], key)
        return first + await self._generate(deliveries[middle:], key)

    async def _encode_and_reply(
        self, delivery: Delivery, pixels_HWC: NDArray[np.uint8], run: _Run
    ) -> None:
        loop = asyncio.get_running_loop()
        started_s = time.perf_counter()
        job = delivery.job
        try:
            image_bytes = await loop.run_in_executor(
                self._encode_pool, encode_image, pixels_HWC, job.format, job.quality
            )
        except Exception as error:
            log_event("encode_failed", level=logging.ERROR, exc=error, job_id=job.id)
            await self._fail(delivery, FailureReason.ENCODER)
            return
        encode_s = time.perf_counter() - started_s
        exemplar = exemplar_of(job.traceparent)
        self._telemetry.stage_duration.labels("encode").observe(encode_s, exemplar)
        if self._telemetry.traces is not None:
            self._telemetry.traces.encoded(job.traceparent, encode_s)
        done = JobDone(
            job_id=job.id,
            image_bytes=image_bytes,
            seed=job.seed,
            batch_size=run.batch_size,
            queue_ms=(run.dispatched_s - job.created_s) * 1000,
            run_ms=run.run_ms,
            encode_ms=encode_s * 1000,
            stage_ms=run.stage_ms,
        )
        if await self._reply(delivery, done):
            self._telemetry.images.inc()
        else:
            self._telemetry.cancelled.labels("running").inc()

    async def _fail(self, delivery: Delivery, reason: FailureReason) -> None:
        self._telemetry.failed.labels(reason).inc()
        await self._reply(delivery, JobFailed(delivery.job.id, reason))

    async def _reply(self, delivery: Delivery, outcome: JobOutcome) -> bool:
        """Hand an outcome to the broker; while that is away, until the job's deadline."""
        try:
            while True:
                try:
                    return await self._broker.reply(delivery, outcome)
                except QueueUnavailable:
                    if self._broker.now_s() > delivery.job.deadline_s:
                        return False
                    await asyncio.sleep(_AWAY_S)
        finally:
            self._let_go(delivery)

    def _let_go(self, delivery: Delivery) -> None:
        self._held.pop(delivery.job.id, None)
        self._unwanted.discard(delivery.job.id)

    async def _renew_leases(self) -> None:
        """Say in time, again and again, that what is held is being drawn."""
        while True:
            await asyncio.sleep(self._options.lease_s / 3)
            self._unwanted |= await self._renew(list(self._held.values()))
            self._unwanted &= self._held.keys()

    async def _renew(self, deliveries: Sequence[Delivery]) -> frozenset[str]:
        try:
            return await self._broker.renew(deliveries)
        except QueueUnavailable:
            return frozenset()

    def _note_run(self, drawn: _Drawn) -> None:
        """One log line and one set of metrics per engine run."""
        run, key = drawn.run, drawn.key
        jobs = [delivery.job for delivery in drawn.deliveries]
        queue_s = [run.dispatched_s - job.created_s for job in jobs]
        for job, wait_s in zip(jobs, queue_s, strict=True):
            self._telemetry.queue_wait.labels(job.priority.name.lower()).observe(
                wait_s, exemplar_of(job.traceparent)
            )
        self._telemetry.batch_size.observe(run.batch_size)
        for stage, duration_ms in run.stage_ms.items():
            name = "encode_input" if stage == "encode" else stage
            self._telemetry.stage_duration.labels(name).observe(duration_ms / 1000)
        if self._telemetry.traces is not None:
            members = [(job.traceparent, wait) for job, wait in zip(jobs, queue_s, strict=True)]
            told = {"onestep.batch_size": run.batch_size, "onestep.steps": key.steps}
            size = {"onestep.width": key.width, "onestep.height": key.height}
            self._telemetry.traces.batch(
                BatchRun(members, run.run_ms / 1000, run.stage_ms, told | size)
            )
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

    def _load_and_warm(self, name: str) -> ImagePipeline:
        pipeline = self._loaders[name]()
        self._warm_up(pipeline)
        return pipeline

    def _warm_up(self, pipeline: ImagePipeline) -> None:
        pipeline.warm_up(sorted({1, self._options.max_batch_size}))
