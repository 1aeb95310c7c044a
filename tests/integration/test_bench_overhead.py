"""The service benchmark's client sees what is there, and its server is the real command."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from tests.bench.overhead.engine import NO_OP, PACES, Dial, encode_jpeg, texture_HWC
from tests.bench.overhead.loads import Address, Seeds, closed_load, poisson_load
from tests.bench.overhead.servers import MAX_QUEUE_DEPTH, ONESTEP, ONESTEP_PREPARED, running

STALL_S = 0.4


class _Stalling(asyncio.Protocol):
    """Answers at once, but for a while after its thirtieth request, which all others wait out."""

    picture = encode_jpeg(texture_HWC(0))
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(picture) + picture

    def __init__(self, server: _Stall) -> None:
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._server.num_asked += 1
        if self._server.num_asked == 30:
            self._server.until_s = time.monotonic() + STALL_S
        wait_s = max(0.0, self._server.until_s - time.monotonic())
        asyncio.get_running_loop().call_later(wait_s, self._transport.write, self.answer)


@dataclass
class _Stall:
    num_asked: int = 0
    until_s: float = 0.0


async def test_a_server_that_stands_still_is_seen_by_all_who_were_due_meanwhile() -> None:
    """A client that waits with its next request would report one slow answer."""
    stall = _Stall()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Stalling(stall), "127.0.0.1", 0)
    async with server:
        address = Address("127.0.0.1", server.sockets[0].getsockname()[1], "/")
        load = await poisson_load(address, Seeds(), rate_per_s=100, duration_s=1.2, seed=1)
    assert load.num_lost == load.num_refused == 0
    # Some forty were due while it stood still; half of them waited for more than half of it.
    slow = [one for one in load.asked if one.latency_ms > STALL_S * 1000 / 2]
    assert len(slow) >= 10
    assert load.latency_ms(1.0) >= STALL_S * 1000 * 0.9


async def test_the_measured_service_is_the_real_command_around_the_emulated_engine(
    tmp_path: Path,
) -> None:
    dial = Dial(tmp_path / "dial")
    for server in (ONESTEP, ONESTEP_PREPARED):
        with running(server, tmp_path / "dial", tmp_path) as process:
            dial.turn(PACES["306/s"])
            load = await closed_load(
                process.address, Seeds(), num_connections=16, warm_up_s=0.1, duration_s=0.6
            )
            assert load.num_lost == load.num_refused == 0
            assert load.mean_batch_size > 4
            # A batch of eight takes 26 ms: the engine's pace is the dial's.
            assert 26 < load.latency_ms(0.5) < 400
            sizes = {one.reply.num_bytes for one in load.right}
            assert all(60_000 < size < 76_000 for size in sizes)
            # The encoder ran on pictures of its own, or one was handed out.
            assert (len(sizes) > 1) is (server is ONESTEP)
            rush = await poisson_load(
                process.address, Seeds(), rate_per_s=900, duration_s=0.5, seed=1
            )
            assert rush.num_refused > 0
            assert len(rush.right) >= MAX_QUEUE_DEPTH
            assert process.cpu_s() > 0.1
            dial.turn(NO_OP)
