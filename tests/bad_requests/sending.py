"""Puts a row on a socket of its own and takes the time until the whole answer is there.

Owns no judgement but `fault_of`, what is wrong with an answer. Rows travel as the bytes that they
are: a client library would repair or refuse many of them.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import time
from dataclasses import dataclass
from typing import Any

from bad_requests.row import BadRequest

TIMEOUT_S = 10.0
_PIECE_BYTES = 2**16


@dataclass(frozen=True)
class Answer:
    """What came back; status 0 when nothing did."""

    status: int
    headers: dict[str, str]
    body: bytes
    duration_ms: float

    @property
    def document(self) -> dict[str, Any] | None:
        """The problem, from either envelope, as `code` and `field`; None when there is none."""
        kind = self.headers.get("content-type", "")
        if not self.body:
            return None
        if kind == "application/problem+json":
            found: dict[str, Any] = json.loads(self.body)
            return {"code": found["code"], "field": found.get("field")}
        if kind == "application/json" and self.status >= 400:
            found = json.loads(self.body)["error"]
            return {"code": found["code"], "field": found["param"]}
        return None


def send(row: BadRequest, port: int) -> Answer:
    """Send a row and wait for its answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S) as connection:
        if row.before:
            connection.sendall(row.before)
            _read(connection, "GET", 0.0)
        wire = row.on_the_wire()
        started_s = time.perf_counter()
        # Refused before it is whole: the answer lies ready all the same.
        with contextlib.suppress(OSError):
            for start in range(0, len(wire), _PIECE_BYTES):
                connection.sendall(wire[start : start + _PIECE_BYTES])
        try:
            return _read(connection, row.method, started_s)
        except (OSError, http.client.HTTPException):
            return Answer(0, {}, b"", (time.perf_counter() - started_s) * 1000)


def _read(connection: socket.socket, method: str, started_s: float) -> Answer:
    response = http.client.HTTPResponse(connection, method=method)
    response.begin()
    body = response.read()
    duration_ms = (time.perf_counter() - started_s) * 1000
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, headers, body, duration_ms)


def fault_of(row: BadRequest, answer: Answer) -> str | None:
    """What is wrong with an answer; None when it is as the row says."""
    if answer.status != row.status:
        return f"{row.name}: status {answer.status}, not {row.status}: {answer.body[:200]!r}"
    if not row.has_document or row.method == "HEAD":
        return None
    document = answer.document
    if document is None:
        return f"{row.name}: no problem document: {answer.body[:200]!r}"
    if document["field"] != row.field:
        return f"{row.name}: names {document['field']!r}, not {row.field!r}: {answer.body[:200]!r}"
    return None
