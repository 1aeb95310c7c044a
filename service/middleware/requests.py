"""What every answer has in common: request id, security headers, metrics, the last resort.

Owns the outermost layer around the application, for requests and for WebSockets.
"""

from __future__ import annotations

import contextlib
import logging
import re
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import InternalError
from service.middleware.problems import problem_response
from service.telemetry import (
    RequestSpan,
    Telemetry,
    exemplar_of,
    log_event,
    new_id,
    request_id_var,
    traceparent_var,
)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
# On every answer. How long browsers insist on TLS is for the proxy to say that speaks it.
_SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
)


class RequestMiddleware:
    """Request id, security headers, metrics, and the last resort for an unforeseen exception.

    Headers that a route leaves in `scope["state"]["headers"]` go out with whatever is answered.
    """

    def __init__(self, app: ASGIApp, telemetry: Telemetry) -> None:
        self._app = app
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "websocket":
            await self._serve_connection(scope, receive, send)
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_s = time.perf_counter()
        request_id = _request_id(scope)
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        token = request_id_var.set(request_id)
        span = self._begin_span(scope)
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = message.get("headers", [])
                given = {name for name, _ in headers}
                message["headers"] = [
                    *headers,
                    *(header for header in _SECURITY_HEADERS if header[0] not in given),
                    *state.get("headers", ()),
                    (b"x-request-id", request_id.encode("ascii")),
                ]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            log_event("request_failed", level=logging.ERROR, exc=error, path=scope["path"])
            if status:  # the answer has begun: all that is left is to break it off
                raise
            response = problem_response(InternalError("an unforeseen error"), scope)
            await response(scope, receive, send_with_id)
        finally:
            # Only known paths become labels: the set must stay bounded.
            route = getattr(scope.get("route"), "path", "unmatched")
            reason = state.get("reason", "ok")
            self._telemetry.requests.labels(route, str(status), reason).inc()
            duration_s = time.perf_counter() - started_s
            exemplar = None
            if span is not None:
                span.end(route, status, reason)
                exemplar = exemplar_of(span.traceparent)
            self._telemetry.request_duration.labels(route).observe(duration_s, exemplar)
            request_id_var.reset(token)

    def _begin_span(self, scope: Scope) -> RequestSpan | None:
        """What the request's jobs will name, where traces are kept."""
        if self._telemetry.traces is None:
            return None
        sent = next((value for name, value in scope["headers"] if name == b"traceparent"), b"")
        span = self._telemetry.traces.request(scope["method"], sent.decode("latin-1"))
        traceparent_var.set(span.traceparent)
        return span

    async def _serve_connection(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one WebSocket; what it counts it counts itself, as it lasts for many answers."""
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        token = request_id_var.set(request_id)

        async def send_with_id(message: Message) -> None:
            if message["type"] in ("websocket.accept", "websocket.http.response.start"):
                message["headers"] = [
                    *message.get("headers", []),
                    (b"x-request-id", request_id.encode("ascii")),
                ]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            log_event("connection_failed", level=logging.ERROR, exc=error, path=scope["path"])
            # It may be closed already, or gone.
            with contextlib.suppress(RuntimeError, OSError):
                await send({"type": "websocket.close", "code": 1011})
        finally:
            request_id_var.reset(token)


def _request_id(scope: Scope) -> str:
    """The client's own id when it is harmless, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            given: str = value.decode("latin-1")
            if _REQUEST_ID.fullmatch(given):
                return given
    return new_id()
