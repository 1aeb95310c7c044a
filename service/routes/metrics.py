"""GET /metrics: on the main port, or on the operators' own where one is set."""

from __future__ import annotations

import contextlib
from typing import cast

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.errors import QueueUnavailable
from service.routes.context import AppContext, sweep
from service.telemetry import Telemetry

router = APIRouter()


@router.get("/metrics", include_in_schema=False)
async def metrics(request: Request) -> Response:
    """Prometheus text format, or OpenMetrics where it is asked for."""
    context = cast(AppContext, request.app.state.context)
    # A queue that is away is no reason to tell nothing.
    with contextlib.suppress(QueueUnavailable):
        await sweep(context.broker, context.telemetry)
    return exposition(request, context.telemetry)


def exposition(request: Request, telemetry: Telemetry) -> Response:
    """All metrics, in the format that a scraper asks for."""
    content, media_type = telemetry.expose(request.headers.get("accept", ""))
    return Response(content, headers={"content-type": media_type})
