"""The servers that are measured, each as a process group of its own.

Owns their command lines, when they are ready, what CPU time they took and their end.
"""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.overhead.client import request_bytes
from tests.bench.overhead.engine import DIAL_VARIABLE
from tests.bench.overhead.loads import Address
from tests.bench.overhead.onestep_server import PREPARED

START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 10
# Pictures that may wait: six batches. A longer queue would turn overload into waiting.
MAX_QUEUE_DEPTH = 48
_MODULE = "tests.bench.overhead"
_ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Server:
    """A way to serve the engine; `arguments` may hold {port}, else the server says where it is."""

    name: str
    module: str
    arguments: tuple[str, ...] = ()
    path: str = "/v1/generate"


_SERVE = ("serve", "--model", "models/emoji", "--port", "0")
ONESTEP = Server("onestep", "onestep_server", _SERVE)
ONESTEP_PREPARED = Server("onestep, prepared JPEG", "onestep_server", (PREPARED, *_SERVE))
FASTAPI = Server("FastAPI and a lock", "fastapi_server", ("{port}",))
LITSERVES = tuple(
    Server(f"LitServe, {ms:g} ms", "litserve_server", ("{port}", f"{ms}"), "/predict")
    for ms in (0.0, 0.1, 5.0)
)
STATIC = Server("static picture", "static_server")


@dataclass(frozen=True)
class Running:
    """A server that answers."""

    address: Address
    pid: int

    def cpu_s(self) -> float:
        """CPU seconds that all of its processes have taken so far."""
        return group_cpu_s(self.pid)


@contextmanager
def running(server: Server, dial: Path, folder: Path) -> Iterator[Running]:
    """Start a server, wait until it draws, end it with all of its processes."""
    port = _free_port()
    arguments = [argument.replace("{port}", str(port)) for argument in server.arguments]
    plain = {name: value for name, value in os.environ.items() if not name.startswith("ONESTEP_")}
    log = folder / "server.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", f"{_MODULE}.{server.module}", *arguments],
            cwd=_ROOT,
            env=plain
            | {
                "PYTHONPATH": str(_ROOT),
                "ONESTEP_MAX_QUEUE_DEPTH": str(MAX_QUEUE_DEPTH),
                DIAL_VARIABLE: str(dial),
            },
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        is_told = "{port}" in server.arguments
        address = _wait(process, server, log, port if is_told else None)
        yield Running(address, process.pid)
    finally:
        _stop(process)


def _wait(process: subprocess.Popen[bytes], server: Server, log: Path, port: int | None) -> Address:
    until_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < until_s and process.poll() is None:
        if port is None:
            said = re.search(r"(?:listening on |page +http://127\.0\.0\.1:)(\d+)", log.read_text())
            port = int(said[1]) if said else None
        address = Address("127.0.0.1", port or 0, server.path)
        status = _first_status(address) if port is not None else None
        if status == 200:
            return address
        if status == 500:  # it will not get better
            break
        time.sleep(0.05)
    raise RuntimeError(f"{server.name} did not start:\n{log.read_text()[-4000:]}")


def _first_status(address: Address) -> int | None:
    """What a request for a picture is answered with; None while nobody listens."""
    _, _, body = request_bytes(address.path, 0).partition(b"\r\n\r\n")
    connection = http.client.HTTPConnection(address.host, address.port, timeout=5)
    try:
        connection.request("POST", address.path, body, {"content-type": "application/json"})
        return connection.getresponse().status
    except OSError:
        return None
    finally:
        connection.close()


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        pass
    # The group is this server's own: what it leaves behind must not disturb the next one.
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def group_cpu_s(group: int) -> float:
    """CPU seconds of a process group; 0 where the system does not tell."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name in brackets may hold spaces; what follows it counts from the state on.
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        if int(fields[2]) == group:
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
