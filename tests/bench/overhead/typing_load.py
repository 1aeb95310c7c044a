"""People who type on the realtime route, and how far behind them their pictures are.

Owns when a prompt is sent, what its answer counts as and the client's side of the protocol.

A person sees a prompt as answered by its own picture or by a newer prompt's: the service draws the
newest and drops what it overtook.
"""

from __future__ import annotations

import asyncio
import random
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import orjson
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from engines.bench.statistics import quantile
from tests.bench.overhead.client import JPEG_BEGIN, JPEG_END
from tests.bench.overhead.loads import Address

ROUTE = "/v1/realtime"
NUM_CLIENTS = 50
PROMPTS_PER_S = 8.0
# Each gap between two keys is up to so much shorter or longer than the mean.
JITTER = 0.5
# After the last prompt; what has not come then does not come.
PATIENCE_S = 3.0
_TEXT = "a blue heart on a green cup, drawn by hand "


@dataclass
class Typist:
    """What one client sent and saw; times are readings of `time.perf_counter`."""

    sent_s: list[float] = field(default_factory=list)
    seen: list[tuple[int, float]] = field(default_factory=list)
    num_wrong: int = 0
    num_told_to_wait: int = 0

    @property
    def num_stale(self) -> int:
        """Pictures of a prompt older than one whose picture had been seen."""
        newest, num_stale = -1, 0
        for prompt, _ in self.seen:
            num_stale += prompt < newest
            newest = max(newest, prompt)
        return num_stale

    def latencies_ms(self) -> list[float]:
        """For each prompt, until its picture or a newer prompt's; infinite where none came."""
        latencies_ms: list[float] = []
        for prompt, sent_s in enumerate(self.sent_s):
            seen_s = next((at_s for newer, at_s in self.seen if newer >= prompt), float("inf"))
            latencies_ms.append((seen_s - sent_s) * 1000)
        return latencies_ms


@dataclass(frozen=True)
class Typing:
    """All clients together."""

    typists: Sequence[Typist]
    duration_s: float

    def summary(self) -> dict[str, float | int]:
        """JSON-ready figures."""
        each_ms = [typist.latencies_ms() for typist in self.typists]
        all_ms = [latency_ms for latencies_ms in each_ms for latency_ms in latencies_ms]
        return {
            "num_clients": len(self.typists),
            "num_prompts": len(all_ms),
            "num_pictures": sum(len(typist.seen) for typist in self.typists),
            "pictures_per_s": round(sum(map(self._num_in_time, self.typists)) / self.duration_s, 1),
            "p50_ms": round(quantile(all_ms, 0.5), 1),
            "p99_ms": round(quantile(all_ms, 0.99), 1),
            "worst_client_p99_ms": round(max(quantile(one, 0.99) for one in each_ms), 1),
            "num_unanswered": sum(latency_ms == float("inf") for latency_ms in all_ms),
            "num_stale": sum(typist.num_stale for typist in self.typists),
            "num_wrong": sum(typist.num_wrong for typist in self.typists),
            "num_told_to_wait": sum(typist.num_told_to_wait for typist in self.typists),
        }

    def _num_in_time(self, typist: Typist) -> int:
        """Pictures seen while it typed, not those of the last prompt that it waited for."""
        end_s = typist.sent_s[0] + self.duration_s
        return sum(seen_s <= end_s for _, seen_s in typist.seen)


async def typing_load(address: Address, *, duration_s: float, seed: int) -> Typing:
    """Let all clients type for a while, then wait for the last pictures."""
    typists = [Typist() for _ in range(NUM_CLIENTS)]
    await asyncio.gather(
        *(
            _type(address, typist, duration_s, random.Random(seed * NUM_CLIENTS + number))
            for number, typist in enumerate(typists)
        )
    )
    return Typing(typists, duration_s)


async def _type(address: Address, typist: Typist, duration_s: float, gaps: random.Random) -> None:
    url = f"ws://{address.host}:{address.port}{ROUTE}"
    async with connect(url, compression=None, max_size=2**22) as socket:
        reading = asyncio.create_task(_read(socket, typist))
        # Nobody begins with everybody else.
        due_s = time.perf_counter() + gaps.random() / PROMPTS_PER_S
        end_s = due_s + duration_s
        while due_s < end_s and not reading.done():
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
            number = len(typist.sent_s)
            # A key is pressed when it is due, also when the connection takes it later.
            typist.sent_s.append(min(due_s, time.perf_counter()))
            await socket.send(orjson.dumps({"id": number, "prompt": _prompt(number)}).decode())
            due_s += gaps.uniform(1 - JITTER, 1 + JITTER) / PROMPTS_PER_S
        async with asyncio.timeout(PATIENCE_S) as patience:
            try:
                while not reading.done() and not _has_last(typist):
                    await asyncio.sleep(0.01)
            except TimeoutError:
                assert patience.expired()
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


def _prompt(number: int) -> str:
    """A text that grows by a letter, and is begun anew when it is whole."""
    return f"{_TEXT[: 5 + number % (len(_TEXT) - 5)]}{number // len(_TEXT)}"


def _has_last(typist: Typist) -> bool:
    return bool(typist.seen) and typist.seen[-1][0] == len(typist.sent_s) - 1


async def _read(socket: ClientConnection, typist: Typist) -> None:
    try:
        async for message in socket:
            seen_s = time.perf_counter()
            if isinstance(message, str):
                kind = orjson.loads(message).get("type")
                typist.num_told_to_wait += kind == "waiting"
                typist.num_wrong += kind not in ("hello", "waiting")
                continue
            number, picture = read_frame(message)
            typist.seen.append((number, seen_s))
            typist.num_wrong += not (picture.startswith(JPEG_BEGIN) and picture.endswith(JPEG_END))
    except ConnectionClosed:
        typist.num_wrong += 1


def read_frame(message: bytes) -> tuple[int, bytes]:
    """The prompt's number and the picture: four bytes of length, a header in JSON, the picture."""
    (num_header_bytes,) = struct.unpack_from(">I", message)
    header = orjson.loads(message[4 : 4 + num_header_bytes])
    return header["id"], message[4 + num_header_bytes :]
