"""What WS /v1/realtime bounds: connections, size and pace of messages, silence, slow readers."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import websockets
from realtime_client import connected
from service_stack import Stack, listening, running

from engines.pipeline import Pipeline
from service.routes import realtime


@asynccontextmanager
async def served(bundle: Path, pipeline: Pipeline, **settings: Any) -> AsyncIterator[tuple]:
    async with running(bundle, pipeline, **settings) as stack, listening(stack) as port:
        yield stack, port


async def closed_for(stack: Stack, reason: str) -> None:
    async with asyncio.timeout(20):
        while stack.metric("onestep_realtime_closed_total", reason=reason) != 1:
            await asyncio.sleep(0.005)
    assert stack.metric("onestep_realtime_connections") == 0


async def test_bytes_are_closed_with_1003(bundle: Path, pipeline: Pipeline) -> None:
    async with served(bundle, pipeline) as (stack, port), connected(port) as client:
        await client.socket.send(b"\x00garbage")
        assert await client.close_code() == 1003
        await closed_for(stack, "binary")


async def test_the_server_closes_a_message_that_is_too_large(
    bundle: Path, pipeline: Pipeline
) -> None:
    async with (
        served(bundle, pipeline, realtime_max_message_bytes=1024) as (_, port),
        connected(port) as client,
    ):
        # Few enough characters for the application, which would explain that this is no JSON.
        await client.socket.send("é" * 600)
        assert await client.close_code() == 1009


class _Socket:
    """The application's side of a connection under a server that counts no bytes."""

    def __init__(self, app: Any, messages: list[dict[str, Any]]) -> None:
        self._app = app
        self._messages = [{"type": "websocket.connect"}, *messages]
        self.sent: list[dict[str, Any]] = []

    async def run(self) -> None:
        scope = {
            "type": "websocket",
            "path": "/v1/realtime",
            "raw_path": b"/v1/realtime",
            "query_string": b"",
            "headers": [],
            "subprotocols": [],
        }
        await asyncio.wait_for(self._app(scope, self._receive, self._send), 20)

    async def _receive(self) -> dict[str, Any]:
        if not self._messages:
            await asyncio.Event().wait()
        return self._messages.pop(0)

    async def _send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)


async def test_another_server_may_count_no_bytes(bundle: Path, pipeline: Pipeline) -> None:
    async with running(bundle, pipeline, realtime_max_message_bytes=1024) as stack:
        socket = _Socket(stack.app, [{"type": "websocket.receive", "text": "a" * 1025}])
        await socket.run()
        assert socket.sent[-1] == {
            "type": "websocket.close",
            "code": 1009,
            "reason": "too_large",
        }


class _StuckSocket(_Socket):
    """A client that takes the handshake and nothing else."""

    async def _send(self, message: dict[str, Any]) -> None:
        await super()._send(message)
        if message["type"] == "websocket.send":
            await asyncio.Event().wait()


async def test_who_takes_nothing_is_let_go_and_gets_no_second_picture(
    bundle: Path, pipeline: Pipeline
) -> None:
    asked = {"type": "websocket.receive", "text": json.dumps({"prompt": "heart"})}
    async with running(bundle, pipeline, realtime_idle_s=0.3) as stack:
        # Longer than it may read nothing: the reader must not be what ends it.
        socket = _StuckSocket(stack.app, [asked, asked])
        socket._receive = _talking(socket._receive)  # type: ignore[method-assign]
        await socket.run()
        assert [message["type"] for message in socket.sent] == [
            "websocket.accept",
            "websocket.send",
        ]
        assert stack.pipeline.prompts == [], "nothing is drawn for who does not take"
        await closed_for(stack, "stuck")


def _talking(receive: Any) -> Any:
    """After its messages the client goes on to talk, so that it never is idle."""
    started = asyncio.Event()

    async def receive_or_talk() -> dict[str, Any]:
        if started.is_set():
            await asyncio.sleep(0.05)
            return {"type": "websocket.receive", "text": "{}"}
        message: dict[str, Any] = await receive()
        if message["type"] == "websocket.receive":
            started.set()
        return message

    return receive_or_talk


async def test_an_idle_connection_is_closed_and_a_busy_one_is_not(
    bundle: Path, pipeline: Pipeline
) -> None:
    async with (
        served(bundle, pipeline, realtime_idle_s=1.5) as (stack, port),
        connected(port) as client,
    ):
        for index in range(4):
            await asyncio.sleep(0.5)
            await client.ask("heart", id=index)
            assert (await client.receive())[0]["id"] == index
        started_s = time.monotonic()
        assert await client.close_code() == 1000
        assert time.monotonic() - started_s >= 1.4
        await closed_for(stack, "idle")


async def test_too_many_connections_are_refused_with_a_problem(
    bundle: Path, pipeline: Pipeline
) -> None:
    async with served(bundle, pipeline, realtime_max_connections=1) as (stack, port):
        async with connected(port):
            with pytest.raises(websockets.InvalidStatus) as refused:
                async with connected(port):
                    pass
            response = refused.value.response
            problem = json.loads(response.body)
            assert (response.status_code, problem["code"]) == (503, "too_many_connections")
            assert response.headers["x-request-id"] == problem["request_id"]
            assert int(response.headers["retry-after"]) == 5
            assert stack.metric("onestep_rejected_total", reason="too_many_connections") == 1
        async with asyncio.timeout(20):
            while stack.metric("onestep_realtime_connections") != 0:
                await asyncio.sleep(0.005)
        async with connected(port) as next_client:
            await next_client.ask("heart")
            assert (await next_client.receive())[1]


async def test_a_flood_is_parsed_at_the_allowed_pace(bundle: Path, pipeline: Pipeline) -> None:
    async with (
        served(bundle, pipeline, realtime_max_fps=10) as (stack, port),
        connected(port) as client,
    ):
        num_messages = 500
        started_s = time.monotonic()
        for _ in range(num_messages):
            await client.socket.send("not even JSON")
        await client.ask("heart", id=1)
        num_errors = 0
        while (message := (await client.receive())[0]).get("id") != 1:
            assert message["code"] == "invalid_request"
            num_errors += 1
        assert num_errors <= 1 + (time.monotonic() - started_s) * 10
        stale = stack.metric("onestep_realtime_messages_total", outcome="stale")
        assert stale == num_messages - num_errors


async def test_a_defect_closes_with_1011_and_is_logged_once(
    bundle: Path,
    pipeline: Pipeline,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(realtime, "parse_wish", fail)
    with caplog.at_level(logging.INFO):
        async with served(bundle, pipeline) as (stack, port), connected(port) as client:
            await client.ask("canary")
            assert await client.close_code() == 1011
            await closed_for(stack, "failed")
    failures = [record for record in caplog.records if record.message == "connection_failed"]
    assert len(failures) == 1
    assert "canary" not in json.dumps([str(record.__dict__) for record in caplog.records])


async def test_a_client_that_vanishes_while_a_picture_is_sent_is_no_defect(
    bundle: Path, pipeline: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    class _Vanished(_Socket):
        async def _send(self, message: dict[str, Any]) -> None:
            if message["type"] == "websocket.send":
                raise OSError("gone")

    async with running(bundle, pipeline) as stack:
        await _Vanished(stack.app, []).run()
        await closed_for(stack, "client")
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
