"""/v1/jobs: pictures that nobody waits for in the request itself.

Owns the jobs' addresses and that a job is shown to its owner alone: to everyone else it does not
exist. An id here is the request's; its pictures are counted from 0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, cast

import orjson
from fastapi import APIRouter, Request, Response

from service.errors import Forbidden, InvalidRequest, NotFound
from service.images import MEDIA_TYPES
from service.job_documents import job_document, with_lost
from service.jobs import JobDone, JobRecord, job_id, request_of, siblings
from service.routes.accepting import Terms, accept
from service.routes.access import Accepted, principal_of
from service.routes.context import AppContext
from service.routes.drawing import admission, base_url
from service.routes.idempotency import OPENAPI_HEADER, RequestKey, request_key
from service.routes.job_events import answer_events
from service.routes.reading import describe_body, describe_problems, read_generation
from service.schemas import Generation, JobRequest
from service.webhooks.guard import webhooks_off

router = APIRouter(tags=["jobs"])

DEFAULT_LIMIT = 20
MAX_LIMIT = 100
# What this service names requests by; anything else leads nowhere.
_ID = re.compile(r"[0-9a-f]{32}|[0-9a-f]{64}")
_INDEX = re.compile(r"0|[1-9][0-9]?")
_EXAMPLE = {
    "id": "6c1f0a52e8d94b7d8a3f5e2b9c7d1e04",
    "state": "running",
    "created": 1795000000,
    "model": "emoji",
    "width": 128,
    "height": 128,
    "steps": 1,
    "num_images": 2,
    "pictures": [
        {
            "index": 0,
            "state": "succeeded",
            "seed": 7,
            "media_type": "image/png",
            "url": "http://127.0.0.1:8000/v1/jobs/6c1f0a52e8d94b7d8a3f5e2b9c7d1e04/images/0",
        },
        {"index": 1, "state": "running", "seed": 8},
    ],
}
_DOCUMENT = {"description": "The job.", "content": {"application/json": {"example": _EXAMPLE}}}
_MISSING = {
    "description": "No such job, or somebody else's.",
    "content": {"application/problem+json": {}},
}
_LIMIT = {
    "name": "limit",
    "in": "query",
    "schema": {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT},
}
_LIST = {
    "description": "Own jobs, newest first.",
    "content": {"application/json": {"example": {"jobs": [_EXAMPLE]}}},
}
_CREATE: dict[str, Any] = {
    "parameters": [OPENAPI_HEADER],
    "requestBody": describe_body(JobRequest, webhook="https://hooks.example.com/pictures"),
    "responses": {"202": _DOCUMENT, **describe_problems()},
}
_READ: dict[str, Any] = {"responses": {"200": _DOCUMENT, "404": _MISSING}}


@router.post("/v1/jobs", status_code=202, response_class=Response, openapi_extra=_CREATE)
async def create_job(request: Request) -> Response:
    """Draw pictures of one prompt, and answer before they are drawn."""
    context = cast(AppContext, request.app.state.context)
    with admission(context):
        generation, body = await read_generation(request, context, JobRequest)
        _check_webhook(generation, context)
        terms = terms_of_job(generation, context, request_key(request, body))
        accepted = await accept(request, generation, terms)
    if context.job_webhooks is not None and generation.webhook is not None:
        context.job_webhooks.look_soon()
    return await answer_accepted(request, accepted)


@router.get(
    "/v1/jobs",
    response_class=Response,
    openapi_extra={"parameters": [_LIMIT], "responses": {"200": _LIST}},
)
async def list_jobs(request: Request) -> Response:
    """Own jobs that are open or kept, newest first."""
    context = cast(AppContext, request.app.state.context)
    limit = _limit(request.query_params.getlist("limit"))
    if context.keys is None:
        raise Forbidden(
            "this service asks for no API keys and cannot tell whose jobs are whose: keep the ids"
        )
    owner = principal_of(request).owner
    requests = await context.broker.requests_of(owner, limit)
    firsts = await context.broker.find([job_id(one, 0) for one in requests], with_pictures=False)
    ids = [one for first in firsts if first is not None for one in siblings(first.job)]
    found = await context.broker.find(ids, with_pictures=False)
    groups = groupby(zip(ids, found, strict=True), key=lambda pair: request_of(pair[0]))
    kept = [[record for _, record in pairs] for _, pairs in groups]
    documents = [
        _document(request, with_lost(records, first.job))
        for records in kept
        if (first := records[0]) is not None
    ]
    return Response(orjson.dumps({"jobs": documents}), media_type="application/json")


@router.get("/v1/jobs/{job}", response_class=Response, openapi_extra=_READ)
async def read_job(job: str, request: Request) -> Response:
    """A job and the state of its pictures."""
    return _answer(request, await _own(request, job))


@router.delete("/v1/jobs/{job}", response_class=Response, openapi_extra=_READ)
async def cancel_job(job: str, request: Request) -> Response:
    """Cancel what of a job has not ended; does nothing where all has."""
    context = cast(AppContext, request.app.state.context)
    records = await _own(request, job)
    num_queued = await context.broker.cancel([record.job.id for record in records])
    context.telemetry.cancelled.labels("queued").inc(num_queued)
    return _answer(request, await _own(request, job))


@router.get(
    "/v1/jobs/{job}/events",
    response_class=Response,
    openapi_extra={
        "responses": {
            "200": {
                "description": "`job`, then `picture` per change of one, `end` at last.",
                "content": {"text/event-stream": {}},
            },
            "404": _MISSING,
        }
    },
)
async def follow_job(job: str, request: Request) -> Response:
    """A job's course as server-sent events."""
    context = cast(AppContext, request.app.state.context)
    return answer_events(await _own(request, job), context, base_url(request, context))


@router.get(
    "/v1/jobs/{job}/images/{index}",
    response_class=Response,
    openapi_extra={
        "responses": {
            "200": {
                "description": "The picture.",
                "content": {media_type: {} for media_type in MEDIA_TYPES.values()},
            },
            "404": _MISSING,
        }
    },
)
async def read_picture(job: str, index: str, request: Request) -> Response:
    """A picture of a job, once it is drawn."""
    context = cast(AppContext, request.app.state.context)
    record = None
    if _ID.fullmatch(job) and _INDEX.fullmatch(index):
        (record,) = await context.broker.find([job_id(job, int(index))])
    outcome = None if record is None or not _is_shown(record, request) else record.outcome
    if record is None or not isinstance(outcome, JobDone):
        raise NotFound("no such picture: it is not drawn yet, not kept any longer, or not yours")
    return Response(
        outcome.image_bytes,
        media_type=MEDIA_TYPES[record.job.format],
        headers={"cache-control": "private, max-age=3600", "x-content-type-options": "nosniff"},
    )


def terms_of_job(generation: Generation, context: AppContext, key: RequestKey | None) -> Terms:
    """How pictures are drawn that nobody waits for."""
    return Terms(generation.format, context.settings.job_deadline_s, is_kept=True, key=key)


async def answer_accepted(
    request: Request, accepted: Accepted, headers: Mapping[str, str] | None = None
) -> Response:
    """The answer to a request whose pictures are still to come."""
    job = request_of(accepted.jobs[0].id)
    answer = _answer(request, await _own(request, job), status=202)
    answer.headers.update({"location": f"/v1/jobs/{job}", **(headers or {})})
    return answer


def _check_webhook(generation: Generation, context: AppContext) -> None:
    """Return when the URL may be called, or there is none.

    Raises:
        InvalidRequest: names the field `webhook`.
    """
    if generation.webhook is None:
        return
    if context.job_webhooks is None:
        raise webhooks_off()
    context.job_webhooks.guard.check(generation.webhook)


async def _own(request: Request, job: str) -> list[JobRecord]:
    """The pictures of a job that this sender may see.

    Raises:
        NotFound: there is none of that name, or it is another's.
    """
    context = cast(AppContext, request.app.state.context)
    first = None
    if _ID.fullmatch(job):
        (first,) = await context.broker.find([job_id(job, 0)], with_pictures=False)
    if first is None or not _is_shown(first, request):
        raise NotFound("no such job, or it is not kept any longer, or it is not yours")
    others = siblings(first.job)[1:]
    found = await context.broker.find(others, with_pictures=False) if others else []
    return with_lost([first, *found], first.job)


def _is_shown(record: JobRecord, request: Request) -> bool:
    """Whether a job is the sender's, and one that can be asked for: ids of others are no secret."""
    return record.job.keep_s > 0 and record.job.owner == principal_of(request).owner


def _limit(given: Sequence[str]) -> int:
    if not given:
        return DEFAULT_LIMIT
    if len(given) == 1 and re.fullmatch(r"[1-9][0-9]{0,2}", given[0]):
        limit = int(given[0])
        if limit <= MAX_LIMIT:
            return limit
    raise InvalidRequest(
        f"limit must be one whole number, 1 to {MAX_LIMIT}",
        field="limit",
        allowed={"min": 1, "max": MAX_LIMIT},
    )


def _document(request: Request, records: Sequence[JobRecord]) -> dict[str, Any]:
    context = cast(AppContext, request.app.state.context)
    return job_document(records, context.broker.now_s(), base_url(request, context))


def _answer(request: Request, records: Sequence[JobRecord], status: int = 200) -> Response:
    return Response(
        orjson.dumps(_document(request, records)),
        status_code=status,
        media_type="application/json",
        headers={"cache-control": "no-store"},
    )
