"""The ASGI application: routes, error handlers, middleware.

Owns composition and what every answer has in common: request id, metrics, problem documents, the
body limit. Middleware is pure ASGI, because a wrapped response stream would hide a client's
departure from the routes. Knows nothing of engines; the worker runs beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import orjson
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Lifespan, Message, Receive, Scope, Send

from service.direct import DirectRoutes
from service.errors import (
    BodyTooLarge,
    ClientClosed,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    ProblemError,
    QueueFull,
    QuotaExceeded,
    RequestTooSlow,
    Unauthorized,
    problem_document,
    retry_headers,
    status_of,
)
from service.middleware import AuthMiddleware, cors_options
from service.openai_wire.answers import error_document
from service.routes import (
    docs,
    generate,
    health,
    images,
    jobs,
    metrics,
    models,
    playground,
    realtime,
)
from service.routes.context import AppContext
from service.settings import Settings
from service.telemetry import Telemetry, log_event, new_id, request_id_var

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
# Clients of this API read errors in its own envelope.
_OPENAI_PATHS = ("/v1/images/", "/v1/models")
# On every answer. How long browsers insist on TLS is for the proxy to say that speaks it.
_SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
)
# Routes whose bodies may hold a picture.
_UPLOAD_PATHS = frozenset({"/v1/generate", "/v1/jobs", "/v1/images/edits"})
# Bodies are held for the time of a request, which is short.
_HELD_RETRY_S = 1.0
_HTTP_ERRORS: dict[int, type[ProblemError]] = {404: NotFound, 405: MethodNotAllowed}


def create_app(context: AppContext) -> FastAPI:
    """Compose the application around one process's parts.

    Raises:
        StartError: the keys file is missing or damaged.
    """
    settings = context.settings
    app = _plain_app(context, lifespan=_lifespan(context))
    for module in (generate, jobs, images, realtime, models, health, playground):
        app.include_router(module.router)
    if settings.admin_port is None:
        app.include_router(metrics.router)
    if settings.docs:
        app.include_router(docs.router)
    docs.describe_keys(app)
    # The last one added is the outermost.
    app.add_middleware(DirectRoutes, application=app, routers=(generate.router, images.router))
    app.add_middleware(BodyLimitMiddleware, settings=settings)
    app.add_middleware(
        AuthMiddleware,
        keys=context.keys,
        anonymous=context.anonymous,
        origins=settings.cors_origins,
        answer=problem_response,
    )
    if settings.cors_origins:
        app.add_middleware(CORSMiddleware, **cors_options(settings.cors_origins))
    app.add_middleware(RequestMiddleware, telemetry=context.telemetry)
    return app


def create_admin_app(context: AppContext) -> FastAPI:
    """What only operators may reach, for a port of its own: metrics, and health beside them.

    It asks for no key: whoever reaches the port may read it.
    """
    app = _plain_app(context, openapi_url=None)
    for module in (health, metrics):
        app.include_router(module.router)
    app.add_middleware(BodyLimitMiddleware, settings=context.settings)
    app.add_middleware(RequestMiddleware, telemetry=context.telemetry)
    return app


def _lifespan(context: AppContext) -> Lifespan[FastAPI]:
    """What runs beside the routes, from before the first request until after the last."""
    # Here, so that a wrong setting stops the start.
    job_webhooks = context.job_webhooks

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if job_webhooks is not None:
            job_webhooks.start()
        yield
        if job_webhooks is not None:
            await job_webhooks.close()
        await context.decoders.close()

    return lifespan


def _plain_app(
    context: AppContext,
    openapi_url: str | None = "/openapi.json",
    lifespan: Lifespan[FastAPI] | None = None,
) -> FastAPI:
    """An application without routes that answers errors as this service does."""
    app = FastAPI(
        title="onestep",
        description="Pictures from text in one step.",
        openapi_url=openapi_url,
        # FastAPI's own page loads its script from elsewhere.
        docs_url=None,
        redoc_url=None,
        # A redirect to the path without its slash would lead to whatever host the client named.
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.state.context = context
    app.add_exception_handler(ProblemError, _answer_problem)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(ClientDisconnect, _answer_departure)
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
    if isinstance(error, QuotaExceeded):
        # Retry-After is capped; before midnight nothing changes.
        headers["x-should-retry"] = "false"
    if isinstance(error, Unauthorized):
        headers["www-authenticate"] = 'Bearer realm="onestep"'
    if isinstance(error, (BodyTooLarge, RequestTooSlow)):
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


async def _answer_departure(request: Request, exc: Exception) -> Response:
    """A client that left while it was sending: nobody's fault here, and nobody to read this."""
    error = ClientClosed("the client closed the request before its body was whole")
    return problem_response(error, request.scope)


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
            self._telemetry.request_duration.labels(route).observe(time.perf_counter() - started_s)
            request_id_var.reset(token)

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


class BodyLimitMiddleware:
    """Bounds bodies: each in bytes and in the time it takes to arrive, and all of them together.

    It counts the bytes that arrive, because what parses them does not: forms know other limits.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._num_held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_upload = scope["path"] in _UPLOAD_PATHS
        settings = self._settings
        max_bytes = settings.max_upload_bytes if is_upload else settings.max_body_bytes
        error = BodyTooLarge(
            f"the body may hold at most {max_bytes} bytes",
            field="body",
            allowed={"max_bytes": max_bytes},
        )
        for name, value in scope["headers"]:
            if name == b"content-length" and int(value) > max_bytes:
                await problem_response(error, scope)(scope, receive, send)
                return
        num_bytes = 0
        is_whole = False
        until_s = asyncio.get_running_loop().time() + settings.body_timeout_s

        async def receive_within_limit() -> Message:
            nonlocal num_bytes, is_whole
            if is_whole:  # what is waited for now is the client's departure
                return await receive()
            try:
                async with asyncio.timeout_at(until_s):
                    message = await receive()
            except TimeoutError:
                raise RequestTooSlow(
                    f"the body must arrive within {settings.body_timeout_s:g} s", field="body"
                ) from None
            is_whole = not message.get("more_body", False)
            num_new = len(message.get("body", b""))
            num_bytes += num_new
            self._num_held_bytes += num_new
            if num_bytes > max_bytes:
                raise error
            if num_new and self._num_held_bytes > settings.max_held_body_bytes:
                raise QueueFull("too many bodies are arriving", retry_after_s=_HELD_RETRY_S)
            return message

        try:
            await self._app(scope, receive_within_limit, send)
        finally:
            self._num_held_bytes -= num_bytes
