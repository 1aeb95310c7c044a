"""Requests that are sent when they are due, whatever became of the ones before.

Owns the connections, which are opened anew when a server closes them, and the time after which an
answer is given up. Knows no statistics.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import orjson

from tests.bench.overhead.client import Connection, Reply
from tests.bench.overhead.loads import arrivals

# What stands for an answer that never came whole.
BROKEN, GIVEN_UP = 0, -1
_PATH = "/v1/generate"
_MAX_SEED = 2**32 - 1


class BadAddress(ValueError):
    """There is nothing to send to."""


@dataclass(frozen=True)
class Target:
    """A service, and what is asked of it.

    Attributes:
        key: an API key, where the service wants one; it goes into a header and nowhere else.
        give_up_s: after which an answer is not waited for any longer.
    """

    host: str
    port: int
    is_tls: bool
    key: str | None
    prompts: Sequence[str]
    give_up_s: float = 30.0

    @classmethod
    def at(cls, url: str, key: str | None, prompts: Sequence[str], give_up_s: float) -> Target:
        """The service at an address like `http://host:8000`.

        Raises:
            BadAddress: it is none.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in "/":
            raise BadAddress(f"--url {url}: write http://HOST:PORT or https://HOST")
        is_tls = parts.scheme == "https"
        port = parts.port or (443 if is_tls else 80)
        return cls(parts.hostname, port, is_tls, key, prompts, give_up_s)

    def request(self, seed: int) -> bytes:
        """One picture asked for; no two requests of a run are equal."""
        prompt = self.prompts[seed % len(self.prompts)]
        body = orjson.dumps({"prompt": prompt, "seed": seed, "format": "jpeg"})
        key = f"authorization: Bearer {self.key}\r\n" if self.key else ""
        head = (
            f"POST {_PATH} HTTP/1.1\r\nhost: {self.host}:{self.port}\r\naccept: image/jpeg\r\n"
            f"content-type: application/json\r\n{key}content-length: {len(body)}\r\n\r\n"
        )
        return head.encode("ascii") + body


@dataclass(frozen=True)
class Sent:
    """One request and what it came to.

    Attributes:
        due_s: when it should have been sent, from the start of its stage.
        late_s: how much later it was: the client's own delay.
        latency_s: from when it was due to its last byte.
        status: of HTTP, `BROKEN` or `GIVEN_UP`.
        is_right: a whole picture of the seed that was asked for.
    """

    due_s: float
    late_s: float
    latency_s: float
    status: int
    is_right: bool
    batch_size: int


async def send_stage(target: Target, rate_per_s: float, duration_s: float, seed: int) -> list[Sent]:
    """Send at random times for a while, and wait for what is then still under way."""
    pool = _Pool(target)
    start_s = time.perf_counter()
    sending: list[asyncio.Task[Sent]] = []
    try:
        for number, due_s in enumerate(arrivals(rate_per_s, duration_s, seed)):
            ahead_s = start_s + due_s - time.perf_counter()
            # Also when it is late: the answers have to be read meanwhile.
            await asyncio.sleep(max(0.0, ahead_s))
            picture_seed = (seed * 1_000_003 + number) % (_MAX_SEED + 1)
            sending.append(asyncio.create_task(pool.ask(start_s, due_s, picture_seed)))
        return list(await asyncio.gather(*sending))
    finally:
        pool.close()


class _Pool:
    """Connections nobody uses now; as many more are opened as are needed."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._free: list[Connection] = []
        self._tls = ssl.create_default_context() if target.is_tls else None

    async def ask(self, start_s: float, due_s: float, seed: int) -> Sent:
        """Send one request now."""
        sent_s = time.perf_counter() - start_s
        reply = await self._reply(seed)
        latency_s = reply.ended_s - start_s - min(due_s, sent_s)
        late_s = max(0.0, sent_s - due_s)
        return Sent(due_s, late_s, latency_s, reply.status, reply.is_right, reply.batch_size)

    async def _reply(self, seed: int) -> Reply:
        connection: Connection | None = None
        try:
            async with asyncio.timeout(self._target.give_up_s):
                connection = await self._connection()
                reply = await connection.ask(self._target.request(seed), seed)
        except TimeoutError:
            status = GIVEN_UP
        except OSError:
            status = BROKEN
        else:
            self._free.append(connection)
            return reply
        if connection is not None:
            connection.close()
        return Reply(status, False, 0, 0, time.perf_counter())

    async def _connection(self) -> Connection:
        while self._free:
            if not (connection := self._free.pop()).is_closed:
                return connection
        _, connection = await asyncio.get_running_loop().create_connection(
            Connection, self._target.host, self._target.port, ssl=self._tls
        )
        return connection

    def close(self) -> None:
        """Leave."""
        for connection in self._free:
            connection.close()
