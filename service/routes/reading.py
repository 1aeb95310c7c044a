"""The body that /v1/generate and /v1/jobs share, JSON or a form, and how it is described.

Owns the way from the body to a checked request. Knows no queue.
"""

from __future__ import annotations

from typing import Any

from fastapi import Request

from service.errors import (
    STATUS_TABLE,
    BodyTooLarge,
    Forbidden,
    IdempotencyMismatch,
    InvalidRequest,
    NotReady,
    ProblemError,
    QueueFull,
    Unauthorized,
)
from service.routes.context import AppContext
from service.routes.forms import MULTIPART, SMALL_PNG, Form, form_schema, is_form, read_form
from service.schemas import (
    GenerateRequest,
    Generation,
    parse_generation,
    parse_generation_form,
)

_FILES = ("image", "mask")
_REFUSALS: tuple[type[ProblemError], ...] = (
    *(InvalidRequest, Unauthorized, Forbidden, BodyTooLarge, IdempotencyMismatch, QueueFull),
    NotReady,
)


async def read_generation(
    request: Request, context: AppContext, kind: type[GenerateRequest] = GenerateRequest
) -> tuple[Generation, bytes | Form]:
    """What is asked for, and the body as it came.

    Raises:
        InvalidRequest: names the field and what is allowed.
    """
    if not is_form(request):
        body = await request.body()
        return parse_generation(body, context.limits, kind), body
    form = await read_form(request, _FILES)
    for name, contents in form.files.items():
        if len(contents) > 1:
            raise InvalidRequest(f"{name} came {len(contents)} times: send one", field=name)
    files = {name: contents[0] for name, contents in form.files.items()}
    return parse_generation_form(form.texts, files, context.limits, kind), form


def describe_body(kind: type[GenerateRequest], **more: object) -> dict[str, Any]:
    """The OpenAPI entry of the body; `more` are fields that the examples show besides."""
    return {
        "required": True,
        "content": {
            "application/json": {
                "schema": kind.model_json_schema(),
                "examples": {
                    "text": {"value": {"prompt": "a red heart", "seed": 7, **more}},
                    "image": {
                        "value": {"prompt": "a red heart", "image": SMALL_PNG, "strength": 0.5}
                    },
                },
            },
            MULTIPART: {
                "schema": form_schema(kind, _FILES),
                "example": {"prompt": "a red heart", "image": "@heart.png", "strength": 0.5},
            },
        },
    }


def describe_problems(*kinds: type[ProblemError]) -> dict[str, Any]:
    """The OpenAPI entries of what a request may be refused with; every body's and these."""
    return {
        str(STATUS_TABLE[kind].status): {
            "description": STATUS_TABLE[kind].title,
            "content": {"application/problem+json": {}},
        }
        for kind in (*_REFUSALS, *kinds)
    }
