"""Pictures drawn from pictures, over the whole service and the bundled model."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from keys_fixtures import bearer, make_key, write_keys
from picture_files import heart, hostile_files, saved, see_through
from PIL import Image
from service_process import running_service
from service_stack import PNG, Stack, pixels, problem, running

from engines.pipeline import Pipeline

PROMPT = "red heart, flat"
BLUE = heart("blue")
GIVEN = np.asarray(BLUE).astype(int)
FILE = saved(BLUE)
BASE64 = base64.b64encode(FILE).decode()
MAX_GROWTH_BYTES = 64 * 2**20


async def _redraw(stack: Stack, **fields: Any) -> np.ndarray:
    fields = {"prompt": PROMPT, "image": BASE64, "seed": 3} | fields
    response = await stack.draw(PNG, **fields)
    assert response.status_code == 200, response.text
    return pixels(response.content)


def _distance(image_HWC: np.ndarray) -> float:
    return float(np.abs(image_HWC - GIVEN).mean())


async def test_strength_is_how_far_a_picture_goes(emoji_stack: Stack) -> None:
    distances = [_distance(await _redraw(emoji_stack, strength=s)) for s in (0.25, 0.5, 0.75, 1)]
    assert distances == sorted(distances)
    assert distances[0] < 0.5 * distances[-1]
    # A weak redraw keeps the blue, a strong one follows the prompt.
    middle = (slice(48, 72), slice(48, 80))
    weak = (await _redraw(emoji_stack, strength=0.25))[middle].mean(axis=(0, 1))
    strong = (await _redraw(emoji_stack, strength=1))[middle].mean(axis=(0, 1))
    assert weak.argmax() == 2 and strong.argmax() == 0


async def test_the_same_seed_draws_the_same_picture_and_another_another(
    emoji_stack: Stack,
) -> None:
    first = await _redraw(emoji_stack)
    assert np.abs(first - await _redraw(emoji_stack)).max() == 0
    assert np.abs(first - await _redraw(emoji_stack, seed=4)).mean() > 0.5


async def test_strengths_that_draw_alike_are_one(emoji_stack: Stack) -> None:
    body = (await emoji_stack.draw(prompt=PROMPT, image=BASE64, strength=0.45)).json()
    assert body["strength"] == pytest.approx(0.4995, abs=1e-4)
    assert "strength" not in (await emoji_stack.draw(prompt=PROMPT)).json()
    alike = [await _redraw(emoji_stack, strength=s) for s in (0.45, 0.5)]
    assert np.abs(alike[0] - alike[1]).max() == 0


async def test_batch_mates_do_not_matter(emoji_stack: Stack) -> None:
    files = [base64.b64encode(saved(heart(c))).decode() for c in ("blue", "red", "green", "black")]
    alone = [await _redraw(emoji_stack, image=f, seed=i) for i, f in enumerate(files)]
    holding = await emoji_stack.hold_engine()
    together = [
        asyncio.create_task(emoji_stack.draw(PNG, prompt=PROMPT, image=file, seed=seed))
        for seed, file in enumerate(files)
    ]
    from_text = asyncio.create_task(emoji_stack.draw(PNG, prompt=PROMPT, seed=1))
    await emoji_stack.queue_depth_reaches(6)
    emoji_stack.pipeline.gate.set()
    await holding
    for single, task in zip(alone, together, strict=True):
        response = await task
        assert response.headers["x-onestep-batch-size"] == "4"
        assert np.abs(pixels(response.content) - single).mean() <= 1
    # A picture from text never shares a batch with pictures from pictures.
    assert (await from_text).headers["x-onestep-batch-size"] == "1"


async def test_a_form_draws_the_same_as_json(emoji_stack: Stack) -> None:
    response = await emoji_stack.client.post(
        "/v1/generate",
        data={"prompt": PROMPT, "seed": "3", "strength": "0.75"},
        files={"image": ("heart.png", FILE)},
        headers=PNG,
    )
    assert response.status_code == 200, response.text
    assert np.abs(pixels(response.content) - await _redraw(emoji_stack, strength=0.75)).max() == 0


async def test_several_pictures_start_from_one(emoji_stack: Stack) -> None:
    body = (await emoji_stack.draw(prompt=PROMPT, image=BASE64, num_images=3, seed=5)).json()
    images = [base64.b64decode(image["b64_json"]) for image in body["images"]]
    assert [image["seed"] for image in body["images"]] == [5, 6, 7]
    assert len(set(images)) == 3


async def test_outside_the_mask_pixels_stay_to_the_byte(emoji_stack: Stack) -> None:
    mask = base64.b64encode(saved(see_through(BLUE, (0, 64, 128, 128)))).decode()
    image_HWC = await _redraw(emoji_stack, mask=mask, strength=1)
    whole_HWC = await _redraw(emoji_stack, strength=1)
    assert (image_HWC[:64] == GIVEN[:64]).all()
    assert (image_HWC[64:] == whole_HWC[64:]).all()


async def test_a_telephones_photo_is_fitted_to_the_models_size(emoji_stack: Stack) -> None:
    photo = saved(heart("blue", 900).crop((0, 0, 900, 700)), "jpeg", quality=90)
    image_HWC = await _redraw(emoji_stack, image=base64.b64encode(photo).decode(), strength=0.25)
    assert image_HWC.shape == (128, 128, 3)


async def test_metadata_of_a_picture_goes_nowhere(emoji_stack: Stack) -> None:
    exif = Image.Exif()
    exif[0x010E] = "where I live"
    photo = saved(BLUE, "jpeg", exif=exif, comment=b"where I live")
    assert b"where I live" in photo
    for format in ("png", "jpeg", "webp"):
        response = await emoji_stack.draw(
            {"accept": "image/*"},
            prompt=PROMPT,
            image=base64.b64encode(photo).decode(),
            format=format,
        )
        assert response.status_code == 200
        assert b"where I live" not in response.content


async def test_models_tell_whether_they_start_from_pictures(
    emoji_stack: Stack, stack: Stack
) -> None:
    (emoji,) = (await emoji_stack.client.get("/v1/models")).json()["data"]
    assert emoji["can_start_from_image"] is True
    assert emoji["strengths"] == [1.0, 0.7497, 0.4995, 0.2492]
    (tiny,) = (await stack.client.get("/v1/models")).json()["data"]
    assert (tiny["can_start_from_image"], tiny["strengths"]) == (False, [])
    document = problem(await stack.draw(image=BASE64), 400, "invalid_request")
    assert document["field"] == "image" and "text alone" in document["detail"]


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        ({"files": {"picture": FILE}}, "picture"),
        ({"files": [("image", ("a", FILE)), ("image", ("b", FILE))]}, "image"),
        ({"data": {"image": BASE64}, "files": {"mask": FILE}}, "image"),
        ({"data": {"seed": ["1", "2"]}, "files": {"image": FILE}}, "seed"),
        ({"data": {"colour": "red"}, "files": {"image": FILE}}, "colour"),
        ({"data": {"seed": "one"}, "files": {"image": FILE}}, "seed"),
        ({"data": {"seed": "1" * 70000}, "files": {"image": FILE}}, None),
        ({"data": {f"f{i}": "" for i in range(70)}, "files": {"image": FILE}}, None),
        ({"files": [("image", (str(i), b"a")) for i in range(40)]}, None),
        ({"files": {"image": b""}}, "image"),
        ({"files": {"image": FILE, "mask": b""}}, "mask"),
        ({"files": {"image": b"GIF89a"}}, "image"),
        ({"content": b"--x\r\nnonsense", "headers": {"content-type": "multipart/form-data"}}, None),
        (
            {
                "content": b'--x\r\ncontent-disposition: form-data; name="a"; filename=""\r\n\r\nx',
                "headers": {"content-type": "multipart/form-data; boundary=x"},
            },
            None,
        ),
        (
            {
                "content": b"nonsense",
                "headers": {"content-type": "multipart/form-data; boundary=x"},
            },
            None,
        ),
    ],
)
@pytest.mark.parametrize("path", ["/v1/generate", "/v1/images/edits"])
async def test_a_form_that_is_none_is_refused(
    emoji_stack: Stack, path: str, parts: dict[str, Any], field: str | None
) -> None:
    if "files" in parts:
        parts = parts | {"data": {"prompt": "a secret heart"} | parts.get("data", {})}
    response = await emoji_stack.client.post(path, **parts)
    assert response.status_code == 400, response.text
    assert "secret" not in response.text
    if path == "/v1/generate":
        assert problem(response, 400, "invalid_request").get("field") == field
    else:
        assert response.json()["error"]["param"] == field
    assert emoji_stack.pipeline.prompts == []
    assert emoji_stack.metric("onestep_rejected_total", reason="invalid_request") == 1


async def test_who_may_not_draw_has_nothing_decoded(
    emoji: Path, emoji_pipeline: Pipeline, tmp_path: Path
) -> None:
    key, secret = make_key(priority="background")
    keys_file = write_keys(tmp_path / "keys", key)
    form: dict[str, Any] = {"data": {"prompt": PROMPT}, "files": {"image": FILE}}
    async with running(emoji, emoji_pipeline, keys_file=keys_file) as stack:
        for path in ("/v1/generate", "/v1/images/edits"):
            assert (await stack.client.post(path, **form)).status_code == 401
            ahead = form | {"data": form["data"] | {"priority": "interactive"}}
            response = await stack.client.post(path, **ahead, headers=bearer(secret))
            assert response.status_code == 403, response.text
            assert stack.context.decoders.pids == []
        response = await stack.client.post("/v1/generate", **form, headers=bearer(secret))
        assert response.status_code == 200, response.text


async def test_edits_take_a_form_only(emoji_stack: Stack) -> None:
    response = await emoji_stack.client.post("/v1/images/edits", json={"prompt": PROMPT})
    assert response.status_code == 400
    assert "multipart/form-data" in response.json()["error"]["message"]


@pytest.mark.parametrize("announced", [True, False])
async def test_a_form_too_large_is_refused_in_bytes(
    emoji: Path, emoji_pipeline: Pipeline, announced: bool
) -> None:
    num_sent = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal num_sent
        yield b'--x\r\ncontent-disposition: form-data; name="image"; filename="a"\r\n\r\n'
        for _ in range(1000):
            num_sent += 1
            yield b"\0" * 1024

    async with running(emoji, emoji_pipeline, max_upload_bytes=2**17) as stack:
        headers = {"content-type": "multipart/form-data; boundary=x"}
        if announced:
            headers["content-length"] = str(2**17 + 1)
        response = await stack.client.post("/v1/generate", content=pieces(), headers=headers)
        document = problem(response, 413, "body_too_large")
        assert document["allowed"] == {"max_bytes": 2**17}
        assert num_sent == 0 if announced else num_sent <= 129
        # Where no picture may come, the smaller bound holds.
        response = await stack.client.post("/v1/images/generations", content=b" " * 65537)
        assert response.status_code == 413
        assert (await stack.client.post("/v1/generate", content=b" " * 65537)).status_code == 400


async def test_bodies_of_all_requests_together_are_bounded(
    emoji: Path, emoji_pipeline: Pipeline
) -> None:
    async with running(emoji, emoji_pipeline, max_held_body_bytes=3 * len(FILE)) as stack:
        holding = await stack.hold_engine()
        form: dict[str, Any] = {"data": {"prompt": PROMPT}, "files": {"image": FILE}}
        tasks = [asyncio.create_task(stack.client.post("/v1/generate", **form)) for _ in range(2)]
        await stack.queue_depth_reaches(3)
        document = problem(await stack.client.post("/v1/generate", **form), 429, "queue_full")
        assert "bodies" in document["detail"]
        stack.pipeline.gate.set()
        await holding
        assert [(await task).status_code for task in tasks] == [200, 200]
        assert (await stack.client.post("/v1/generate", **form)).status_code == 200


def _peak_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        pytest.skip("reads /proc")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
    assert found is not None
    return 1024 * int(found[1])


def _post_form(url: str, content: bytes) -> tuple[int, bytes]:
    response = httpx.post(
        url, data={"prompt": PROMPT, "seed": "3"}, files={"image": ("a.png", content)}, timeout=60
    )
    return response.status_code, response.content


def test_hostile_files_leave_the_service_as_it_was(emoji: Path, tmp_path: Path) -> None:
    with running_service(emoji, tmp_path) as service:
        url = f"{service.url}/v1/generate"
        status, first = _post_form(url, FILE)
        assert status == 200
        before = _peak_bytes(service.process.pid)
        for name, content, code in hostile_files():
            status, answer = _post_form(url, content)
            assert (status, code.encode() in answer) == (400 + 13 * ("large" in code), True), name
        assert _peak_bytes(service.process.pid) - before < MAX_GROWTH_BYTES
        status, last = _post_form(url, FILE)
        assert status == 200
        assert _images(first) == _images(last)
        assert service.stop() == 0
    assert "Traceback" not in service.stderr_path.read_text()


def _images(answer: bytes) -> list[bytes]:
    return [base64.b64decode(image["b64_json"]) for image in json.loads(answer)["images"]]


async def test_the_description_shows_forms_with_files(emoji_stack: Stack) -> None:
    paths = (await emoji_stack.client.get("/openapi.json")).json()["paths"]
    content = paths["/v1/generate"]["post"]["requestBody"]["content"]
    example = content["application/json"]["examples"]["image"]["value"]
    assert (await emoji_stack.draw(**example)).status_code == 200
    for path, form in (
        ("/v1/generate", content["multipart/form-data"]),
        (
            "/v1/images/edits",
            paths["/v1/images/edits"]["post"]["requestBody"]["content"]["multipart/form-data"],
        ),
    ):
        properties = form["schema"]["properties"]
        assert properties["image"]["format"] == "binary", path
        assert properties["mask"]["format"] == "binary", path
        assert {"prompt", "strength", "seed"} <= set(properties), path
