"""GET /v1/models: what is served and what it accepts."""

from __future__ import annotations

from typing import Any, cast

from fastapi import APIRouter, Request

from service.errors import NotFound
from service.routes.access import check_model, principal_of
from service.routes.context import AppContext
from service.schemas import ModelLimits

router = APIRouter(tags=["models"])


@router.get("/v1/models")
async def list_models(request: Request) -> dict[str, Any]:
    """List what the sender may use, with its sizes, steps, prompt limits and examples."""
    limits = cast(AppContext, request.app.state.context).limits
    principal = principal_of(request)
    models = [_describe(one) for one in limits.all if principal.may_use(one.name)]
    return {"object": "list", "data": models}


@router.get("/v1/models/{name}")
async def read_model(name: str, request: Request) -> dict[str, Any]:
    """One of the served models."""
    limits = cast(AppContext, request.app.state.context).limits
    for one in limits.all:
        if one.name == name:
            check_model(principal_of(request), name)
            return _describe(one)
    allowed = [one.name for one in limits.all]
    raise NotFound("no such model", field="model", allowed=allowed)


def _describe(limits: ModelLimits) -> dict[str, Any]:
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
