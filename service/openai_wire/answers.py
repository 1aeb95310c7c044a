"""What OpenAI's images API answers: bodies, events, errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from service.errors import ProblemError, status_of
from service.openai_wire.requests import ImagesGeneration

_ERROR_TYPES = {401: "authentication_error", 429: "rate_limit_error"}


def usage_of(num_prompt_tokens: int) -> dict[str, Any]:
    """Tokens of the prompt; a picture here is not counted in tokens."""
    return {
        "input_tokens": num_prompt_tokens,
        "output_tokens": 0,
        "total_tokens": num_prompt_tokens,
        "input_tokens_details": {"text_tokens": num_prompt_tokens, "image_tokens": 0},
    }


def images_body(
    created: int, asked: ImagesGeneration, data: Sequence[Mapping[str, str]]
) -> dict[str, Any]:
    """The answer to a request that is not streamed; `data` holds one entry per picture."""
    key = asked.generation.key
    return {
        "created": created,
        "data": list(data),
        "background": "opaque",
        "output_format": asked.generation.format,
        "quality": "auto",
        "size": f"{key.width}x{key.height}",
        "usage": usage_of(asked.generation.num_tokens),
    }


def completed_event(created: int, asked: ImagesGeneration, b64_json: str) -> dict[str, Any]:
    """One finished picture of a stream."""
    key = asked.generation.key
    return {
        "type": asked.completed_event,
        "b64_json": b64_json,
        "background": "opaque",
        "created_at": created,
        "output_format": asked.generation.format,
        "quality": "auto",
        "size": f"{key.width}x{key.height}",
        "usage": usage_of(asked.generation.num_tokens),
    }


def error_document(error: ProblemError) -> dict[str, Any]:
    """The body of a refused request: what the `openai` client reads its error from."""
    row = status_of(error)
    kind = "server_error" if row.status >= 500 else "invalid_request_error"
    return {
        "error": {
            "message": error.detail,
            "type": _ERROR_TYPES.get(row.status, kind),
            "param": error.field,
            "code": row.code,
        }
    }
