"""What every process does between its start and its end.

Owns signals, what the garbage collector looks at, the regular sweep of the queue and the drain.
Knows the broker's protocol.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable

from service.brokers.base import Broker
from service.errors import QueueUnavailable
from service.routes.context import sweep
from service.tasks import end_tasks
from service.telemetry import Telemetry, log_event

EXIT_FAILED = 1
SWEEP_S = 1.0


def loop_factory() -> type[asyncio.AbstractEventLoop] | None:
    """uvloop where it exists (it has no Windows build), else asyncio's own loop."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.Loop


def freeze_what_stays() -> None:
    """Let the garbage collector look no more at what the start has made.

    Modules, routes and models are some hundred thousand objects that live as long as the process.
    A full collection visits each of them, which takes a tenth of a second without the interpreter
    doing anything else: four batches' time in which nobody is answered.
    """
    gc.collect()
    gc.freeze()


def on_signals(stop: asyncio.Event) -> None:
    """The first signal asks for a drain, a second one ends the process at once."""

    def handle(number: int) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, handle, number)


@contextlib.asynccontextmanager
async def background(*tasks: asyncio.Task[None]) -> AsyncIterator[None]:
    """Let tasks run until the end of the block."""
    try:
        yield
    finally:
        await end_tasks(*tasks)


Note = Callable[[QueueUnavailable | None], None]


async def sweep_once(broker: Broker, telemetry: Telemetry, note: Note) -> None:
    """Sweep the queue, and say whether it could be reached."""
    try:
        await sweep(broker, telemetry)
    except QueueUnavailable as error:
        note(error)
    else:
        note(None)


async def sweep_forever(broker: Broker, telemetry: Telemetry, note: Note) -> None:
    """Sweep the queue every second."""
    while True:
        await sweep_once(broker, telemetry, note)
        await asyncio.sleep(SWEEP_S)


async def drain(working: asyncio.Task[None], timeout_s: float) -> int:
    """Wait until everything in hand has been delivered; returns the exit status."""
    log_event("draining")
    await asyncio.wait({working}, timeout=timeout_s)
    if not working.done():
        log_event("drain_timed_out", level=logging.ERROR, timeout_s=timeout_s)
        return EXIT_FAILED
    if (error := working.exception()) is not None:
        log_event("worker_failed", level=logging.ERROR, exc=error)
        return EXIT_FAILED
    log_event("drained")
    return 0
