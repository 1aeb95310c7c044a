"""GET /v1/models: what is served and what it accepts."""

from __future__ import annotations

from typing import Any, cast

from fastapi import APIRouter, Request

from service.routes.context import AppContext

router = APIRouter(tags=["models"])


@router.get("/v1/models")
async def list_models(request: Request) -> dict[str, Any]:
    """List the served model with its sizes, steps, prompt limits and examples."""
    limits = cast(AppContext, request.app.state.context).limits
    model = {
        "id": limits.name,
        "object": "model",
        "description": limits.description,
        "license": limits.license,
        "sizes": [list(size) for size in limits.sizes_px],
        "max_steps": limits.max_steps,
        "max_prompt_chars": limits.max_prompt_chars,
        "max_tokens": limits.max_tokens,
        "examples": list(limits.examples),
        "styles": list(limits.styles),
    }
    return {"object": "list", "data": [model]}
