"""Real processes for the end-to-end tests: the service with the bundled model.

TEST_BUNDLE names another bundle to try, for instance one that is still in training.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 30


@pytest.fixture(scope="session")
def service_url(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of one `onestep serve` process that all end-to-end tests share."""
    bundle = os.environ.get("TEST_BUNDLE") or str(repo_root / "models" / "emoji")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "service", "serve", "--model", bundle, "--port", str(port)]
    log = tmp_path_factory.mktemp("service") / "service.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(command, cwd=repo_root, stdout=stream, stderr=stream)
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_ready(process, url, log)
            yield url
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    until_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < until_s and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    pytest.fail(f"the service did not become ready:\n{log.read_text()[-4000:]}")
