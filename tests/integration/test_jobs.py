"""/v1/jobs and `Prefer: respond-async`, over the whole application and both queues."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from jobs_fixtures import JOBS, create, ended, reaches, read, running_on
from keys_fixtures import bearer, make_key, write_keys
from service_stack import PNG, Stack, problem, running

from engines.pipeline import Pipeline
from service.jobs import Priority, job_id

ASYNC = {"prefer": "respond-async"}
GENERATE = "/v1/generate"


@pytest.fixture(params=["memory", "redis"])
async def stack(
    request: pytest.FixtureRequest, bundle: Path, pipeline: Pipeline, redis_url: str
) -> AsyncIterator[Stack]:
    async with running_on(request.param, bundle, pipeline, redis_url) as stack:
        yield stack


async def test_a_job_goes_from_queued_to_its_pictures(stack: Stack) -> None:
    holding = await stack.hold_engine()
    created = await create(stack, seed=4294967295, num_images=2, format="webp", width=64)
    assert (created["state"], created["num_images"], created["model"]) == (
        "queued",
        2,
        stack.context.limits.name,
    )
    assert (created["width"], created["height"], created["steps"]) == (64, 64, 1)
    assert created["pictures"] == [
        {"index": 0, "state": "queued", "seed": 4294967295},
        {"index": 1, "state": "queued", "seed": 0},
    ]
    stack.pipeline.gate.set()
    document = await ended(stack, created["id"])
    assert document["state"] == "succeeded"
    assert abs(document["created"] - created["created"]) <= 1
    for picture in document["pictures"]:
        assert picture["url"] == f"http://test{JOBS}/{created['id']}/images/{picture['index']}"
        response = await stack.client.get(picture["url"])
        assert response.headers["content-type"] == picture["media_type"] == "image/webp"
        direct = await stack.draw({"accept": "image/webp"}, seed=picture["seed"])
        assert response.content == direct.content
    await holding


async def test_a_request_that_prefers_it_is_answered_with_a_job(stack: Stack) -> None:
    response = await stack.draw(ASYNC | PNG, num_images=2)
    assert response.status_code == 202, response.text
    document = response.json()
    assert response.headers["location"] == f"{JOBS}/{document['id']}"
    assert response.headers["preference-applied"] == "respond-async"
    assert (await ended(stack, document["id"]))["state"] == "succeeded"


async def test_a_job_has_its_own_deadline_from_its_acceptance(
    bundle: Path, pipeline: Pipeline
) -> None:
    async with running(bundle, pipeline, deadline_s=0.2, job_deadline_s=0.6) as stack:
        holding = await stack.hold_engine()
        created = await create(stack)
        await asyncio.sleep(0.3)
        await stack.broker.sweep()
        assert (await read(stack, created["id"]))["state"] == "queued"
        await asyncio.sleep(0.4)
        await stack.broker.sweep()
        document = await read(stack, created["id"])
        assert document["state"] == "expired"
        assert document["pictures"][0]["error"]["code"] == "deadline_exceeded"
        stack.pipeline.gate.set()
        problem(await holding, 504, "deadline_exceeded")


async def test_a_queued_job_is_cancelled_and_cancelling_again_does_nothing(stack: Stack) -> None:
    holding = await stack.hold_engine()
    job = (await create(stack, num_images=2))["id"]
    for _ in range(2):
        response = await stack.client.delete(f"{JOBS}/{job}")
        assert response.status_code == 200
        document = response.json()
        assert document["state"] == "cancelled"
        for picture in document["pictures"]:
            assert picture["error"]["code"] == "job_cancelled"
            assert "request_id" not in picture["error"]
    stack.pipeline.gate.set()
    await holding
    assert stack.pipeline.prompts == ["holding"]
    assert stack.metric("onestep_cancelled_total", phase="queued") == 2


async def test_a_running_job_is_cancelled_and_its_picture_has_no_effect(stack: Stack) -> None:
    stack.pipeline.gate.clear()
    job = (await create(stack))["id"]
    await reaches(stack, job, {"running"})
    assert (await stack.client.delete(f"{JOBS}/{job}")).json()["state"] == "cancelled"
    stack.pipeline.gate.set()
    assert (await stack.draw()).status_code == 200
    assert (await read(stack, job))["state"] == "cancelled"
    problem(await stack.client.get(f"{JOBS}/{job}/images/0"), 404, "not_found")


async def test_a_job_that_has_ended_stays_as_it_is(stack: Stack) -> None:
    job = (await create(stack))["id"]
    await ended(stack, job)
    assert (await stack.client.delete(f"{JOBS}/{job}")).json()["state"] == "succeeded"


async def test_who_waits_for_a_cancelled_picture_hears_of_it(stack: Stack) -> None:
    key = {"idempotency-key": "both"}
    holding = await stack.hold_engine()
    job = (await stack.draw(key | ASYNC)).json()["id"]
    waiting = asyncio.create_task(stack.draw(key))
    await asyncio.sleep(0.1)
    await stack.client.delete(f"{JOBS}/{job}")
    problem(await waiting, 409, "job_cancelled")
    stack.pipeline.gate.set()
    await holding


async def test_a_failed_job_says_so(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: Any, **how: Any) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(stack.pipeline, "generate", fail)
    document = await ended(stack, (await create(stack))["id"])
    assert document["state"] == "failed"
    error = document["pictures"][0]["error"]
    assert (error["status"], error["code"]) == (500, "generation_failed")
    assert error["type"] == "urn:onestep:problem:generation_failed"


async def test_jobs_are_of_the_priority_that_they_name(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, priority in (("interactive", Priority.INTERACTIVE), (None, Priority.INTERACTIVE)):
        job = (await create(stack, **({} if name is None else {"priority": name})))["id"]
        (record,) = await stack.broker.find([job_id(job, 0)])
        assert record is not None and record.job.priority is priority
    job = (await create(stack, priority="background"))["id"]
    (record,) = await stack.broker.find([job_id(job, 0)])
    assert record is not None and record.job.priority is Priority.BACKGROUND


async def test_jobs_that_come_again_are_the_same_job(stack: Stack) -> None:
    key = {"idempotency-key": "again"}
    first, again = await create(stack, key), await create(stack, key)
    assert again["id"] == first["id"]
    await ended(stack, first["id"])
    response = await stack.client.post(JOBS, json={"prompt": "heart"}, headers=key)
    assert (response.status_code, response.json()["state"]) == (202, "succeeded")
    assert response.headers["idempotent-replayed"] == "true"
    assert stack.pipeline.prompts == ["heart"]


async def test_what_is_no_job_is_not_found(stack: Stack) -> None:
    kept = (await create(stack))["id"]
    await ended(stack, kept)
    holding = await stack.hold_engine()  # its request is waited for, so no job is shown
    (plain,) = [job for job in await _open_requests(stack) if job != kept]
    names = ["0" * 32, "f" * 64, kept + "0", f"{kept}-0", kept.upper(), "x", "%00", "*", plain]
    for name in names:
        for method, path in _routes(name):
            problem(await stack.client.request(method, path), 404, "not_found")
    for index in ("1", "00", "-1", "+0", "x", "99999", "0%00"):
        path = f"{JOBS}/{kept}/images/{index}"
        problem(await stack.client.get(path), 404, "not_found")
    stack.pipeline.gate.set()
    assert (await holding).status_code == 200


async def test_only_what_may_be_an_id_is_asked_for(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def find(*given: Any, **how: Any) -> None:
        raise AssertionError(f"asked for {given}")

    monkeypatch.setattr(stack.broker, "find", find)
    for name in ("x", "0" * 31, "F" * 32, "0" * 33, "a" * 5000, "%00", "*", "{x}"):
        for method, path in _routes(name):
            problem(await stack.client.request(method, path), 404, "not_found")


async def _open_requests(stack: Stack) -> list[str]:
    """Of the worker's broker in memory, or the server's."""
    if stack.broker.__class__.__name__ == "MemoryBroker":
        return [name.rpartition("-")[0] for name in stack.broker._open]  # type: ignore[union-attr]
    model = stack.context.limits.name
    names = await stack.broker._connection.newest(f"onestep:{{{model}}}:open", 10)  # type: ignore[union-attr]
    return [name.decode().rpartition("-")[0] for name, _ in names]


def _routes(job: str) -> list[tuple[str, str]]:
    return [
        ("GET", f"{JOBS}/{job}"),
        ("DELETE", f"{JOBS}/{job}"),
        ("GET", f"{JOBS}/{job}/events"),
        ("GET", f"{JOBS}/{job}/images/0"),
    ]


async def test_nobody_sees_or_ends_the_jobs_of_others(
    bundle: Path, pipeline: Pipeline, tmp_path: Path, redis_url: str
) -> None:
    keys = {name: make_key(name=name) for name in ("ann", "bob", "eve")}
    path = write_keys(tmp_path / "keys", *(key for key, _ in keys.values()))
    async with running_on("redis", bundle, pipeline, redis_url, keys_file=path) as stack:
        headers = {name: bearer(secret) for name, (_, secret) in keys.items()}
        holding = asyncio.create_task(stack.draw(headers["eve"], prompt="holding"))
        jobs = {
            name: [
                (await create(stack, headers[name]))["id"],
                (await stack.draw(headers[name] | ASYNC | {"idempotency-key": "k"})).json()["id"],
            ]
            for name in ("ann", "bob")
        }
        for owner, ids in jobs.items():
            for job in ids:
                await ended(stack, job, headers[owner])
                for who in keys:
                    for method, route in _routes(job):
                        response = await stack.client.request(method, route, headers=headers[who])
                        assert response.status_code == (200 if who == owner else 404), (who, route)
                for method, route in _routes(job):
                    assert (await stack.client.request(method, route)).status_code == 401
        lists = {
            who: [
                job["id"]
                for job in (await stack.client.get(JOBS, headers=headers[who])).json()["jobs"]
            ]
            for who in keys
        }
        assert lists == {"ann": jobs["ann"][::-1], "bob": jobs["bob"][::-1], "eve": []}
        assert (await holding).status_code == 200


@pytest.mark.parametrize("queue", ["memory", "redis"])
async def test_own_jobs_are_listed_newest_first(
    bundle: Path, pipeline: Pipeline, tmp_path: Path, redis_url: str, queue: str
) -> None:
    key, secret = make_key()
    path = write_keys(tmp_path / "keys", key)
    async with running_on(queue, bundle, pipeline, redis_url, keys_file=path) as stack:
        own = bearer(secret)
        assert (await stack.client.get(JOBS, headers=own)).json() == {"jobs": []}
        await stack.draw(own)  # waited for: not kept, so not listed
        jobs = [(await create(stack, own, num_images=n))["id"] for n in (1, 3, 2)]
        for job in jobs:
            await ended(stack, job, own)
        listed = (await stack.client.get(JOBS, headers=own)).json()["jobs"]
        assert [job["id"] for job in listed] == jobs[::-1]
        assert [len(job["pictures"]) for job in listed] == [2, 3, 1]
        assert listed == [await read(stack, job, own) for job in jobs[::-1]]
        newest = (await stack.client.get(JOBS, headers=own, params={"limit": 1})).json()["jobs"]
        assert [job["id"] for job in newest] == jobs[2:]


async def test_without_keys_nobody_can_list_the_jobs_of_all(stack: Stack) -> None:
    await create(stack)
    problem(await stack.client.get(JOBS), 403, "forbidden")


@pytest.mark.parametrize("query", ["0", "101", "-1", "x", "1.5", "", "1&limit=2", "9" * 30])
async def test_a_list_has_a_bound(bundle: Path, pipeline: Pipeline, query: str) -> None:
    async with running(bundle, pipeline) as stack:
        document = problem(await stack.client.get(f"{JOBS}?limit={query}"), 400, "invalid_request")
        assert (document["field"], document["allowed"]) == ("limit", {"min": 1, "max": 100})


async def test_ids_and_secrets_of_kept_pictures_are_not_from_the_fast_generator(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.routes.accepting.new_id", lambda: "0" * 32)
    jobs = {(await create(stack))["id"] for _ in range(3)}
    assert len(jobs) == 3 and all(len(job) == 32 for job in jobs)
    body = {"prompt": "heart", "response_format": "url"}
    response = await stack.client.post("/v1/images/generations", json=body)
    assert "0" * 32 not in response.json()["data"][0]["url"]


async def test_a_picture_that_had_to_give_way_has_failed_as_lost(
    bundle: Path, pipeline: Pipeline
) -> None:
    async with running(bundle, pipeline) as stack:
        job = (await create(stack, num_images=2))["id"]
        await ended(stack, job)
        del stack.broker._ended[job_id(job, 1)]  # type: ignore[union-attr]
        document = await read(stack, job)
        assert [picture["state"] for picture in document["pictures"]] == ["succeeded", "failed"]
        assert document["state"] == "failed"


async def test_a_draining_service_takes_no_jobs_and_still_shows_them(stack: Stack) -> None:
    job = (await create(stack))["id"]
    await ended(stack, job)
    from service.routes.context import Phase

    stack.readiness.set(Phase.DRAINING, "the service is shutting down")
    problem(await stack.client.post(JOBS, json={"prompt": "a"}), 503, "draining")
    assert (await read(stack, job))["state"] == "succeeded"


async def test_the_document_describes_every_route(stack: Stack) -> None:
    paths = (await stack.client.get("/openapi.json")).json()["paths"]
    described = {path: set(paths[path]) for path in paths if path.startswith(JOBS)}
    assert described == {
        JOBS: {"post", "get"},
        f"{JOBS}/{{job}}": {"get", "delete"},
        f"{JOBS}/{{job}}/events": {"get"},
        f"{JOBS}/{{job}}/images/{{index}}": {"get"},
    }
    body = paths[JOBS]["post"]["requestBody"]["content"]["application/json"]
    assert "webhook" in body["schema"]["properties"]
    assert "webhook" in body["examples"]["text"]["value"]
    generate = paths[GENERATE]["post"]
    assert {"202", "422"} <= set(generate["responses"])
    assert {one["name"] for one in generate["parameters"]} == {"Idempotency-Key", "Prefer"}


async def test_pages_of_other_origins_read_where_a_job_lies(
    bundle: Path, pipeline: Pipeline
) -> None:
    origin = {"origin": "https://page.example"}
    async with running(bundle, pipeline, cors_origins=(origin["origin"],)) as stack:
        response: httpx.Response = await stack.draw(ASYNC | origin)
        exposed = response.headers["access-control-expose-headers"].lower()
        for name in ("location", "preference-applied", "idempotent-replayed"):
            assert name in exposed
