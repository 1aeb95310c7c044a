"""Liveness and readiness.

Liveness says only that the event loop turns, never how busy the engine is.
"""

from __future__ import annotations

from typing import cast

from fastapi import APIRouter, Request

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
