"""Requests that come again with their Idempotency-Key: the whole application, on both queues."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from jobs_fixtures import JOBS, ended, redis_broker, running_on
from keys_fixtures import bearer, make_key, write_keys
from picture_files import heart, saved
from PIL import Image
from service_stack import PNG, Stack, listening, problem, running

from engines.pipeline import Pipeline

GENERATE = "/v1/generate"
IMAGES = "/v1/images/generations"
EDITS = "/v1/images/edits"
REPLAYED = "idempotent-replayed"
KEY = {"idempotency-key": "k-1"}


@pytest.fixture(params=["memory", "redis"])
async def stack(
    request: pytest.FixtureRequest, bundle: Path, pipeline: Pipeline, redis_url: str
) -> AsyncIterator[Stack]:
    async with running_on(request.param, bundle, pipeline, redis_url) as stack:
        yield stack


@pytest.fixture(scope="module")
def emoji_pipeline(repo_root: Path) -> Pipeline:
    return Pipeline.load(repo_root / "models" / "emoji", num_threads=1)


@pytest.fixture
async def emoji_stack(repo_root: Path, emoji_pipeline: Pipeline) -> AsyncIterator[Stack]:
    """Draws from pictures, too."""
    async with running(repo_root / "models" / "emoji", emoji_pipeline) as stack:
        yield stack


def _seed(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return response.headers["x-onestep-seed"]


async def test_a_retry_gets_the_same_picture_and_its_random_seed(stack: Stack) -> None:
    first = await stack.draw(KEY | PNG)
    again = await stack.draw(KEY | PNG)
    assert _seed(again) == _seed(first)
    assert again.content == first.content
    assert (REPLAYED in first.headers, again.headers[REPLAYED]) == (False, "true")
    assert stack.pipeline.prompts == ["heart"]
    as_json = (await stack.draw(KEY)).json()
    assert as_json["images"][0]["seed"] == int(_seed(first))
    repeated = (await stack.draw(KEY)).json()
    assert (repeated["id"], repeated["images"]) == (as_json["id"], as_json["images"])


async def test_retries_in_parallel_are_one_drawing(stack: Stack) -> None:
    holding = await stack.hold_engine()
    both = [asyncio.create_task(stack.draw(KEY, num_images=2)) for _ in range(2)]
    await stack.queue_depth_reaches(3)
    await asyncio.sleep(0.1)
    await stack.queue_depth_reaches(3)
    stack.pipeline.gate.set()
    one, other = [await task for task in both]
    assert one.json()["images"] == other.json()["images"]
    assert sorted(response.headers.get(REPLAYED, "") for response in (one, other)) == ["", "true"]
    assert stack.pipeline.prompts == ["holding", "heart", "heart"]
    await holding


@pytest.mark.parametrize("queue", ["memory", "redis"])
async def test_the_one_that_came_too_late_gives_back_its_charge_and_no_other_claim(
    bundle: Path, pipeline: Pipeline, redis_url: str, monkeypatch: pytest.MonkeyPatch, queue: str
) -> None:
    settings = {"daily_pixel_steps": 4 * 64 * 64, "max_open_pictures": 3}
    async with running_on(queue, bundle, pipeline, redis_url, **settings) as stack:
        holding = await stack.hold_engine()
        first = asyncio.create_task(stack.draw(KEY))
        await stack.queue_depth_reaches(2)
        find, is_first = stack.broker.find, True

        async def blind_once(*given: Any, **how: Any) -> list[Any]:
            nonlocal is_first
            was_first, is_first = is_first, False
            found: list[Any] = await find(*given, **how)
            return [None for _ in found] if was_first else found

        monkeypatch.setattr(stack.broker, "find", blind_once)
        late = asyncio.create_task(stack.draw(KEY))
        await asyncio.sleep(0.1)
        # Open are the two that are drawn; a third one fits and a fourth does not.
        third = asyncio.create_task(stack.draw())
        await stack.queue_depth_reaches(3)
        problem(await stack.draw(), 429, "rate_limited")
        stack.pipeline.gate.set()
        for task in (holding, first, third):
            assert (await task).status_code == 200
        assert (await late).headers[REPLAYED] == "true"
        # Three of the day's four are spent.
        assert (await stack.draw()).status_code == 200
        problem(await stack.draw(), 429, "quota_exceeded")


async def test_a_replay_is_answered_where_nothing_is_left_to_spend(
    bundle: Path, pipeline: Pipeline
) -> None:
    async with running(bundle, pipeline, daily_pixel_steps=64 * 64) as stack:
        first = await stack.draw(KEY | PNG)
        problem(await stack.draw(PNG), 429, "quota_exceeded")
        again = await stack.draw(KEY | PNG)
        assert again.status_code == 200 and again.content == first.content


async def test_the_same_key_with_another_request_is_refused(stack: Stack) -> None:
    await stack.draw(KEY)
    for response in (
        await stack.draw(KEY, seed=1),
        await stack.client.post(JOBS, json={"prompt": "heart"}, headers=KEY),
    ):
        document = problem(response, 422, "idempotency_mismatch")
        assert document["field"] == "idempotency-key"
    other = await stack.client.post(IMAGES, json={"prompt": "heart"}, headers=KEY)
    assert other.status_code == 422
    assert other.json()["error"]["param"] == "idempotency-key"
    assert stack.pipeline.prompts == ["heart"]


async def test_a_picture_keeps_the_format_that_it_was_drawn_in(stack: Stack) -> None:
    first = await stack.draw(KEY | {"accept": "image/webp"})
    again = await stack.draw(KEY | {"accept": "image/jpeg"})
    assert again.headers["content-type"] == "image/webp"
    assert again.content == first.content
    assert (await stack.draw(KEY)).json()["images"][0]["media_type"] == "image/webp"


@pytest.mark.parametrize(
    ("path", "fields"), [(GENERATE, {}), (EDITS, {}), (JOBS, {}), (EDITS, {"n": "2"})]
)
async def test_forms_are_the_same_whatever_their_boundary(
    emoji_stack: Stack, path: str, fields: dict[str, str]
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    picture, other = saved(Image.fromarray(noise)), saved(heart("blue"))
    assert len(picture) > emoji_stack.settings.max_body_bytes  # taken all the same

    async def send(boundary: str, **changes: Any) -> httpx.Response:
        files = {"image": ("a.png", changes.pop("image", picture), "image/png")}
        text = {"prompt": "a red heart", **fields, **changes}
        kind = {"content-type": f"multipart/form-data; boundary={boundary}"}
        return await emoji_stack.client.post(path, data=text, files=files, headers=KEY | kind)

    first, again = await send("one"), await send("another")
    assert first.is_success, first.text
    assert (REPLAYED in first.headers, again.headers[REPLAYED]) == (False, "true")
    assert (await send("one", image=other)).status_code == 422
    assert (await send("one", prompt="a blue heart")).status_code == 422


async def test_openai_retries_get_the_same_pictures(stack: Stack) -> None:
    body = {"prompt": "heart", "n": 2}
    first = await stack.client.post(IMAGES, json=body, headers=KEY)
    again = await stack.client.post(IMAGES, json=body, headers=KEY)
    assert again.json()["data"] == first.json()["data"]
    assert again.headers[REPLAYED] == "true"
    urls = KEY | {"idempotency-key": "k-2"}
    body["response_format"] = "url"
    sent = [await stack.client.post(IMAGES, json=body, headers=urls) for _ in range(2)]
    assert sent[0].json()["data"] == sent[1].json()["data"]
    assert (await stack.client.get(sent[1].json()["data"][0]["url"])).status_code == 200


async def test_a_failure_is_replayed_too(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: Any, **how: Any) -> None:
        raise RuntimeError("broken")

    with monkeypatch.context() as broken:
        broken.setattr(stack.pipeline, "generate", fail)
        problem(await stack.draw(KEY), 500, "generation_failed")
    again = await stack.draw(KEY)
    problem(again, 500, "generation_failed")
    assert again.headers[REPLAYED] == "true"
    assert (await stack.draw({"idempotency-key": "new"})).status_code == 200


async def test_a_refusal_is_not_remembered(bundle: Path, pipeline: Pipeline) -> None:
    async with running(bundle, pipeline, max_queue_depth=1) as stack:
        holding = await stack.hold_engine()
        problem(await stack.draw(KEY), 429, "queue_full")
        stack.pipeline.gate.set()
        await holding
        assert REPLAYED not in (await stack.draw(KEY)).headers


async def _leave(stack: Stack, headers: dict[str, str]) -> None:
    """Ask for a picture over a real connection, and close it once the request is queued."""
    async with listening(stack) as port:
        depth = (await stack.broker.sweep()).num_jobs
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            body = {"prompt": "left"}
            task = asyncio.create_task(client.post(GENERATE, json=body, headers=headers))
            await stack.queue_depth_reaches(depth + 1)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0.2)


async def test_the_departure_of_a_client_cancels_no_job_that_may_be_asked_for_again(
    stack: Stack,
) -> None:
    holding = await stack.hold_engine()
    await _leave(stack, {})
    await stack.queue_depth_reaches(1)  # this one was cancelled
    await _leave(stack, KEY)
    await stack.queue_depth_reaches(2)
    again = asyncio.create_task(stack.draw(KEY, prompt="left"))
    await asyncio.sleep(0.05)
    stack.pipeline.gate.set()
    assert (await again).headers[REPLAYED] == "true"
    assert (await again).status_code == 200
    assert stack.pipeline.prompts == ["holding", "left"]
    await holding


async def test_who_joins_a_job_with_more_time_waits_for_no_more_than_their_own(
    bundle: Path, pipeline: Pipeline
) -> None:
    async with running(bundle, pipeline, deadline_s=0.5) as stack:
        stack.pipeline.gate.clear()
        response = await stack.draw(KEY | {"prefer": "respond-async"})
        assert response.status_code == 202
        problem(await stack.draw(KEY), 504, "deadline_exceeded")
        stack.pipeline.gate.set()
        assert (await ended(stack, response.json()["id"]))["state"] == "succeeded"


async def test_owners_do_not_share_keys(bundle: Path, pipeline: Pipeline, tmp_path: Path) -> None:
    keys = [make_key(name=name) for name in ("one", "two")]
    path = write_keys(tmp_path / "keys", *(key for key, _ in keys))
    async with running(bundle, pipeline, keys_file=path) as stack:
        for _, secret in keys:
            response = await stack.draw(KEY | bearer(secret))
            assert response.status_code == 200 and REPLAYED not in response.headers
        # Not even with another request: nothing tells that somebody used this key.
        assert (await stack.draw({"idempotency-key": "z"} | bearer(keys[0][1]))).is_success
        other = await stack.draw({"idempotency-key": "z"} | bearer(keys[1][1]), seed=5)
        assert other.status_code == 200


@pytest.mark.parametrize("path", [GENERATE, IMAGES, JOBS])
async def test_what_is_no_key_is_refused(bundle: Path, pipeline: Pipeline, path: str) -> None:
    async with running(bundle, pipeline) as stack:
        for key in ("", " ", "a b", "k" * 256, "k\x7f", "ключ".encode(), "a\tb"):
            headers: Any = {"idempotency-key": key}
            response = await stack.client.post(path, json={"prompt": "heart"}, headers=headers)
            assert response.status_code == 400, key
            found = response.json()
            named = found["error"]["param"] if path == IMAGES else found["field"]
            assert named == "idempotency-key"


async def test_two_keys_are_refused_and_the_longest_one_is_taken(stack: Stack) -> None:
    body = {"prompt": "heart"}
    twice = [("idempotency-key", "a"), ("idempotency-key", "b")]
    assert (await stack.client.post(GENERATE, json=body, headers=twice)).status_code == 400
    longest = {"idempotency-key": "!" + "~" * 254}
    assert (await stack.client.post(GENERATE, json=body, headers=longest)).is_success


async def test_another_process_replays_what_this_one_drew(
    bundle: Path, pipeline: Pipeline, redis_url: str
) -> None:
    async with (
        running_on("redis", bundle, pipeline, redis_url) as stack,
        redis_broker(bundle, redis_url) as broker,
    ):
        other = Stack(bundle, pipeline, stack.settings, broker)
        other.readiness.set(stack.readiness.phase, "")
        first = await stack.draw(KEY | PNG)
        again = await other.draw(KEY | PNG)
        assert again.headers[REPLAYED] == "true"
        assert (again.content, _seed(again)) == (first.content, _seed(first))
