"""`onestep api`: API and page; what is to be drawn goes to workers through Redis."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

from service.app import create_app
from service.errors import QueueUnavailable
from service.limits.redis import RedisLimiter
from service.processes.life import background, drain, on_signals, sweep_forever
from service.processes.models import load_models, watch_bundles
from service.processes.parts import answering_operators, context_of, redis_broker
from service.processes.serve import announce
from service.processes.sockets import address_of, answering
from service.routes.context import Phase
from service.settings import Settings
from service.telemetry import Telemetry

DRAIN_MARGIN_S = 5.0


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
    async with redis_broker(settings, limits) as broker:
        limiter = RedisLimiter(broker.client)
        context = context_of(settings, limits, broker, limiter, Telemetry(is_worker=False))

        def note(error: QueueUnavailable | None) -> None:
            if context.readiness.phase is not Phase.DRAINING:
                phase = Phase.READY if error is None else Phase.STARTING
                context.readiness.set(phase, "" if error is None else error.detail)

        async def reload(bundle: Path) -> None:
            context.limits = load_models(settings.model)

        sweeping = asyncio.create_task(sweep_forever(broker, context.telemetry, note))
        watching = asyncio.create_task(watch_bundles(settings.model, reload))
        async with (
            answering(create_app(context), listener, settings) as serving,
            answering_operators(context),
            background(sweeping, watching),
        ):
            announce(context.limits, address_of(listener, settings.host))
            stopping = asyncio.create_task(stop.wait())
            await asyncio.wait({stopping, serving}, return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            context.readiness.set(Phase.DRAINING, "the service is shutting down")
            await broker.close()
            waiting = asyncio.create_task(broker.all_told())
            return await drain(waiting, settings.deadline_s + DRAIN_MARGIN_S)
