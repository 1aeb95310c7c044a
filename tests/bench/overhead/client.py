"""HTTP connections that cost little: the client shares its cores with the server it measures.

Owns the bytes of one request and one answer. Knows no schedule and no statistics.
"""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass
from typing import cast

import orjson

JPEG_BEGIN, JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_BATCH_SIZE = re.compile(rb"\r\nx-onestep-batch-size: *(\d+)", re.IGNORECASE)
_UNKNOWN_LENGTH = -1


@dataclass(frozen=True)
class Reply:
    """One answer.

    Attributes:
        status: of HTTP; 0 when the connection broke.
        is_right: a whole JPEG, of the seed that was asked for where the server names it.
        batch_size: as the server names it; 0 where it does not.
        ended_s: when its last byte came, on `time.perf_counter`.
    """

    status: int
    is_right: bool
    batch_size: int
    num_bytes: int
    ended_s: float


class Connection(asyncio.Protocol):
    """A kept-alive connection that carries one request at a time."""

    def __init__(self) -> None:
        """Use `connect`."""
        self._reply: asyncio.Future[Reply] | None = None
        self._seed_line = b""
        self._begin()

    def _begin(self) -> None:
        self._head = b""
        self._length = _UNKNOWN_LENGTH
        self._num_received = 0
        self._first = self._last = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way out."""
        self._transport = cast(asyncio.Transport, transport)

    def ask(self, request: bytes, seed: int) -> asyncio.Future[Reply]:
        """Send a request; the future never fails."""
        assert self._reply is None, "one request at a time"
        self._seed_line = b"\r\nx-onestep-seed: %d\r\n" % seed
        self._begin()
        reply = self._reply = asyncio.get_running_loop().create_future()
        if self._transport.is_closing():
            self.connection_lost(None)
        else:
            self._transport.write(request)
        return reply

    def data_received(self, data: bytes) -> None:
        """Count a body rather than keep it."""
        if self._reply is None:  # the server says more than it was asked
            self._transport.abort()
            return
        if self._length == _UNKNOWN_LENGTH:
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return
            self._head, data = self._head[: end + 4], self._head[end + 4 :]
            length = _LENGTH.search(self._head)
            self._length = int(length[1]) if length else 0
        self._num_received += len(data)
        if len(self._first) < len(JPEG_BEGIN):
            self._first += data[: len(JPEG_BEGIN)]
        self._last = (self._last + data[-2:])[-2:]
        if self._num_received >= self._length:
            self._finish()

    def connection_lost(self, error: Exception | None) -> None:
        """End what is under way without an answer."""
        if self._reply is not None:
            reply, self._reply = self._reply, None
            if not reply.done():
                reply.set_result(Reply(0, False, 0, 0, time.perf_counter()))

    @property
    def is_closed(self) -> bool:
        """Whether the server has left, or this side has."""
        return self._transport.is_closing()

    def close(self) -> None:
        """Leave."""
        self._transport.abort()

    def _finish(self) -> None:
        assert self._reply is not None
        status = int(self._head[9:12])
        batch_size = _BATCH_SIZE.search(self._head)
        # Peers name no seed; the service always does.
        is_named = b"\r\nx-onestep-" in self._head
        is_right = (
            status == 200
            and self._num_received == self._length
            and self._first.startswith(JPEG_BEGIN)
            and self._last == JPEG_END
            and (not is_named or self._seed_line in self._head)
        )
        reply, self._reply = self._reply, None
        if not reply.done():
            reply.set_result(
                Reply(
                    status,
                    is_right,
                    int(batch_size[1]) if batch_size else 0,
                    self._length,
                    time.perf_counter(),
                )
            )


async def connect(host: str, port: int) -> Connection:
    """Open one connection."""
    _, connection = await asyncio.get_running_loop().create_connection(Connection, host, port)
    return connection


def request_bytes(path: str, seed: int) -> bytes:
    """A request that no other equals: prompt and seed are new each time."""
    body = orjson.dumps({"prompt": f"blue heart {seed}", "seed": seed, "format": "jpeg"})
    return (
        b"POST %b HTTP/1.1\r\nhost: bench\r\naccept: image/jpeg\r\n"
        b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
        % (path.encode("ascii"), len(body), body)
    )
