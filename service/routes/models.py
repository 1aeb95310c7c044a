"""GET /v1/models: what is served and what it accepts."""

from __future__ import annotations

from typing import Any, cast

from fastapi import APIRouter, Request

from service.errors import NotFound
from service.routes.context import AppContext

router = APIRouter(tags=["models"])


@router.get("/v1/models")
async def list_models(request: Request) -> dict[str, Any]:
    """List the served model with its sizes, steps, prompt limits and examples."""
    return {"object": "list", "data": [_describe(request)]}


@router.get("/v1/models/{name}")
async def read_model(name: str, request: Request) -> dict[str, Any]:
    """The served model under its own name."""
    model = _describe(request)
    if name != model["id"]:
        raise NotFound("no such model", field="model", allowed=[model["id"]])
    return model


def _describe(request: Request) -> dict[str, Any]:
    limits = cast(AppContext, request.app.state.context).limits
    return {
        "id": limits.name,
        "object": "model",
        "created": limits.created,
        "owned_by": "onestep",
        "description": limits.description,
        "license": limits.license,
        "sizes": [list(size) for size in limits.sizes_px],
        "max_steps": limits.max_steps,
        "max_prompt_chars": limits.max_prompt_chars,
        "max_tokens": limits.max_tokens,
        "examples": list(limits.examples),
        "styles": list(limits.styles),
        "can_start_from_image": limits.can_start_from_image,
        "strengths": list(limits.strengths),
    }
