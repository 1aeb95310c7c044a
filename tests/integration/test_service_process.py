"""`onestep serve` as a real process: start, addresses, refusals in time, drain, exit status."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from bench.load import run_load
from PIL import Image
from service_process import ServiceProcess, running_service

PROMPT = {"prompt": "heart", "seed": 7}
REFUSAL_LIMIT_S = 0.05
# What a person has who never trains: none of these may be needed to serve.
FRAMEWORKS = ("torch", "onnx", "onnxscript", "diffusers", "transformers", "accelerate", "pyarrow")
WITHOUT_FRAMEWORKS = f"""
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {FRAMEWORKS!r}:
            raise ImportError("refused: " + name)

sys.meta_path.insert(0, Refuse())
from service.__main__ import main
sys.exit(main())
"""


@pytest.fixture(scope="module")
def service(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """One process that the tests which do not stop it share."""
    folder = tmp_path_factory.mktemp("service")
    with running_service(bundle, folder, max_body_bytes=4096, max_upload_bytes=4096) as service:
        yield service


def _connect(service: ServiceProcess) -> http.client.HTTPConnection:
    address = urlsplit(service.url)
    assert address.hostname is not None
    return http.client.HTTPConnection(address.hostname, address.port, timeout=60)


def _post(
    connection: http.client.HTTPConnection, body: bytes, accept: str = "image/png"
) -> tuple[int, bytes]:
    headers = {"accept": accept, "content-type": "application/json"}
    connection.request("POST", "/v1/generate", body, headers)
    response = connection.getresponse()
    return response.status, response.read()


def _draw(service: ServiceProcess, **fields: object) -> tuple[int, bytes]:
    connection = _connect(service)
    try:
        return _post(connection, json.dumps(PROMPT | fields).encode(), "application/json")
    finally:
        connection.close()


def _metric(service: ServiceProcess, line_start: str) -> float:
    with urllib.request.urlopen(f"{service.url}/metrics", timeout=30) as response:
        for line in response.read().decode().splitlines():
            if line.startswith(line_start + " "):
                return float(line.rpartition(" ")[2])
    return 0.0


def test_the_printed_curl_line_draws_a_picture(service: ServiceProcess, tmp_path: Path) -> None:
    printed = re.search(r"curl +(curl .*)\n", service.stdout_path.read_text())
    assert printed is not None
    command = shlex.split(printed[1])
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    subprocess.run(command, cwd=tmp_path, check=True)
    with Image.open(tmp_path / "picture.png") as image:
        assert image.format == "PNG"


def test_the_printed_page_is_there(service: ServiceProcess) -> None:
    with urllib.request.urlopen(f"{service.url}/", timeout=30) as response:
        assert response.headers["content-type"].startswith("text/html")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"prompt": ""}', 400),
        (b'{"prompt": "' + b"long " * 60 + b'"}', 400),
        (b'{"prompt": "thirteen long"}', 400),
        (b'{"prompt": "a", "colour": 1}', 400),
        (b'{"prompt": "a", "width": 1}', 400),
        (b'{"prompt": "a", "steps": 9}', 400),
        (b'{"prompt": "a", "seed": -1}', 400),
        (b'{"prompt"', 400),
        (b" " * 5000, 413),
    ],
)
def test_bad_input_is_refused_at_once(service: ServiceProcess, body: bytes, status: int) -> None:
    connection = _connect(service)
    connection.connect()
    seconds = []
    # The fastest of three: the limit is the service's, not the machine's other work.
    for _ in range(3):
        started_s = time.perf_counter()
        assert _post(connection, body)[0] == status
        seconds.append(time.perf_counter() - started_s)
    connection.close()
    assert min(seconds) < REFUSAL_LIMIT_S


def test_an_announced_flood_is_refused_before_it_is_sent(service: ServiceProcess) -> None:
    address = urlsplit(service.url)
    with socket.create_connection((address.hostname, address.port), timeout=10) as client:
        client.sendall(
            b"POST /v1/generate HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000000\r\n\r\n"
        )
        answer = client.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer


def test_200_requests_at_once_are_batched_and_none_is_lost(service: ServiceProcess) -> None:
    address = urlsplit(service.url)
    result = asyncio.run(
        run_load(
            str(address.hostname),
            int(address.port or 0),
            num_connections=200,
            num_requests=200,
            prompts=["heart", "star", "tree"],
        )
    )
    assert len(result.answers) == 200
    assert result.num_lost == 0
    assert result.mean_batch_size > 4


def test_a_drain_finishes_what_was_accepted_and_refuses_the_rest(
    bundle: Path, tmp_path: Path
) -> None:
    with (
        running_service(bundle, tmp_path, max_batch_size=1) as service,
        ThreadPoolExecutor(5) as pool,
    ):
        late = _connect(service)
        late.connect()
        accepted = [pool.submit(_draw, service, num_images=16, steps=4) for _ in range(4)]
        while _metric(service, "onestep_queue_depth") < 50:
            time.sleep(0.01)
        stopping = pool.submit(service.stop)
        while b"draining" not in service.stderr_path.read_bytes():
            time.sleep(0.005)
        late.request("GET", "/readyz")
        probe = late.getresponse()
        assert (probe.status, json.loads(probe.read())["code"]) == (503, "draining")
        status, body = _post(late, json.dumps(PROMPT).encode())
        assert (status, json.loads(body)["code"]) == (503, "draining")
        late.close()
        for answer in accepted:
            status, body = answer.result(60)
            assert status == 200
            assert len(json.loads(body)["images"]) == 16
        assert stopping.result(60) == 0


def test_a_second_signal_ends_the_process_at_once(bundle: Path, tmp_path: Path) -> None:
    with (
        running_service(bundle, tmp_path, max_batch_size=1) as service,
        ThreadPoolExecutor(8) as pool,
    ):
        waiting = [pool.submit(_draw, service, num_images=16, steps=4) for _ in range(8)]
        while _metric(service, "onestep_queue_depth") < 100:
            time.sleep(0.01)
        service.process.send_signal(signal.SIGTERM)
        while b"draining" not in service.stderr_path.read_bytes():
            time.sleep(0.005)
        assert service.stop() == 128 + signal.SIGTERM
        for answer in waiting:
            assert isinstance(answer.exception(60), ConnectionError | http.client.HTTPException)


def test_an_idle_service_stops_at_once(bundle: Path, tmp_path: Path) -> None:
    with running_service(bundle, tmp_path) as service:
        connection = _connect(service)
        assert _post(connection, json.dumps(PROMPT).encode())[0] == 200
        started_s = time.monotonic()
        assert service.stop() == 0
        assert time.monotonic() - started_s < 5
        connection.close()


def test_serving_needs_no_training_framework(bundle: Path, tmp_path: Path) -> None:
    command = (sys.executable, "-c", WITHOUT_FRAMEWORKS)
    with running_service(bundle, tmp_path, command=command) as service:
        connection = _connect(service)
        status, body = _post(connection, json.dumps(PROMPT).encode())
        connection.close()
        assert status == 200
        with Image.open(io.BytesIO(body)) as image:
            assert image.size == (64, 64)
