"""How a refusal names the field and what is allowed.

A prompt never appears in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from service.errors import InvalidRequest
from service.jobs import ImageFormat
from service.schemas.limits import ModelLimits
from service.schemas.requests import MAX_NUM_IMAGES, MAX_SEED, PRIORITIES
from service.uploads.header import MEDIA_TYPES

_MAX_ECHO_CHARS = 64


def allowed_values(limits: ModelLimits) -> dict[str, object]:
    """Field -> what it may be, as plain JSON."""
    sizes = [list(size) for size in limits.sizes_px]
    return {
        "prompt": {
            "min_chars": 1,
            "max_chars": limits.max_prompt_chars,
            "max_tokens": limits.max_tokens,
        },
        "model": [one.name for one in limits.all],
        "seed": {"min": 0, "max": MAX_SEED},
        "width": sizes,
        "height": sizes,
        "steps": {"min": 1, "max": limits.max_steps},
        "num_images": {"min": 1, "max": MAX_NUM_IMAGES},
        "format": list(get_args(ImageFormat)),
        "quality": {"min": 0, "max": 100},
        "priority": list(PRIORITIES),
        "image": list(MEDIA_TYPES.values()),
        "mask": list(MEDIA_TYPES.values()),
        "strength": {"above": 0, "max": 1},
    }


def first_refusal(
    found: ValidationError, request: type[BaseModel], allowed: Mapping[str, object]
) -> InvalidRequest:
    """Translate the first of pydantic's findings on a request.

    Args:
        found: what validation raised.
        request: the wire model that was wanted.
        allowed: field -> what it may be; fields without an entry say it in pydantic's words.
    """
    # Inputs stay out: an error that carried them could carry a prompt into a log.
    error: Any = found.errors(include_input=False, include_url=False)[0]
    if error["type"] == "json_invalid":
        return InvalidRequest(f"the body is not valid JSON: {error['ctx']['error']}")
    if not error["loc"]:
        return InvalidRequest("the body must be a JSON object")
    field = str(error["loc"][0])[:_MAX_ECHO_CHARS]
    if error["type"] == "extra_forbidden":
        return InvalidRequest(
            f"{field} is no field of this request",
            field=field,
            allowed=list(request.model_fields),
        )
    if error["type"] == "missing":
        return InvalidRequest(f"{field} is required", field=field, allowed=allowed.get(field))
    return InvalidRequest(f"{field}: {error['msg']}", field=field, allowed=allowed.get(field))
