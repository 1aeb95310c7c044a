"""What an error becomes on the wire, in the words of the family that its path belongs to.

Owns the answer and its headers; `service.errors` owns statuses and codes.
"""

from __future__ import annotations

import orjson
from fastapi import Response
from starlette.types import Scope

from service.errors import (
    BodyTooLarge,
    DeadlineExceeded,
    ProblemError,
    QuotaExceeded,
    RequestTooSlow,
    Unauthorized,
    problem_document,
    retry_headers,
    status_of,
)
from service.openai_wire.answers import error_document

# Clients of this API read errors in its own envelope.
_OPENAI_PATHS = ("/v1/images/", "/v1/models")


def problem_response(error: ProblemError, scope: Scope) -> Response:
    """The answer for an error; notes its code for the metrics."""
    state = scope["state"]
    row = status_of(error)
    state["reason"] = row.code
    headers = retry_headers(error)
    if isinstance(error, DeadlineExceeded):
        # The client has waited its time; the `openai` one would ask twice more of a busy service.
        headers["x-should-retry"] = "false"
    if isinstance(error, QuotaExceeded):
        # Retry-After is capped; before midnight nothing changes.
        headers["x-should-retry"] = "false"
    if isinstance(error, Unauthorized):
        headers["www-authenticate"] = 'Bearer realm="onestep"'
    if isinstance(error, (BodyTooLarge, RequestTooSlow)):
        # The rest of the body stays unread, so the connection cannot be used again.
        headers["connection"] = "close"
    if scope["path"].startswith(_OPENAI_PATHS):
        document, media_type = error_document(error), "application/json"
    else:
        document = problem_document(error, state["request_id"])
        media_type = "application/problem+json"
    return Response(
        orjson.dumps(document), status_code=row.status, media_type=media_type, headers=headers
    )
