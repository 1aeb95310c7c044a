"""One prompt and seed: the same picture alone, in a full batch, after a crash, on every surface."""

from __future__ import annotations

import base64
import io
import json
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import websockets.sync.client
from fleet import Fleet, running_fleet
from PIL import Image

from engines.spec import ModelSpec

WISH = {"prompt": "red heart, flat", "seed": 7}
# Of 255. Alone and in a batch the order of sums differs (docs/engines-check.md).
MAX_LEVELS = 1


@pytest.fixture(scope="module")
def fleet(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """The bundled model between one API process and one worker."""
    bundle = repo_root / "models/emoji"
    folder = tmp_path_factory.mktemp("fleet")
    with running_fleet(bundle, folder, num_apis=1, num_workers=1, lease_s=1) as fleet:
        fleet.wait_for_workers(ModelSpec.load(bundle).name, 1)
        yield fleet


@pytest.fixture(scope="module")
def client(fleet: Fleet) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://127.0.0.1:{fleet.ports[0]}", timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def alone(client: httpx.Client) -> np.ndarray:
    answer = client.post("/v1/generate", json=WISH, headers={"accept": "image/png"})
    assert answer.headers["x-onestep-batch-size"] == "1"
    return _pixels(answer.content)


def _pixels(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def _is_same(content: bytes, alone: np.ndarray) -> bool:
    return bool(abs(_pixels(content) - alone).max() <= MAX_LEVELS)


def test_another_seed_is_another_picture(client: httpx.Client, alone: np.ndarray) -> None:
    answer = client.post("/v1/generate", json=WISH | {"seed": 8}, headers={"accept": "image/png"})
    assert not _is_same(answer.content, alone)


def test_through_openais_surface(client: httpx.Client, alone: np.ndarray) -> None:
    answer = client.post("/v1/images/generations", json=WISH).json()
    assert _is_same(base64.b64decode(answer["data"][0]["b64_json"]), alone)


def test_as_a_job(client: httpx.Client, alone: np.ndarray) -> None:
    job = client.post("/v1/jobs", json=WISH)
    assert job.status_code == 202
    address = job.headers["location"]
    until_s = time.monotonic() + 30
    while client.get(address).json()["state"] != "succeeded":
        assert time.monotonic() < until_s
        time.sleep(0.02)
    assert _is_same(client.get(f"{address}/images/0").content, alone)


def test_in_real_time(fleet: Fleet, alone: np.ndarray) -> None:
    url = f"ws://127.0.0.1:{fleet.ports[0]}/v1/realtime"
    with websockets.sync.client.connect(url) as connection:
        connection.send(json.dumps(WISH | {"id": 1, "format": "png"}))
        while isinstance(frame := connection.recv(timeout=30), str):
            assert json.loads(frame)["type"] == "hello"
    (length,) = struct.unpack(">I", frame[:4])
    assert _is_same(frame[4 + length :], alone)


def test_in_a_full_batch(client: httpx.Client, alone: np.ndarray) -> None:
    answer = client.post("/v1/generate", json=WISH | {"num_images": 8}).json()
    assert answer["batch_size"] == 8
    assert _is_same(base64.b64decode(answer["images"][0]["b64_json"]), alone)


def test_after_its_worker_died(fleet: Fleet, client: httpx.Client, alone: np.ndarray) -> None:
    contents: list[bytes] = []

    def ask() -> None:
        answer = client.post("/v1/generate", json=WISH | {"num_images": 16, "steps": 1}).json()
        contents.append(base64.b64decode(answer["images"][0]["b64_json"]))

    asking = threading.Thread(target=ask)
    asking.start()
    with fleet.client() as redis:
        prefix = "onestep:{emoji}:"
        before = int(redis.hget(prefix + "counters", "redelivered") or 0)
        while not any(
            redis.xpending(q, "workers")["pending"] for q in redis.keys(prefix + "queue:*")
        ):
            time.sleep(0.001)
        fleet.kill_worker(0)
        fleet.start_worker()
        asking.join(60)
        assert int(redis.hget(prefix + "counters", "redelivered") or 0) > before
    assert _is_same(contents[0], alone)
