"""Log lines: one JSON object per event, with the request's id.

Owns the format and the ids. No prompt is logged at INFO or above: where lines about one prompt must
be found again, its digest stands for it.
"""

from __future__ import annotations

import hashlib
import logging
import random
import sys
from contextvars import ContextVar

import orjson

request_id_var: ContextVar[str] = ContextVar("request_id", default="")
_LOGGER_NAME = "onestep"


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


def prompt_digest(prompt: str) -> str:
    """What stands for a prompt in a log: equal for equal prompts, and it tells nothing else."""
    return hashlib.sha256(prompt.encode()).hexdigest()[:12]
