"""The real `openai` client edits pictures over the real service."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
from picture_files import animated, heart, png_that_claims, saved, see_through
from PIL import Image

PROMPT = "red heart, flat"
SIZE = "128x128"
BLUE = heart("blue")
FILE = saved(BLUE)
GIVEN = np.asarray(BLUE).astype(int)


@pytest.fixture(scope="module")
def client(service_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service_url}/v1", api_key="none", max_retries=0) as client:
        yield client


def _pixels(b64_json: str | None, format: str = "PNG") -> np.ndarray:
    assert b64_json is not None
    with Image.open(io.BytesIO(base64.b64decode(b64_json))) as image:
        assert image.format == format
        return np.asarray(image.convert("RGB")).astype(int)


def _first(answer: openai.types.ImagesResponse) -> np.ndarray:
    assert answer.data is not None
    return _pixels(answer.data[0].b64_json)


def test_an_edit_keeps_to_the_picture(client: openai.OpenAI) -> None:
    answer = client.images.edit(image=FILE, prompt=PROMPT, size=SIZE, extra_body={"seed": 7})
    assert (answer.size, answer.output_format, answer.background) == (SIZE, "png", "opaque")
    assert answer.usage is not None and answer.usage.input_tokens > 0
    edited_HWC = _first(answer)
    from_text = client.images.generate(prompt=PROMPT, extra_body={"seed": 7})
    assert edited_HWC.shape == (128, 128, 3)
    assert np.abs(edited_HWC - GIVEN).mean() < np.abs(_first(from_text) - GIVEN).mean()


def test_a_path_or_a_list_of_one_is_a_picture_too(client: openai.OpenAI, tmp_path: Path) -> None:
    path = tmp_path / "heart.png"
    path.write_bytes(FILE)
    answers = [
        client.images.edit(image=image, prompt=PROMPT, extra_body={"seed": 7})
        for image in (path, [FILE], ("blue.png", io.BytesIO(FILE), "image/png"))
    ]
    images = [_first(answer) for answer in answers]
    assert all(np.abs(image - images[0]).max() <= 1 for image in images)


def test_fidelity_and_strength(client: openai.OpenAI) -> None:
    distances = [
        np.abs(
            _first(
                client.images.edit(
                    image=FILE, prompt=PROMPT, input_fidelity=fidelity, extra_body={"seed": 7}
                )
            )
            - GIVEN
        ).mean()
        for fidelity in ("high", "low")
    ]
    strong = client.images.edit(image=FILE, prompt=PROMPT, extra_body={"seed": 7, "strength": 1.0})
    assert distances[0] < distances[1] < np.abs(_first(strong) - GIVEN).mean()
    steps = {"seed": 7, "strength": 1.0, "num_inference_steps": 4}
    client.images.edit(image=FILE, prompt=PROMPT, extra_body=steps)


def test_only_the_masked_part_is_drawn(client: openai.OpenAI) -> None:
    mask = saved(see_through(BLUE, (0, 64, 128, 128)))
    answer = client.images.edit(
        image=FILE, mask=mask, prompt=PROMPT, extra_body={"seed": 7, "strength": 1.0}
    )
    image_HWC = _first(answer)
    assert (image_HWC[:64] == GIVEN[:64]).all()
    assert np.abs(image_HWC[64:] - GIVEN[64:]).mean() > 10


def test_several_pictures_compressed(client: openai.OpenAI) -> None:
    answer = client.images.edit(
        image=FILE, prompt=PROMPT, n=3, output_format="webp", output_compression=60
    )
    assert answer.data is not None
    images = [_pixels(image.b64_json, "WEBP").tobytes() for image in answer.data]
    assert len(set(images)) == 3


def test_an_address_leads_to_the_picture(client: openai.OpenAI) -> None:
    answer = client.images.edit(image=FILE, prompt=PROMPT, response_format="url")
    assert answer.data is not None and answer.data[0].url is not None
    response = httpx.get(answer.data[0].url)
    assert response.headers["content-type"] == "image/png"


def test_a_stream_ends_in_the_same_pictures(client: openai.OpenAI) -> None:
    extra = {"seed": 7}
    plain = client.images.edit(image=FILE, prompt=PROMPT, n=2, extra_body=extra)
    with client.images.edit(
        image=FILE, prompt=PROMPT, n=2, stream=True, extra_body=extra
    ) as stream:
        events = list(stream)
    assert [event.type for event in events] == ["image_edit.completed"] * 2
    assert plain.data is not None
    for event, image in zip(events, plain.data, strict=True):
        assert np.abs(_pixels(event.b64_json) - _pixels(image.b64_json)).max() <= 1


async def test_the_async_client(service_url: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{service_url}/v1", api_key="none") as client:
        answer = await client.images.edit(image=FILE, prompt=PROMPT)
        assert _first(answer).shape == (128, 128, 3)
        stream = await client.images.edit(image=FILE, prompt=PROMPT, stream=True)
        assert [event.type async for event in stream] == ["image_edit.completed"]


@pytest.mark.parametrize(
    ("image", "fields", "param", "wanted"),
    [
        ([FILE, FILE], {}, "image", "one picture"),
        (saved(BLUE, "gif"), {}, "image", "PNG, JPEG or WebP"),
        (animated("webp"), {}, "image", "animated"),
        (FILE[:200], {}, "image", "damaged"),
        (FILE, {"mask": FILE}, "mask", "transparent"),
        (FILE, {"size": "1024x1024"}, "size", SIZE),
        (FILE, {"extra_body": {"strength": 0}}, "strength", "greater than 0"),
        (FILE, {"extra_body": {"num_inference_steps": 4}}, "num_inference_steps", "1 to 2"),
        (FILE, {"output_format": "svg"}, "output_format", "png"),
    ],
)
def test_a_refusal_names_param_and_reason(
    client: openai.OpenAI, image: object, fields: dict[str, object], param: str, wanted: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=wanted) as caught:
        client.images.edit(image=image, prompt=PROMPT, **fields)  # type: ignore[call-overload]
    assert (caught.value.code, caught.value.param) == ("invalid_request", param)
    assert caught.value.request_id


def test_too_many_pixels_are_an_error_of_their_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        client.images.edit(image=png_that_claims(20000, 20000), prompt=PROMPT)
    assert caught.value.status_code == 413
    assert (caught.value.code, caught.value.param) == ("picture_too_large", "image")


def test_too_many_bytes_are_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError, match="8388608 bytes") as caught:
        client.images.edit(image=b"\0" * (9 * 2**20), prompt=PROMPT)
    assert (caught.value.status_code, caught.value.code) == (413, "body_too_large")
