"""The ASGI application: routes, error handlers, middleware.

Owns composition and what every answer has in common: request id, metrics, problem documents, the
body limit. Middleware is pure ASGI, because a wrapped response stream would hide a client's
departure from the routes. Knows nothing of engines; the worker runs beside it.
"""

from __future__ import annotations

import logging
import re
import time
from typing import cast

import orjson
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.direct import DirectRoutes
from service.errors import (
    BodyTooLarge,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    ProblemError,
    problem_document,
    retry_headers,
    status_of,
)
from service.openai_wire import error_document
from service.routes import generate, health, images, models, playground
from service.routes.context import AppContext
from service.telemetry import Telemetry, log_event, new_id, request_id_var

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
# Clients of this API read errors in its own envelope.
_OPENAI_PATHS = "/v1/images/"
_HTTP_ERRORS: dict[int, type[ProblemError]] = {404: NotFound, 405: MethodNotAllowed}


def create_app(context: AppContext) -> FastAPI:
    """Compose the application around one process's parts."""
    app = FastAPI(title="onestep", description="Pictures from text in one step.", redoc_url=None)
    app.state.context = context
    for module in (generate, images, models, health, playground):
        app.include_router(module.router)
    app.add_exception_handler(ProblemError, _answer_problem)
    app.add_exception_handler(HTTPException, _answer_http_error)
    # The last one added is the outermost.
    app.add_middleware(DirectRoutes, application=app, routers=(generate.router, images.router))
    app.add_middleware(BodyLimitMiddleware, max_body_bytes=context.settings.max_body_bytes)
    app.add_middleware(RequestMiddleware, telemetry=context.telemetry)
    return app


def problem_response(error: ProblemError, scope: Scope) -> Response:
    """The answer for an error; notes its code for the metrics."""
    state = scope["state"]
    row = status_of(error)
    state["reason"] = row.code
    headers = retry_headers(error)
    if isinstance(error, DeadlineExceeded):
        # The client has waited its time; the `openai` one would ask twice more of a busy service.
        headers["x-should-retry"] = "false"
    if isinstance(error, BodyTooLarge):
        # The rest of the body stays unread, so the connection cannot be used again.
        headers["connection"] = "close"
    if scope["path"].startswith(_OPENAI_PATHS):
        document, media_type = error_document(error), "application/json"
    else:
        document = problem_document(error, state["request_id"])
        media_type = "application/problem+json"
    return Response(
        orjson.dumps(document), status_code=row.status, media_type=media_type, headers=headers
    )


async def _answer_problem(request: Request, exc: Exception) -> Response:
    return problem_response(cast(ProblemError, exc), request.scope)


async def _answer_http_error(request: Request, exc: Exception) -> Response:
    """Translate what the router itself raises."""
    error = cast(HTTPException, exc)
    kind = _HTTP_ERRORS.get(error.status_code)
    if kind is None:
        kind = InvalidRequest if error.status_code < 500 else InternalError
    response = problem_response(kind(error.detail), request.scope)
    response.headers.update(error.headers or {})
    return response


class RequestMiddleware:
    """Request id, metrics, and the last resort for an unforeseen exception."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry) -> None:
        self._app = app
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_s = time.perf_counter()
        request_id = _request_id(scope)
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        token = request_id_var.set(request_id)
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", []),
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
            self._telemetry.request_duration.labels(route).observe(time.perf_counter() - started_s)
            request_id_var.reset(token)


def _request_id(scope: Scope) -> str:
    """The client's own id when it is harmless, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            given: str = value.decode("latin-1")
            if _REQUEST_ID.fullmatch(given):
                return given
    return new_id()


class BodyLimitMiddleware:
    """Refuses a body that is too large: by its announced length, else while it arrives."""

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        error = BodyTooLarge(
            f"the body may hold at most {self._max_body_bytes} bytes",
            field="body",
            allowed={"max_bytes": self._max_body_bytes},
        )
        for name, value in scope["headers"]:
            if name == b"content-length" and int(value) > self._max_body_bytes:
                await problem_response(error, scope)(scope, receive, send)
                return
        num_bytes = 0

        async def receive_within_limit() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_body_bytes:
                raise error
            return message

        await self._app(scope, receive_within_limit, send)
