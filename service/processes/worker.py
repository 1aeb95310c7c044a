"""`onestep worker`: an engine that draws what API processes queue in Redis.

It listens on the operators' port only: whether it is alive, whether it is ready, its metrics.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from service.errors import QueueUnavailable
from service.processes.life import background, drain, freeze_what_stays, on_signals, sweep_forever
from service.processes.models import load_models, loaders, watch_bundles
from service.processes.parts import redis_broker, telemetry_of, traced
from service.processes.sockets import answering, listen
from service.routes.context import Phase, Readiness
from service.routes.metrics import exposition
from service.settings import Settings
from service.telemetry import Telemetry, log_event
from service.worker import Worker, WorkerOptions

# A batch in hand takes less; what it overruns is handed back.
DRAIN_S = 30.0


async def work(settings: Settings) -> int:
    """Load the models, draw until a signal, finish what is in hand.

    Raises:
        EnginesError: a model cannot be loaded.
        StartError: no queue is named, or it is too old.
    """
    limits = load_models(settings.model)
    stop = asyncio.Event()
    on_signals(stop)
    telemetry = telemetry_of(settings, is_api=False)
    readiness = Readiness(telemetry)
    async with traced(telemetry), redis_broker(settings, limits) as broker:
        worker = Worker(
            broker,
            loaders(settings, limits, telemetry),
            telemetry,
            WorkerOptions(settings.max_batch_size, settings.num_encode_threads, settings.lease_s),
        )
        names = dict(zip(settings.model, (one.name for one in limits.all), strict=True))

        async def reload(bundle: Path) -> None:
            await worker.reload(names[bundle])

        async with _answering_operators(worker, readiness, telemetry, settings):
            await worker.start()
            freeze_what_stays()
            log_event("worker_ready", models=list(names.values()))
            working = asyncio.create_task(worker.run())
            stopping = asyncio.create_task(stop.wait())
            sweeping = asyncio.create_task(sweep_forever(broker, telemetry, readiness.follow_queue))
            watching = asyncio.create_task(watch_bundles(settings.model, reload))
            async with background(sweeping, watching):
                await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
                stopping.cancel()
                readiness.set(Phase.DRAINING, "the worker is shutting down")
                await broker.close()
                status = await drain(working, min(DRAIN_S, settings.max_run_s))
                with contextlib.suppress(QueueUnavailable):
                    await worker.hand_back()
                return status


@contextlib.asynccontextmanager
async def _answering_operators(
    worker: Worker, readiness: Readiness, telemetry: Telemetry, settings: Settings
) -> AsyncIterator[None]:
    """Answer probes and scrapes, where a port is set."""
    if settings.admin_port is None:
        yield
        return

    async def livez(request: Request) -> Response:
        # The loop may turn while the engine hangs; never a look at the queue: a restart would not
        # bring that back.
        if worker.busy_s > settings.max_run_s:
            reason = f"the engine has been in one run for {worker.busy_s:.0f} s"
            return JSONResponse({"status": "stuck", "reason": reason}, 503)
        return JSONResponse({"status": "ok"})

    async def readyz(request: Request) -> Response:
        if readiness.phase is Phase.READY:
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": readiness.phase, "reason": readiness.reason}, 503)

    async def metrics(request: Request) -> Response:
        return exposition(request, telemetry)

    app = Starlette(
        routes=[Route("/livez", livez), Route("/readyz", readyz), Route("/metrics", metrics)]
    )
    with listen(settings.admin_host, settings.admin_port, "ONESTEP_ADMIN_") as listener:
        async with answering(app, listener, settings):
            log_event("probes_served", host=settings.admin_host, port=listener.getsockname()[1])
            yield
