"""POST /v1/generate: a prompt in, with or without a picture to start from; a picture out.

Owns the request's walk from bytes to jobs and from outcomes to an answer, the deadline and the
client's departure. Knows the broker's protocol, never an engine.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, cast

import orjson
import pybase64
from fastapi import APIRouter, Request, Response

from service.errors import (
    STATUS_TABLE,
    BodyTooLarge,
    DeadlineExceeded,
    GenerationFailed,
    InvalidRequest,
    NotReady,
    QueueFull,
)
from service.images import MEDIA_TYPES
from service.jobs import ImageFormat, JobDone
from service.routes.context import AppContext
from service.routes.drawing import (
    admission,
    decode_image,
    make_jobs,
    timing_headers,
    wait_for,
)
from service.routes.forms import MULTIPART, SMALL_PNG, form_schema, is_form, read_form
from service.schemas import (
    GenerateRequest,
    Generation,
    parse_generation,
    parse_generation_form,
)
from service.telemetry import new_id

router = APIRouter(tags=["generate"])

_FILES = ("image", "mask")
_OPENAPI: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": GenerateRequest.model_json_schema(),
                "examples": {
                    "text": {"value": {"prompt": "a red heart", "seed": 7}},
                    "image": {
                        "value": {"prompt": "a red heart", "image": SMALL_PNG, "strength": 0.5}
                    },
                },
            },
            MULTIPART: {
                "schema": form_schema(GenerateRequest, _FILES),
                "example": {"prompt": "a red heart", "image": "@heart.png", "strength": 0.5},
            },
        },
    },
    "responses": {
        "200": {
            "description": "The picture for `Accept: image/*`, else JSON with base64.",
            "content": {
                "application/json": {},
                **{media_type: {} for media_type in MEDIA_TYPES.values()},
            },
        },
        **{
            str(STATUS_TABLE[kind].status): {
                "description": STATUS_TABLE[kind].title,
                "content": {"application/problem+json": {}},
            }
            for kind in (
                *(InvalidRequest, BodyTooLarge, QueueFull),
                *(GenerationFailed, NotReady, DeadlineExceeded),
            )
        },
    },
}


@router.post("/v1/generate", response_class=Response, openapi_extra=_OPENAPI)
async def generate(request: Request) -> Response:
    """Draw one picture or several of one prompt."""
    started_s = time.perf_counter()
    context = cast(AppContext, request.app.state.context)
    with admission(context):
        generation = await _read(request, context)
        image_format = _negotiate(request.headers.get("accept", ""), generation)
        image = await decode_image(generation, context)
        jobs = make_jobs(generation, image_format or generation.format, context, image)
        futures = await context.broker.put(jobs)
    outcomes = await wait_for(request.receive, jobs, futures, context)
    total_ms = (time.perf_counter() - started_s) * 1000
    headers = timing_headers(outcomes, total_ms)
    if image_format is not None:
        return Response(
            outcomes[0].image_bytes, media_type=MEDIA_TYPES[image_format], headers=headers
        )
    body = _json_body(generation, outcomes, total_ms)
    return Response(orjson.dumps(body), media_type="application/json", headers=headers)


async def _read(request: Request, context: AppContext) -> Generation:
    """The request out of its body, which is JSON or a form."""
    if not is_form(request):
        return parse_generation(await request.body(), context.limits)
    form = await read_form(request, _FILES)
    for name, contents in form.files.items():
        if len(contents) > 1:
            raise InvalidRequest(f"{name} came {len(contents)} times: send one", field=name)
    files = {name: contents[0] for name, contents in form.files.items()}
    return parse_generation_form(form.texts, files, context.limits)


def _negotiate(accept: str, generation: Generation) -> ImageFormat | None:
    """The format to answer as bytes, or None for JSON.

    An explicit `format` wins over the type that Accept names: it is the more precise wish.
    """
    accepted = preferred_media_types(accept)
    if not accepted or not accepted[0].startswith("image/"):
        return None
    if len(generation.seeds) != 1:
        raise InvalidRequest(
            "num_images must be 1 when the answer is one picture (Accept: image/*); "
            "accept application/json for several",
            field="num_images",
            allowed={"min": 1, "max": 1},
        )
    if not generation.is_format_given:
        for name, media_type in MEDIA_TYPES.items():
            if accepted[0] == media_type:
                return name
    return generation.format


def preferred_media_types(accept: str) -> list[str]:
    """Media ranges of an Accept header, most wanted first, those with q=0 left out."""
    ranges: list[tuple[float, str]] = []
    for part in accept.lower().split(","):
        media_type, *parameters = (piece.strip() for piece in part.split(";"))
        quality = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    quality = float(parameter[2:])
                except ValueError:
                    quality = 0.0
        if media_type and quality > 0:
            ranges.append((quality, media_type))
    # The sort is stable: of equals, the one named first stays first.
    return [media_type for _, media_type in sorted(ranges, key=lambda item: -item[0])]


def _json_body(
    generation: Generation, outcomes: Sequence[JobDone], total_ms: float
) -> dict[str, Any]:
    slowest = max(outcomes, key=lambda done: done.queue_ms + done.run_ms)
    return {
        "id": f"gen-{new_id()}",
        "model": generation.key.model,
        "created": int(time.time()),
        "width": generation.key.width,
        "height": generation.key.height,
        "steps": generation.key.steps,
        **({} if generation.key.strength is None else {"strength": generation.key.strength}),
        "batch_size": slowest.batch_size,
        "images": [
            {
                "seed": done.seed,
                "media_type": MEDIA_TYPES[generation.format],
                "b64_json": pybase64.b64encode_as_string(done.image_bytes),
            }
            for done in outcomes
        ],
        "timing": {
            "queue_ms": round(slowest.queue_ms, 2),
            "run_ms": round(slowest.run_ms, 2),
            "encode_ms": round(slowest.encode_ms, 2),
            "total_ms": round(total_ms, 2),
        },
    }
