"""What every surface does between a checked request and its pictures.

Owns a request's jobs, the wait for their outcomes with the deadline and the client's departure, and
what an answer tells of them. Knows the broker's protocol, neither a wire format nor an engine.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from starlette.requests import Request
from starlette.types import Receive

from service.errors import (
    ClientClosed,
    DeadlineExceeded,
    GenerationFailed,
    NotFound,
    ProblemError,
    status_of,
)
from service.jobs import FailureReason, ImageFormat, Job, JobDone, JobFailed, JobOutcome, job_id
from service.principal import Principal
from service.routes.access import check_model, priority_for
from service.routes.context import AppContext
from service.schemas import Generation
from service.telemetry import new_id

FAILURES: dict[FailureReason, type[ProblemError]] = {
    FailureReason.ENGINE: GenerationFailed,
    FailureReason.ENCODER: GenerationFailed,
    FailureReason.EXPIRED: DeadlineExceeded,
    FailureReason.CANCELLED: ClientClosed,
    FailureReason.DELIVERIES: GenerationFailed,
    FailureReason.LOST: GenerationFailed,
}
_FAILURE_DETAILS: dict[FailureReason, str] = {
    FailureReason.ENGINE: "the engine failed on this picture; the log has the cause",
    FailureReason.ENCODER: "the picture could not be encoded; the log has the cause",
    FailureReason.EXPIRED: "no picture before the deadline",
    FailureReason.CANCELLED: "the client closed the request",
    FailureReason.DELIVERIES: "every worker that drew this picture stopped; it is not tried again",
    FailureReason.LOST: "the queue lost this picture; send the request again",
}


@contextmanager
def admission(context: AppContext) -> Iterator[None]:
    """What lies inside decides whether a request is taken; a refusal there is counted.

    Raises:
        NotReady: the model is loading.
        Draining: the process is about to stop.
    """
    try:
        context.readiness.check()
        yield
    except ProblemError as error:
        context.telemetry.rejected.labels(status_of(error).code).inc()
        raise


async def decode_image(generation: Generation, context: AppContext) -> bytes | None:
    """The picture that a request starts from, as pixels of the wanted size.

    Raises:
        InvalidRequest: it is no picture that is accepted.
        PictureTooLarge: it has too many pixels.
        QueueFull: too many pictures wait to be decoded.
    """
    if generation.image is None:
        return None
    size_px = (generation.key.width, generation.key.height)
    return await context.decoders.decode(generation.image, generation.mask, size_px)


def make_jobs(
    generation: Generation,
    image_format: ImageFormat,
    context: AppContext,
    principal: Principal,
    *,
    image: bytes | None = None,
    is_kept: bool = False,
) -> list[Job]:
    """One job per picture, in its sender's name, due within the settings' deadline.

    All start from the same image. With `is_kept` their outcomes can be read for a while, too.

    Raises:
        Forbidden: the sender may not use the model, or not at this priority.
    """
    check_model(principal, generation.key.model)
    priority = priority_for(principal, generation)
    now_s = context.broker.now_s()
    request = new_id()
    return [
        Job(
            id=job_id(request, index),
            key=generation.key,
            prompt=generation.prompt,
            seed=seed,
            format=image_format,
            created_s=now_s,
            deadline_s=now_s + context.settings.deadline_s,
            quality=generation.quality,
            owner=principal.owner,
            priority=priority,
            num_images=len(generation.seeds),
            keep_s=context.settings.result_ttl_s if is_kept else 0.0,
            secret=secrets.token_urlsafe(24) if is_kept else "",
            image=image,
        )
        for index, seed in enumerate(generation.seeds)
    ]


async def wait_for(
    receive: Receive,
    jobs: Sequence[Job],
    futures: Sequence[asyncio.Future[JobOutcome]],
    context: AppContext,
) -> list[JobDone]:
    """Wait for every picture, the deadline or the client's departure, whichever is first."""
    # One future is everything by itself, and most requests are for one picture.
    everything: asyncio.Future[Any] = futures[0] if len(futures) == 1 else asyncio.gather(*futures)
    note_first = _first_picture(jobs[0].created_s, context)
    for future in futures:
        future.add_done_callback(note_first)
    departure = asyncio.create_task(_departure(receive))
    either: set[asyncio.Future[Any]] = {everything, departure}
    try:
        await asyncio.wait(
            either,
            timeout=jobs[0].deadline_s - context.broker.now_s(),
            return_when=asyncio.FIRST_COMPLETED,
        )
        if not everything.done():
            reason = FailureReason.CANCELLED if departure.done() else FailureReason.EXPIRED
            raise FAILURES[reason](_FAILURE_DETAILS[reason])
        outcomes: list[JobDone] = []
        for outcome in (future.result() for future in futures):
            if isinstance(outcome, JobFailed):
                raise FAILURES[outcome.reason](_FAILURE_DETAILS[outcome.reason])
            outcomes.append(outcome)
        return outcomes
    finally:
        departure.cancel()
        # Also on the way out of a torn-down handler: what nobody waits for must not run.
        if not everything.done():
            num_queued = await context.broker.cancel([job.id for job in jobs])
            context.telemetry.cancelled.labels("queued").inc(num_queued)
            everything.cancel()


def _first_picture(
    created_s: float, context: AppContext
) -> Callable[[asyncio.Future[JobOutcome]], None]:
    """Called with each outcome of a request, notes how long the first picture took."""
    is_noted = False

    def note(future: asyncio.Future[JobOutcome]) -> None:
        nonlocal is_noted
        if not is_noted and not future.cancelled() and isinstance(future.result(), JobDone):
            is_noted = True
            context.telemetry.first_image.observe(context.broker.now_s() - created_s)

    return note


async def _departure(receive: Receive) -> None:
    """Return when the client has gone; its body has been read whole before."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def picture_urls(request: Request, jobs: Sequence[Job], context: AppContext) -> list[str]:
    """Addresses of pictures that are kept.

    Raises:
        NotFound: one had to give way to newer ones already.
    """
    base = (context.settings.public_url or str(request.base_url)).rstrip("/")
    urls: list[str] = []
    for record in await context.broker.find([job.id for job in jobs]):
        if record is None:
            raise NotFound("the picture had to give way to newer ones: ask for b64_json")
        urls.append(f"{base}/v1/images/{record.job.id}.{record.job.secret}")
    return urls


def timing_headers(outcomes: Sequence[JobDone], total_ms: float) -> dict[str, str]:
    """Seed, batch size and the time of every part, of the slowest picture."""
    slowest = max(outcomes, key=lambda done: done.queue_ms + done.run_ms)
    durations = {
        "queue": slowest.queue_ms,
        **slowest.stage_ms,
        "encode": slowest.encode_ms,
        "total": total_ms,
    }
    return {
        "x-onestep-seed": str(outcomes[0].seed),
        "x-onestep-queue-ms": f"{slowest.queue_ms:.1f}",
        "x-onestep-run-ms": f"{slowest.run_ms:.1f}",
        "x-onestep-batch-size": str(slowest.batch_size),
        "server-timing": ", ".join(f"{name};dur={ms:.1f}" for name, ms in durations.items()),
    }
