"""Prometheus metrics: their names, buckets and labels.

Owns every metric of a process, in the groups that a process may show: what it knows as the API, as
a worker, and of the queue that both see. A label takes few values, all known in advance wherever a
ratio is made of them; prompt, seed, key and job id never become one.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)
from prometheus_client.exposition import choose_encoder

from service.errors import STATUS_TABLE
from service.telemetry.engines import EngineCollector
from service.telemetry.followed import FollowedCounter
from service.telemetry.traces import Traces

# When each series began is known to whoever scrapes it, and would be a series more.
disable_created_metrics()  # type: ignore[no-untyped-call]  # it has no annotations

# 1 ms to 60 s: fine where a one-step picture falls, and an edge at each promised time.
SECONDS_BUCKETS = (
    *(0.001, 0.0015, 0.002, 0.003, 0.004, 0.006, 0.008, 0.012, 0.016, 0.025, 0.035, 0.05, 0.075),
    *(0.1, 0.15, 0.25, 0.35, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 30.0, 60.0),
)
BATCH_BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)


class _Group:
    """Makes metrics that are shown, or only counted when this process does not know them."""

    def __init__(self, registry: CollectorRegistry | None) -> None:
        self._registry = registry

    def counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"onestep_{name}", text, labels, registry=self._registry)

    def gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"onestep_{name}", text, labels, registry=self._registry)

    def histogram(
        self,
        name: str,
        text: str,
        *labels: str,
        buckets: tuple[float, ...] = SECONDS_BUCKETS,
    ) -> Histogram:
        return Histogram(f"onestep_{name}", text, labels, buckets=buckets, registry=self._registry)


class Telemetry:
    """One registry and its metrics; a process has one, a test makes its own."""

    def __init__(self, *, is_api: bool = True, is_worker: bool = True) -> None:
        """Show what an API process knows, what a worker knows, or both."""
        self.registry = CollectorRegistry()
        both = _Group(self.registry)
        self.ready = both.gauge("ready", "1 when work is accepted.")
        self.failed = both.counter("failed_total", "Jobs without a picture.", "reason")
        self.cancelled = both.counter(
            "cancelled_total", "Jobs given up by their client, by how far they had come.", "phase"
        )
        self._define_queue(both)
        # Who is both keeps the queue in its own memory.
        self._define_store(_Group(None if is_api and is_worker else self.registry))
        self._define_api(_Group(self.registry if is_api else None))
        self._define_worker(_Group(self.registry if is_worker else None))
        # Set where the process's settings name a receiver.
        self.traces: Traces | None = None
        self.engines = EngineCollector()
        if is_worker:
            self.registry.register(self.engines)

    def _define_queue(self, group: _Group) -> None:
        """What every process sees of the queue: the same everywhere, so take its maximum."""
        self.queue_up = group.gauge("queue_up", "0 when the last look at the queue failed.")
        # A model may load for minutes before the first look: that is no failure.
        self.queue_up.set(1)
        self.queue_depth = group.gauge("queue_depth", "Accepted jobs without an outcome.")
        self.queue_oldest_age = group.gauge(
            "queue_oldest_age_seconds", "Age of the oldest open job."
        )
        self.workers = group.gauge("workers", "Workers that gave a sign of life lately.")
        self.heartbeat_age = group.gauge(
            "worker_heartbeat_age_seconds",
            "Since the last sign of life of the worker that has been silent longest.",
        )
        self.redelivered = FollowedCounter(
            group.counter(
                "redelivered_total", "Jobs handed out again after their worker's silence."
            )
        )
        self.dead_letter = FollowedCounter(
            group.counter("dead_letter_total", "Jobs given up after their last delivery.")
        )
        self.late = FollowedCounter(
            group.counter(
                "late_total", "Outcomes that came after the job's end, or after a newer delivery."
            )
        )

    def _define_store(self, group: _Group) -> None:
        """The server that keeps a shared queue, as its own answer tells."""
        self.store_memory = group.gauge(
            "redis_memory_bytes", "Memory of the queue's server; max is 0 without a limit.", "kind"
        )
        self.store_persists = group.gauge(
            "redis_persists", "0 when the queue's server could not write to its disk."
        )
        self.store_persists.set(1)

    def _define_api(self, group: _Group) -> None:
        self.requests = group.counter(
            "requests_total",
            "HTTP requests by route, status and reason.",
            "route",
            "code",
            "reason",
        )
        self.request_duration = group.histogram(
            "request_duration_seconds", "HTTP request time.", "route"
        )
        self.first_image = group.histogram(
            "time_to_first_image_seconds", "From a request's jobs to the first picture of them."
        )
        self.rejected = group.counter(
            "rejected_total", "Requests refused before queueing.", "reason"
        )
        self.webhooks = group.counter(
            "webhooks_total", "Webhooks that came to an end, by how.", "result"
        )
        self.webhook_tries = group.counter(
            "webhook_tries_total",
            "Tries to deliver a webhook, by the answer: 2xx to 5xx, none or blocked.",
            "answer",
        )
        self.webhooks_open = group.gauge("webhooks_open", "Webhooks accepted and not at their end.")
        self.realtime_connections = group.gauge(
            "realtime_connections", "Open realtime connections."
        )
        self.realtime_closed = group.counter(
            "realtime_closed_total", "Realtime connections by why they ended.", "reason"
        )
        self.realtime_messages = group.counter(
            "realtime_messages_total",
            "Realtime messages: drawn, stale (dropped for a newer one), delayed by a full queue, "
            "or answered by a problem, by its code.",
            "outcome",
        )
        for outcome in ("drawn", "stale", "delayed"):
            self.realtime_messages.labels(outcome)

    def _define_worker(self, group: _Group) -> None:
        self.queue_wait = group.histogram(
            "queue_wait_seconds", "From accepted to dispatched.", "priority"
        )
        self.batch_size = group.histogram("batch_size", "Jobs per batch.", buckets=BATCH_BUCKETS)
        self.batch_close = group.counter(
            "batch_close_total", "Batches by why they took no more.", "reason"
        )
        self.batch_retry = group.counter(
            "batch_retry_total", "Batches split after an engine error."
        )
        self.stage_duration = group.histogram(
            "stage_duration_seconds", "Time per batch and stage; encode is per picture.", "stage"
        )
        self.images = group.counter("images_total", "Pictures delivered.")
        self.engine_busy = group.counter("engine_busy_seconds_total", "Time the engine ran.")
        self.engine_run_age = group.gauge(
            "engine_run_age_seconds", "How long the engine has been in its present run."
        )
        self.gpu_hourly_cost = group.gauge(
            "gpu_hourly_cost", "What an hour of this worker costs, as the settings say."
        )

    def expose(self, accept: str) -> tuple[bytes, str]:
        """All metrics in the format that a scraper asks for, and its media type.

        OpenMetrics carries exemplars; the plain text format cannot.
        """
        encode, media_type = choose_encoder(accept)
        return encode(self.registry), media_type

    def expect_routes(self, routes: Iterable[str], drawing: Iterable[str]) -> None:
        """Begin every route's series at 0; of those that draw, every refusal's too."""
        self.cancelled.labels("queued")
        for route in routes:
            self.requests.labels(route, "200", "ok")
            self.request_duration.labels(route)
        for row in STATUS_TABLE.values():
            self.rejected.labels(row.code)
            for route in drawing:
                self.requests.labels(route, str(row.status), row.code)
