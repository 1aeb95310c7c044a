"""A bundle is replaced while it is served: no request is lost, and the new one draws at once."""

from __future__ import annotations

import http.client
import json
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from service_process import ServiceProcess, running_service


@pytest.fixture
def served(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "served"))


def _connect(service: ServiceProcess) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(service.url.removeprefix("http://"), timeout=60)


def _draw(connection: http.client.HTTPConnection) -> tuple[int, bytes]:
    headers = {"content-type": "application/json", "accept": "image/png"}
    connection.request("POST", "/v1/generate", b'{"prompt": "heart", "seed": 1}', headers)
    answer = connection.getresponse()
    return answer.status, answer.read()


def _description(service: ServiceProcess) -> str:
    connection = _connect(service)
    connection.request("GET", "/v1/models")
    (model,) = json.loads(connection.getresponse().read())["data"]
    connection.close()
    return str(model["description"])


@contextmanager
def _asking(service: ServiceProcess) -> Iterator[list[tuple[int, bytes]]]:
    """Ask without a pause, until the end of the block."""
    told: list[tuple[int, bytes]] = []
    over = threading.Event()

    def client() -> None:
        connection = _connect(service)
        while not over.is_set():
            told.append(_draw(connection))
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield told
    finally:
        over.set()
        for thread in threads:
            thread.join()


def _replace(served: Path, **changes: object) -> None:
    """Write model.json anew, whole."""
    changed = json.loads((served / "model.json").read_text()) | changes
    part = served / "model.json.part"
    part.write_text(json.dumps(changed))
    part.replace(served / "model.json")


def _log_says(service: ServiceProcess, event: str, num: int = 1) -> None:
    until_s = time.monotonic() + 30
    while service.stderr_path.read_text().count(f'"event":"{event}"') < num:
        assert time.monotonic() < until_s, service.stderr_path.read_text()[-2000:]
        time.sleep(0.05)


def test_a_new_bundle_takes_over_without_a_lost_request(served: Path, tmp_path: Path) -> None:
    with running_service(served, tmp_path) as service, _asking(service) as told:
        _draws(told, 5)
        # It starts elsewhere, so it draws other pictures.
        timesteps = json.loads((served / "model.json").read_text())["student_timesteps"]
        _replace(served, description="the newer one", student_timesteps=timesteps | {"1": [500]})
        _log_says(service, "reloaded")
        assert _description(service) == "the newer one"
        _draws(told, len(told) + 20)
    assert {status for status, _ in told} == {200}
    pictures = [content for _, content in told]
    assert pictures[0] != pictures[-1]
    # One change, no way back.
    first_new = pictures.index(pictures[-1])
    assert pictures[0] not in pictures[first_new + 8 :]


def test_a_damaged_bundle_is_left_aside_until_it_is_whole(served: Path, tmp_path: Path) -> None:
    graph = served / "denoise.onnx"
    whole = graph.read_bytes()
    with running_service(served, tmp_path) as service, _asking(service) as told:
        _draws(told, 5)
        graph.write_bytes(whole[:-1])
        _replace(served, description="half of it")
        _log_says(service, "reload_failed")
        _draws(told, len(told) + 10)
        assert _description(service) != "half of it"
        graph.write_bytes(whole)
        service.process.send_signal(signal.SIGHUP)
        _log_says(service, "reloaded")
        assert _description(service) == "half of it"
    assert {status for status, _ in told} == {200}


def _draws(told: list[tuple[int, bytes]], num: int) -> None:
    until_s = time.monotonic() + 30
    while len(told) < num:
        assert time.monotonic() < until_s
        time.sleep(0.02)
