"""Every error that the service raises on purpose, and what each becomes on the wire.

    ServiceError
    ├── StartError           the command cannot start (settings, port); exit status 2
    ├── WebhookError         a webhook was not answered
    │   ├── WebhookBlocked     its host has an address that must not be called
    │   └── WebhookUnreachable no answer within the time allowed
    └── ProblemError         answered to a client
        ├── InvalidRequest     400
        ├── Unauthorized       401, with WWW-Authenticate
        ├── Forbidden          403, the key may not do this
        ├── NotFound           404
        ├── MethodNotAllowed   405
        ├── RequestTooSlow     408, head or body took too long to arrive
        ├── JobCancelled       409, its owner cancelled it
        ├── BodyTooLarge       413
        ├── PictureTooLarge    413, a client's picture has too many pixels
        ├── IdempotencyMismatch 422, the key came with another request before
        ├── QueueFull          429, with Retry-After
        ├── RateLimited        429, with Retry-After
        ├── QuotaExceeded      429, nothing more today
        ├── HeadTooLarge       431
        ├── ClientClosed       499, the client left before its picture was done
        ├── InternalError      500, a defect of the service
        ├── GenerationFailed   500, the engine or encoder failed on this job alone
        ├── NotReady           503, the model is still loading
        ├── Draining           503, the process is about to stop
        ├── QueueUnavailable   503, the queue cannot be reached
        ├── TooManyConnections 503, no seat for one more realtime connection
        └── DeadlineExceeded   504

Owns the status table and the problem document (RFC 9457). Knows no web framework.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

# The widest wait that common clients still honour; a longer one is taken as "do not retry".
MAX_RETRY_AFTER_S = 120


class ServiceError(Exception):
    """Root of the tree; catch it at a command's or request's boundary."""


class StartError(ServiceError):
    """The command cannot start; the message is one line that names the remedy."""


class WebhookError(ServiceError):
    """A webhook was not answered; the message names the host and never the URL."""


class WebhookBlocked(WebhookError):
    """The host's name leads to an address that must not be called."""


class WebhookUnreachable(WebhookError):
    """No answer: the name, the connection, TLS or the time allowed failed."""


class ProblemError(ServiceError):
    """An error with a place in the status table.

    Args:
        detail: one sentence for the person who sent the request; never holds a prompt.
        field: the request field at fault.
        allowed: what that field may be, as plain JSON.
        retry_after_s: when trying again makes sense.
    """

    def __init__(
        self,
        detail: str,
        *,
        field: str | None = None,
        allowed: object = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.field = field
        self.allowed = allowed
        self.retry_after_s = retry_after_s


class InvalidRequest(ProblemError):
    """A field is missing, unknown or out of range, or the body is no JSON object."""


class Unauthorized(ProblemError):
    """An API key is needed, and none came or one that is not good."""


class Forbidden(ProblemError):
    """The sender is known and may not do this."""


class NotFound(ProblemError):
    """No such path."""


class MethodNotAllowed(ProblemError):
    """The path exists, the method does not."""


class RequestTooSlow(ProblemError):
    """The request took longer to arrive than it may."""


class HeadTooLarge(ProblemError):
    """Request line and headers hold more bytes than they may."""


class JobCancelled(ProblemError):
    """The job ended without a picture because its owner cancelled it."""


class BodyTooLarge(ProblemError):
    """The body holds more bytes than the settings allow."""


class PictureTooLarge(ProblemError):
    """A client's picture has more pixels than the settings allow."""


class IdempotencyMismatch(ProblemError):
    """The idempotency key was used for another request."""


class QueueFull(ProblemError):
    """The queue is as deep as it may become."""


class RateLimited(ProblemError):
    """More than the sender's rate, or more open pictures than it may have."""


class QuotaExceeded(ProblemError):
    """The sender has spent what it may in a day."""


class ClientClosed(ProblemError):
    """The client left; nobody reads this answer, metrics count it."""


class InternalError(ProblemError):
    """An unforeseen exception; its text stays in the log."""


class GenerationFailed(ProblemError):
    """The engine or the encoder failed on this very job."""


class NotReady(ProblemError):
    """The model is not loaded yet."""


class Draining(ProblemError):
    """The process finishes what it accepted and takes nothing new."""


class QueueUnavailable(ProblemError):
    """The queue lives in another process and cannot be reached, or takes nothing at the moment."""


class TooManyConnections(ProblemError):
    """As many realtime connections are open as the settings allow."""


class DeadlineExceeded(ProblemError):
    """No picture before the request's deadline."""


@dataclass(frozen=True)
class Status:
    """How one error class looks on the wire."""

    status: int
    code: str
    title: str


STATUS_TABLE: dict[type[ProblemError], Status] = {
    InvalidRequest: Status(400, "invalid_request", "Invalid request"),
    Unauthorized: Status(401, "unauthorized", "Unauthorized"),
    Forbidden: Status(403, "forbidden", "Forbidden"),
    NotFound: Status(404, "not_found", "Not found"),
    MethodNotAllowed: Status(405, "method_not_allowed", "Method not allowed"),
    RequestTooSlow: Status(408, "request_too_slow", "Request timeout"),
    JobCancelled: Status(409, "job_cancelled", "Job cancelled"),
    BodyTooLarge: Status(413, "body_too_large", "Body too large"),
    PictureTooLarge: Status(413, "picture_too_large", "Picture too large"),
    IdempotencyMismatch: Status(422, "idempotency_mismatch", "Idempotency key used before"),
    QueueFull: Status(429, "queue_full", "Queue full"),
    RateLimited: Status(429, "rate_limited", "Rate limited"),
    QuotaExceeded: Status(429, "quota_exceeded", "Quota exceeded"),
    HeadTooLarge: Status(431, "head_too_large", "Request header fields too large"),
    ClientClosed: Status(499, "client_closed", "Client closed the request"),
    InternalError: Status(500, "internal_error", "Internal error"),
    GenerationFailed: Status(500, "generation_failed", "Generation failed"),
    NotReady: Status(503, "not_ready", "Not ready"),
    Draining: Status(503, "draining", "Shutting down"),
    QueueUnavailable: Status(503, "queue_unavailable", "Queue unavailable"),
    TooManyConnections: Status(503, "too_many_connections", "Too many connections"),
    DeadlineExceeded: Status(504, "deadline_exceeded", "Deadline exceeded"),
}


def status_of(error: ProblemError) -> Status:
    """The wire form of an error."""
    return STATUS_TABLE[type(error)]


def problem_document(error: ProblemError, request_id: str | None = None) -> dict[str, Any]:
    """The body of an `application/problem+json` answer, or a part of another document."""
    row = status_of(error)
    document: dict[str, Any] = {
        "type": f"urn:onestep:problem:{row.code}",
        "title": row.title,
        "status": row.status,
        "detail": error.detail,
        "code": row.code,
    }
    if request_id is not None:
        document["request_id"] = request_id
    if error.field is not None:
        document["field"] = error.field
    if error.allowed is not None:
        document["allowed"] = error.allowed
    return document


def retry_ms(error: ProblemError) -> int | None:
    """When to come back; None for errors that waiting cannot mend."""
    if error.retry_after_s is None:
        return None
    wait_s = min(max(error.retry_after_s, 0.0), MAX_RETRY_AFTER_S)
    return max(1, math.ceil(wait_s * 1000))


def retry_headers(error: ProblemError) -> dict[str, str]:
    """Headers that tell a client when to come back, if that makes sense."""
    wait_ms = retry_ms(error)
    if wait_ms is None:
        return {}
    return {"retry-after": str(math.ceil(wait_ms / 1000)), "retry-after-ms": str(wait_ms)}
