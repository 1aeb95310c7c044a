"""The whole application with a real bundle, over ASGI: answers, refusals, limits, deadlines."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import socket
import threading
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from PIL import Image

from engines.pipeline import Generated, Pipeline
from service.__main__ import load_limits
from service.app import create_app
from service.brokers.memory import MemoryBroker
from service.routes.context import AppContext, Phase, Readiness
from service.settings import Settings, load_settings
from service.telemetry import Telemetry
from service.worker import Worker

SIZE_PX = 64
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

    def generate(
        self, prompts: Sequence[str], seeds: Sequence[int], *, width: int, height: int, steps: int
    ) -> Generated:
        self.prompts += prompts
        self.entered.set()
        assert self.gate.wait(timeout=30)
        return self._pipeline.generate(prompts, seeds, width=width, height=height, steps=steps)


class Stack:
    """One process's parts, joined as the command joins them."""

    def __init__(self, bundle: Path, pipeline: Pipeline, settings: Settings) -> None:
        self.pipeline = GatedPipeline(pipeline)
        self.telemetry = Telemetry()
        self.broker = MemoryBroker(settings.max_queue_depth)
        self.readiness = Readiness(self.telemetry)
        self.worker = Worker(
            self.broker,
            lambda: self.pipeline,
            self.telemetry,
            max_batch_size=settings.max_batch_size,
            num_encode_threads=settings.num_encode_threads,
        )
        self.app = create_app(
            AppContext(settings, load_limits(bundle), self.broker, self.telemetry, self.readiness)
        )
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
            while (await self.broker.depth()).num_jobs != num_jobs:
                await asyncio.sleep(0.005)

    def metric(self, name: str, **labels: str) -> float | None:
        return self.telemetry.registry.get_sample_value(name, labels)


@pytest.fixture(scope="module")
def pipeline(bundle: Path) -> Pipeline:
    return Pipeline.load(bundle, num_threads=1)


@asynccontextmanager
async def running(bundle: Path, pipeline: Pipeline, **settings: Any) -> AsyncIterator[Stack]:
    stack = Stack(bundle, pipeline, load_settings(max_batch_size=4, **settings))
    await stack.worker.start()
    working = asyncio.create_task(stack.worker.run())
    stack.readiness.set(Phase.READY, "")
    async with stack.client:
        yield stack
        stack.pipeline.gate.set()
        await stack.broker.close()
        await asyncio.wait_for(working, 30)


@pytest.fixture
async def stack(bundle: Path, pipeline: Pipeline) -> AsyncIterator[Stack]:
    async with running(bundle, pipeline) as stack:
        yield stack


def _pixels(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def _problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = response.json()
    assert (document["status"], document["code"]) == (status, code)
    assert document["request_id"] == response.headers["x-request-id"]
    return document


# Answers


async def test_bytes_with_headers(stack: Stack) -> None:
    response = await stack.draw(PNG, seed=7)
    assert response.status_code == 200
    assert response.headers["content-type"] == "image/png"
    assert _pixels(response.content).shape == (SIZE_PX, SIZE_PX, 3)
    assert response.headers["x-onestep-seed"] == "7"
    assert response.headers["x-onestep-batch-size"] == "1"
    assert float(response.headers["x-onestep-queue-ms"]) >= 0
    assert float(response.headers["x-onestep-run-ms"]) > 0
    assert response.headers["x-request-id"]
    names = [part.split(";")[0] for part in response.headers["server-timing"].split(", ")]
    assert names == ["queue", "tokens", "text", "denoise", "decode", "encode", "total"]


async def test_json_with_consecutive_seeds(stack: Stack) -> None:
    body = (await stack.draw(seed=2**32 - 1, num_images=3, format="webp")).json()
    assert [image["seed"] for image in body["images"]] == [2**32 - 1, 0, 1]
    assert {image["media_type"] for image in body["images"]} == {"image/webp"}
    for image in body["images"]:
        assert _pixels(base64.b64decode(image["b64_json"])).shape == (SIZE_PX, SIZE_PX, 3)
    assert {name: body[name] for name in ("model", "width", "height", "steps", "batch_size")} == {
        "model": "tiny",
        "width": SIZE_PX,
        "height": SIZE_PX,
        "steps": 1,
        "batch_size": 3,
    }
    assert set(body["timing"]) == {"queue_ms", "run_ms", "encode_ms", "total_ms"}
    assert body["id"].startswith("gen-") and body["created"] > 0


@pytest.mark.parametrize(
    ("accept", "fields", "media_type"),
    [
        ("image/*", {}, "image/png"),
        ("image/webp", {}, "image/webp"),
        ("image/*", {"format": "jpeg"}, "image/jpeg"),
        ("image/webp", {"format": "png"}, "image/png"),
        ("*/*", {}, "application/json"),
        ("application/json, image/*;q=0.5", {}, "application/json"),
    ],
)
async def test_accept_chooses_the_answer(
    stack: Stack, accept: str, fields: dict[str, Any], media_type: str
) -> None:
    response = await stack.draw({"accept": accept}, **fields)
    assert response.headers["content-type"] == media_type
    if media_type.startswith("image/"):
        with Image.open(io.BytesIO(response.content)) as image:
            assert image.get_format_mimetype() == media_type


async def test_a_missing_seed_is_returned_and_draws_the_same_picture_again(stack: Stack) -> None:
    first = await stack.draw(PNG)
    again = await stack.draw(PNG, seed=int(first.headers["x-onestep-seed"]))
    assert first.content == again.content


async def test_a_picture_does_not_depend_on_its_batch_mates(stack: Stack) -> None:
    alone = [await stack.draw(PNG, prompt=f"heart {i}", seed=i, steps=2) for i in range(4)]
    holding = await stack.hold_engine()
    together = [
        asyncio.create_task(stack.draw(PNG, prompt=f"heart {i}", seed=i, steps=2)) for i in range(4)
    ]
    await stack.queue_depth_reaches(5)
    stack.pipeline.gate.set()
    await holding
    for single, task in zip(alone, together, strict=True):
        response = await task
        assert response.headers["x-onestep-batch-size"] == "4"
        assert single.headers["x-onestep-batch-size"] == "1"
        difference = np.abs(_pixels(response.content) - _pixels(single.content))
        assert difference.mean() <= 1


async def test_different_seeds_and_prompts_draw_different_pictures(stack: Stack) -> None:
    pictures = [
        _pixels((await stack.draw(PNG, prompt=prompt, seed=seed)).content)
        for prompt, seed in [("heart", 1), ("heart", 2), ("star", 1)]
    ]
    assert np.abs(pictures[0] - pictures[1]).mean() > 1
    assert np.abs(pictures[0] - pictures[2]).mean() > 0


async def test_models_tell_what_is_served(stack: Stack) -> None:
    body = (await stack.client.get("/v1/models")).json()
    assert body["object"] == "list"
    (model,) = body["data"]
    assert (model["id"], model["object"]) == ("tiny", "model")
    assert (model["sizes"], model["max_steps"]) == ([[SIZE_PX, SIZE_PX]], 4)
    assert model["max_tokens"] == 12 and model["max_prompt_chars"] == 300
    assert model["examples"] and model["styles"] == []


# Refusals


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"prompt": ""}', "prompt"),
        (b'{"prompt": "' + b"x" * 301 + b'"}', "prompt"),
        (b'{"prompt": "eleven chars"}', "prompt"),
        (b'{"seed": 1}', "prompt"),
        (b'{"prompt": "a", "colour": 1}', "colour"),
        (b'{"prompt": "a", "width": 65}', "width"),
        (b'{"prompt": "a", "height": 65}', "height"),
        (b'{"prompt": "a", "steps": 5}', "steps"),
        (b'{"prompt": "a", "seed": 4294967296}', "seed"),
        (b'{"prompt": "a", "num_images": 17}', "num_images"),
        (b'{"prompt": "a", "format": "gif"}', "format"),
        (b'{"prompt": "a", "model": "b"}', "model"),
        (b'{"prompt": ', None),
        (b"[]", None),
        (b"", None),
    ],
)
async def test_bad_input_names_the_field_and_what_is_allowed(
    stack: Stack, body: bytes, field: str | None
) -> None:
    document = _problem(
        await stack.client.post("/v1/generate", content=body), 400, "invalid_request"
    )
    assert document.get("field") == field
    assert field is None or document["allowed"]
    assert stack.pipeline.prompts == []
    assert stack.metric("t2i_rejected_total", reason="invalid_request") == 1


async def test_several_pictures_cannot_be_one_image(stack: Stack) -> None:
    response = await stack.draw({"accept": "image/png"}, num_images=2)
    assert _problem(response, 400, "invalid_request")["field"] == "num_images"


async def test_a_body_too_large_is_refused_by_its_length(stack: Stack) -> None:
    response = await stack.client.post("/v1/generate", content=b" " * 65537)
    assert _problem(response, 413, "body_too_large")["allowed"] == {"max_bytes": 65536}


async def test_a_body_too_large_is_refused_while_it_arrives(stack: Stack) -> None:
    num_sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal num_sent
        while num_sent < 2000:
            num_sent += 1
            yield b" " * 1024

    response = await stack.client.post("/v1/generate", content=endless())
    _problem(response, 413, "body_too_large")
    assert num_sent <= 65


async def test_what_does_not_exist(stack: Stack) -> None:
    _problem(await stack.client.get("/nothing"), 404, "not_found")
    response = await stack.client.get("/v1/generate")
    _problem(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("given", "is_kept"), [("abc-1.2_3", True), ("a b", False), ("x" * 65, False)]
)
async def test_a_harmless_request_id_is_kept(stack: Stack, given: str, is_kept: bool) -> None:
    response = await stack.client.get("/livez", headers={"x-request-id": given})
    assert (response.headers["x-request-id"] == given) == is_kept


async def test_an_unforeseen_error_is_a_plain_500_and_logged_once(
    bundle: Path,
    pipeline: Pipeline,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running(bundle, pipeline) as stack:

        async def fail(jobs: object) -> None:
            raise RuntimeError("secret detail")

        monkeypatch.setattr(stack.broker, "put", fail)
        response = await stack.draw()
    _problem(response, 500, "internal_error")
    assert "secret" not in response.text
    assert [record.message for record in caplog.records if record.exc_info] == ["request_failed"]


# Readiness, queue, deadline


async def test_before_the_model_is_loaded(bundle: Path, pipeline: Pipeline) -> None:
    stack = Stack(bundle, pipeline, load_settings())
    async with stack.client as client:
        assert _problem(await client.get("/readyz"), 503, "not_ready")["detail"] == (
            "the model is loading"
        )
        response = await stack.draw()
        _problem(response, 503, "not_ready")
        assert response.headers["retry-after"] == "2"
        assert (await client.get("/livez")).status_code == 200
    assert stack.metric("t2i_ready") == 0


async def test_while_draining_new_work_is_refused_and_accepted_work_is_finished(
    bundle: Path, pipeline: Pipeline
) -> None:
    async with running(bundle, pipeline) as stack:
        accepted = await stack.hold_engine()
        stack.readiness.set(Phase.DRAINING, "the service is shutting down")
        await stack.broker.close()
        _problem(await stack.draw(), 503, "draining")
        _problem(await stack.client.get("/readyz"), 503, "draining")
        stack.pipeline.gate.set()
        assert (await accepted).status_code == 200


async def test_probes_answer_while_the_engine_is_busy(stack: Stack) -> None:
    holding = await stack.hold_engine()
    for path in ("/livez", "/readyz", "/metrics"):
        response = await asyncio.wait_for(stack.client.get(path), 5)
        assert response.status_code == 200
    assert not holding.done()
    stack.pipeline.gate.set()
    assert (await holding).status_code == 200


async def test_a_full_queue_is_429_with_retry_after(bundle: Path, pipeline: Pipeline) -> None:
    async with running(bundle, pipeline, max_queue_depth=3) as stack:
        holding = await stack.hold_engine()
        queued = [asyncio.create_task(stack.draw(PNG)) for _ in range(2)]
        await stack.queue_depth_reaches(3)
        response = await stack.draw(PNG)
        _problem(response, 429, "queue_full")
        assert 1 <= int(response.headers["retry-after"]) <= 120
        assert int(response.headers["retry-after-ms"]) >= 1
        assert stack.metric("t2i_rejected_total", reason="queue_full") == 1
        stack.pipeline.gate.set()
        answers = await asyncio.gather(holding, *queued)
        assert [answer.status_code for answer in answers] == [200] * 3
        assert (await stack.draw(PNG)).status_code == 200


async def test_a_job_past_its_deadline_is_504_and_never_drawn(
    bundle: Path, pipeline: Pipeline
) -> None:
    async with running(bundle, pipeline, deadline_s=0.5) as stack:
        holding = await stack.hold_engine()
        response = await stack.draw(prompt="late")
        _problem(response, 504, "deadline_exceeded")
        assert response.elapsed.total_seconds() < 2
        await holding
        stack.pipeline.gate.set()
        await stack.queue_depth_reaches(0)
        assert (await stack.draw(PNG, prompt="after")).status_code == 200
        assert "late" not in stack.pipeline.prompts


@asynccontextmanager
async def listening(stack: Stack) -> AsyncIterator[int]:
    """The application behind a real server; yields its port."""
    server = uvicorn.Server(uvicorn.Config(stack.app, log_config=None, lifespan="off"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        yield listener.getsockname()[1]
        server.should_exit = True
        await serving


async def test_a_client_that_leaves_takes_its_jobs_along(stack: Stack) -> None:
    body = json.dumps({"prompt": "gone", "num_images": 3}).encode()
    head = b"POST /v1/generate HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
    async with listening(stack) as port:
        holding = await stack.hold_engine()
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head + body)
        await stack.queue_depth_reaches(4)
        writer.close()
        # The engine is still held: the places are free before it takes the next batch.
        await stack.queue_depth_reaches(1)
        stack.pipeline.gate.set()
        assert (await holding).status_code == 200
        assert (await stack.draw(prompt="next")).status_code == 200
    assert stack.pipeline.prompts == ["holding", "next"]
    assert stack.metric("t2i_cancelled_total", phase="queued") == 3
    assert stack.metric("t2i_images_total") == 2
    left = {"code": "499", "reason": "client_closed", "route": "/v1/generate"}
    assert stack.metric("t2i_requests_total", **left) == 1


async def test_metrics_count_what_happened(stack: Stack) -> None:
    await stack.draw(PNG)
    await stack.draw(num_images=3)
    await stack.draw(prompt="")
    text = (await stack.client.get("/metrics")).text
    for line in (
        't2i_requests_total{code="200",reason="ok",route="/v1/generate"} 2.0',
        't2i_requests_total{code="400",reason="invalid_request",route="/v1/generate"} 1.0',
        "t2i_images_total 4.0",
        "t2i_batch_size_count 2.0",
        "t2i_batch_size_sum 4.0",
        "t2i_queue_depth 0.0",
        "t2i_ready 1.0",
    ):
        assert line in text.splitlines()
    assert "t2i_stage_duration_seconds_count" in text


async def test_one_log_line_per_batch_and_never_a_prompt(
    stack: Stack, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        await stack.draw(prompt="canary", num_images=3)
        await stack.draw(prompt="canary", steps=9)
        await stack.draw(prompt="canary" * 60)
    records = [record for record in caplog.records if record.name == "onestep"]
    assert [record.message for record in records] == ["batch"]
    everything = json.dumps([str(record.__dict__) for record in caplog.records])
    assert "canary" not in everything
