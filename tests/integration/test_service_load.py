"""Readiness, a full queue, deadlines, departures, and what metrics and log say of them."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path

import pytest
from service_stack import PNG, Stack, listening, problem, running

from engines.pipeline import Pipeline
from service.routes.context import Phase
from service.settings import load_settings


async def test_before_the_model_is_loaded(bundle: Path, pipeline: Pipeline) -> None:
    stack = Stack(bundle, pipeline, load_settings())
    async with stack.client as client:
        assert problem(await client.get("/readyz"), 503, "not_ready")["detail"] == (
            "the model is loading"
        )
        response = await stack.draw()
        problem(response, 503, "not_ready")
        assert response.headers["retry-after"] == "2"
        assert (await client.get("/livez")).status_code == 200
    assert stack.metric("onestep_ready") == 0


async def test_while_draining_new_work_is_refused_and_accepted_work_is_finished(
    bundle: Path, pipeline: Pipeline
) -> None:
    async with running(bundle, pipeline) as stack:
        accepted = await stack.hold_engine()
        stack.readiness.set(Phase.DRAINING, "the service is shutting down")
        await stack.broker.close()
        problem(await stack.draw(), 503, "draining")
        problem(await stack.client.get("/readyz"), 503, "draining")
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
        problem(response, 429, "queue_full")
        assert 1 <= int(response.headers["retry-after"]) <= 120
        assert int(response.headers["retry-after-ms"]) >= 1
        assert stack.metric("onestep_rejected_total", reason="queue_full") == 1
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
        problem(response, 504, "deadline_exceeded")
        assert response.elapsed.total_seconds() < 2
        await holding
        stack.pipeline.gate.set()
        await stack.queue_depth_reaches(0)
        assert (await stack.draw(PNG, prompt="after")).status_code == 200
        assert "late" not in stack.pipeline.prompts


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
    assert stack.metric("onestep_cancelled_total", phase="queued") == 3
    assert stack.metric("onestep_images_total") == 2
    left = {"code": "499", "reason": "client_closed", "route": "/v1/generate"}
    assert stack.metric("onestep_requests_total", **left) == 1


async def test_metrics_count_what_happened(stack: Stack) -> None:
    await stack.draw(PNG)
    await stack.draw(num_images=3)
    await stack.draw(prompt="")
    await stack.batches_are_told(2)
    text = (await stack.client.get("/metrics")).text
    for line in (
        'onestep_requests_total{code="200",reason="ok",route="/v1/generate"} 2.0',
        'onestep_requests_total{code="400",reason="invalid_request",route="/v1/generate"} 1.0',
        "onestep_images_total 4.0",
        "onestep_batch_size_count 2.0",
        "onestep_batch_size_sum 4.0",
        "onestep_queue_depth 0.0",
        "onestep_ready 1.0",
    ):
        assert line in text.splitlines()
    assert "onestep_stage_duration_seconds_count" in text


async def test_one_log_line_per_batch_and_never_a_prompt(
    stack: Stack, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        await stack.draw(prompt="canary", num_images=3)
        await stack.draw(prompt="canary", steps=9)
        await stack.draw(prompt="canary" * 60)
        await stack.batches_are_told(1)
    records = [record for record in caplog.records if record.name == "onestep"]
    assert [record.message for record in records] == ["batch"]
    everything = json.dumps([str(record.__dict__) for record in caplog.records])
    assert "canary" not in everything
