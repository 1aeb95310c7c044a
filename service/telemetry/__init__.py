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

__all__ = [
    "BATCH_BUCKETS",
    "SECONDS_BUCKETS",
    "EngineFacts",
    "FollowedCounter",
    "JsonFormatter",
    "Telemetry",
    "configure_logging",
    "log_event",
    "new_id",
    "prompt_digest",
    "request_id_var",
]
