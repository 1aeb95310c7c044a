"""What every surface does between a request's jobs and its answer.

Owns what counts as a refusal, the wait for outcomes with the deadline and the client's departure,
and what an answer tells of them. Knows the broker's protocol, neither a wire format nor an engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from starlette.requests import Request
from starlette.types import Receive

from service.errors import ClientClosed, DeadlineExceeded, NotFound, ProblemError, status_of
from service.job_documents import failure
from service.jobs import Job, JobDone, JobFailed, JobOutcome
from service.routes.access import Accepted
from service.routes.context import AppContext
from service.telemetry import exemplar_of


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


async def wait_for(receive: Receive, accepted: Accepted, context: AppContext) -> list[JobDone]:
    """Wait for every picture, the deadline or the client's departure, whichever is first."""
    jobs, futures = accepted.jobs, accepted.futures
    # One future is everything by itself, and most requests are for one picture.
    everything: asyncio.Future[Any] = futures[0] if len(futures) == 1 else asyncio.gather(*futures)
    note_first = _first_picture(jobs[0], context)
    for future in futures:
        future.add_done_callback(note_first)
    departure = asyncio.create_task(_departure(receive))
    departure.add_done_callback(lambda _: everything.cancel())
    # Who joins a job that may take longer waits no longer than for one of its own.
    patience_s = min(jobs[0].deadline_s - context.broker.now_s(), context.settings.deadline_s)
    is_over = False
    try:
        # Not `asyncio.wait` for whichever is first: its turn of the event loop more is one in
        # which an answer lies there.
        async with asyncio.timeout(patience_s):
            await everything
        is_over = True
        outcomes: list[JobDone] = []
        for outcome in (future.result() for future in futures):
            if isinstance(outcome, JobFailed):
                raise failure(outcome.reason)
            outcomes.append(outcome)
        return outcomes
    except TimeoutError:
        raise DeadlineExceeded("no picture before the deadline") from None
    except asyncio.CancelledError:
        if not departure.done():
            raise
        raise ClientClosed("the client closed the request") from None
    finally:
        departure.cancel()
        # Also on the way out of a torn-down handler: what nobody waits for must not run.
        if not is_over and not accepted.is_shared:
            num_queued = await context.broker.cancel([job.id for job in jobs])
            context.telemetry.cancelled.labels("queued").inc(num_queued)
        context.turns.note_room(len(jobs))


def _first_picture(job: Job, context: AppContext) -> Callable[[asyncio.Future[JobOutcome]], None]:
    """Called with each outcome of a request, notes how long the first picture took."""
    is_noted = False

    def note(future: asyncio.Future[JobOutcome]) -> None:
        nonlocal is_noted
        if not is_noted and not future.cancelled() and isinstance(future.result(), JobDone):
            is_noted = True
            took_s = context.broker.now_s() - job.created_s
            context.telemetry.first_image.observe(took_s, exemplar_of(job.traceparent))

    return note


async def _departure(receive: Receive) -> None:
    """Return when the client has gone; its body has been read whole before."""
    while (await receive())["type"] != "http.disconnect":
        pass


def base_url(request: Request, context: AppContext) -> str:
    """What addresses of this service begin with, without a slash at the end."""
    return (context.settings.public_url or str(request.base_url)).rstrip("/")


async def picture_urls(request: Request, jobs: Sequence[Job], context: AppContext) -> list[str]:
    """Addresses of pictures that are kept.

    Raises:
        NotFound: one had to give way to newer ones already.
    """
    base = base_url(request, context)
    urls: list[str] = []
    for record in await context.broker.find([job.id for job in jobs], with_pictures=False):
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
