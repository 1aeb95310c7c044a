"""The header Idempotency-Key: a request that may come again without being drawn again.

Owns what a key may be, which jobs it names and when two requests are the same. Knows no queue.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

from fastapi import Request

from service.errors import InvalidRequest
from service.routes.access import principal_of
from service.routes.forms import Form

FIELD = "idempotency-key"
MAX_CHARS = 255
_KEY = re.compile(rf"[!-~]{{1,{MAX_CHARS}}}")
_REPLAYED = (b"idempotent-replayed", b"true")
OPENAPI_HEADER = {
    "name": "Idempotency-Key",
    "in": "header",
    "schema": {"type": "string", "minLength": 1, "maxLength": MAX_CHARS},
    "example": "5f1c0d3e-6a1b-4d0e-9f5e-0c2f1b7a9d42",
    "description": "With the same key the same request is drawn and charged once.",
}


@dataclass(frozen=True)
class RequestKey:
    """What a key stands for.

    Attributes:
        request: the id that its jobs are named by, the same for the same sender and key.
        digest: of all that the request says.
    """

    request: str
    digest: str


def request_key(request: Request, body: bytes | Form) -> RequestKey | None:
    """What the request's key stands for; None where it has none.

    Raises:
        InvalidRequest: the header is no key, or came twice.
    """
    keys = request.headers.getlist(FIELD)
    if not keys:
        return None
    if len(keys) > 1 or _KEY.fullmatch(keys[0]) is None:
        raise InvalidRequest(
            f"{FIELD}: send one of 1 to {MAX_CHARS} visible ASCII characters, like a random UUID",
            field=FIELD,
            allowed={"min_chars": 1, "max_chars": MAX_CHARS},
        )
    owner = principal_of(request).owner
    name = _digest(part.encode() for part in (owner, "idempotency", keys[0]))
    return RequestKey(name, _digest(_parts(request, body)))


def mark_replayed(request: Request) -> None:
    """Let the answer say that nothing was drawn for this request."""
    request.scope["state"].setdefault("headers", []).append(_REPLAYED)


def _parts(request: Request, body: bytes | Form) -> Iterator[bytes]:
    yield request.method.encode()
    yield request.scope["path"].encode()
    if isinstance(body, bytes):
        yield body
        return
    # A form's boundary is another one each time, and so may the order of its parts be.
    for name, text in sorted(body.texts.items()):
        yield from (b"text", name.encode(), text.encode())
    for name, contents in sorted(body.files.items()):
        for content in contents:
            yield from (b"file", name.encode(), content)


def _digest(parts: Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        # With its length, so that no two sequences of parts read alike.
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()
