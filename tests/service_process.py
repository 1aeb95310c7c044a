"""`onestep serve` as a real process, for tests and measurements.

Owns start, address and stop. Settings travel as ONESTEP_ variables; no others reach the process.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

START_TIMEOUT_S = 90
STOP_TIMEOUT_S = 60


@dataclass(frozen=True)
class ServiceProcess:
    """A running service that has said where it listens."""

    process: subprocess.Popen[bytes]
    url: str
    stdout_path: Path
    stderr_path: Path

    def stop(self) -> int:
        """Ask for a drain and return the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_TIMEOUT_S)


def service_environment(**settings: object) -> dict[str, str]:
    """The own environment with these settings and no other ONESTEP_ variable."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("ONESTEP_")}
    return plain | {f"ONESTEP_{name.upper()}": str(value) for name, value in settings.items()}


def resident_bytes(pid: int) -> int:
    """The memory of a process that is in RAM now."""
    pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def running_service(
    bundle: Path,
    folder: Path,
    *,
    command: Sequence[str] = (sys.executable, "-m", "service"),
    extra_arguments: Sequence[str] = (),
    **settings: object,
) -> Iterator[ServiceProcess]:
    """Start the service on a free port, wait until it is ready, stop it at the end."""
    stdout_path, stderr_path = folder / "stdout", folder / "stderr"
    with stdout_path.open("wb") as stdout, stderr_path.open("wb") as stderr:
        process = subprocess.Popen(
            [*command, "serve", "--model", str(bundle), "--port", "0", *extra_arguments],
            cwd=Path(__file__).resolve().parent.parent,
            env=service_environment(**settings),
            stdout=stdout,
            stderr=stderr,
        )
    try:
        url = _wait_for_address(process, stdout_path, stderr_path)
        yield ServiceProcess(process, url, stdout_path, stderr_path)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(STOP_TIMEOUT_S)
    finally:
        process.kill()
        process.wait()


def _wait_for_address(process: subprocess.Popen[bytes], stdout: Path, stderr: Path) -> str:
    until_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < until_s and process.poll() is None:
        if found := re.search(r"page +(http://\S+)/\n", stdout.read_text()):
            return found[1]
        time.sleep(0.05)
    raise AssertionError(f"the service did not become ready:\n{stderr.read_text()[-4000:]}")
