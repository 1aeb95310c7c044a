"""`onestep api`: API and page; what is to be drawn goes to workers through Redis."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

from service.app import create_app
from service.limits.redis import RedisLimiter
from service.processes.life import (
    background,
    freeze_what_stays,
    on_signals,
    sweep_forever,
    sweep_once,
)
from service.processes.models import load_models, watch_bundles
from service.processes.parts import (
    answering_operators,
    context_of,
    redis_broker,
    telemetry_of,
    traced,
)
from service.processes.serve import announce
from service.processes.sockets import address_of, answering
from service.settings import Settings
from service.telemetry import log_event

# What may pass between a request's deadline and the end of its answer.
FINISH_MARGIN_S = 5.0


async def serve_api(settings: Settings, listener: socket.socket) -> int:
    """Serve until a signal, then until whoever waits has been answered.

    Requests are taken when the queue can be reached, whether or not a worker is there yet.

    Raises:
        EnginesError: a bundle is damaged.
        StartError: no queue is named, or it is too old.
    """
    limits = load_models(settings.model)
    stop = asyncio.Event()
    on_signals(stop)
    telemetry = telemetry_of(settings, is_worker=False)
    async with traced(telemetry), redis_broker(settings, limits) as broker:
        limiter = RedisLimiter(broker.client)
        context = context_of(settings, limits, broker, limiter, telemetry)

        note = context.readiness.follow_queue

        async def reload(bundle: Path) -> None:
            context.limits = load_models(settings.model)

        # Before the first request can come: a process that takes over must not refuse it.
        await sweep_once(broker, context.telemetry, note)
        sweeping = asyncio.create_task(sweep_forever(broker, context.telemetry, note))
        watching = asyncio.create_task(watch_bundles(settings.model, reload))
        async with background(sweeping, watching), answering_operators(context):
            finish_s = settings.deadline_s + FINISH_MARGIN_S
            app = create_app(context)
            freeze_what_stays()
            async with answering(app, listener, settings, finish_s) as serving:
                announce(context.limits, address_of(listener, settings.host))
                stopping = asyncio.create_task(stop.wait())
                await asyncio.wait({stopping, serving}, return_when=asyncio.FIRST_COMPLETED)
                stopping.cancel()
                # No refusals: what arrives on open connections is served while they close, and
                # whoever shares the listening socket takes the new ones.
                log_event("draining")
            await broker.close()
            log_event("drained")
            return 0
