"""Keys, limits and what is open, over the whole application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from keys_fixtures import bearer, make_key, write_keys
from service_stack import PNG, Stack, problem, running

from engines.pipeline import Pipeline
from service.api_keys import ApiKey
from service.jobs import Job, Priority

COST = 64 * 64
GENERATE = "/v1/generate"
OPENAI = "/v1/images/generations"


@pytest.fixture
def key() -> tuple[ApiKey, str]:
    return make_key()


@pytest.fixture
async def locked(
    bundle: Path, pipeline: Pipeline, tmp_path: Path, key: tuple[ApiKey, str]
) -> AsyncIterator[Stack]:
    """A service that asks for the one key."""
    path = write_keys(tmp_path / "keys", key[0])
    async with running(bundle, pipeline, keys_file=path) as stack:
        yield stack


def _spy_on_jobs(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    jobs: list[Job] = []
    put = stack.broker.put

    async def noting(given: list[Job]) -> object:
        jobs.extend(given)
        return await put(given)

    monkeypatch.setattr(stack.broker, "put", noting)
    return jobs


def refused(response: httpx.Response, status: int, code: str) -> dict[str, object]:
    """Check that an answer is this refusal in OpenAI's envelope and return its inside."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error: dict[str, object] = response.json()["error"]
    assert error["code"] == code
    return error


@pytest.mark.parametrize("scheme", ["Bearer {}", "bearer {}", "BEARER  {}"])
async def test_a_key_opens_the_service(locked: Stack, key: tuple[ApiKey, str], scheme: str) -> None:
    response = await locked.draw({"authorization": scheme.format(key[1])})
    assert response.status_code == 200
    assert (await locked.draw({"x-api-key": key[1]})).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer none"},
        {"authorization": "Bearer"},
        {"authorization": "Basic {key}"},
        {"authorization": "{key}"},
        {"x-api-key": ""},
        {"x-api-key": "{key}x"},
        {"api-key": "{key}"},
        {"cookie": "x-api-key={key}"},
        # The more precise header decides, whatever the other holds.
        {"x-api-key": "none", "authorization": "Bearer {key}"},
    ],
)
async def test_without_a_good_key_nothing_is_drawn(
    locked: Stack, key: tuple[ApiKey, str], headers: dict[str, str]
) -> None:
    headers = {name: value.format(key=key[1]) for name, value in headers.items()}
    response = await locked.draw(headers)
    problem(response, 401, "unauthorized")
    assert response.headers["www-authenticate"].startswith("Bearer")
    assert locked.pipeline.prompts == []


async def test_a_key_in_the_address_is_no_key(locked: Stack, key: tuple[ApiKey, str]) -> None:
    for name in ("key", "api_key", "x-api-key", "access_token", "authorization"):
        response = await locked.client.post(
            GENERATE, params={name: key[1]}, json={"prompt": "heart"}
        )
        problem(response, 401, "unauthorized")


@pytest.mark.parametrize("path", [OPENAI, "/v1/images/edits", "/v1/models", "/v1/models/tiny"])
async def test_openais_routes_refuse_in_openais_words(locked: Stack, path: str) -> None:
    method = "GET" if "models" in path else "POST"
    error = refused(await locked.client.request(method, path), 401, "unauthorized")
    assert error["type"] == "authentication_error"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        *(("/", 200), ("/playground/app.js", 200), ("/playground/none.js", 404)),
        *(("/livez", 200), ("/readyz", 200), ("/startupz", 404), ("/v1/images/none", 404)),
        *(("/docs", 200), ("/docs/swagger-ui.css", 200), ("/openapi.json", 200)),
    ],
)
async def test_what_is_open_asks_for_no_key(locked: Stack, path: str, status: int) -> None:
    assert (await locked.client.get(path)).status_code == status


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("GET", "/metrics"), ("GET", "/nothing"), ("POST", "/"), ("POST", "/livez")),
        *(("POST", "/v1/images/none"), ("DELETE", "/v1/images/none"), ("OPTIONS", GENERATE)),
        *(("GET", "/livez/"), ("GET", "/v1/images"), ("GET", "/playground")),
        *(("GET", "/LIVEZ"), ("GET", "/v1/jobs/any"), ("GET", "/docs2"), ("GET", "/%2e/metrics")),
    ],
)
async def test_everything_else_is_closed(locked: Stack, method: str, path: str) -> None:
    assert (await locked.client.request(method, path)).status_code == 401


async def test_a_path_that_only_begins_openly_leads_nowhere(locked: Stack) -> None:
    for path in ("/playground/%2e%2e/metrics", "/docs/%2e%2e/metrics", "/playground/..%2fmetrics"):
        response = await locked.client.get(path)
        assert response.status_code == 404
        assert "onestep_" not in response.text


async def test_without_a_keys_file_no_key_is_asked_and_none_is_wrong(stack: Stack) -> None:
    assert (await stack.draw()).status_code == 200
    assert (await stack.draw(bearer("none"))).status_code == 200


async def test_jobs_carry_owner_and_priority(
    bundle: Path, pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann, ann_key = make_key()
    bob, bob_key = make_key(priority="background")
    path = write_keys(tmp_path / "keys", ann, bob)
    async with running(bundle, pipeline, keys_file=path) as stack:
        jobs = _spy_on_jobs(stack, monkeypatch)
        await stack.draw(bearer(ann_key))
        await stack.draw(bearer(ann_key), priority="background")
        await stack.draw(bearer(bob_key))
        body = {"prompt": "heart", "priority": "background"}
        await stack.client.post(OPENAI, json=body, headers=bearer(ann_key))
        refusal = await stack.draw(bearer(bob_key), priority="interactive")
        document = problem(refusal, 403, "forbidden")
    assert (document["field"], document["allowed"]) == ("priority", ["background"])
    assert [(job.owner, job.priority) for job in jobs] == [
        (ann.id, Priority.INTERACTIVE),
        (ann.id, Priority.BACKGROUND),
        (bob.id, Priority.BACKGROUND),
        (ann.id, Priority.BACKGROUND),
    ]
    assert stack.metric("onestep_rejected_total", reason="forbidden") == 1


async def test_a_model_outside_the_keys_list_is_forbidden(
    bundle: Path, pipeline: Pipeline, tmp_path: Path
) -> None:
    other, other_key = make_key(models=("other",))
    none, none_key = make_key(models=())
    path = write_keys(tmp_path / "keys", other, none)
    async with running(bundle, pipeline, keys_file=path) as stack:
        for key in (other_key, none_key):
            headers = bearer(key)
            assert problem(await stack.draw(headers), 403, "forbidden")["field"] == "model"
            asked = await stack.client.post(OPENAI, json={"prompt": "heart"}, headers=headers)
            assert refused(asked, 403, "forbidden")["param"] == "model"
            listed = (await stack.client.get("/v1/models", headers=headers)).json()
            assert listed["data"] == []
            read = await stack.client.get("/v1/models/tiny", headers=headers)
            refused(read, 403, "forbidden")
        assert stack.pipeline.prompts == []


async def test_the_model_on_the_keys_list_is_drawn(
    bundle: Path, pipeline: Pipeline, tmp_path: Path
) -> None:
    key, text = make_key(models=("other", "tiny"))
    path = write_keys(tmp_path / "keys", key)
    async with running(bundle, pipeline, keys_file=path) as stack:
        name = (await stack.client.get("/v1/models", headers=bearer(text))).json()["data"][0]["id"]
        assert name == "tiny"
        assert (await stack.draw(bearer(text), model=name)).status_code == 200


async def test_keys_change_while_serving(
    bundle: Path, pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.auth.LOOK_EVERY_S", 0.0)
    ann, ann_key = make_key()
    bob, bob_key = make_key()
    path = write_keys(tmp_path / "keys", ann)
    async with running(bundle, pipeline, keys_file=path) as stack:
        assert (await stack.draw(bearer(ann_key))).status_code == 200
        assert (await stack.draw(bearer(bob_key))).status_code == 401
        write_keys(path, ann.model_copy(update={"is_revoked": True}), bob)
        assert (await stack.draw(bearer(ann_key))).status_code == 401
        assert (await stack.draw(bearer(bob_key))).status_code == 200


async def test_a_rate_is_counted_in_pixel_steps_and_told(
    bundle: Path, pipeline: Pipeline, tmp_path: Path
) -> None:
    ann, ann_key = make_key(rate_pixel_steps_per_s=1, burst_pixel_steps=4 * COST)
    bob, bob_key = make_key()
    path = write_keys(tmp_path / "keys", ann, bob)
    async with running(bundle, pipeline, keys_file=path) as stack:
        headers = bearer(ann_key)
        first = await stack.draw(headers, steps=2)
        assert first.headers["x-ratelimit-remaining-pixel-steps"] == str(2 * COST)
        second = await stack.draw(headers, num_images=3)
        problem(second, 429, "rate_limited")
        assert second.headers["x-ratelimit-remaining-pixel-steps"] == str(2 * COST)
        assert second.headers["retry-after"] == "120"  # the cap; it would be over an hour
        # What was refused was not charged.
        assert (await stack.draw(headers | PNG, num_images=1)).status_code == 200
        body = {"prompt": "heart", "n": 2}
        third = await stack.client.post(OPENAI, json=body, headers=headers)
        assert refused(third, 429, "rate_limited")["type"] == "rate_limit_error"
        other = await stack.draw(bearer(bob_key))
        assert other.status_code == 200
        assert "x-ratelimit-remaining-pixel-steps" not in other.headers
        assert stack.metric("onestep_rejected_total", reason="rate_limited") == 2


async def test_a_request_that_no_wait_could_help_is_forbidden(
    bundle: Path, pipeline: Pipeline
) -> None:
    limits = {"rate_pixel_steps_per_s": COST, "burst_pixel_steps": 2 * COST}
    async with running(bundle, pipeline, **limits, max_open_pictures=4) as stack:
        document = problem(await stack.draw(num_images=3), 403, "forbidden")
        assert document["allowed"] == {"max_pixel_steps": 2 * COST}
        assert (await stack.draw(num_images=2)).status_code == 200
    async with running(bundle, pipeline, max_open_pictures=2) as stack:
        document = problem(await stack.draw(num_images=3), 403, "forbidden")
        assert (document["field"], document["allowed"]) == ("num_images", {"min": 1, "max": 2})


async def test_without_keys_all_share_the_settings_limits(bundle: Path, pipeline: Pipeline) -> None:
    async with running(bundle, pipeline, daily_pixel_steps=2 * COST) as stack:
        assert (await stack.draw()).status_code == 200
        assert (await stack.draw({"x-forwarded-for": "10.0.0.1"})).status_code == 200
        response = await stack.draw({"x-forwarded-for": "10.0.0.2"})
        problem(response, 429, "quota_exceeded")
        # The `openai` client would otherwise ask twice more.
        assert response.headers["x-should-retry"] == "false"
        assert 1 <= int(response.headers["retry-after"]) <= 120


async def test_a_request_that_the_queue_refuses_costs_nothing(
    bundle: Path, pipeline: Pipeline
) -> None:
    limits = {"daily_pixel_steps": 3 * COST, "max_open_pictures": 3}
    async with running(bundle, pipeline, max_queue_depth=1, **limits) as stack:
        holding = await stack.hold_engine()
        for _ in range(5):
            problem(await stack.draw(), 429, "queue_full")
        stack.pipeline.gate.set()
        assert (await holding).status_code == 200
        assert [(await stack.draw()).status_code for _ in range(3)] == [200, 200, 429]


async def test_open_pictures_are_bounded_per_key(
    bundle: Path, pipeline: Pipeline, tmp_path: Path
) -> None:
    ann, ann_key = make_key(max_open_pictures=2)
    bob, bob_key = make_key()
    path = write_keys(tmp_path / "keys", ann, bob)
    async with running(bundle, pipeline, keys_file=path) as stack:
        stack.client.headers.update(bearer(bob_key))
        holding = await stack.hold_engine()
        waiting = asyncio.create_task(stack.draw(bearer(ann_key), num_images=2))
        await stack.queue_depth_reaches(3)
        refusal = await stack.draw(bearer(ann_key))
        problem(refusal, 429, "rate_limited")
        assert refusal.headers["retry-after"] == "1"
        other = asyncio.create_task(stack.draw())
        await stack.queue_depth_reaches(4)
        # A client that leaves makes room as well as a picture that is done.
        waiting.cancel()
        await stack.queue_depth_reaches(2)
        again = asyncio.create_task(stack.draw(bearer(ann_key), num_images=2))
        await stack.queue_depth_reaches(4)
        stack.pipeline.gate.set()
        answers = await asyncio.gather(holding, other, again)
        assert [answer.status_code for answer in answers] == [200, 200, 200]
        assert (await stack.draw(bearer(ann_key), num_images=2)).status_code == 200


async def test_a_key_sees_no_pictures_of_another_but_by_their_address(
    bundle: Path, pipeline: Pipeline, tmp_path: Path
) -> None:
    """Addresses are secrets of their own: whoever has one reads it, nobody can guess one."""
    ann, ann_key = make_key()
    bob, bob_key = make_key()
    path = write_keys(tmp_path / "keys", ann, bob)
    async with running(bundle, pipeline, keys_file=path) as stack:
        body = {"prompt": "heart", "response_format": "url"}
        answer = await stack.client.post(OPENAI, json=body, headers=bearer(ann_key))
        url = answer.json()["data"][0]["url"]
        name = url.rpartition("/")[2]
        assert len(name) >= 32
        assert (await stack.client.get(url)).status_code == 200
        assert (await stack.client.get(url[:-1], headers=bearer(bob_key))).status_code == 404
        assert (await stack.client.delete(url, headers=bearer(bob_key))).status_code == 405
