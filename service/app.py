"""The ASGI application: routes, error handlers, middleware.

Owns composition. Knows nothing of engines; the worker runs beside it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import cast

from fastapi import FastAPI, Request, Response
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from fastapi.routing import APIRoute, APIRouter
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Lifespan

from service.direct import DirectRoutes
from service.errors import (
    ClientClosed,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    ProblemError,
)
from service.middleware.auth import AuthMiddleware, cors_options
from service.middleware.bodies import BodyLimitMiddleware
from service.middleware.problems import problem_response
from service.middleware.requests import RequestMiddleware
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
from service.telemetry import Telemetry

_HTTP_ERRORS: dict[int, type[ProblemError]] = {404: NotFound, 405: MethodNotAllowed}


class _Application(FastAPI):
    """FastAPI with this service's middleware as its outermost layers.

    FastAPI would put three of its own around them: for unforeseen exceptions, of which
    RequestMiddleware is the last resort here, for bodies, which BodyLimitMiddleware bounds, and for
    telemetry. They would take a thirtieth of what a lone request does.
    """

    def build_middleware_stack(self) -> ASGIApp:
        """Put the middleware that was added last outermost."""
        app: ASGIApp = ExceptionMiddleware(
            AsyncExitStackMiddleware(self.router), self.exception_handlers
        )
        for middleware, arguments, options in reversed(self.user_middleware):
            app = middleware(app, *arguments, **options)
        return app


def create_app(context: AppContext) -> FastAPI:
    """Compose the application around one process's parts.

    Raises:
        StartError: the keys file is missing or damaged.
    """
    settings = context.settings
    app = _plain_app(context, lifespan=_lifespan(context))
    surfaces = [generate, jobs, images, realtime, models, health, playground]
    if settings.admin_port is None:
        surfaces.append(metrics)
    if settings.docs:
        surfaces.append(docs)
    for surface in surfaces:
        app.include_router(surface.router)
    _begin_series(context.telemetry, [surface.router for surface in surfaces])
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
    app = _Application(
        title="onestep",
        description="Pictures from text in one step.",
        openapi_url=openapi_url,
        # FastAPI's own page loads its script from elsewhere.
        docs_url=None,
        redoc_url=None,
        # A redirect to the path without its slash would lead to whatever host the client named.
        redirect_slashes=False,
        lifespan=lifespan,
        # Traces and metrics are this service's own.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.context = context
    app.add_exception_handler(ProblemError, _answer_problem)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(ClientDisconnect, _answer_departure)
    return app


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


def _begin_series(telemetry: Telemetry, routers: Iterable[APIRouter]) -> None:
    """Let every route's metrics begin at 0; those that take work are the ones that draw."""
    routes = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
    drawing = [route.path for route in routes if "POST" in (route.methods or ())]
    telemetry.expect_routes([route.path for route in routes], drawing)
