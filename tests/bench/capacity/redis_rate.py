"""What one picture costs a Redis server: its commands, its processor, its bytes.

Owns a server of its own on a free port, and both ends of the real queue in this process. The rate
that comes of it is the client's as much as the server's, where they share cores; the processor
time per picture is the server's alone, and says how many pictures one Redis can carry.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import redis.asyncio

from engines.bench.machine import describe_machine, load_average
from service.batching import Delivery
from service.brokers.base import Want
from service.brokers.redis import RedisBroker, RedisOptions
from service.jobs import BatchKey, Job, JobDone, job_id
from tests.redis_server import RedisServer

_MODEL = "bench"
_KEY = BatchKey(_MODEL, 512, 512, 1)
_SWEEP_S = 1.0


class _Counters:
    """What the server has counted since it started."""

    def __init__(self, told: Mapping[str, Any]) -> None:
        self.cpu_s = told["used_cpu_user_main_thread"] + told["used_cpu_sys_main_thread"]
        self.in_bytes = told["total_net_input_bytes"]
        self.out_bytes = told["total_net_output_bytes"]
        self.calls = {
            name.removeprefix("cmdstat_"): (stat["calls"], stat["usec"])
            for name, stat in told.items()
            if name.startswith("cmdstat_")
        }


@dataclass(frozen=True)
class Shape:
    """What goes through the queue.

    Attributes:
        num_open: pictures asked for at once.
        num_workers: that take them, each at once when it has drawn, which takes no time.
        num_owners: whose pictures they are, in turn; owners share up to eight streams.
    """

    num_open: int = 64
    num_workers: int = 1
    num_owners: int = 1
    max_batch_size: int = 8
    picture_bytes: int = 68_000


async def measure(shape: Shape, duration_s: float) -> dict[str, Any]:
    """Let pictures through the queue and count; JSON-ready. A fifth of the time goes before."""
    if shutil.which("redis-server") is None:
        raise SystemExit("redis-server is needed: apt-get install redis-server")
    load_before = load_average()
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(Path(folder))
        try:
            async with _ends(server.url, shape) as (api, *workers):
                traffic = _Traffic(api, workers, shape)
                async with redis.asyncio.from_url(server.url) as client:
                    async with traffic.flowing():
                        counted = await _count(client, traffic, duration_s)
        finally:
            server.close()
    machine = describe_machine(None)
    return {"machine": machine, "load_average": load_before, "shape": asdict(shape)} | counted


async def _count(
    client: redis.asyncio.Redis, traffic: _Traffic, duration_s: float
) -> dict[str, Any]:
    await asyncio.sleep(duration_s / 5)
    before, num_before, started_s = await _read(client), traffic.num_done, time.perf_counter()
    await asyncio.sleep(duration_s)
    after, num = await _read(client), traffic.num_done - num_before
    wall_s = time.perf_counter() - started_s
    assert num, "nothing came through the queue"
    info = await client.info()
    cpu_s = after.cpu_s - before.cpu_s
    return {
        "redis": info["redis_version"],
        "num_pictures": num,
        "pictures_per_s": num / wall_s,
        "server_cpu_us_per_picture": cpu_s / num * 1e6,
        "pictures_per_core_s": num / cpu_s,
        "server_busy": cpu_s / wall_s,
        "in_bytes_per_picture": (after.in_bytes - before.in_bytes) / num,
        "out_bytes_per_picture": (after.out_bytes - before.out_bytes) / num,
        "peak_memory_bytes": info["used_memory_peak"],
        "commands": {
            name: {
                "per_picture": (calls - before.calls.get(name, (0, 0))[0]) / num,
                "us_per_picture": (usec - before.calls.get(name, (0, 0))[1]) / num,
            }
            for name, (calls, usec) in sorted(after.calls.items())
        },
    }


async def _read(client: redis.asyncio.Redis) -> _Counters:
    return _Counters(await client.info("everything"))


@asynccontextmanager
async def _ends(url: str, shape: Shape) -> AsyncIterator[list[RedisBroker]]:
    options = RedisOptions(max_depth=2 * shape.num_open)
    ends = [RedisBroker(url, (_MODEL,), options) for _ in range(1 + shape.num_workers)]
    for end in ends:
        await end.start()
    try:
        yield ends
    finally:
        await asyncio.gather(*(end.stop() for end in ends))


class _Traffic:
    """Clients that ask again at once, workers that draw at once, and the sweep of a process."""

    def __init__(self, api: RedisBroker, workers: Sequence[RedisBroker], shape: Shape) -> None:
        self._api, self._workers, self._shape = api, workers, shape
        self._picture = bytes(shape.picture_bytes)
        self._numbers = itertools.count()
        self.num_done = 0
        self._is_over = False

    @asynccontextmanager
    async def flowing(self) -> AsyncIterator[None]:
        """Everything at the same time; at the end, all that is asked for is also drawn."""
        async with asyncio.TaskGroup() as group:
            for worker in self._workers:
                group.create_task(self._draw(worker))
            group.create_task(self._sweep())
            asking = [group.create_task(self._ask()) for _ in range(self._shape.num_open)]
            yield
            self._is_over = True
            await asyncio.wait(asking)
            for worker in self._workers:
                await worker.close()

    async def _ask(self) -> None:
        while not self._is_over:
            number, now_s = next(self._numbers), self._api.now_s()
            prompt = f"a lighthouse on a cliff at dusk, oil on canvas, number {number}"
            name = job_id(f"{number:032x}", 0)
            owner = f"owner-{number % self._shape.num_owners}"
            job = Job(name, _KEY, prompt, number, "jpeg", now_s, now_s + 60, owner=owner)
            (future,) = await self._api.put([job])
            outcome = await future
            assert isinstance(outcome, JobDone) and outcome.image_bytes == self._picture
            self.num_done += 1

    async def _draw(self, worker: RedisBroker) -> None:
        want = Want((_MODEL,), self._shape.max_batch_size)
        while (taken := await worker.take(want, wait=True)) is not None:
            if taken.batch is not None:
                await asyncio.gather(*(self._reply(worker, d) for d in taken.batch.deliveries))

    async def _reply(self, worker: RedisBroker, delivery: Delivery) -> None:
        job = delivery.job
        stages_ms = {"text": 1.0, "denoise": 1.0, "decode": 1.0}
        done = JobDone(job.id, self._picture, job.seed, 8, 1.0, 1.0, 1.0, stages_ms)
        assert await worker.reply(delivery, done)

    async def _sweep(self) -> None:
        while not self._is_over:
            await asyncio.sleep(_SWEEP_S)
            await self._api.sweep()


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """The report as text."""
    shape, machine = found["shape"], found["machine"]
    yield f"{machine['cpu']}, {machine['num_cores']} cores, client on the same ones; load before: "
    yield f"  {', '.join(f'{load:.2f}' for load in found['load_average'])}; Redis {found['redis']}"
    yield (
        "{num_open} open at once of {num_owners} owners, {num_workers} workers, batches of "
        "{max_batch_size}, {picture_bytes} bytes a picture"
    ).format(**shape)
    yield f"{found['num_pictures']} pictures, {found['pictures_per_s']:.0f}/s through the queue"
    yield (
        f"server: {found['server_cpu_us_per_picture']:.0f} µs of its processor per picture = "
        f"{found['pictures_per_core_s']:.0f} pictures/s if it did nothing else "
        f"(it was busy for {found['server_busy']:.0%})"
    )
    yield (
        f"network: {found['in_bytes_per_picture']:.0f} bytes in, "
        f"{found['out_bytes_per_picture']:.0f} out per picture; "
        f"peak of memory {found['peak_memory_bytes'] / 1e6:.0f} MB"
    )
    yield "commands per picture (µs within the server):"
    for name, stat in found["commands"].items():
        if stat["per_picture"] >= 0.01:
            yield f"  {name:16}{stat['per_picture']:8.2f}{stat['us_per_picture']:10.1f}"
