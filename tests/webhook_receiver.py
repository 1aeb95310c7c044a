"""A receiver of webhooks on a real socket, whose every answer a test writes.

Owns reading one request per connection and keeping it. It speaks HTTP by hand, because a test wants
answers that no server library would give.
"""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from service.telemetry import Telemetry
from service.webhooks.allowed import parse_allowed
from service.webhooks.caller import Caller
from service.webhooks.delivery import DeliveryOutcome, Webhooks
from service.webhooks.guard import Guard
from service.webhooks.retries import RetryPlan
from service.webhooks.sign import Signer

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
HOST = "hooks.example.org"
HERE = ["127.0.0.1"]
TIMEOUT_S = 0.5

Respond = Callable[[asyncio.StreamWriter], Awaitable[None]]


@dataclass(frozen=True)
class Received:
    """One request as it came."""

    line: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """What came, and what is answered next; when the list is used up, 204."""

    port: int = 0
    answers: list[Respond] = field(default_factory=list)
    received: list[Received] = field(default_factory=list)
    num_at_once: int = 0
    most_at_once: int = 0
    # By what name TLS was asked for, of every connection.
    server_names: list[str | None] = field(default_factory=list)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_at_once += 1
        self.most_at_once = max(self.most_at_once, self.num_at_once)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("ascii")
            line, *rest = head.strip().split("\r\n")
            headers = {
                name.lower(): value for name, _, value in (entry.partition(": ") for entry in rest)
            }
            body = await reader.readexactly(int(headers["content-length"]))
            self.received.append(Received(line, headers, body))
            respond = self.answers.pop(0) if self.answers else status(204)
            await respond(writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the caller hung up, which some tests want
        finally:
            self.num_at_once -= 1
            writer.close()


def status(code: int, *headers: str, body: bytes = b"") -> Respond:
    """An ordinary answer."""

    async def respond(writer: asyncio.StreamWriter) -> None:
        head = [f"HTTP/1.1 {code} said", f"content-length: {len(body)}", *headers]
        writer.write("\r\n".join(head).encode() + b"\r\n\r\n" + body)

    return respond


def raw(content: bytes) -> Respond:
    """These bytes, whatever they are."""

    async def respond(writer: asyncio.StreamWriter) -> None:
        writer.write(content)

    return respond


def after(wait_s: float, respond: Respond) -> Respond:
    """An answer that lets itself be waited for."""

    async def late(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(wait_s)
        await respond(writer)

    return late


def endless(head: bytes, chunk: bytes, wait_s: float = 0.0) -> Respond:
    """A beginning and then the same chunk until the caller hangs up."""

    async def respond(writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        while True:
            writer.write(chunk)
            await writer.drain()
            await asyncio.sleep(wait_s)

    return respond


@asynccontextmanager
async def receiving(
    host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Receiver]:
    """A receiver that listens until the end of the block."""
    receiver = Receiver()
    if tls is not None:
        tls.sni_callback = lambda _, name, __: receiver.server_names.append(name)
    server = await asyncio.start_server(receiver.handle, host, port, ssl=tls)
    receiver.port = server.sockets[0].getsockname()[1]
    try:
        yield receiver
    finally:
        server.close()


class Names:
    """A resolver that gives one list of addresses after the other, and the last one for ever."""

    def __init__(self, *answers: Sequence[str] | OSError) -> None:
        self._answers = list(answers)
        self.asked: list[tuple[str, int]] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append((host, port))
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, OSError):
            raise answer
        return answer


def make_webhooks(
    *entries: str,
    names: Names | None = None,
    retries: RetryPlan | None = None,
    ssl_context: ssl.SSLContext | None = None,
    telemetry: Telemetry | None = None,
) -> Webhooks:
    """Webhooks that may call the entries, also without TLS, and lose no time between tries."""
    guard = Guard(map(parse_allowed, entries), is_http_allowed=True)
    return Webhooks(
        guard,
        Caller(guard, TIMEOUT_S, names or Names(HERE), ssl_context),
        Signer([SECRET]),
        retries or RetryPlan(max_tries=3, first_wait_s=0.01),
        telemetry or Telemetry(),
    )


def webhooks_to(receiver: Receiver, **parts: Any) -> Webhooks:
    """Webhooks that may call a receiver by its name."""
    return make_webhooks(f"{HOST}:{receiver.port}=127.0.0.0/8", **parts)


def url_of(receiver: Receiver, scheme: str = "http") -> str:
    return f"{scheme}://{HOST}:{receiver.port}/hook?a=b"


async def outcome_of(receiver: Receiver, *answers: Respond, **parts: Any) -> DeliveryOutcome:
    """Deliver one document to a receiver that answers so."""
    receiver.answers = list(answers)
    async with asyncio.timeout(20):
        return await webhooks_to(receiver, **parts).deliver(url_of(receiver), "e-1", {"a": "ä"})
