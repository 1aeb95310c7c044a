"""What the service says about itself: JSON log lines and Prometheus metrics.

Owns metric names, buckets and the log format. A prompt, seed or job id never becomes a label, and
no prompt is logged at INFO or above. Knows nothing of HTTP, queue or engine.
"""

from __future__ import annotations

import logging
import random
import sys
from contextvars import ContextVar

import orjson
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

# 1 ms to 10 s in steps of roughly two, fine where a one-step picture falls.
SECONDS_BUCKETS = (
    *(0.001, 0.002, 0.003, 0.005, 0.008, 0.012, 0.02, 0.03, 0.05, 0.08),
    *(0.12, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0),
)
BATCH_BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)

request_id_var: ContextVar[str] = ContextVar("request_id", default="")
_LOGGER_NAME = "onestep"


class Telemetry:
    """One registry and its metrics; a process has one, a test makes its own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counter(
            "t2i_requests_total",
            "HTTP requests by route, status and reason.",
            ["route", "code", "reason"],
            registry=registry,
        )
        self.request_duration = Histogram(
            "t2i_request_duration_seconds",
            "HTTP request time.",
            ["route"],
            buckets=SECONDS_BUCKETS,
            registry=registry,
        )
        self.queue_wait = Histogram(
            "t2i_queue_wait_seconds",
            "From accepted to dispatched.",
            buckets=SECONDS_BUCKETS,
            registry=registry,
        )
        self.queue_depth = Gauge(
            "t2i_queue_depth", "Accepted jobs without an outcome.", registry=registry
        )
        self.queue_oldest_age = Gauge(
            "t2i_queue_oldest_age_seconds", "Age of the oldest open job.", registry=registry
        )
        self.batch_size = Histogram(
            "t2i_batch_size", "Jobs per batch.", buckets=BATCH_BUCKETS, registry=registry
        )
        self.batch_close = Counter(
            "t2i_batch_close_total",
            "Batches by why they took no more.",
            ["reason"],
            registry=registry,
        )
        self.batch_retry = Counter(
            "t2i_batch_retry_total", "Batches split after an engine error.", registry=registry
        )
        self.stage_duration = Histogram(
            "t2i_stage_duration_seconds",
            "Time per batch and stage.",
            ["stage"],
            buckets=SECONDS_BUCKETS,
            registry=registry,
        )
        self.images = Counter("t2i_images_total", "Pictures delivered.", registry=registry)
        self.rejected = Counter(
            "t2i_rejected_total",
            "Requests refused before queueing.",
            ["reason"],
            registry=registry,
        )
        self.cancelled = Counter(
            "t2i_cancelled_total",
            "Jobs given up by their client, by how far they had come.",
            ["phase"],
            registry=registry,
        )
        self.failed = Counter(
            "t2i_failed_total", "Jobs without a picture.", ["reason"], registry=registry
        )
        self.webhooks = Counter(
            "t2i_webhooks_total",
            "Webhooks that came to an end, by how.",
            ["result"],
            registry=registry,
        )
        self.webhook_tries = Counter(
            "t2i_webhook_tries_total",
            "Tries to deliver a webhook, by the answer: 2xx to 5xx, none or blocked.",
            ["answer"],
            registry=registry,
        )
        self.webhooks_open = Gauge(
            "t2i_webhooks_open", "Webhooks accepted and not at their end.", registry=registry
        )
        self.realtime_connections = Gauge(
            "t2i_realtime_connections", "Open realtime connections.", registry=registry
        )
        self.realtime_closed = Counter(
            "t2i_realtime_closed_total",
            "Realtime connections by why they ended.",
            ["reason"],
            registry=registry,
        )
        self.realtime_messages = Counter(
            "t2i_realtime_messages_total",
            "Realtime messages: drawn, stale (dropped for a newer one), delayed by a full queue, "
            "or answered by a problem, by its code.",
            ["outcome"],
            registry=registry,
        )
        self.ready = Gauge("t2i_ready", "1 when requests are accepted.", registry=registry)


def new_id() -> str:
    """128 random bits as text.

    Not from the system's generator: each of its calls lets go of the interpreter, and getting it
    back takes longer than the rest of a request. So an id must never serve as a secret.
    """
    return f"{random.getrandbits(128):032x}"


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, event, request id, fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Render a record; fields come from `log_event`."""
        line: dict[str, object] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{int(record.msecs):03d}",
            "level": record.levelname,
            "logger": record.name,
            "event": record.getMessage(),
        }
        request_id = request_id_var.get()
        if request_id:
            line["request_id"] = request_id
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


def configure_logging(level: str) -> None:
    """Send every logger of the process to stderr as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger(_LOGGER_NAME).setLevel(level)


def log_event(
    event: str, *, level: int = logging.INFO, exc: BaseException | None = None, **fields: object
) -> None:
    """Write one event with its fields."""
    logger = logging.getLogger(_LOGGER_NAME)
    if logger.isEnabledFor(level):
        logger.log(level, event, extra={"fields": fields}, exc_info=exc)
