"""The engine in a thread of its own: pipelines by model, and batches drawn one after the other.

Owns loading, warming and replacing pipelines, one call of the engine with its times, and what
happens when it fails: the batch is halved until the picture at fault stands alone, so that no job
fails because of its neighbours. Knows the pipeline's face only, and neither queue nor encoders.

Shape suffixes: B batch, H/W pixels, C channel.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from service.batching import Delivery, RunTimes
from service.jobs import BatchKey
from service.starting import given_images, keep_what_is_masked
from service.telemetry import Telemetry, log_event, prompt_digest

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


@dataclass(frozen=True, eq=False)
class Drawn:
    """What one call of the engine brought, on its way to files and to those who wait.

    Attributes:
        images_BHWC: one picture per delivery, in their order.
        dispatched_s: when the call began, on the queue's clock.
        stage_ms: in the order of the run.
    """

    deliveries: Sequence[Delivery]
    key: BatchKey
    images_BHWC: NDArray[np.uint8]
    dispatched_s: float
    run_ms: float
    stage_ms: Mapping[str, float]

    @property
    def batch_size(self) -> int:
        """Pictures that were drawn together."""
        return len(self.deliveries)


@dataclass(frozen=True)
class Run:
    """Jobs of one key on their way through the engine.

    Attributes:
        at_once: called with the pictures in the engine's thread, before anybody else can know of
            them; the engine waits for it.
    """

    deliveries: Sequence[Delivery]
    key: BatchKey
    at_once: Callable[[Drawn], None]
    result: asyncio.Future[Drawn]


class EngineThread:
    """Draws with one engine, from one thread: runtimes keep contexts per thread."""

    def __init__(
        self,
        loaders: Mapping[str, Callable[[], ImagePipeline]],
        max_batch_size: int,
        telemetry: Telemetry,
        now_s: Callable[[], float],
    ) -> None:
        """Load nothing yet; `loaders` has each model's by name, `now_s` is the queue's clock."""
        self._loaders = dict(loaders)
        self._max_batch_size = max_batch_size
        self._telemetry = telemetry
        self._now_s = now_s
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._pipelines: dict[str, ImagePipeline] = {}
        self._run_times: dict[BatchKey, RunTimes] = {}
        self._busy_since_s: float | None = None
        telemetry.engine_run_age.set_function(lambda: self.busy_s)

    @property
    def models(self) -> tuple[str, ...]:
        """Those that are loaded."""
        return tuple(self._pipelines)

    @property
    def busy_s(self) -> float:
        """How long the engine has been in its present run; a healthy one ends within seconds."""
        return 0.0 if self._busy_since_s is None else time.monotonic() - self._busy_since_s

    def times_of(self, key: BatchKey) -> RunTimes:
        """What the runs of a key have taken so far."""
        times = self._run_times.get(key)
        if times is None:
            times = self._run_times[key] = RunTimes()
        return times

    async def start(self) -> None:
        """Load the models and warm them up."""
        loop = asyncio.get_running_loop()
        for name in self._loaders:
            self._pipelines[name] = await loop.run_in_executor(
                self._pool, self._load_and_warm, name
            )

    async def reload(self, model: str) -> None:
        """Load a model anew and put it in place of the old one between two batches.

        The old one serves until the new one has drawn its first pictures; when the new one cannot
        be loaded, it goes on serving and the error is raised.
        """
        new = await asyncio.to_thread(self._loaders[model])
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._pool, self._warm_up, new)
        self._pipelines[model] = new
        self._run_times = {k: times for k, times in self._run_times.items() if k.model != model}

    def begin(
        self, deliveries: Sequence[Delivery], key: BatchKey, at_once: Callable[[Drawn], None]
    ) -> Run:
        """Hand jobs to the engine; `outcome` waits for what comes of it."""
        loop = asyncio.get_running_loop()
        run = Run(deliveries, key, at_once, loop.create_future())
        # Not `run_in_executor`: the second future between the two, and the way from one to the
        # other, are a thirtieth of what a lone request takes here.
        self._pool.submit(self._carry_out, run, loop)
        return run

    async def outcome(self, run: Run, fail: Callable[[Delivery], Awaitable[None]]) -> list[Drawn]:
        """The pictures of a run; after an error, those of each half by itself.

        `fail` is called for each job that fails alone; what is returned holds all others.
        """
        deliveries = run.deliveries
        try:
            drawn = await run.result
        except Exception as error:
            if len(deliveries) == 1:
                _log_fault(deliveries[0], error)
                await fail(deliveries[0])
                return []
            log_event(
                "batch_split", level=logging.WARNING, num_jobs=len(deliveries), error=type(error)
            )
        else:
            self.times_of(run.key).note(drawn.batch_size, drawn.run_ms / 1000)
            return [drawn]
        self._telemetry.batch_retry.inc()
        middle = len(deliveries) // 2
        first = await self.outcome(self.begin(deliveries[:middle], run.key, run.at_once), fail)
        second = self.begin(deliveries[middle:], run.key, run.at_once)
        return first + await self.outcome(second, fail)

    def close(self) -> None:
        """Begin no further run; one that has begun is not waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    # In the engine's thread.

    def _carry_out(self, run: Run, loop: asyncio.AbstractEventLoop) -> None:
        drawn, error = None, None
        try:
            drawn = self._draw(run.deliveries, run.key, run.at_once)
        except Exception as caught:
            error = caught
        with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits
            loop.call_soon_threadsafe(_settle, run.result, drawn, error)

    def _draw(
        self, deliveries: Sequence[Delivery], key: BatchKey, at_once: Callable[[Drawn], None]
    ) -> Drawn:
        jobs = [delivery.job for delivery in deliveries]
        dispatched_s = self._now_s()
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
            images_BHWC = keep_what_is_masked(generated.images_BHWC, jobs, key)
        finally:
            self._busy_since_s = None
            run_s = time.monotonic() - started_s
            self._telemetry.engine_busy.inc(run_s)
        drawn = Drawn(deliveries, key, images_BHWC, dispatched_s, run_s * 1000, generated.stage_ms)
        at_once(drawn)
        return drawn

    def _load_and_warm(self, name: str) -> ImagePipeline:
        pipeline = self._loaders[name]()
        self._warm_up(pipeline)
        return pipeline

    def _warm_up(self, pipeline: ImagePipeline) -> None:
        pipeline.warm_up(sorted({1, self._max_batch_size}))


def _settle(result: asyncio.Future[Drawn], drawn: Drawn | None, error: Exception | None) -> None:
    if result.done():  # nobody waits any more
        return
    if drawn is not None:
        result.set_result(drawn)
    else:
        assert error is not None, "no pictures without an error"
        result.set_exception(error)


def _log_fault(delivery: Delivery, error: Exception) -> None:
    job = delivery.job
    # The digest shows whether it is one prompt that fails again and again.
    digest = prompt_digest(job.prompt)
    log_event("job_failed", level=logging.ERROR, exc=error, job_id=job.id, prompt_digest=digest)
