"""The real `openai` client against the real service: what its users call, and what they catch."""

from __future__ import annotations

import base64
import io
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import openai
import pytest
from PIL import Image
from service_process import running_service

PROMPT = "red heart, flat"
SIZE = "128x128"


@pytest.fixture(scope="module")
def client(service_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service_url}/v1", api_key="none", max_retries=0) as client:
        yield client


def _pixels(content: bytes, format: str = "PNG") -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        assert image.format == format
        return np.asarray(image.convert("RGB")).astype(int)


def _decoded(image: openai.types.Image, format: str = "PNG") -> np.ndarray:
    assert image.b64_json is not None
    return _pixels(base64.b64decode(image.b64_json), format)


def test_a_picture(client: openai.OpenAI) -> None:
    answer = client.images.generate(prompt=PROMPT, size=SIZE, extra_body={"seed": 7})
    assert (answer.size, answer.output_format, answer.background) == (SIZE, "png", "opaque")
    assert answer.usage is not None and answer.usage.input_tokens > 0
    assert answer.data is not None and len(answer.data) == 1
    image_HWC = _decoded(answer.data[0])
    assert image_HWC.shape == (128, 128, 3)
    assert image_HWC[np.ptp(image_HWC, axis=2) > 60].mean(axis=0).argmax() == 0


def test_the_same_picture_as_the_native_route_draws(
    client: openai.OpenAI, service_url: str
) -> None:
    answer = client.images.generate(prompt=PROMPT, extra_body={"seed": 7})
    request = urllib.request.Request(
        f"{service_url}/v1/generate",
        data=b'{"prompt": "red heart, flat", "seed": 7}',
        headers={"content-type": "application/json", "accept": "image/png"},
    )
    with urllib.request.urlopen(request) as response:
        native_HWC = _pixels(response.read())
    assert answer.data is not None
    assert np.abs(_decoded(answer.data[0]) - native_HWC).max() <= 1


def test_several_pictures_are_all_there_and_differ(client: openai.OpenAI) -> None:
    answer = client.images.generate(prompt="panda", n=4, extra_body={"seed": 1})
    assert answer.data is not None
    images = [_decoded(image) for image in answer.data]
    assert len({image.tobytes() for image in images}) == 4


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_compression_makes_a_smaller_file(
    client: openai.OpenAI, format: Literal["jpeg", "webp"]
) -> None:
    sizes = []
    for quality in (10, 95):
        answer = client.images.generate(
            prompt=PROMPT,
            output_format=format,
            output_compression=quality,
            extra_body={"seed": 7},
        )
        assert answer.data is not None and answer.data[0].b64_json is not None
        _decoded(answer.data[0], format.upper())
        sizes.append(len(answer.data[0].b64_json))
    assert sizes[0] < 0.7 * sizes[1]


def test_an_address_leads_to_the_picture(client: openai.OpenAI, service_url: str) -> None:
    answer = client.images.generate(prompt=PROMPT, response_format="url", extra_body={"seed": 7})
    assert answer.data is not None and answer.data[0].url is not None
    assert answer.data[0].url.startswith(service_url)
    with urllib.request.urlopen(answer.data[0].url) as response:
        assert response.headers["content-type"] == "image/png"
        assert _pixels(response.read()).shape == (128, 128, 3)


def test_a_stream_ends_in_the_same_pictures(client: openai.OpenAI) -> None:
    plain = client.images.generate(prompt=PROMPT, n=2, extra_body={"seed": 7})
    with client.images.generate(
        prompt=PROMPT, n=2, stream=True, partial_images=2, extra_body={"seed": 7}
    ) as stream:
        events = list(stream)
    assert [event.type for event in events] == ["image_generation.completed"] * 2
    assert plain.data is not None
    for event, image in zip(events, plain.data, strict=True):
        streamed_HWC = _pixels(base64.b64decode(event.b64_json))
        assert np.abs(streamed_HWC - _decoded(image)).max() <= 1


async def test_the_async_client(service_url: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{service_url}/v1", api_key="none") as client:
        answer = await client.images.generate(prompt=PROMPT)
        assert answer.data is not None and _decoded(answer.data[0]).shape == (128, 128, 3)
        stream = await client.images.generate(prompt=PROMPT, stream=True)
        assert [event.type async for event in stream] == ["image_generation.completed"]


def test_models_are_listed_and_found(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.owned_by) == ("emoji", "onestep")
    assert model.created > 0
    assert client.models.retrieve("emoji").id == "emoji"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_an_error_carries_code_param_and_request_id(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(prompt=PROMPT, size="7x7")
    assert (caught.value.code, caught.value.param) == ("invalid_request", "size")
    assert caught.value.request_id
    assert SIZE in str(caught.value.body) or "128" in caught.value.message


def test_a_field_without_meaning_here_is_refused_with_a_reason(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="distilled student") as caught:
        client.images.generate(prompt=PROMPT, extra_body={"negative_prompt": "blurry"})
    assert caught.value.param == "negative_prompt"


def test_an_unknown_address_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.get("/images/nothing", cast_to=object)
    assert caught.value.code == "not_found"


def test_a_missed_deadline_is_not_tried_again(repo_root: Path, tmp_path: Path) -> None:
    bundle = repo_root / "models" / "emoji"
    with running_service(bundle, tmp_path, deadline_s=0.001) as service:
        with openai.OpenAI(base_url=f"{service.url}/v1", api_key="none") as client:
            with pytest.raises(openai.InternalServerError) as caught:
                client.images.generate(prompt=PROMPT)
        assert caught.value.status_code == 504
        assert caught.value.code == "deadline_exceeded"
        with urllib.request.urlopen(f"{service.url}/metrics") as response:
            lines = response.read().decode().splitlines()
    wanted = 'onestep_requests_total{code="504",reason="deadline_exceeded"'
    # Every route's counter is there from the start.
    counts = [float(line.split()[-1]) for line in lines if line.startswith(wanted)]
    assert sorted(counts)[-1:] == [1.0] and sum(counts) == 1.0
