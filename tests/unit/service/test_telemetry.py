"""Log lines are one JSON object each, whatever they carry."""

from __future__ import annotations

import json
import logging
import sys

from service.telemetry import JsonFormatter, log_event, new_id, request_id_var


class _Lines(logging.Handler):
    """Keeps what it formats."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JsonFormatter())
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


def _logged(level: int = logging.INFO, **fields: object) -> list[str]:
    logger = logging.getLogger("onestep")
    handler = _Lines()
    old_level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        log_event("happened", level=level, **fields)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(old_level)
    return handler.lines


def test_fields_and_request_id_are_on_the_line() -> None:
    token = request_id_var.set("r-1")
    try:
        (line,) = _logged(batch_size=3, error=ValueError)
    finally:
        request_id_var.reset(token)
    logged = json.loads(line)
    assert logged["event"] == "happened"
    assert logged["level"] == "INFO"
    assert (logged["batch_size"], logged["request_id"]) == (3, "r-1")
    assert "ValueError" in logged["error"]


def test_an_exception_stays_on_one_line() -> None:
    record = logging.LogRecord("onestep", logging.ERROR, "", 0, "failed", None, None)
    try:
        raise RuntimeError("two\nlines")
    except RuntimeError:
        record.exc_info = sys.exc_info()
    line = JsonFormatter().format(record)
    assert "\n" not in line
    assert "RuntimeError: two\nlines" in json.loads(line)["exception"]


def test_what_is_below_the_level_costs_no_line() -> None:
    assert _logged(level=logging.DEBUG) == []


def test_ids_are_128_bits_and_differ() -> None:
    ids = {new_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert {len(value) for value in ids} == {32}
