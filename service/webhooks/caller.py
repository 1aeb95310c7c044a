"""One HTTP call to an address that has been checked.

Owns the network side: a name is looked up once, everything it resolved to is checked, and the
connection is made to one of those very addresses, so a name that changes in between gains nothing.
TLS and the Host header keep the name. There are no redirects, proxies, cookies or decompression to
fence in: the client underneath has none. Knows neither signatures nor retries.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import httpcore2

from service.errors import WebhookUnreachable
from service.webhooks.guard import Guard, Target
from service.webhooks.retries import parse_retry_after

# An answer's body means nothing. It is read this far so that the receiver can finish its sentence.
MAX_ANSWER_BYTES = 16 * 1024
MAX_ANSWER_S = 1.0

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


async def resolve(host: str, port: int) -> Sequence[str]:
    """Every address of a host, by the system's resolver, in the order of its preference."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


@dataclass(frozen=True)
class Answer:
    """What a receiver said."""

    status: int
    retry_after_s: float | None


class CheckedNetwork(httpcore2.AsyncNetworkBackend):
    """Makes connections for `httpcore2`, to checked addresses only."""

    def __init__(self, guard: Guard, resolve: Resolve) -> None:
        self._guard = guard
        self._resolve = resolve
        self._network = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Connect to the first address that takes the connection.

        Raises:
            WebhookBlocked: one of the host's addresses must not be called.
        """
        addresses = await self._resolve(host, port)
        self._guard.check_addresses(host, port, addresses)
        last = httpcore2.ConnectError(f"{host} has no address")
        for address in addresses:
            try:
                return await self._network.connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
            except httpcore2.ConnectError as error:
                last = error
        raise last


class Caller:
    """Posts to targets, each call over a connection of its own.

    Args:
        timeout_s: for the name, the connection, TLS and the answer together.
        ssl_context: whom to trust; None trusts the authorities that the system trusts.
    """

    def __init__(
        self,
        guard: Guard,
        timeout_s: float,
        resolve: Resolve = resolve,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._network = CheckedNetwork(guard, resolve)
        self._timeout_s = timeout_s
        # Reading the system's authorities takes longer than a call: once for all of them.
        self._ssl_context = ssl_context or httpcore2.default_ssl_context()

    async def post(self, target: Target, headers: Mapping[str, str], body: bytes) -> Answer:
        """Post a body and return the answer's status.

        Raises:
            WebhookBlocked: the host has an address that must not be called.
            WebhookUnreachable: no answer.
        """
        answer: Answer | None = None
        own_headers = {"host": target.host_header, "connection": "close"}
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                self._connection(target) as connection,
                connection.stream(
                    "POST",
                    _url(target),
                    headers=list({**own_headers, **headers}.items()),
                    content=body,
                ) as response,
            ):
                answer = Answer(response.status, _retry_after_s(response))
                await _read_some(response)
        except (
            TimeoutError,
            OSError,  # of the resolver
            UnicodeError,  # of the resolver, for a name that DNS cannot hold
            httpcore2.NetworkError,
            httpcore2.ProtocolError,
            httpcore2.TimeoutException,
        ) as error:
            # An answer holds, however its body ended.
            if answer is None:
                reason = type(error.__cause__ or error).__name__
                raise WebhookUnreachable(f"{target.host} did not answer: {reason}") from error
        assert answer is not None
        return answer

    def _connection(self, target: Target) -> httpcore2.AsyncHTTPConnection:
        return httpcore2.AsyncHTTPConnection(
            httpcore2.Origin(target.scheme.encode(), target.host.encode(), target.port),
            ssl_context=self._ssl_context,
            network_backend=self._network,
        )


def _url(target: Target) -> httpcore2.URL:
    # From its parts, so that it is not parsed a second time.
    return httpcore2.URL(
        scheme=target.scheme.encode(),
        host=target.host.encode(),
        port=target.port,
        target=target.path.encode(),
    )


def _retry_after_s(response: httpcore2.Response) -> float | None:
    for name, value in response.headers:
        if name.lower() == b"retry-after":
            return parse_retry_after(value.decode("latin-1"), datetime.now(UTC))
    return None


async def _read_some(response: httpcore2.Response) -> None:
    num_bytes = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(MAX_ANSWER_S):
            async for chunk in response.aiter_stream():
                num_bytes += len(chunk)
                if num_bytes >= MAX_ANSWER_BYTES:
                    return
