"""Keys and the operators' port with the real command: made, served, rotated, revoked."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import openai
import pytest
from service_process import ServiceProcess, running_service, service_environment

PROMPT = "xq7canary"


def _keys(path: Path, *arguments: str) -> str:
    ran = subprocess.run(
        [sys.executable, "-m", "service", "keys", *arguments],
        env=service_environment(keys_file=path),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


def _soon(holds: Callable[[], bool]) -> bool:
    """Whether it holds within the time that the service takes to see a changed file, and some."""
    until_s = time.monotonic() + 5
    while not (found := holds()) and time.monotonic() < until_s:
        time.sleep(0.1)
    return found


def _admin_port(service: ServiceProcess) -> int:
    for line in service.stderr_path.read_text().splitlines():
        event = json.loads(line)
        if event["event"] == "metrics_served":
            return int(event["port"])
    raise AssertionError("the operators' port is not in the log")


def _status(url: str, key: str) -> int:
    headers = {"authorization": f"Bearer {key}"}
    return httpx.get(f"{url}/v1/models", headers=headers).status_code


def test_a_key_from_its_making_to_its_end(bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    first = _keys(path, "add", "ann")
    key_id = first.partition(".")[0].removeprefix("os_")
    with running_service(bundle, tmp_path, keys_file=path, admin_port=0) as service:
        with openai.OpenAI(base_url=f"{service.url}/v1", api_key=first, max_retries=0) as client:
            answer = client.images.generate(prompt="heart")
            assert answer.data is not None and answer.data[0].b64_json
        with openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0) as client:
            with pytest.raises(openai.AuthenticationError) as caught:
                client.images.generate(prompt=PROMPT)
            assert caught.value.code == "unauthorized"
            with pytest.raises(openai.AuthenticationError):
                client.models.list()

        assert httpx.get(f"{service.url}/metrics").status_code == 401
        metrics = httpx.get(f"http://127.0.0.1:{_admin_port(service)}/metrics")
        assert 'onestep_requests_total{code="401",reason="unauthorized"' in metrics.text

        second = _keys(path, "rotate", key_id, "--overlap-hours", "1")
        assert _soon(lambda: _status(service.url, second) == 200)
        assert _status(service.url, first) == 200
        _keys(path, "revoke", key_id)
        assert _soon(lambda: _status(service.url, second) == 401)
        assert _status(service.url, first) == 401
        assert service.stop() == 0, service.stderr_path.read_text()
        said = service.stdout_path.read_text() + service.stderr_path.read_text()
    assert "keys_file_read" in said
    for secret in (first.partition(".")[2], second.partition(".")[2], PROMPT):
        assert secret not in said


def test_the_application_loads_no_redis_until_it_is_given_one() -> None:
    program = "import sys, service.app; print([n for n in sys.modules if n.startswith('redis')])"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, "[]\n"), ran.stderr
