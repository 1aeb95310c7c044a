"""Raw ASGI middleware that decides who a request comes from before any route sees it.

Owns which paths are open, where a key is looked for, and what pages of other origins may do. Leaves
`Principal` in `scope["state"]["principal"]`. Knows no route's wire format.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any
from urllib.parse import urlsplit

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.auth import NEEDED, KeyRing
from service.errors import Forbidden, ProblemError, Unauthorized
from service.principal import Principal
from service.telemetry import new_id

# A browser opens these without a key: the page and its files, what a supervisor asks, the
# documents of the API. Everything else that may ever be added needs a key.
_OPEN_PATHS = frozenset({"/", "/livez", "/readyz", "/startupz", "/docs", "/openapi.json"})
# A picture's address is a secret of its own, and an <img> sends no key.
_OPEN_PREFIXES = ("/playground/", "/docs/", "/v1/images/")
_READING = frozenset({"GET", "HEAD"})

# A browser's WebSocket sends no headers of its own but can name subprotocols. A query parameter
# would do too, and would end up in the logs of every proxy on the way.
SUBPROTOCOL = "onestep"
_KEY_SUBPROTOCOL = "key."
_POLICY_VIOLATION = 1008

# What a page of another origin may send and read, where `cors_origins` lists it.
_CORS_METHODS = ("GET", "HEAD", "POST", "DELETE")
_CORS_HEADERS = (
    *("authorization", "x-api-key", "content-type", "accept"),
    *("idempotency-key", "prefer", "x-request-id"),
)
_CORS_EXPOSED = (
    *("x-request-id", "retry-after", "retry-after-ms", "location", "server-timing"),
    *("preference-applied", "idempotent-replayed"),
    *("x-onestep-seed", "x-onestep-queue-ms", "x-onestep-run-ms", "x-onestep-batch-size"),
    "x-ratelimit-remaining-pixel-steps",
)

Answer = Callable[[ProblemError, Scope], Response]


def cors_options(origins: Collection[str]) -> dict[str, Any]:
    """Options of Starlette's middleware for pages of these origins; it takes no cookies."""
    return {
        "allow_origins": list(origins),
        "allow_methods": _CORS_METHODS,
        "allow_headers": _CORS_HEADERS,
        "expose_headers": _CORS_EXPOSED,
    }


class AuthMiddleware:
    """Names every request's principal, or refuses it.

    Args:
        keys: None where no keys are asked.
        anonymous: who a request comes from where no key is asked.
        origins: pages whose WebSockets are accepted beside those of the service's own host.
        answer: makes a refusal's answer in the words of the path's family.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: KeyRing | None,
        anonymous: Principal,
        origins: Collection[str],
        answer: Answer,
    ) -> None:
        self._app = app
        self._keys = keys
        self._anonymous = anonymous
        self._origins = frozenset(origins)
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or WebSocket."""
        if scope["type"] == "http":
            try:
                principal = await self._http_principal(scope)
            except ProblemError as error:
                await self._answer(error, scope)(scope, receive, send)
                return
            scope["state"]["principal"] = principal
        elif scope["type"] == "websocket":
            state = scope.setdefault("state", {})
            state.setdefault("request_id", new_id())
            try:
                state["principal"] = await self._websocket_principal(scope)
            except ProblemError as error:
                await self._refuse_websocket(error, scope, receive, send)
                return
            scope, send = _without_key(scope, send)
        await self._app(scope, receive, send)

    async def _http_principal(self, scope: Scope) -> Principal:
        if self._keys is None or _is_open(scope):
            return self._anonymous
        credential = _credential(scope)
        if credential is None:
            raise Unauthorized(NEEDED)
        return await self._keys.principal(credential)

    async def _websocket_principal(self, scope: Scope) -> Principal:
        # Browsers let any page open a WebSocket to any host: CORS does not hold for them.
        origin = _header(scope, b"origin")
        if origin is not None and not self._is_welcome(origin, scope):
            raise Forbidden("this page's origin may not open WebSockets here: see cors_origins")
        if self._keys is None:
            return self._anonymous
        credential = _credential(scope) or _subprotocol_key(scope)
        if credential is None:
            raise Unauthorized(f"{NEEDED}, or as the subprotocol `{_KEY_SUBPROTOCOL}KEY`")
        return await self._keys.principal(credential)

    def _is_welcome(self, origin: str, scope: Scope) -> bool:
        if "*" in self._origins or origin in self._origins:
            return True
        return urlsplit(origin).netloc == _header(scope, b"host")

    async def _refuse_websocket(
        self, error: ProblemError, scope: Scope, receive: Receive, send: Send
    ) -> None:
        if "websocket.http.response" in scope.get("extensions", {}):
            await self._answer(error, scope)(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION, "reason": ""})


def _is_open(scope: Scope) -> bool:
    path: str = scope["path"]
    return scope["method"] in _READING and (path in _OPEN_PATHS or path.startswith(_OPEN_PREFIXES))


def _credential(scope: Scope) -> str | None:
    """The key in the headers; X-API-Key is the more precise one where both are there."""
    bearer: str | None = None
    for name, value in scope["headers"]:
        if name == b"x-api-key":
            return str(value, "latin-1").strip()
        if name == b"authorization" and bearer is None and value[:7].lower() == b"bearer ":
            bearer = str(value[7:], "latin-1").strip()
    return bearer


def _header(scope: Scope, wanted: bytes) -> str | None:
    return next((str(value, "latin-1") for name, value in scope["headers"] if name == wanted), None)


def _subprotocol_key(scope: Scope) -> str | None:
    for name in scope["subprotocols"]:
        if name.startswith(_KEY_SUBPROTOCOL):
            return str(name.removeprefix(_KEY_SUBPROTOCOL))
    return None


def _without_key(scope: Scope, send: Send) -> tuple[Scope, Send]:
    """The scope without a key among its subprotocols, so that no route picks it for its answer.

    A browser gives up a connection whose server picked none of the subprotocols that it named, so
    the one beside the key is picked where the route picks none.
    """
    offered: list[str] = scope["subprotocols"]
    plain = [name for name in offered if not name.startswith(_KEY_SUBPROTOCOL)]
    if len(plain) == len(offered) or SUBPROTOCOL not in plain:
        return {**scope, "subprotocols": plain}, send

    async def send_with_subprotocol(message: Message) -> None:
        if message["type"] == "websocket.accept" and not message.get("subprotocol"):
            message = {**message, "subprotocol": SUBPROTOCOL}
        await send(message)

    return {**scope, "subprotocols": plain}, send_with_subprotocol
