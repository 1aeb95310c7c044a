"""A key and a prompt on every way that a request can fail: neither is ever logged or sent back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from keys_fixtures import bearer, make_key, write_keys
from service_stack import Stack, listening, running

from engines.pipeline import Pipeline
from service.api_keys import ApiKey
from service.telemetry import JsonFormatter, prompt_digest

PROMPT = "xq7canary"
LONG = " ".join([PROMPT] * 500)


class _Log(logging.Handler):
    """Every line of every logger, as the service would write it."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.setFormatter(JsonFormatter())
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text += self.format(record) + "\n"


@pytest.fixture
def log() -> Iterator[_Log]:
    handler = _Log()
    root, own = logging.getLogger(), logging.getLogger("onestep")
    before = root.level, own.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    own.setLevel(logging.INFO)
    yield handler
    root.removeHandler(handler)
    root.setLevel(before[0])
    own.setLevel(before[1])


@pytest.fixture
def key() -> tuple[ApiKey, str]:
    return make_key(
        priority="background", daily_pixel_steps=64 * 64 * 4, max_open_pictures=2, models=("tiny",)
    )


@pytest.fixture
async def service(
    bundle: Path, pipeline: Pipeline, tmp_path: Path, key: tuple[ApiKey, str], log: _Log
) -> AsyncIterator[tuple[Stack, httpx.AsyncClient]]:
    """The stack behind a real server, so that the server's own lines are seen too."""
    path = write_keys(tmp_path / "keys", key[0])
    async with running(bundle, pipeline, keys_file=path, max_queue_depth=4) as stack:
        async with listening(stack) as port:
            base_url = f"http://127.0.0.1:{port}"
            async with httpx.AsyncClient(base_url=base_url, headers=bearer(key[1])) as client:
                yield stack, client


async def _status(client: httpx.AsyncClient, **request: Any) -> tuple[int, str]:
    defaults = {"method": "POST", "url": "/v1/generate"}
    response = await client.request(**(defaults | request))
    return response.status_code, response.text + str(response.headers)


def _bodies() -> list[tuple[int, dict[str, Any]]]:
    """Requests and the status that each is refused with."""
    return [
        (400, {"json": {"prompt": LONG}}),
        (400, {"json": {"prompt": PROMPT, "width": 7}}),
        (400, {"json": {"prompt": PROMPT, "steps": PROMPT}}),
        (400, {"json": {"prompt": [PROMPT]}}),
        (400, {"json": {"prompt": PROMPT, "model": PROMPT}}),
        (400, {"content": f'{{"prompt": "{PROMPT}", '}),
        (400, {"content": f'["{PROMPT}"]'}),
        (403, {"json": {"prompt": PROMPT, "priority": "interactive"}}),
        (403, {"json": {"prompt": PROMPT, "num_images": 3}}),
        (403, {"json": {"prompt": PROMPT, "num_images": 2, "steps": 4}}),
        (404, {"url": "/nothing", "json": {"prompt": PROMPT}}),
        (405, {"method": "PUT", "json": {"prompt": PROMPT}}),
    ]


async def test_refusals_repeat_neither_key_nor_prompt(
    service: tuple[Stack, httpx.AsyncClient], key: tuple[ApiKey, str], log: _Log
) -> None:
    stack, client = service
    for wanted, request in _bodies():
        for url in ("/v1/generate", "/v1/images/generations"):
            given = {"url": url} | request
            if "num_images" in str(request) and "images" in url:
                continue
            status, answer = await _status(client, **given)
            assert status == wanted or "images" in url, (wanted, given, answer)
            assert status >= 400
            assert key[1] not in answer and PROMPT not in answer
    # Within the process: a real connection may break before the client has sent so much.
    status, answer = await _status(
        stack.client,
        url="/v1/images/generations",
        content=PROMPT * 20_000,
        headers=bearer(key[1]),
    )
    assert status == 413 and PROMPT not in answer
    secret = key[1].partition(".")[2]
    for credential in (f"{key[1]}x", key[1].replace("os_", ""), secret):
        status, answer = await _status(client, json={"prompt": PROMPT}, headers=bearer(credential))
        assert status == 401 and secret not in answer and PROMPT not in answer
    assert secret not in log.text and PROMPT not in log.text


async def test_failures_log_neither_key_nor_prompt(
    service: tuple[Stack, httpx.AsyncClient],
    key: tuple[ApiKey, str],
    log: _Log,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stack, client = service
    body = {"json": {"prompt": PROMPT}}
    seen: list[int] = []

    async def ask(**request: Any) -> None:
        status, answer = await _status(client, **(body | request))
        seen.append(status)
        assert PROMPT not in answer and key[1] not in answer

    # The engine fails on this picture.
    generate = stack.pipeline.generate

    def broken(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("engine")

    monkeypatch.setattr(stack.pipeline, "generate", broken)
    await ask()
    monkeypatch.setattr(stack.pipeline, "generate", generate)

    # The client leaves, then too many pictures of the key are open, then the queue is full.
    stack.pipeline.gate.clear()
    with pytest.raises(httpx.ReadTimeout):
        await client.post("/v1/generate", **body, timeout=0.2)
    await stack.queue_depth_reaches(0)
    open_ones = [asyncio.create_task(ask()) for _ in range(2)]
    await stack.queue_depth_reaches(2)
    await ask()
    stack.pipeline.gate.set()
    await asyncio.gather(*open_ones)
    await ask()  # the day's pixel-steps are spent: one failed, one left, two drawn

    # An unforeseen error, while the key is checked.
    async def unforeseen(credential: str) -> None:
        raise ValueError("unforeseen")

    monkeypatch.setattr(stack.app.state.context.keys, "principal", unforeseen)
    await ask()
    assert sorted(seen) == [200, 200, 429, 429, 500, 500]
    assert "request_failed" in log.text and "unforeseen" in log.text
    # What failed in the engine can still be told from other prompts.
    assert f'"prompt_digest":"{prompt_digest(PROMPT)}"' in log.text
    secret = key[1].partition(".")[2]
    assert secret not in log.text and PROMPT not in log.text


async def test_not_ready_and_late_answers_tell_nothing(
    bundle: Path, pipeline: Pipeline, tmp_path: Path, log: _Log
) -> None:
    key, text = make_key()
    path = write_keys(tmp_path / "keys", key)
    async with running(bundle, pipeline, keys_file=path, deadline_s=0.2) as stack:
        stack.pipeline.gate.clear()
        late = await stack.draw(bearer(text), prompt=PROMPT)
        stack.pipeline.gate.set()
        await stack.broker.close()
        closed = await stack.draw(bearer(text), prompt=PROMPT)
    assert (late.status_code, closed.status_code) == (504, 503)
    for answer in (late, closed):
        assert PROMPT not in answer.text and text not in answer.text
    assert PROMPT not in log.text and text.partition(".")[2] not in log.text
