"""What the service refuses, and how it says so."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from service_stack import Stack, problem, running

from engines.pipeline import Pipeline


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
    document = problem(
        await stack.client.post("/v1/generate", content=body), 400, "invalid_request"
    )
    assert document.get("field") == field
    assert field is None or document["allowed"]
    assert stack.pipeline.prompts == []
    assert stack.metric("onestep_rejected_total", reason="invalid_request") == 1


async def test_several_pictures_cannot_be_one_image(stack: Stack) -> None:
    response = await stack.draw({"accept": "image/png"}, num_images=2)
    assert problem(response, 400, "invalid_request")["field"] == "num_images"


async def test_a_body_too_large_is_refused_by_its_length(bundle: Path, pipeline: Pipeline) -> None:
    async with running(bundle, pipeline, max_upload_bytes=65536) as stack:
        response = await stack.client.post("/v1/generate", content=b" " * 65537)
    assert problem(response, 413, "body_too_large")["allowed"] == {"max_bytes": 65536}


async def test_a_body_too_large_is_refused_while_it_arrives(
    bundle: Path, pipeline: Pipeline
) -> None:
    num_sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal num_sent
        while num_sent < 2000:
            num_sent += 1
            yield b" " * 1024

    async with running(bundle, pipeline, max_upload_bytes=65536) as stack:
        response = await stack.client.post("/v1/generate", content=endless())
    problem(response, 413, "body_too_large")
    assert num_sent <= 65


async def test_what_does_not_exist(stack: Stack) -> None:
    problem(await stack.client.get("/nothing"), 404, "not_found")
    response = await stack.client.get("/v1/generate")
    problem(response, 405, "method_not_allowed")
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
    problem(response, 500, "internal_error")
    assert "secret" not in response.text
    assert [record.message for record in caplog.records if record.exc_info] == ["request_failed"]
