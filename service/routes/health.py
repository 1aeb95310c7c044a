"""Liveness, readiness and metrics.

Liveness says only that the event loop turns, never how busy the engine is.
"""

from __future__ import annotations

from typing import cast

import prometheus_client
from fastapi import APIRouter, Request, Response

from service.routes.context import AppContext

router = APIRouter(tags=["health"])


@router.get("/livez")
async def livez() -> dict[str, str]:
    """Answer 200 as long as the process can answer at all."""
    return {"status": "ok"}


@router.get("/readyz")
async def readyz(request: Request) -> dict[str, str]:
    """Answer 200 when requests are accepted, else 503 with the reason."""
    context = cast(AppContext, request.app.state.context)
    context.readiness.check()
    return {"status": "ready", "model": context.limits.name}


@router.get("/metrics", include_in_schema=False)
async def metrics(request: Request) -> Response:
    """Prometheus text format."""
    context = cast(AppContext, request.app.state.context)
    return Response(
        prometheus_client.generate_latest(context.telemetry.registry),
        media_type=prometheus_client.CONTENT_TYPE_LATEST,
    )
