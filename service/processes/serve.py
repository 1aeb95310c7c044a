"""`onestep serve`: API, page and engine in one process, the queue in memory."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

from service.app import create_app
from service.limits.memory import MemoryLimiter
from service.processes.life import (
    background,
    drain,
    freeze_what_stays,
    on_signals,
    sweep_forever,
)
from service.processes.models import load_models, loaders, watch_bundles
from service.processes.parts import (
    answering_operators,
    context_of,
    memory_broker,
    telemetry_of,
    traced,
)
from service.processes.sockets import address_of, answering
from service.routes.context import Phase
from service.schemas import ModelLimits
from service.settings import Settings
from service.worker import Worker, WorkerOptions

# What a drain may take beyond the last accepted request's deadline.
DRAIN_MARGIN_S = 5.0


async def serve(settings: Settings, listener: socket.socket) -> int:
    """Listen at once, load the models, serve until a signal, drain.

    Raises:
        EnginesError: a model cannot be loaded.
        StartError: two models have one name.
    """
    limits = load_models(settings.model)
    broker = memory_broker(settings)
    context = context_of(settings, limits, broker, MemoryLimiter(), telemetry_of(settings))
    worker = Worker(
        broker,
        loaders(settings, limits, context.telemetry),
        context.telemetry,
        WorkerOptions(settings.max_batch_size, settings.num_encode_threads),
    )
    stop = asyncio.Event()
    on_signals(stop)

    async def reload(bundle: Path) -> None:
        # The engine first: the API then never lets in what the engine cannot draw yet.
        await worker.reload(context.limits.all[settings.model.index(bundle)].name)
        context.limits = load_models(settings.model)

    async with (
        traced(context.telemetry),
        answering(create_app(context), listener, settings) as serving,
        answering_operators(context),
    ):
        await worker.start()
        freeze_what_stays()
        context.readiness.set(Phase.READY, "")
        announce(context.limits, address_of(listener, settings.host))
        working = asyncio.create_task(worker.run())
        stopping = asyncio.create_task(stop.wait())
        sweeping = asyncio.create_task(sweep_forever(broker, context.telemetry, lambda _: None))
        watching = asyncio.create_task(watch_bundles(settings.model, reload))
        async with background(sweeping, watching):
            await asyncio.wait({working, stopping, serving}, return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            context.readiness.set(Phase.DRAINING, "the service is shutting down")
            await broker.close()
            return await drain(working, settings.deadline_s + DRAIN_MARGIN_S)


def announce(limits: ModelLimits, address: str) -> None:
    """Print where the page is and a line that draws a picture."""
    # The line must work as it stands, in a shell and with this model.
    fitting = [
        prompt
        for prompt in (*limits.examples, "a red heart")
        if limits.count_tokens(prompt) <= limits.max_tokens and not set(prompt) & set("'\"\\")
    ]
    body = f'{{"prompt": "{fitting[0] if fitting else "hi"}", "seed": 7}}'
    print(
        f"\nonestep serves {', '.join(one.name for one in limits.all)}\n"
        f"  page  {address}/\n"
        f"  curl  curl -sS {address}/v1/generate -H 'Accept: image/png' "
        f"-H 'Content-Type: application/json' -d '{body}' -o picture.png\n",
        flush=True,
    )
