"""POST /v1/generate: a prompt in, with or without a picture to start from; a picture out.

Owns the choice between bytes, JSON and an answer at once (`Prefer: respond-async`). Knows the
broker's protocol, never an engine.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import Any, cast

import orjson
import pybase64
from fastapi import APIRouter, Request, Response

from service.errors import DeadlineExceeded, GenerationFailed, InvalidRequest, JobCancelled
from service.images import MEDIA_TYPES
from service.job_documents import created_at
from service.jobs import ImageFormat, Job, JobDone, request_of
from service.routes.accepting import Terms, accept
from service.routes.context import AppContext
from service.routes.drawing import admission, timing_headers, wait_for
from service.routes.idempotency import OPENAPI_HEADER, request_key
from service.routes.jobs import answer_accepted, terms_of_job
from service.routes.reading import describe_body, describe_problems, read_generation
from service.schemas import GenerateRequest, Generation

router = APIRouter(tags=["generate"])

_ASYNC = "respond-async"
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_OPENAPI: dict[str, Any] = {
    "parameters": [
        OPENAPI_HEADER,
        {
            "name": "Prefer",
            "in": "header",
            "schema": {"type": "string"},
            "example": _ASYNC,
            "description": "respond-async: answer at once with a job (RFC 7240).",
        },
    ],
    "requestBody": describe_body(GenerateRequest),
    "responses": {
        "200": {
            "description": "The picture for `Accept: image/*`, else JSON with base64.",
            "content": {
                "application/json": {},
                **{media_type: {} for media_type in MEDIA_TYPES.values()},
            },
        },
        "202": {
            "description": "With `Prefer: respond-async`: the job, whose address is in Location.",
            "content": {"application/json": {}},
        },
        **describe_problems(JobCancelled, GenerationFailed, DeadlineExceeded),
    },
}


@router.post("/v1/generate", response_class=Response, openapi_extra=_OPENAPI)
async def generate(request: Request) -> Response:
    """Draw one picture or several of one prompt."""
    started_s = time.perf_counter()
    context = cast(AppContext, request.app.state.context)
    is_async = prefers_async(request.headers.getlist("prefer"))
    with admission(context):
        generation, body = await read_generation(request, context)
        key = request_key(request, body)
        if is_async:
            terms = terms_of_job(generation, context, key)
            accepted = await accept(request, generation, terms)
            return await answer_accepted(request, accepted, {"preference-applied": _ASYNC})
        image_format = _negotiate(request.headers.get("accept", ""), generation)
        settings = context.settings
        terms = Terms(image_format or generation.format, settings.deadline_s, key=key)
        accepted = await accept(request, generation, terms)
    outcomes = await wait_for(request.receive, accepted, context)
    total_ms = (time.perf_counter() - started_s) * 1000
    headers = timing_headers(outcomes, total_ms)
    # As it is stored: the request that came first with this key chose the format.
    job = accepted.jobs[0]
    if image_format is not None:
        media_type = MEDIA_TYPES[job.format]
        return Response(outcomes[0].image_bytes, media_type=media_type, headers=headers)
    document = _json_body(job, created_at(job, context.broker.now_s()), outcomes, total_ms)
    return Response(orjson.dumps(document), media_type="application/json", headers=headers)


def prefers_async(prefer: Sequence[str]) -> bool:
    """Whether one of the preferences is to be answered at once; RFC 7240, section 4.1."""
    # A quoted string may hold any separator.
    preferences = _QUOTED.sub("", ",".join(prefer)).split(",")
    return any(one.partition(";")[0].strip().lower() == _ASYNC for one in preferences)


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
    job: Job, created: int, outcomes: Sequence[JobDone], total_ms: float
) -> dict[str, Any]:
    slowest = max(outcomes, key=lambda done: done.queue_ms + done.run_ms)
    return {
        "id": f"gen-{request_of(job.id)}",
        "model": job.key.model,
        "created": created,
        "width": job.key.width,
        "height": job.key.height,
        "steps": job.key.steps,
        **({} if job.key.strength is None else {"strength": job.key.strength}),
        "batch_size": slowest.batch_size,
        "images": [
            {
                "seed": done.seed,
                "media_type": MEDIA_TYPES[job.format],
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
