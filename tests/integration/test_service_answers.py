"""What the service answers with a real bundle: bytes, JSON, headers, the same picture again."""

from __future__ import annotations

import asyncio
import base64
import io
from typing import Any

import numpy as np
import pytest
from engines_fixtures import SIZE_PX
from PIL import Image
from service_stack import PNG, Stack, pixels

from service.schemas import GenerateRequest


async def test_bytes_with_headers(stack: Stack) -> None:
    response = await stack.draw(PNG, seed=7)
    assert response.status_code == 200
    assert response.headers["content-type"] == "image/png"
    assert pixels(response.content).shape == (SIZE_PX, SIZE_PX, 3)
    assert response.headers["x-onestep-seed"] == "7"
    assert response.headers["x-onestep-batch-size"] == "1"
    assert float(response.headers["x-onestep-queue-ms"]) >= 0
    assert float(response.headers["x-onestep-run-ms"]) > 0
    assert response.headers["x-request-id"]
    names = [part.split(";")[0] for part in response.headers["server-timing"].split(", ")]
    assert names == ["queue", "text", "denoise", "decode", "encode", "total"]


async def test_json_with_consecutive_seeds(stack: Stack) -> None:
    body = (await stack.draw(seed=2**32 - 1, num_images=3, format="webp")).json()
    assert [image["seed"] for image in body["images"]] == [2**32 - 1, 0, 1]
    assert {image["media_type"] for image in body["images"]} == {"image/webp"}
    for image in body["images"]:
        assert pixels(base64.b64decode(image["b64_json"])).shape == (SIZE_PX, SIZE_PX, 3)
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
        difference = np.abs(pixels(response.content) - pixels(single.content))
        assert difference.mean() <= 1


async def test_different_seeds_and_prompts_draw_different_pictures(stack: Stack) -> None:
    pictures = [
        pixels((await stack.draw(PNG, prompt=prompt, seed=seed)).content)
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


async def test_the_description_names_every_field_and_status(stack: Stack) -> None:
    operation = (await stack.client.get("/openapi.json")).json()["paths"]["/v1/generate"]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    assert set(schema["properties"]) == set(GenerateRequest.model_fields)
    assert schema["additionalProperties"] is False
    refusals = {"400", "401", "403", "409", "413", "422", "429", "500", "503", "504"}
    assert set(operation["responses"]) == {"200", "202", *refusals}
