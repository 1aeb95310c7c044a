"""A replicated Redis changes its primary: the service follows by itself, with what was accepted."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

import httpx
from fleet import Fleet
from redis_name import RedisName

from engines.spec import ModelSpec

FOLLOWED_WITHIN_S = 10


def _accept(client: httpx.Client, seed: int) -> httpx.Response:
    body = {"prompt": "heart", "seed": seed}
    return client.post("/v1/generate", json=body, headers={"prefer": "respond-async"})


def test_accepted_jobs_are_drawn_by_the_new_primary(bundle: Path, tmp_path: Path) -> None:
    with closing(Fleet(bundle, tmp_path, lease_s=1)) as fleet:
        with closing(RedisName(tmp_path, fleet.redis)) as name:
            fleet.redis.url = name.url
            fleet.start_worker()
            fleet.start_api()
            fleet.wait_for_workers(ModelSpec.load(bundle).name, 1)
            with httpx.Client(base_url=f"http://127.0.0.1:{fleet.ports[0]}", timeout=30) as client:
                _follow(fleet, name, client)


def _follow(fleet: Fleet, name: RedisName, client: httpx.Client) -> None:
    accepted = [_accept(client, seed) for seed in range(12)]
    assert {answer.status_code for answer in accepted} == {202}
    name.wait_for_replica()
    name.fail_over()
    until_s = time.monotonic() + FOLLOWED_WITHIN_S
    while (answer := _accept(client, 99)).status_code != 202:
        assert answer.status_code == 503 and time.monotonic() < until_s, answer.text
        time.sleep(0.05)
    for each in (*accepted, answer):
        path = f"/v1/jobs/{each.json()['id']}"
        while (job := client.get(path)).json().get("state") != "succeeded":
            assert job.status_code in (200, 503) and time.monotonic() < until_s, job.text
            time.sleep(0.05)
    # Nobody was started anew for it.
    assert all(process.poll() is None for process in (*fleet.apis, *fleet.workers))
