"""OpenAI's images API: generations, edits, and the pictures that they give addresses to.

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

from service.errors import InvalidRequest, NotFound
from service.images import MEDIA_TYPES
from service.jobs import JobDone
from service.openai_wire.answers import completed_event, images_body
from service.openai_wire.edits import IMAGE_FILES, EditsRequest, parse_edits
from service.openai_wire.requests import ImagesGeneration, ImagesRequest, parse_images
from service.routes.accepting import Terms, accept
from service.routes.access import Accepted
from service.routes.context import AppContext
from service.routes.drawing import admission, picture_urls, timing_headers, wait_for
from service.routes.forms import MULTIPART, Form, form_schema, is_form, read_form
from service.routes.idempotency import OPENAPI_HEADER, request_key

router = APIRouter(tags=["images"])

_EDITS_FILES = (*IMAGE_FILES, "mask")
_RESPONSES: dict[str, Any] = {
    "200": {
        "description": "Pictures as base64 or addresses; events when `stream` is true.",
        "content": {"application/json": {}, "text/event-stream": {}},
    }
}
_OPENAPI: dict[str, Any] = {
    "parameters": [OPENAPI_HEADER],
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": ImagesRequest.model_json_schema(),
                "example": {"prompt": "a red heart", "n": 2, "output_format": "png"},
            }
        },
    },
    "responses": _RESPONSES,
}
_EDITS_OPENAPI: dict[str, Any] = {
    "parameters": [OPENAPI_HEADER],
    "requestBody": {
        "required": True,
        "content": {
            MULTIPART: {
                "schema": form_schema(EditsRequest, ("image", "mask"), required=("image",)),
                "example": {"prompt": "a red heart", "image": "@heart.png", "n": 2},
            }
        },
    },
    "responses": _RESPONSES,
}


@router.post("/v1/images/generations", response_class=Response, openapi_extra=_OPENAPI)
async def create_images(request: Request) -> Response:
    """Draw pictures of a prompt, in the form that the `openai` client speaks."""
    started_s = time.perf_counter()
    context = cast(AppContext, request.app.state.context)
    with admission(context):
        body = await request.body()
        asked = parse_images(body, context.limits)
        accepted = await _accept(request, asked, body)
    return await _answer(request, asked, accepted, started_s)


@router.post("/v1/images/edits", response_class=Response, openapi_extra=_EDITS_OPENAPI)
async def edit_images(request: Request) -> Response:
    """Draw pictures of a prompt that start from a picture, as the `openai` client sends it."""
    started_s = time.perf_counter()
    context = cast(AppContext, request.app.state.context)
    with admission(context):
        if not is_form(request):
            raise InvalidRequest(f"send {MULTIPART}, with the picture as its file image")
        form = await read_form(request, _EDITS_FILES)
        asked = parse_edits(form.texts, form.files, context.limits)
        accepted = await _accept(request, asked, form)
    return await _answer(request, asked, accepted, started_s)


async def _accept(request: Request, asked: ImagesGeneration, body: bytes | Form) -> Accepted:
    context = cast(AppContext, request.app.state.context)
    terms = Terms(
        asked.generation.format,
        context.settings.deadline_s,
        is_kept=asked.is_url,
        key=request_key(request, body),
    )
    return await accept(request, asked.generation, terms)


async def _answer(
    request: Request, asked: ImagesGeneration, accepted: Accepted, started_s: float
) -> Response:
    """Wait for the pictures and send them as they were asked for."""
    context = cast(AppContext, request.app.state.context)
    outcomes = await wait_for(request.receive, accepted, context)
    headers = timing_headers(outcomes, (time.perf_counter() - started_s) * 1000)
    created = int(time.time())
    if asked.is_stream:
        return StreamingResponse(
            _events(created, asked, outcomes),
            media_type="text/event-stream",
            headers={**headers, "cache-control": "no-store"},
        )
    if asked.is_url:
        data = [{"url": url} for url in await picture_urls(request, accepted.jobs, context)]
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
