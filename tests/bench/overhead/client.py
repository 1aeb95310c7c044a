"""HTTP connections that cost little: the client shares its cores with the server it measures.

Owns the bytes of one request and one answer. Knows no schedule and no statistics.
"""

from __future__ import annotations

import asyncio
import re
import socket
import time
from dataclasses import dataclass
from typing import cast

import orjson

JPEG_BEGIN, JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_BATCH_SIZE = re.compile(rb"\r\nx-onestep-batch-size: *(\d+)", re.IGNORECASE)
_UNKNOWN_LENGTH = -1
# More than an answer has, and longer than one may take.
_BUFFER_BYTES, _TIMEOUT_S = 1 << 18, 30.0


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


class Answer:
    """What comes back on a connection that carries one request at a time."""

    def __init__(self) -> None:
        """Wait for nothing yet."""
        self.begin(0)

    def begin(self, seed: int) -> None:
        """Expect the answer to a request with this seed."""
        self._seed_line = b"\r\nx-onestep-seed: %d\r\n" % seed
        self._head = b""
        self._length = _UNKNOWN_LENGTH
        self._num_received = 0
        self._first = self._last = b""

    def feed(self, data: bytes | memoryview) -> Reply | None:
        """Count a body rather than keep it; returns the answer once it is whole."""
        came_s = time.perf_counter()
        if self._length == _UNKNOWN_LENGTH:
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return None
            self._head, data = self._head[: end + 4], self._head[end + 4 :]
            length = _LENGTH.search(self._head)
            self._length = int(length[1]) if length else 0
        self._num_received += len(data)
        if len(self._first) < len(JPEG_BEGIN):
            self._first += data[: len(JPEG_BEGIN)]
        self._last = (self._last + data[-2:])[-2:]
        return self._judge(came_s) if self._num_received >= self._length else None

    def _judge(self, ended_s: float) -> Reply:
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
        num_batched = int(batch_size[1]) if batch_size else 0
        return Reply(status, is_right, num_batched, self._length, ended_s)


def _broken() -> Reply:
    return Reply(0, False, 0, 0, time.perf_counter())


class Connection(asyncio.Protocol):
    """A kept-alive connection among others of an event loop."""

    def __init__(self) -> None:
        """Use `connect`."""
        self._reply: asyncio.Future[Reply] | None = None
        self._answer = Answer()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way out."""
        self._transport = cast(asyncio.Transport, transport)

    def ask(self, request: bytes, seed: int) -> asyncio.Future[Reply]:
        """Send a request; the future never fails."""
        assert self._reply is None, "one request at a time"
        self._answer.begin(seed)
        reply = self._reply = asyncio.get_running_loop().create_future()
        if self._transport.is_closing():
            self.connection_lost(None)
        else:
            self._transport.write(request)
        return reply

    def data_received(self, data: bytes) -> None:
        """Go on with the answer."""
        if self._reply is None:  # the server says more than it was asked
            self._transport.abort()
        elif (reply := self._answer.feed(data)) is not None:
            self._end(reply)

    def connection_lost(self, error: Exception | None) -> None:
        """End what is under way without an answer."""
        if self._reply is not None:
            self._end(_broken())

    @property
    def is_closed(self) -> bool:
        """Whether the server has left, or this side has."""
        return self._transport.is_closing()

    def close(self) -> None:
        """Leave."""
        self._transport.abort()

    def _end(self, reply: Reply) -> None:
        assert self._reply is not None
        waiting, self._reply = self._reply, None
        if not waiting.done():
            waiting.set_result(reply)


class LoneConnection:
    """A kept-alive connection by itself: it blocks, and so adds no event loop of its own."""

    def __init__(self, host: str, port: int) -> None:
        """Connect."""
        self._socket = socket.create_connection((host, port), timeout=_TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._answer = Answer()

    def ask(self, request: bytes, seed: int) -> Reply:
        """Send a request and wait for its answer; a broken connection is one, too."""
        self._answer.begin(seed)
        try:
            self._socket.sendall(request)
            while num_bytes := self._socket.recv_into(self._buffer):
                reply = self._answer.feed(self._buffer[:num_bytes])
                if reply is not None:
                    return reply
        except OSError:
            pass
        return _broken()

    def close(self) -> None:
        """Leave."""
        self._socket.close()


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
