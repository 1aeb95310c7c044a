"""uvicorn's HTTP/1.1 with bounds on a request's head, problem documents for what is no HTTP, and an
end that breaks no request.

Owns how many bytes a head may hold, how long it may take to arrive, and which heads are refused
that the parser lets through. Without these a client could make the process hold and join header
lines without end, or keep a connection by sending nothing. Bodies are bounded by the application's
middleware. Knows no route.
"""

from __future__ import annotations

import asyncio
import re

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.errors import (
    HeadTooLarge,
    InvalidRequest,
    ProblemError,
    RequestTooSlow,
    problem_document,
    status_of,
)
from service.telemetry import new_id

MAX_HEAD_BYTES = 32 * 1024
MAX_HEADERS = 128
HEAD_TIMEOUT_S = 10.0
# At the end of the process a kept connection stays open for so long: a request may be on its way.
LINGER_S = 1.0
# RFC 3986, section 3.2: the characters of a host and its port.
_HOST = re.compile(rb"[A-Za-z0-9._~%!$&'()*+,;=:\[\]-]*")


class BoundedHttp(HttpToolsProtocol):
    """One connection; give it to `uvicorn.Config` as `http`."""

    _is_in_head = True
    _num_heads = 0
    _num_head_bytes = 0
    _num_parsed_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None
    _refusal: ProblemError | None = None
    _is_ending = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a head."""
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse; refuse a head that has become too large without an end."""
        was_in_head, num_heads = self._is_in_head, self._num_heads
        super().data_received(data)
        if not was_in_head or self._num_heads > num_heads or self.transport.is_closing():
            return
        # What is no whole header yet has not been counted by `on_header`.
        self._num_head_bytes += len(data)
        if self._num_head_bytes > MAX_HEAD_BYTES:
            self._refuse(_too_large())
        elif self._head_timer is None:
            self._start_timer()

    def on_url(self, url: bytes) -> None:
        """Count."""
        super().on_url(url)
        self._check_size(len(self.url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count."""
        super().on_header(name, value)
        self._num_parsed_bytes += len(name) + len(value) + len(": \r\n")
        self._check_size(self._num_parsed_bytes)

    def on_message_begin(self) -> None:
        """Count from nothing."""
        super().on_message_begin()
        self._num_parsed_bytes = 0

    def on_headers_complete(self) -> None:
        """Refuse what HTTP/1.1 forbids and the parser takes; hand the rest on."""
        self._num_heads += 1
        self._is_in_head = False
        self._num_head_bytes = 0
        self._stop_timer()
        hosts = [value for name, value in self.headers if name == b"host"]
        version = self.parser.get_http_version()
        # RFC 9112, section 3.2.
        is_valid_host = len(hosts) == 1 or (not hosts and version == "1.0")
        if version not in ("1.0", "1.1") or not is_valid_host or not all(map(_is_host, hosts)):
            raise ValueError("no valid HTTP/1.1")
        super().on_headers_complete()
        if self._is_ending and self.cycle is not None:
            self.cycle.keep_alive = False

    def shutdown(self) -> None:
        """Close after the next answer, or after a while in which nothing came."""
        self._is_ending = True
        if self.cycle is None or self.cycle.response_complete:
            self.loop.call_later(LINGER_S, self._close_if_idle)
        else:
            self.cycle.keep_alive = False

    def _close_if_idle(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()

    def on_message_complete(self) -> None:
        """Expect the next head."""
        super().on_message_complete()
        self._is_in_head = True

    def send_400_response(self, msg: str) -> None:
        """Answer what the parser or one of the checks above refused."""
        self._refuse(self._refusal or InvalidRequest("the request is not valid HTTP/1.1"))

    def _check_size(self, num_bytes: int) -> None:
        if num_bytes > MAX_HEAD_BYTES or len(self.headers) > MAX_HEADERS:
            self._refusal = _too_large()
            # The parser turns this into its own error, and that into `send_400_response`.
            raise ValueError("head too large")

    def _refuse(self, error: ProblemError) -> None:
        """Answer, unless another answer is on its way, and close."""
        self._stop_timer()
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            row = status_of(error)
            body = orjson.dumps(problem_document(error, request_id := new_id()))
            head = (
                f"HTTP/1.1 {row.status} {row.title}\r\n"
                "content-type: application/problem+json\r\n"
                f"content-length: {len(body)}\r\n"
                f"x-request-id: {request_id}\r\n"
                "connection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        self.transport.close()

    def _start_timer(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._refuse_slow)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse_slow(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            # Some clients send an empty line after a body: the answer before it goes first.
            self._start_timer()
            return
        self._refuse(RequestTooSlow(f"the head must arrive within {HEAD_TIMEOUT_S:g} s"))


def _too_large() -> HeadTooLarge:
    return HeadTooLarge(
        f"request line and headers may hold at most {MAX_HEAD_BYTES} bytes together, "
        f"in at most {MAX_HEADERS} headers",
        allowed={"max_bytes": MAX_HEAD_BYTES, "max_headers": MAX_HEADERS},
    )


def _is_host(value: bytes) -> bool:
    return _HOST.fullmatch(value) is not None
