"""Bounds on what clients send.

Owns the sizes of bodies, the time they take, and what all of them together may hold.
"""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import BodyTooLarge, QueueFull, RequestTooSlow
from service.middleware.problems import problem_response
from service.settings import Settings

# Routes whose bodies may hold a picture.
_UPLOAD_PATHS = frozenset({"/v1/generate", "/v1/jobs", "/v1/images/edits"})
# Bodies are held for the time of a request, which is short.
_HELD_RETRY_S = 1.0


class BodyLimitMiddleware:
    """Bounds bodies: each in bytes and in the time it takes to arrive, and all of them together.

    It counts the bytes that arrive, because what parses them does not: forms know other limits.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._num_held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_upload = scope["path"] in _UPLOAD_PATHS
        settings = self._settings
        max_bytes = settings.max_upload_bytes if is_upload else settings.max_body_bytes
        for name, value in scope["headers"]:
            if name == b"content-length" and int(value) > max_bytes:
                await problem_response(_too_large(max_bytes), scope)(scope, receive, send)
                return
        num_bytes = 0
        is_whole = False
        until_s = asyncio.get_running_loop().time() + settings.body_timeout_s

        async def receive_within_limit() -> Message:
            nonlocal num_bytes, is_whole
            if is_whole:  # what is waited for now is the client's departure
                return await receive()
            try:
                async with asyncio.timeout_at(until_s):
                    message = await receive()
            except TimeoutError:
                raise RequestTooSlow(
                    f"the body must arrive within {settings.body_timeout_s:g} s", field="body"
                ) from None
            is_whole = not message.get("more_body", False)
            num_new = len(message.get("body", b""))
            num_bytes += num_new
            self._num_held_bytes += num_new
            if num_bytes > max_bytes:
                raise _too_large(max_bytes)
            if num_new and self._num_held_bytes > settings.max_held_body_bytes:
                raise QueueFull("too many bodies are arriving", retry_after_s=_HELD_RETRY_S)
            return message

        try:
            await self._app(scope, receive_within_limit, send)
        finally:
            self._num_held_bytes -= num_bytes


def _too_large(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"the body may hold at most {max_bytes} bytes",
        field="body",
        allowed={"max_bytes": max_bytes},
    )
