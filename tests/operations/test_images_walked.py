"""The images' build steps without a container engine, and a picture through what they made.

Where an engine is at hand this is `make images`. Here each step that copies or installs is done as
it stands in the Dockerfile, into clean folders, and the processes are started by the images' own
entry point and command.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
from manifests.images import Image, Walk
from redis_server import RedisServer

READY_S = 60


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Walk:
    return Walk(tmp_path_factory.mktemp("images"))


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def _alone(image: Image, **more: str) -> dict[str, str]:
    """The image's variables without the programs of whoever runs the tests."""
    return image.environment(PATH=f"{image.root}/opt/onestep/bin:/usr/bin:/bin", **more)


@contextmanager
def _running(image: Image, secrets: Path, **settings: str) -> Iterator[subprocess.Popen[bytes]]:
    with (image.root / "log").open("wb") as log:
        process = subprocess.Popen(
            image.arguments([f"/usr/local/bin/{image.entrypoint[0]}", *image.command]),
            cwd=image.inside("."),
            env=_alone(image, SECRETS_FOLDER=str(secrets), ONESTEP_HOST="127.0.0.1", **settings),
            stdout=log,
            stderr=log,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _health(image: Image, port: int, path: str = "/livez") -> subprocess.CompletedProcess[str]:
    """The image's own check, at the port that the process has here."""
    *line, url = image.arguments(image.health)
    assert url.endswith("/livez")
    url = f"http://127.0.0.1:{port}{path}"
    return subprocess.run([*line, url], env=_alone(image), capture_output=True, text=True)


def _wait_until_ready(image: Image, process: subprocess.Popen[bytes], port: int) -> None:
    end_s = time.monotonic() + READY_S
    while _health(image, port, "/readyz").returncode:
        log = (image.root / "log").read_text()
        assert process.poll() is None and time.monotonic() < end_s, log
        time.sleep(0.1)


def _packages(image: Image) -> set[str]:
    (folder,) = image.root.glob("opt/onestep/lib/python3*/site-packages")
    return {path.name.split("-")[0].lower() for path in folder.glob("*.dist-info")}


def test_the_api_image_holds_no_engine_and_no_installer(walk: Walk) -> None:
    found = _packages(walk.build("api"))
    assert {"onestep", "starlette", "redis"} <= found
    assert not found & {"onnxruntime", "torch", "numba", "pip", "setuptools", "pytest"}


def test_an_image_holds_code_and_model_and_nothing_else_of_the_repository(walk: Walk) -> None:
    image = walk.build("api")
    assert sorted(path.name for path in image.inside(".").iterdir()) == ["models"]
    assert (image.inside(".") / "models" / "emoji" / "model.json").exists()
    (packages,) = image.root.glob("opt/onestep/lib/python3*/site-packages")
    # The wheel and not the checkout: nothing of it is at the top of the packages.
    assert not {path.name for path in packages.iterdir()} & {"tests", "docs", "models", "docker"}
    assert all(step.split()[0] in ("groupadd", "install") for step in image.left_out)


def test_a_picture_goes_through_both_images(walk: Walk, tmp_path: Path) -> None:
    api, worker = walk.build("api"), walk.build("worker-cpu")
    redis = RedisServer(tmp_path)
    (tmp_path / "ONESTEP_REDIS_URL").write_text(redis.url + "\n")
    ports = [_free_port() for _ in range(3)]
    with ExitStack() as stack:
        stack.callback(redis.close)
        serving = stack.enter_context(
            _running(api, tmp_path, ONESTEP_PORT=str(ports[0]), ONESTEP_ADMIN_PORT=str(ports[1]))
        )
        working = stack.enter_context(
            _running(worker, tmp_path, ONESTEP_ADMIN_PORT=str(ports[2]), ONESTEP_NUM_THREADS="1")
        )
        _wait_until_ready(api, serving, ports[0])
        _wait_until_ready(worker, working, ports[2])
        drawn = httpx.post(
            f"http://127.0.0.1:{ports[0]}/v1/generate",
            json={"prompt": "a red heart", "seed": 7},
            headers={"accept": "image/png"},
            timeout=30,
        )
        assert drawn.status_code == 200, drawn.text
        assert drawn.content.startswith(b"\x89PNG")
        for image, port in ((api, ports[0]), (worker, ports[2])):
            assert _health(image, port).returncode == 0
        os.kill(working.pid, signal.SIGTERM)
        os.kill(serving.pid, signal.SIGTERM)
        assert (working.wait(30), serving.wait(45)) == (0, 0)
        assert _health(api, ports[0]).returncode == 1
