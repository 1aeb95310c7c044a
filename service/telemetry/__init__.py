"""What the service says about itself: log lines, metrics and traces.

Knows nothing of HTTP, queue or engine.
"""

from service.telemetry.engines import EngineFacts
from service.telemetry.followed import FollowedCounter
from service.telemetry.logs import (
    JsonFormatter,
    configure_logging,
    log_event,
    new_id,
    prompt_digest,
    request_id_var,
)
from service.telemetry.metrics import BATCH_BUCKETS, SECONDS_BUCKETS, Telemetry
from service.telemetry.traces import BatchRun, RequestSpan, Traces, exemplar_of, traceparent_var

__all__ = [
    "BATCH_BUCKETS",
    "SECONDS_BUCKETS",
    "BatchRun",
    "EngineFacts",
    "FollowedCounter",
    "JsonFormatter",
    "RequestSpan",
    "Telemetry",
    "Traces",
    "configure_logging",
    "exemplar_of",
    "log_event",
    "new_id",
    "prompt_digest",
    "request_id_var",
    "traceparent_var",
]
