"""A small HTTP client that asks for many pictures at once and loses sight of none.

It shares the cores with the service it measures, so it does the least that a client can: plain
sockets, one parse of the head. Knows nothing of engines.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Answer:
    """What one request came to; `is_right` means a PNG with the seed that was asked for."""

    is_right: bool
    latency_s: float
    batch_size: int


@dataclass(frozen=True)
class LoadResult:
    """One run of the client."""

    wall_s: float
    answers: Sequence[Answer]

    @property
    def num_lost(self) -> int:
        """Requests without the picture they asked for."""
        return sum(not answer.is_right for answer in self.answers)

    @property
    def images_per_s(self) -> float:
        """Right pictures over the time from the first request to the last answer."""
        return (len(self.answers) - self.num_lost) / self.wall_s

    @property
    def mean_batch_size(self) -> float:
        """Pictures per engine run: a batch of n shows up in n answers."""
        num_batches = sum(1 / answer.batch_size for answer in self.answers if answer.is_right)
        return (len(self.answers) - self.num_lost) / num_batches if num_batches else 0.0

    def latency_ms(self, quantile: float) -> float:
        """Latency that this part of the requests stays within."""
        ordered = sorted(answer.latency_s for answer in self.answers)
        return ordered[min(len(ordered) - 1, int(quantile * len(ordered)))] * 1000


async def run_load(
    host: str, port: int, *, num_connections: int, num_requests: int, prompts: Sequence[str]
) -> LoadResult:
    """Send `num_requests`, always as many at once as there are connections."""
    pending = iter(range(num_requests))
    answers: list[Answer] = []

    async def one_connection() -> None:
        try:
            reader, writer = await asyncio.open_connection(host, port)
        except OSError:
            answers.append(Answer(False, 0.0, 1))
            return
        for index in pending:
            answers.append(await _ask(reader, writer, prompts[index % len(prompts)], seed=index))
        writer.close()

    started_s = time.perf_counter()
    await asyncio.gather(*(one_connection() for _ in range(num_connections)))
    return LoadResult(time.perf_counter() - started_s, answers)


async def _ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, prompt: str, seed: int
) -> Answer:
    body = json.dumps({"prompt": prompt, "seed": seed}).encode()
    started_s = time.perf_counter()
    writer.write(
        b"POST /v1/generate HTTP/1.1\r\nhost: bench\r\naccept: image/png\r\n"
        b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    )
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        content = await reader.readexactly(int(headers["content-length"]))
    except (OSError, asyncio.IncompleteReadError):
        return Answer(False, time.perf_counter() - started_s, 1)
    is_right = (
        " 200 " in head[0]
        and headers.get("x-onestep-seed") == str(seed)
        and content.startswith(PNG_SIGNATURE)
    )
    batch_size = int(headers.get("x-onestep-batch-size", "1"))
    return Answer(is_right, time.perf_counter() - started_s, batch_size)
