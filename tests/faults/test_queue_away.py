"""Redis hangs, dies and comes back: nobody waits long and nothing accepted is lost."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet import Fleet, running_fleet

from engines.spec import ModelSpec

# A command's own patience and the rest of an answer, on a machine that is busy with other tests.
ANSWERED_WITHIN_S = 2.0


@pytest.fixture(scope="module")
def fleet(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("away")
    with running_fleet(bundle, folder, num_apis=1, num_workers=1, lease_s=1) as fleet:
        fleet.wait_for_workers(ModelSpec.load(bundle).name, 1)
        yield fleet


def _ask(fleet: Fleet, path: str, body: dict[str, object] | None = None) -> tuple[int, str | None]:
    connection = http.client.HTTPConnection("127.0.0.1", fleet.ports[0], timeout=60)
    headers = {"content-type": "application/json"}
    content = None if body is None else json.dumps(body)
    connection.request("GET" if body is None else "POST", path, content, headers)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status, answer.getheader("retry-after")


def _draw(fleet: Fleet, seed: int = 1) -> tuple[int, str | None]:
    return _ask(fleet, "/v1/generate", {"prompt": "heart", "seed": seed})


def _draws_again(fleet: Fleet) -> None:
    until_s = time.monotonic() + 20
    while (status := _draw(fleet)[0]) != 200:
        assert status == 503 and time.monotonic() < until_s
        time.sleep(0.1)


@pytest.mark.parametrize("is_killed", [False, True])
def test_requests_are_refused_soon_and_served_again_by_themselves(
    fleet: Fleet, is_killed: bool
) -> None:
    _draws_again(fleet)
    (fleet.redis.kill if is_killed else fleet.redis.pause)()
    for _ in range(3):
        started_s = time.monotonic()
        status, retry_after = _draw(fleet)
        assert (status, retry_after) == (503, "1")
        assert time.monotonic() - started_s < ANSWERED_WITHIN_S
    assert _ask(fleet, "/livez")[0] == 200
    until_s = time.monotonic() + 10
    while _ask(fleet, "/readyz")[0] != 503:
        assert time.monotonic() < until_s
        time.sleep(0.1)
    (fleet.redis.start if is_killed else fleet.redis.resume)()
    _draws_again(fleet)
    until_s = time.monotonic() + 10
    while _ask(fleet, "/readyz")[0] != 200:
        assert time.monotonic() < until_s
        time.sleep(0.1)


def test_what_was_accepted_before_a_crash_of_the_queue_is_drawn_after_it(
    bundle: Path, tmp_path: Path
) -> None:
    with running_fleet(bundle, tmp_path, num_apis=1, num_workers=0, lease_s=1) as fleet:
        _wait_until_ready(fleet)
        statuses: list[int] = []
        threads = [
            threading.Thread(target=lambda seed=seed: statuses.append(_draw(fleet, seed)[0]))
            for seed in range(8)
        ]
        for thread in threads:
            thread.start()
        with fleet.client() as client:
            key = f"onestep:{{{ModelSpec.load(bundle).name}}}:open"
            while client.zcard(key) < len(threads):
                time.sleep(0.02)
        fleet.redis.kill()
        fleet.redis.start()
        fleet.start_worker()
        for thread in threads:
            thread.join(60)
        assert statuses == [200] * len(threads)


def _wait_until_ready(fleet: Fleet) -> None:
    until_s = time.monotonic() + 20
    while _ask(fleet, "/readyz")[0] != 200:
        assert time.monotonic() < until_s
        time.sleep(0.05)
