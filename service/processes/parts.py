"""The parts that processes with an HTTP side have in common.

Owns their composition: the context, the two ports, the broker that the settings ask for.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from service.app import create_admin_app
from service.brokers.base import Broker
from service.brokers.memory import MemoryBroker
from service.brokers.redis import RedisBroker, RedisOptions
from service.errors import StartError
from service.limits.base import Limiter
from service.processes.sockets import answering, listen
from service.routes.context import AppContext, Readiness
from service.schemas import ModelLimits
from service.settings import Settings
from service.telemetry import Telemetry, Traces, log_event


@contextlib.asynccontextmanager
async def redis_broker(settings: Settings, limits: ModelLimits) -> AsyncIterator[RedisBroker]:
    """The queue that processes share.

    Raises:
        StartError: no address is set, or the server is too old.
    """
    if settings.redis_url is None:
        raise StartError(
            "setting redis_url (ONESTEP_REDIS_URL) is needed, for example "
            "redis://localhost:6379/0; `onestep serve` needs none"
        )
    broker = RedisBroker(
        settings.redis_url.get_secret_value(),
        [one.name for one in limits.all],
        RedisOptions(
            max_depth=settings.max_queue_depth,
            lease_s=settings.lease_s,
            max_deliveries=settings.max_deliveries,
        ),
    )
    try:
        await broker.start()
        yield broker
    finally:
        await broker.stop()


def memory_broker(settings: Settings) -> MemoryBroker:
    """The queue of a process that draws by itself."""
    return MemoryBroker(settings.max_queue_depth, max_kept_bytes=settings.max_kept_bytes)


def context_of(
    settings: Settings,
    limits: ModelLimits,
    broker: Broker,
    limiter: Limiter,
    telemetry: Telemetry,
) -> AppContext:
    """One process's context."""
    return AppContext(settings, limits, broker, telemetry, Readiness(telemetry), limiter)


def telemetry_of(settings: Settings, *, is_api: bool = True, is_worker: bool = True) -> Telemetry:
    """What this process tells of itself, and where its traces go.

    Raises:
        StartError: traces are wanted, and their packages are not installed.
    """
    telemetry = Telemetry(is_api=is_api, is_worker=is_worker)
    telemetry.gpu_hourly_cost.set(settings.gpu_hourly_cost)
    if settings.otel_endpoint is not None:
        service = "onestep" if is_api and is_worker else f"onestep-{'api' if is_api else 'worker'}"
        telemetry.traces = Traces.sent_to(
            settings.otel_endpoint, service, settings.otel_sample_ratio
        )
    return telemetry


@contextlib.asynccontextmanager
async def traced(telemetry: Telemetry) -> AsyncIterator[None]:
    """At the end of the block, send the traces that are left."""
    try:
        yield
    finally:
        if telemetry.traces is not None:
            await asyncio.to_thread(telemetry.traces.close)


@contextlib.asynccontextmanager
async def answering_operators(context: AppContext) -> AsyncIterator[None]:
    """Answer on the operators' own port, where one is set."""
    settings = context.settings
    if settings.admin_port is None:
        yield
        return
    with listen(settings.admin_host, settings.admin_port, "ONESTEP_ADMIN_") as listener:
        async with answering(create_admin_app(context), listener, settings):
            log_event("metrics_served", host=settings.admin_host, port=listener.getsockname()[1])
            yield
