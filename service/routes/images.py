"""OpenAI's images API: generations, edits, and the pictures that they give addresses to.

Owns the walk between OpenAI's wire form and the jobs that every surface shares. Errors under
/v1/images/ are answered in OpenAI's envelope by the application's handlers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, cast

import orjson
import pybase64
from fastapi import APIRouter, Request, Response
from starlette.responses import StreamingResponse

from service.errors import InvalidRequest, NotFound, PictureTooLarge
from service.images import MEDIA_TYPES
from service.jobs import Job, JobDone, JobOutcome
from service.kept import KeptPicture
from service.openai_wire.answers import completed_event, images_body
from service.openai_wire.edits import IMAGE_FILES, EditsRequest, parse_edits
from service.openai_wire.requests import ImagesGeneration, ImagesRequest, parse_images
from service.routes.context import AppContext
from service.routes.drawing import (
    admission,
    decode_image,
    make_jobs,
    timing_headers,
    wait_for,
)
from service.routes.forms import MULTIPART, form_schema, is_form, read_form

router = APIRouter(tags=["images"])

_EDITS_FILES = (*IMAGE_FILES, "mask")
_RESPONSES: dict[str, Any] = {
    "200": {
        "description": "Pictures as base64 or addresses; events when `stream` is true.",
        "content": {"application/json": {}, "text/event-stream": {}},
    }
}
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
    "responses": _RESPONSES,
}
_EDITS_OPENAPI: dict[str, Any] = {
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
        asked = parse_images(await request.body(), context.limits)
        jobs = make_jobs(asked.generation, asked.generation.format, context)
        futures = await context.broker.put(jobs)
    return await _answer(request, asked, jobs, futures, started_s)


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
        image = await decode_image(asked.generation, context)
        jobs = make_jobs(asked.generation, asked.generation.format, context, image)
        futures = await context.broker.put(jobs)
    return await _answer(request, asked, jobs, futures, started_s)


async def _answer(
    request: Request,
    asked: ImagesGeneration,
    jobs: Sequence[Job],
    futures: Sequence[asyncio.Future[JobOutcome]],
    started_s: float,
) -> Response:
    """Wait for the pictures and send them as they were asked for."""
    context = cast(AppContext, request.app.state.context)
    outcomes = await wait_for(request.receive, jobs, futures, context)
    headers = timing_headers(outcomes, (time.perf_counter() - started_s) * 1000)
    created = int(time.time())
    if asked.is_stream:
        return StreamingResponse(
            _events(created, asked, outcomes),
            media_type="text/event-stream",
            headers={**headers, "cache-control": "no-store"},
        )
    data = [_entry(request, context, asked, done) for done in outcomes]
    body = images_body(created, asked, data)
    return Response(orjson.dumps(body), media_type="application/json", headers=headers)


@router.get("/v1/images/{name}", response_class=Response)
async def read_image(name: str, request: Request) -> Response:
    """A picture that was answered as an address, as long as it is kept."""
    context = cast(AppContext, request.app.state.context)
    picture = context.kept.find(name)
    if picture is None:
        raise NotFound("no such picture, or it is not kept any longer")
    return Response(
        picture.content,
        media_type=picture.media_type,
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


def _entry(
    request: Request, context: AppContext, asked: ImagesGeneration, done: JobDone
) -> dict[str, str]:
    if not asked.is_url:
        return {"b64_json": _base64(done)}
    media_type = MEDIA_TYPES[asked.generation.format]
    name = context.kept.keep(KeptPicture(done.image_bytes, media_type))
    if name is None:
        raise PictureTooLarge(
            "the picture is larger than what the service may keep: ask for b64_json",
            field="response_format",
            allowed=["b64_json"],
        )
    base = context.settings.public_url or str(request.base_url)
    return {"url": f"{base.rstrip('/')}/v1/images/{name}"}


def _base64(done: JobDone) -> str:
    return pybase64.b64encode_as_string(done.image_bytes)
