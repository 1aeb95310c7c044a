"""The one loop beside the engine: take, generate, encode, reply.

Owns the order of those, the leases on what is being drawn and the replies. The engine's thread, the
encoders and what is told of a run are modules of their own; brokers and HTTP live elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from service.batching import Batch, Delivery, parts_in_time
from service.brokers.base import Broker, Want
from service.encoders import Encoders, Encoding
from service.engine_thread import Drawn, EngineThread, ImagePipeline, Run
from service.errors import QueueUnavailable
from service.jobs import FailureReason, JobDone, JobFailed, JobOutcome
from service.run_reports import RunReports
from service.tasks import end_tasks
from service.telemetry import Telemetry, log_event

# Between two attempts to reach a queue that is away.
_AWAY_S = 0.5
# Of the event loop, from a job's outcome until its answer has been written.
_NUM_TURNS_TO_ANSWER = 3

_T = TypeVar("_T")


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
        self._options = options
        self._reports = RunReports(telemetry)
        self._engine = EngineThread(loaders, options.max_batch_size, telemetry, broker.now_s)
        self._encoders = Encoders(options.num_encode_threads)
        self._held: dict[str, Delivery] = {}
        self._unwanted: set[str] = set()
        # Takings and batches whose results `run` has not looked at yet.
        self._begun: set[asyncio.Task[Any]] = set()
        self._finishing: set[asyncio.Task[None]] = set()
        # Pictures that were drawn alone, until they are handed out.
        self._lone: dict[Drawn, Encoding] = {}
        self._is_ending = False
        # When the engine will be free, as far as its earlier runs tell.
        self._free_s = 0.0

    @property
    def busy_s(self) -> float:
        """How long the engine has been in its present run; a healthy one ends within seconds."""
        return self._engine.busy_s

    async def start(self) -> None:
        """Load the models and warm them up, in the engine's own thread."""
        await self._engine.start()

    async def reload(self, model: str) -> None:
        """Load a model anew; the old one serves until then, and on where that fails."""
        await self._engine.reload(model)

    async def hand_back(self) -> None:
        """Return what is still in hand, so that nobody has to wait for its lease to end."""
        await self._broker.hand_back(list(self._held.values()))

    async def run(self) -> None:
        """Serve until the broker has nothing more, then let the last pictures out."""
        self._loop = asyncio.get_running_loop()
        renewing = asyncio.create_task(self._renew_leases())
        try:
            current = await self._begin_next(wait=True)
            while current is not None:
                # A whole batch is handed over while the engine is busy: it then never waits for
                # the event loop. Less than a whole one may still grow.
                following = await self._begin_next(wait=False, is_whole_only=True)
                drawn = await self._result_of(current)
                if following is None:
                    # The first step gives an engine beside its queue the next work before this
                    # one's pictures are looked at; a queue elsewhere takes a round trip to
                    # answer, which they are not kept back for.
                    taking = self._begin(self._begin_next(wait=False))
                    await asyncio.sleep(0)
                    self._hand_out(drawn)
                    following = await self._result_of(taking)
                else:
                    self._hand_out(drawn)
                current = following or await self._begin_next(wait=True)
            if self._finishing:
                await asyncio.wait(self._finishing)
        finally:
            # Of the others there is nothing, unless this was stopped in the midst. Before the pools
            # close: to a job, a closed pool would look like a fault of its own, and it would fail
            # for good.
            self._is_ending = True
            await end_tasks(renewing, *self._begun, *self._finishing)
            self._engine.close()
            self._encoders.close()

    def _begin(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        """Start what must not outlive `run`."""
        task = asyncio.create_task(work)
        self._begun.add(task)
        return task

    async def _result_of(self, task: asyncio.Task[_T]) -> _T:
        result = await task
        self._begun.discard(task)
        return result

    async def _begin_next(
        self, *, wait: bool, is_whole_only: bool = False
    ) -> asyncio.Task[list[Drawn]] | None:
        """Take a batch and hand it to the engine.

        With `wait`, the next one there is, or None once there will be no more; without, one if
        there is one.
        """
        want = Want(self._engine.models, self._options.max_batch_size, is_whole_only)
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
            self._reports.taken(taken)
            if taken.batch is not None:
                self._held |= {d.job.id: d for d in taken.batch.deliveries}
                return self._begin(self._draw(*self._begin_part(taken.batch)))
            if not wait:
                return None

    def _begin_part(self, batch: Batch) -> tuple[Run | None, Batch | None]:
        """Hand a batch to the engine, or a part where its most urgent job would come too late.

        At once, without a turn of the event loop: the engine waits. Returns nothing to wait for
        where nobody wants the pictures any more, and what is to be drawn after them.
        """
        start_s = max(self._broker.now_s(), self._free_s)
        part, rest = parts_in_time(batch, start_s, self._engine.times_of)
        times = self._engine.times_of(part.key)
        self._free_s = start_s + times.expected_s(len(part.deliveries))
        self._reports.closed(part.close_reason)
        wanted = [d for d in part.deliveries if d.job.id not in self._unwanted]
        for delivery in part.deliveries:
            if delivery not in wanted:
                self._let_go(delivery)
        run = self._engine.begin(wanted, part.key, self._begin_lone_file) if wanted else None
        return run, rest

    async def _draw(self, run: Run | None, rest: Batch | None) -> list[Drawn]:
        """The pictures of a run and of all that is to follow it.

        What is returned is still to be handed out.
        """
        drawn = await self._outcome(run)
        while rest is not None:
            self._hand_out(drawn)
            # The part before it took its time.
            self._unwanted |= await self._renew(rest.deliveries)
            run, rest = self._begin_part(rest)
            drawn = await self._outcome(run)
        return drawn

    async def _outcome(self, run: Run | None) -> list[Drawn]:
        if run is None:
            return []
        return await self._engine.outcome(run, partial(self._fail, reason=FailureReason.ENGINE))

    def _begin_lone_file(self, drawn: Drawn) -> None:
        """In the engine's thread: a picture drawn alone goes to its encoder past the event loop.

        Nor does its file wait for the loop to come to it. A sixth of what a lone request takes here
        would be spent on these ways. Of several pictures the engine's next batch comes first: their
        encoders would take the cores from it.
        """
        if drawn.batch_size == 1:
            job, pixels_HWC = drawn.deliveries[0].job, drawn.images_BHWC[0]
            encoding = self._encoders.begin(job, pixels_HWC, here_if_quick=True)
            self._lone[drawn] = encoding
            encoding.file.add_done_callback(lambda _: self._hand_out_soon(drawn))

    def _hand_out_soon(self, drawn: Drawn) -> None:
        """From any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits
            self._loop.call_soon_threadsafe(self._hand_out, [drawn])

    def _hand_out(self, drawn: Sequence[Drawn]) -> None:
        """Begin to encode pictures and to answer for them, then tell of the run.

        A lone one is handed out when its file is there or when the loop comes to it, whichever is
        first.
        """
        for one in drawn:
            encoding = self._lone.pop(one, None)
            if self._is_ending or (encoding is None and one.batch_size == 1):
                continue
            task = asyncio.create_task(self._finish(one, encoding))
            self._finishing.add(task)
            task.add_done_callback(self._finishing.discard)

    async def _finish(self, drawn: Drawn, begun: Encoding | None) -> None:
        """Encode pictures and answer for them, then tell of the run."""
        if begun is not None:  # which needs no task of its own
            await self._reply_with(drawn.deliveries[0], begun, drawn)
        else:
            pictures = zip(drawn.deliveries, drawn.images_BHWC, strict=True)
            encodings = [(one, self._encoders.begin(one.job, pixels)) for one, pixels in pictures]
            await asyncio.gather(*(self._reply_with(*one, drawn) for one in encodings))
        # Log and metrics take a tenth of what a lone request does, and nobody waits for them.
        for _ in range(_NUM_TURNS_TO_ANSWER):
            await asyncio.sleep(0)
        self._reports.drawn(drawn)

    async def _reply_with(self, delivery: Delivery, encoding: Encoding, drawn: Drawn) -> None:
        job = delivery.job
        try:
            image_bytes = await encoding.content()
        except Exception as error:
            log_event("encode_failed", level=logging.ERROR, exc=error, job_id=job.id)
            await self._fail(delivery, FailureReason.ENCODER)
            return
        encode_s = self._encoders.now_s() - encoding.started_s
        self._reports.encoded(job, encode_s)
        done = JobDone(
            job_id=job.id,
            image_bytes=image_bytes,
            seed=job.seed,
            batch_size=drawn.batch_size,
            queue_ms=(drawn.dispatched_s - job.created_s) * 1000,
            run_ms=drawn.run_ms,
            encode_ms=encode_s * 1000,
            stage_ms=drawn.stage_ms,
        )
        self._reports.answered(is_wanted=await self._reply(delivery, done))

    async def _fail(self, delivery: Delivery, reason: FailureReason) -> None:
        self._reports.failed(reason)
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
