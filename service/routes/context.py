"""What the routes share, handed over once by whoever composes the process.

Owns the process's phase as the outside sees it. Knows no web framework.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property

from service.auth import KeyRing
from service.brokers.base import Broker
from service.errors import Draining, NotReady, QueueUnavailable
from service.job_webhooks import JobWebhooks
from service.jobs import FailureReason
from service.limits.base import Limiter
from service.limits.memory import MemoryLimiter
from service.principal import Allowance, Principal
from service.routes.turns import Turns
from service.schemas import ModelLimits
from service.settings import Settings
from service.telemetry import Telemetry
from service.uploads.pool import PictureDecoders
from service.webhooks.delivery import Webhooks

# A model loads within seconds; a client that comes back then finds it ready.
NOT_READY_RETRY_S = 2.0
# Long enough for a supervisor to have started the next process.
DRAINING_RETRY_S = 5.0


class Phase(StrEnum):
    """Where the process is in its life."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


class Readiness:
    """Whether requests are accepted and, if not, why."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self.set(Phase.STARTING, "the model is loading")

    def set(self, phase: Phase, reason: str) -> None:
        """Enter a phase."""
        self.phase = phase
        self.reason = reason
        self._telemetry.ready.set(phase is Phase.READY)

    def follow_queue(self, error: QueueUnavailable | None) -> None:
        """Be ready while the queue can be reached, unless the process is about to stop."""
        if self.phase is not Phase.DRAINING:
            phase = Phase.READY if error is None else Phase.STARTING
            self.set(phase, "" if error is None else error.detail)

    def check(self) -> None:
        """Return when requests are accepted.

        Raises:
            NotReady: the model is loading.
            Draining: the process is about to stop.
        """
        if self.phase is Phase.STARTING:
            raise NotReady(self.reason, retry_after_s=NOT_READY_RETRY_S)
        if self.phase is Phase.DRAINING:
            raise Draining(self.reason, retry_after_s=DRAINING_RETRY_S)


async def sweep(broker: Broker, telemetry: Telemetry) -> None:
    """End what is overdue, and show how the queue stands.

    Raises:
        QueueUnavailable: it cannot be reached.
    """
    try:
        depth = await broker.sweep()
    except QueueUnavailable:
        telemetry.queue_up.set(0)
        raise
    finally:
        _show_store(broker, telemetry)
    telemetry.queue_up.set(1)
    telemetry.queue_depth.set(depth.num_jobs)
    telemetry.queue_oldest_age.set(depth.oldest_age_s)
    telemetry.failed.labels(FailureReason.EXPIRED).inc(depth.num_expired)
    telemetry.workers.set(1 if depth.num_workers is None else depth.num_workers)
    telemetry.heartbeat_age.set(depth.heartbeat_age_s)
    telemetry.redelivered.reach(depth.counts.num_redelivered)
    telemetry.dead_letter.reach(depth.counts.num_dead)
    telemetry.late.reach(depth.counts.num_late)


def _show_store(broker: Broker, telemetry: Telemetry) -> None:
    store = broker.store
    if store is not None:
        telemetry.store_memory.labels("used").set(store.used_bytes)
        telemetry.store_memory.labels("max").set(store.max_bytes)
        telemetry.store_persists.set(store.is_persistent)


@dataclass
class AppContext:
    """The parts of one process, as `app.state.context`.

    `limits` is replaced when a bundle is; a request keeps what it was checked against.
    """

    settings: Settings
    limits: ModelLimits
    broker: Broker
    telemetry: Telemetry
    readiness: Readiness
    limiter: Limiter = field(default_factory=MemoryLimiter)

    @cached_property
    def anonymous(self) -> Principal:
        """Everyone, where no keys are asked: all share the settings' allowance."""
        settings = self.settings
        return Principal(
            allowance=Allowance(
                settings.rate_pixel_steps_per_s,
                settings.burst_pixel_steps,
                settings.daily_pixel_steps,
                settings.max_open_pictures,
            )
        )

    @cached_property
    def keys(self) -> KeyRing | None:
        """The API keys, or None where none are asked.

        Raises:
            StartError: their file is missing or damaged.
        """
        path = self.settings.keys_file
        return None if path is None else KeyRing(path, self.anonymous.allowance)

    @cached_property
    def job_webhooks(self) -> JobWebhooks | None:
        """Tells other services of jobs' ends, or None where that is not wanted.

        Raises:
            StartError: a setting is malformed, or there is no secret.
        """
        if not self.settings.webhooks:
            return None
        webhooks = Webhooks.from_settings(self.settings, self.telemetry)
        return JobWebhooks(self.broker, webhooks, self.settings.public_url or "")

    @cached_property
    def streams(self) -> set[object]:
        """The event streams that are open."""
        return set()

    @cached_property
    def connections(self) -> set[object]:
        """The realtime connections that are open."""
        return set()

    @cached_property
    def turns(self) -> Turns:
        """The realtime connections that wait for room in the queue."""
        return Turns()

    @cached_property
    def decoders(self) -> PictureDecoders:
        """Processes that decode the pictures of clients."""
        return PictureDecoders(self.settings.max_upload_px, self.settings.num_picture_decoders)
