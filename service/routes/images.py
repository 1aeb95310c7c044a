"""OpenAI's images API: POST /v1/images/generations, and the pictures that it gives addresses to.

Owns the walk between OpenAI's wire form and the jobs that every surface shares. Errors under
/v1/images/ are answered in OpenAI's envelope by the application's handlers.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, cast

import orjson
import pybase64
from fastapi import APIRouter, Request, Response
from starlette.responses import StreamingResponse

from service.errors import NotFound
from service.images import MEDIA_TYPES
from service.jobs import JobDone
from service.openai_wire import (
    ImagesGeneration,
    ImagesRequest,
    completed_event,
    images_body,
    parse_images,
)
from service.routes.access import principal_of, put_within_limits
from service.routes.context import AppContext
from service.routes.drawing import (
    admission,
    make_jobs,
    picture_urls,
    timing_headers,
    wait_for,
)

router = APIRouter(tags=["images"])

_OPENAPI: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": ImagesRequest.model_json_schema(),
                "example": {"prompt": "a red heart", "n": 2, "output_format": "png"},
            }
        },
    },
    "responses": {
        "200": {
            "description": "Pictures as base64 or addresses; events when `stream` is true.",
            "content": {"application/json": {}, "text/event-stream": {}},
        }
    },
}


@router.post("/v1/images/generations", response_class=Response, openapi_extra=_OPENAPI)
async def create_images(request: Request) -> Response:
    """Draw pictures of a prompt, in the form that the `openai` client speaks."""
    started_s = time.perf_counter()
    context = cast(AppContext, request.app.state.context)
    with admission(context):
        asked = parse_images(await request.body(), context.limits)
        jobs = make_jobs(
            asked.generation,
            asked.generation.format,
            context,
            principal_of(request),
            is_kept=asked.is_url,
        )
        futures = await put_within_limits(request, asked.generation, jobs)
    outcomes = await wait_for(request.receive, jobs, futures, context)
    headers = timing_headers(outcomes, (time.perf_counter() - started_s) * 1000)
    created = int(time.time())
    if asked.is_stream:
        return StreamingResponse(
            _events(created, asked, outcomes),
            media_type="text/event-stream",
            headers={**headers, "cache-control": "no-store"},
        )
    if asked.is_url:
        data = [{"url": url} for url in await picture_urls(request, jobs, context)]
    else:
        data = [{"b64_json": _base64(done)} for done in outcomes]
    body = images_body(created, asked, data)
    return Response(orjson.dumps(body), media_type="application/json", headers=headers)


@router.get("/v1/images/{name}", response_class=Response)
async def read_image(name: str, request: Request) -> Response:
    """A picture that was answered as an address, as long as it is kept."""
    context = cast(AppContext, request.app.state.context)
    job_id, _, secret = name.rpartition(".")
    (record,) = await context.broker.find([job_id])
    is_theirs = record is not None and hmac.compare_digest(
        record.job.secret.encode(), secret.encode()
    )
    if record is None or not is_theirs or not isinstance(record.outcome, JobDone) or not secret:
        raise NotFound("no such picture, or it is not kept any longer")
    return Response(
        record.outcome.image_bytes,
        media_type=MEDIA_TYPES[record.job.format],
        headers={"cache-control": "private, max-age=3600", "x-content-type-options": "nosniff"},
    )


async def _events(
    created: int, asked: ImagesGeneration, outcomes: Sequence[JobDone]
) -> AsyncIterator[bytes]:
    """One event per picture.

    They come together: pictures of one request mostly run in one batch, and an error can still be
    answered with its status when nothing has been sent before all are there.
    """
    for done in outcomes:
        event = completed_event(created, asked, _base64(done))
        yield b"event: " + event["type"].encode() + b"\ndata: " + orjson.dumps(event) + b"\n\n"


def _base64(done: JobDone) -> str:
    return pybase64.b64encode_as_string(done.image_bytes)
