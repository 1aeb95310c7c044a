"""A client of WS /v1/realtime for the tests, on the `websockets` package.

Owns taking apart what the service sends. Knows nothing of the service's own code, so that it would
notice a changed protocol.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

WAIT_S = 20


class RealtimeClient:
    """One connection that has been greeted."""

    def __init__(self, socket: ClientConnection, hello: dict[str, Any]) -> None:
        self.socket = socket
        self.hello = hello

    async def ask(self, prompt: str, **fields: Any) -> None:
        await self.socket.send(json.dumps({"prompt": prompt} | fields))

    async def receive(self) -> tuple[dict[str, Any], bytes]:
        """The next message: a picture's header and bytes, or another message and none."""
        message = await asyncio.wait_for(self.socket.recv(), WAIT_S)
        if isinstance(message, str):
            return json.loads(message), b""
        (num_bytes,) = struct.unpack(">I", message[:4])
        return json.loads(message[4 : 4 + num_bytes]), message[4 + num_bytes :]

    async def error(self, code: str) -> dict[str, Any]:
        message, _ = await self.receive()
        assert (message["type"], message["code"]) == ("error", code), message
        return message

    async def close_code(self) -> int | None:
        """What the service closes with."""
        await asyncio.wait_for(self.socket.wait_closed(), WAIT_S)
        return self.socket.close_code


@asynccontextmanager
async def connected(port: int, **options: Any) -> AsyncIterator[RealtimeClient]:
    async with connect(f"ws://127.0.0.1:{port}/v1/realtime", **options) as socket:
        hello = json.loads(await asyncio.wait_for(socket.recv(), WAIT_S))
        assert hello["type"] == "hello"
        yield RealtimeClient(socket, hello)
