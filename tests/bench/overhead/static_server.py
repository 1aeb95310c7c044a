"""A server that answers every request with the same picture: it shows what the client can do.

python -m tests.bench.overhead.static_server
"""

from __future__ import annotations

import asyncio
from typing import cast

import uvloop

from tests.bench.overhead.engine import encode_jpeg, texture_HWC


class _Answering(asyncio.Protocol):
    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        # The client's requests are small and come whole.
        self._transport.write(self._answer)


async def serve() -> None:
    """Listen on a free port, say which, and answer until killed."""
    picture = encode_jpeg(texture_HWC(0))
    head = b"HTTP/1.1 200 OK\r\ncontent-type: image/jpeg\r\ncontent-length: %d\r\n\r\n"
    answer = head % len(picture) + picture
    server = await asyncio.get_running_loop().create_server(
        lambda: _Answering(answer), "127.0.0.1", 0
    )
    print(f"listening on {server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve())
