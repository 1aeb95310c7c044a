"""Requests that arrive slowly, in part or not at all: each is ended in time, nobody else waits."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from service_stack import Stack, listening, running

from engines.pipeline import Pipeline
from service import http_protocol

BODY_TIMEOUT_S = 0.4
HEAD_TIMEOUT_S = 0.4
POST = b"POST /v1/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20\r\n\r\n"


@pytest.fixture
async def slow_stack(
    bundle: Path, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Stack, int]]:
    """A service with little patience, and its port."""
    monkeypatch.setattr(http_protocol, "HEAD_TIMEOUT_S", HEAD_TIMEOUT_S)
    async with (
        running(bundle, pipeline, body_timeout_s=BODY_TIMEOUT_S) as stack,
        listening(stack) as port,
    ):
        yield stack, port


async def answer_to(
    port: int, first: bytes, drip: bytes = b"", wait_s: float = 0.05
) -> tuple[bytes, float]:
    """All that comes back until the service closes, and how long that took."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    started_s = time.monotonic()

    async def send_slowly() -> None:
        writer.write(first)
        while drip:
            await asyncio.sleep(wait_s)
            writer.write(drip)

    sending = asyncio.create_task(send_slowly())
    answer = b""
    try:
        # A reset follows the answer where the service closed on bytes that it had not read.
        with contextlib.suppress(ConnectionResetError):
            async with asyncio.timeout(10):
                while piece := await reader.read(65536):
                    answer += piece
        return answer, time.monotonic() - started_s
    finally:
        sending.cancel()
        writer.close()


@pytest.mark.parametrize(
    ("first", "drip", "field"),
    [
        (POST, b"", "body"),
        (POST + b'{"prompt":', b"", "body"),
        (POST.replace(b"20", b"20000"), b" ", "body"),
        (POST.replace(b"Content-Length: 20", b"Transfer-Encoding: chunked"), b"1\r\n \r\n", "body"),
        (b"GET /livez HT", b"", None),
        (POST[:-2], b"a: b\r\n", None),
        (b"GET /livez HTTP/1.1\r\nHost: loc", b"a", None),
        (b"", b"\r\n", None),
        (b"", b"", None),
    ],
    ids=[
        *("no body", "a piece", "drops", "chunks", "half a line", "headers", "a header", "lines"),
        "nothing",
    ],
)
async def test_what_arrives_too_slowly_is_408_and_closed(
    slow_stack: tuple[Stack, int], first: bytes, drip: bytes, field: str | None
) -> None:
    answer, duration_s = await answer_to(slow_stack[1], first, drip)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in head.lower()
    document = json.loads(body)
    assert (document["code"], document.get("field")) == ("request_too_slow", field)
    assert 0.2 < duration_s < 2


async def test_a_slow_head_on_a_used_connection_is_ended_too(
    slow_stack: tuple[Stack, int],
) -> None:
    get = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n"
    answer, duration_s = await answer_to(slow_stack[1], get + b"\r\n" + get, b"a: b\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.count(b"HTTP/1.1 408 ") == 1
    assert duration_s < 2


async def test_empty_lines_after_the_body_do_not_cost_the_picture(
    slow_stack: tuple[Stack, int],
) -> None:
    stack, port = slow_stack
    stack.pipeline.gate.clear()
    body = b'{"prompt": "heart"}\n'
    assert len(body) == 20
    waiting = asyncio.create_task(answer_to(port, POST + body, drip=b"\r\n"))
    await asyncio.sleep(3 * HEAD_TIMEOUT_S)
    assert not waiting.done()
    stack.pipeline.gate.set()
    assert (await waiting)[0].startswith(b"HTTP/1.1 200 ")


async def test_a_wait_for_the_picture_is_not_a_slow_body(slow_stack: tuple[Stack, int]) -> None:
    stack, port = slow_stack
    stack.pipeline.gate.clear()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        drawing = asyncio.create_task(client.post("/v1/generate", json={"prompt": "heart"}))
        await asyncio.sleep(2 * BODY_TIMEOUT_S)
        assert not drawing.done()
        stack.pipeline.gate.set()
        assert (await drawing).status_code == 200


async def test_slow_clients_do_not_hold_up_a_quick_one(
    slow_stack: tuple[Stack, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    # It is their bodies that are slow; on a machine with other work the quick one's head may be.
    monkeypatch.setattr(http_protocol, "HEAD_TIMEOUT_S", 10.0)
    _, port = slow_stack
    slow = [
        asyncio.create_task(answer_to(port, POST.replace(b"20", b"20000"), b" ")) for _ in range(50)
    ]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=5) as client:
        for _ in range(20):
            assert (await client.get("/livez")).status_code == 200
    for answer, _ in await asyncio.gather(*slow):
        assert answer.startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("ending", [b"", b"zz\r\n"], ids=["left", "malformed"])
async def test_a_client_that_leaves_while_it_sends_is_no_error_of_the_service(
    slow_stack: tuple[Stack, int], caplog: pytest.LogCaptureFixture, ending: bytes
) -> None:
    stack, port = slow_stack
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    head = POST.replace(b"Content-Length: 20", b"Transfer-Encoding: chunked")
    writer.write(head + b"1\r\n{\r\n" + ending)
    await writer.drain()
    await asyncio.sleep(0.05)
    writer.close()
    labels = {"route": "/v1/generate", "reason": "client_closed", "code": "499"}
    async with asyncio.timeout(5):
        while stack.metric("onestep_requests_total", **labels) != 1:
            await asyncio.sleep(0.01)
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
    assert stack.pipeline.prompts == []


async def test_a_head_that_is_just_small_enough_is_served(slow_stack: tuple[Stack, int]) -> None:
    _, port = slow_stack
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        for size, status in ((31_000, 200), (33_000, 431)):
            response = await client.get("/livez", headers={"x-a": "a" * size})
            assert response.status_code == status
        for num, status in ((100, 200), (130, 431)):
            response = await client.get("/livez", headers=[("x-a", "a")] * num)
            assert response.status_code == status


async def test_a_large_body_is_not_counted_as_a_head(slow_stack: tuple[Stack, int]) -> None:
    _, port = slow_stack
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        for _ in range(3):
            response = await client.post("/v1/generate", content=b" " * 65_000)
            assert response.status_code == 400, response.text
