"""Redis' back-up, its restoring and its password's rotation, as docs/operate.md has them done."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest
import redis
from fleet import Fleet
from manifests.objects import ROOT
from manifests.programs import program, run
from redis_server import RedisServer

from engines.spec import ModelSpec

CARE = ROOT / "docker" / "redis"


def _beside(server: RedisServer, folder: Path) -> dict[str, str]:
    """Variables of a shell that runs beside this server: `redis-cli` alone reaches it."""
    folder.mkdir(exist_ok=True)
    shim = folder / "redis-cli"
    shim.write_text(f'#!/bin/sh\nexec {program("redis-cli")} -p {server.port} "$@"\n')
    shim.chmod(0o755)
    return os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}


def _back_up(server: RedisServer, folder: Path) -> bytes:
    with (CARE / "back-up").open("rb") as script:
        ran = subprocess.run(
            ["sh", "-s"], stdin=script, capture_output=True, env=_beside(server, folder)
        )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def _restore(server: RedisServer, folder: Path, copy: bytes) -> int:
    script = (CARE / "restore").read_text()
    ran = subprocess.run(
        ["sh", "-c", script], input=copy, capture_output=True, env=_beside(server, folder)
    )
    return ran.returncode


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    (tmp_path / "data").mkdir()
    with closing(RedisServer(tmp_path / "data", "--appendonly", "yes")) as one:
        yield one


def test_a_copy_brings_back_pictures_and_jobs_that_wait(bundle: Path, tmp_path: Path) -> None:
    model = ModelSpec.load(bundle).name
    with closing(Fleet(bundle, tmp_path, lease_s=1)) as fleet:
        fleet.start_api()
        fleet.start_worker()
        fleet.wait_for_workers(model, 1)
        with httpx.Client(base_url=f"http://127.0.0.1:{fleet.ports[0]}", timeout=30) as client:
            drawn = _accepted(client, seed=1)
            _wait_until_drawn(client, drawn)
            fleet.kill_worker(0)
            waiting = _accepted(client, seed=2)
            copy = _back_up(fleet.redis, tmp_path / "bin")
            # A disk is lost.
            fleet.redis.kill()
            shutil.rmtree(tmp_path / "appendonlydir")
            fleet.redis.start()
            with fleet.client() as redis_client:
                assert redis_client.exists(f"onestep:{{{model}}}:open") == 0
            assert _restore(fleet.redis, tmp_path / "bin", copy) == 0
            fleet.redis.stop()
            fleet.redis.start()
            fleet.start_worker()
            for job in (drawn, waiting):
                _wait_until_drawn(client, job)
                picture = client.get(f"/v1/jobs/{job}/images/0")
                assert picture.status_code == 200 and picture.content


def _accepted(client: httpx.Client, seed: int) -> str:
    """A job that was accepted, once the queue is there."""
    end_s = time.monotonic() + 20
    while True:
        body = {"prompt": "heart", "seed": seed}
        answer = client.post("/v1/generate", json=body, headers={"prefer": "respond-async"})
        if answer.status_code == 202:
            job: str = answer.json()["id"]
            return job
        assert answer.status_code == 503 and time.monotonic() < end_s, answer.text
        time.sleep(0.1)


def _wait_until_drawn(client: httpx.Client, job: str) -> None:
    end_s = time.monotonic() + 30
    while (seen := client.get(f"/v1/jobs/{job}")).json().get("state") != "succeeded":
        assert seen.status_code in (200, 503) and time.monotonic() < end_s, seen.text
        time.sleep(0.1)


def test_a_copy_is_whole_while_redis_writes_and_leaves_nothing_behind(
    server: RedisServer, tmp_path: Path
) -> None:
    with redis.Redis(port=server.port) as client:
        client.config_set("auto-aof-rewrite-percentage", 70)
        client.set("before", "x" * 1_000_000)
        client.bgrewriteaof()
        copy = _back_up(server, tmp_path / "bin")
        client.set("after", 1)
        usual = client.config_get("auto-aof-rewrite-percentage")
        assert usual == {"auto-aof-rewrite-percentage": "70"}
        assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [
            "appendonlydir",
            "redis.log",
        ]
        assert _restore(server, tmp_path / "bin", copy) == 0
    server.stop()
    server.start()
    with redis.Redis(port=server.port) as client:
        assert (client.strlen("before"), client.exists("after")) == (1_000_000, 0)


def test_a_server_that_is_told_to_end_has_all_it_acknowledged(
    server: RedisServer, tmp_path: Path
) -> None:
    """As a drained node ends it, with writers at work."""
    acknowledged: list[int] = []

    def write(first: int) -> None:
        with redis.Redis(port=server.port) as client:
            for number in range(first, 10**9, 4):
                try:
                    client.set(f"job:{number}", "x" * 500)
                except redis.RedisError:
                    return
                acknowledged.append(number)

    threads = [threading.Thread(target=write, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    server.stop()
    for thread in threads:
        thread.join(10)
    server.start()
    with redis.Redis(port=server.port) as client:
        assert len(acknowledged) > 100
        assert all(client.mget([f"job:{number}" for number in acknowledged]))


@pytest.mark.parametrize("copy", [b"", b"no tar at all", b"half"])
def test_what_is_no_whole_copy_changes_nothing(
    server: RedisServer, tmp_path: Path, copy: bytes
) -> None:
    with redis.Redis(port=server.port) as client:
        client.set("kept", "x" * 100_000)
    if copy == b"half":
        copy = _back_up(server, tmp_path / "bin")[:4000]
    assert _restore(server, tmp_path / "bin", copy) != 0
    server.stop()
    server.start()
    with redis.Redis(port=server.port) as client:
        assert client.strlen("kept") == 100_000


def test_two_passwords_are_good_while_one_follows_the_other(tmp_path: Path) -> None:
    with closing(RedisServer(tmp_path)) as server:
        cli = (program("redis-cli"), "-p", server.port, "-e")
        run(*cli, "CONFIG", "SET", "requirepass", "old")

        def said(password: str, *command: str) -> str:
            return run(*cli, *command, env=os.environ | {"REDISCLI_AUTH": password}).stdout.strip()

        with redis.Redis(port=server.port, password="old") as client:
            assert client.ping()
            assert said("old", "ACL", "SETUSER", "default", ">new") == "OK"
            assert said("old", "PING") == said("new", "PING") == "PONG"
            assert said("new", "ACL", "SETUSER", "default", "<old") == "OK"
            assert said("new", "PING") == "PONG" and said("old", "PING") != "PONG"
            # Who is connected is not asked again.
            assert client.ping()
