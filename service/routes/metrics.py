"""GET /metrics: on the main port, or on the operators' own where one is set."""

from __future__ import annotations

import contextlib
from typing import cast

import prometheus_client
from fastapi import APIRouter, Request, Response

from service.errors import QueueUnavailable
from service.routes.context import AppContext, sweep

router = APIRouter()


@router.get("/metrics", include_in_schema=False)
async def metrics(request: Request) -> Response:
    """Prometheus text format."""
    context = cast(AppContext, request.app.state.context)
    # A queue that is away is no reason to tell nothing.
    with contextlib.suppress(QueueUnavailable):
        await sweep(context.broker, context.telemetry)
    return Response(
        prometheus_client.generate_latest(context.telemetry.registry),
        media_type=prometheus_client.CONTENT_TYPE_LATEST,
    )
