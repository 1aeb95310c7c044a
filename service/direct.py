"""The short way to the routes that draw.

FastAPI looks at routes twice, opens stacks of contexts and resolves dependencies. A route that
takes the request alone needs none of it, and it is a quarter of what such a request costs in the
event loop. Owns the way from a path to its endpoint. Knows no route, and leaves to FastAPI whatever
else is asked.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable

from fastapi import FastAPI, Request
from fastapi.routing import APIRoute, APIRouter
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send


class DirectRoutes:
    """Innermost middleware: calls endpoints by method and exact path."""

    def __init__(self, app: ASGIApp, application: FastAPI, routers: Iterable[APIRouter]) -> None:
        """Find the routes that qualify.

        Args:
            app: the rest of the application, for all other paths.
            application: whose exception handlers answer errors.
            routers: whose routes are called directly where they take the request alone. They
                are included without a prefix or dependencies, which would not be seen here.
        """
        self._app = app
        self._routes = {
            (method, route.path): route
            for router in routers
            for route in router.routes
            if isinstance(route, APIRoute) and _takes_the_request_alone(route)
            for method in route.methods or ()
        }
        self._direct = ExceptionMiddleware(_call, application.exception_handlers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        route = None
        if scope["type"] == "http":
            route = self._routes.get((scope["method"], scope["path"]))
        if route is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = route
        scope["endpoint"] = route.endpoint
        await self._direct(scope, receive, send)


async def _call(scope: Scope, receive: Receive, send: Send) -> None:
    response = await scope["endpoint"](Request(scope, receive, send))
    await response(scope, receive, send)


def _takes_the_request_alone(route: APIRoute) -> bool:
    return (
        list(inspect.signature(route.endpoint).parameters) == ["request"]
        and not route.param_convertors
        and not route.dependencies
    )
