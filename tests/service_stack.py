"""The service's parts joined in the test's own event loop, around a real bundle.

Owns a pipeline that can be held, so that a test decides when the engine is busy, and the checks
that every answer has to pass.
"""

from __future__ import annotations

import asyncio
import io
import socket
import threading
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from engines.pipeline import Generated, Pipeline
from service.app import create_app
from service.brokers.memory import MemoryBroker
from service.brokers.redis import RedisBroker
from service.processes.models import load_limits
from service.processes.sockets import Server, server_config
from service.routes.context import AppContext, Phase, Readiness
from service.settings import Settings, load_settings
from service.telemetry import Telemetry
from service.worker import Worker, WorkerOptions

PNG = {"accept": "image/png"}


class GatedPipeline:
    """A real pipeline that a test can hold, so that it decides when the engine is busy."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self.prompts: list[str] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def warm_up(self, batch_sizes: Iterable[int]) -> None:
        self._pipeline.warm_up(batch_sizes)

    def generate(self, prompts: Sequence[str], seeds: Sequence[int], **how: Any) -> Generated:
        self.prompts += prompts
        self.entered.set()
        assert self.gate.wait(timeout=30)
        return self._pipeline.generate(prompts, seeds, **how)


class Stack:
    """One process's parts, joined as the command joins them."""

    def __init__(
        self,
        bundle: Path,
        pipeline: Pipeline,
        settings: Settings,
        broker: MemoryBroker | RedisBroker | None = None,
    ) -> None:
        self.settings = settings
        self.pipeline = GatedPipeline(pipeline)
        self.telemetry = Telemetry()
        limits = load_limits(bundle)
        self.broker = broker or MemoryBroker(settings.max_queue_depth)
        self.readiness = Readiness(self.telemetry)
        self.worker = Worker(
            self.broker,
            {limits.name: lambda: self.pipeline},
            self.telemetry,
            WorkerOptions(settings.max_batch_size, settings.num_encode_threads),
        )
        self.context = AppContext(settings, limits, self.broker, self.telemetry, self.readiness)
        self.app = create_app(self.context)
        self.client = httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app), base_url="http://test", timeout=30
        )

    async def draw(self, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
        return await self.client.post(
            "/v1/generate", json={"prompt": "heart"} | fields, headers=headers
        )

    async def hold_engine(self) -> asyncio.Task[httpx.Response]:
        """Keep the engine busy with one picture until the gate opens."""
        self.pipeline.gate.clear()
        self.pipeline.entered.clear()
        task = asyncio.create_task(self.draw(prompt="holding"))
        assert await asyncio.to_thread(self.pipeline.entered.wait, 20)
        return task

    async def queue_depth_reaches(self, num_jobs: int) -> None:
        async with asyncio.timeout(20):
            while (await self.broker.sweep()).num_jobs != num_jobs:
                await asyncio.sleep(0.005)

    async def batches_are_told(self, num_batches: int) -> None:
        """Metrics and log line of a batch come a moment after its answers."""
        async with asyncio.timeout(20):
            while (self.metric("onestep_batch_size_count") or 0) < num_batches:
                await asyncio.sleep(0)

    def metric(self, name: str, **labels: str) -> float | None:
        return self.telemetry.registry.get_sample_value(name, labels)


@asynccontextmanager
async def running(
    bundle: Path,
    pipeline: Pipeline,
    broker: MemoryBroker | RedisBroker | None = None,
    **settings: Any,
) -> AsyncIterator[Stack]:
    stack = Stack(bundle, pipeline, load_settings(max_batch_size=4, **settings), broker)
    await stack.worker.start()
    working = asyncio.create_task(stack.worker.run())
    stack.readiness.set(Phase.READY, "")
    async with stack.client:
        yield stack
        stack.pipeline.gate.set()
        await stack.broker.close()
        await asyncio.wait_for(working, 30)
        await stack.context.decoders.close()


@asynccontextmanager
async def listening(stack: Stack) -> AsyncIterator[int]:
    """The application behind a real server; yields its port."""
    config = server_config(stack.app, stack.settings)
    config.lifespan = "off"  # its task would outlive a test that fails
    server = Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        yield listener.getsockname()[1]
        server.should_exit = True
        await serving


def pixels(content: bytes) -> np.ndarray:
    """Decoded RGB, wide enough to subtract."""
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Check that an answer is this problem and return its document."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = response.json()
    assert (document["status"], document["code"]) == (status, code)
    assert document["request_id"] == response.headers["x-request-id"]
    return document
