"""API and worker processes around one Redis, and a ledger of what clients were told.

Owns their start and their end by process id. `Ledger` is the client's own account: it knows nothing
of the queue's insides but the entries that tell API processes of ended jobs, which it counts.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
from redis_server import RedisServer
from service_process import service_environment

_ROOT = Path(__file__).resolve().parent.parent
_START_S = 60


class Fleet:
    """Processes of one model that meet in one queue."""

    def __init__(self, bundle: Path, folder: Path, **settings: object) -> None:
        self.redis = RedisServer(folder, "--appendonly", "yes")
        self._bundle = bundle
        self._folder = folder
        self._settings = settings
        self.apis: list[subprocess.Popen[bytes]] = []
        self.ports: list[int] = []
        self.workers: list[subprocess.Popen[bytes]] = []
        self._num_started = 0

    def _start(
        self, *arguments: str, pass_fds: tuple[int, ...] = (), **settings: object
    ) -> tuple[subprocess.Popen[bytes], Path]:
        self._num_started += 1
        printed = self._folder / f"{arguments[0]}{self._num_started}.out"
        environment = service_environment(
            redis_url=self.redis.url, log_level="WARNING", **(self._settings | settings)
        )
        with printed.open("wb") as out, printed.with_suffix(".err").open("wb") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "service", *arguments, "--model", str(self._bundle)],
                cwd=_ROOT,
                # Several engines share the cores of one machine here.
                env=environment | {"OMP_NUM_THREADS": "1", "ONESTEP_NUM_THREADS": "1"},
                stdout=out,
                stderr=errors,
                pass_fds=pass_fds,
            )
        return process, printed

    def start_api(self, port: int = 0, **settings: object) -> None:
        process, printed = self._start("api", "--port", str(port), **settings)
        self.apis.append(process)
        self.ports.append(self._wait_for_page(process, printed))

    def _wait_for_page(self, process: subprocess.Popen[bytes], printed: Path) -> int:
        until_s = time.monotonic() + _START_S
        while time.monotonic() < until_s and process.poll() is None:
            if found := re.search(r"page +http://[^:]+:(\d+)/", printed.read_text()):
                return int(found[1])
            time.sleep(0.02)
        raise AssertionError(printed.with_suffix(".err").read_text()[-4000:])

    def start_api_at(self, listener: socket.socket) -> None:
        """One more API process at a socket that this process holds open."""
        fd = listener.fileno()
        process, printed = self._start("api", "--fd", str(fd), pass_fds=(fd,))
        self.apis.append(process)
        self._wait_for_page(process, printed)

    def replace_api(self, listener: socket.socket) -> None:
        """Start a new one, then ask the oldest to stop, and wait until it has."""
        self.start_api_at(listener)
        oldest = self.apis.pop(0)
        oldest.send_signal(signal.SIGTERM)
        assert oldest.wait(60) == 0

    def replace_worker(self, model: str) -> None:
        """Start a new one, and once it asks for jobs let the oldest finish."""
        self.start_worker()
        self.wait_for_workers(model, len(self.workers))
        oldest = self.workers.pop(0)
        oldest.send_signal(signal.SIGTERM)
        assert oldest.wait(60) == 0

    def start_worker(self, **settings: object) -> None:
        self.workers.append(self._start("worker", **settings)[0])

    def kill_worker(self, index: int) -> None:
        """As a crash would: no drain, no word to anyone."""
        worker = self.workers.pop(index)
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait(10)

    def kill_worker_at_work(self, index: int, model: str) -> None:
        """The same while it certainly has jobs in hand: it is frozen until the queue says so."""
        worker = self.workers[index]
        until_s = time.monotonic() + _START_S
        with self.client() as client:
            while time.monotonic() < until_s:
                os.kill(worker.pid, signal.SIGSTOP)
                if self._num_in_hand(client, model, worker.pid):
                    return self.kill_worker(index)
                os.kill(worker.pid, signal.SIGCONT)
                time.sleep(0.02)
        raise AssertionError("the worker never had anything to do")

    def _num_in_hand(self, client: redis.Redis, model: str, pid: int) -> int:
        """Jobs that were handed to the process and have no outcome."""
        return sum(
            consumer["pending"]
            for queue in client.scan_iter(f"onestep:{{{model}}}:queue:*")
            for consumer in client.xinfo_consumers(queue, "workers")
            # A worker is called after its machine and process.
            if f"-{pid}-" in consumer["name"]
        )

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.redis.port, decode_responses=True)

    def wait_for_workers(self, model: str, num_workers: int) -> None:
        """Return once so many workers ask for jobs."""
        until_s = time.monotonic() + _START_S
        with self.client() as client:
            while time.monotonic() < until_s:
                since_s = client.time()[0] - 1
                key = f"onestep:{{{model}}}:workers"
                if client.zcount(key, since_s, "+inf") >= num_workers:
                    return
                time.sleep(0.1)
        raise AssertionError(f"{num_workers} workers did not come up")

    def stop(self) -> list[int]:
        """Ask every process for a drain; their exit statuses."""
        processes = [*self.workers, *self.apis]
        for process in processes:
            process.send_signal(signal.SIGTERM)
        return [process.wait(60) for process in processes]

    def stop_apis(self) -> None:
        for process in self.apis:
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        self.apis.clear()

    def close(self) -> None:
        for process in (*self.workers, *self.apis):
            if process.poll() is None:
                process.kill()
                process.wait()
        self.redis.close()


@contextmanager
def running_fleet(
    bundle: Path, folder: Path, *, num_apis: int, num_workers: int, **settings: object
) -> Iterator[Fleet]:
    """Start everything at once; no process waits for another."""
    fleet = Fleet(bundle, folder, **settings)
    try:
        for _ in range(num_workers):
            fleet.start_worker()
        for _ in range(num_apis):
            fleet.start_api()
        yield fleet
    finally:
        fleet.close()


@dataclass
class Ledger:
    """What clients asked for and were told, written by the clients themselves.

    Attributes:
        told: what each request was answered in the end: statuses and bodies.
        num_broken: connections that broke under a request, which was sent again.
        refused: bodies of refusals that asked to come again, which was done.
        ends: how often the end of each job was announced.
    """

    told: dict[int, list[tuple[int, bytes]]] = field(default_factory=dict)
    num_broken: int = 0
    refused: list[bytes] = field(default_factory=list)
    ends: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _is_over: threading.Event = field(default_factory=threading.Event)

    def note(self, number: int, status: int, content: bytes) -> None:
        with self._lock:
            self.told.setdefault(number, []).append((status, content))

    def note_break(self) -> None:
        with self._lock:
            self.num_broken += 1

    def note_refusal(self, content: bytes) -> None:
        with self._lock:
            self.refused.append(content)

    @contextmanager
    def counting_ends(self, fleet: Fleet) -> Iterator[None]:
        """Read along what is announced to API processes, until the end of the block."""
        thread = threading.Thread(target=self._count, args=(fleet,))
        thread.start()
        try:
            yield
        finally:
            self._is_over.set()
            thread.join(10)

    def _count(self, fleet: Fleet) -> None:
        positions: dict[str, str] = {}
        with fleet.client() as client:
            while True:
                is_last = self._is_over.is_set()
                for key in client.scan_iter("*:replies:*"):
                    positions.setdefault(key, "0")
                found: Any = client.xread(dict(positions), count=5000) if positions else []
                streams = found.items() if isinstance(found, dict) else found
                num_new = 0
                for stream, entries in streams:
                    rows = entries[0] if entries and isinstance(entries[0], list) else entries
                    for entry, fields in rows:
                        positions[stream] = entry
                        self.ends[fields["job"]] += 1
                        num_new += 1
                if is_last and not num_new:
                    return
                time.sleep(0.05)


def ask_all(
    ports: list[int],
    requests: list[dict[str, Any]],
    ledger: Ledger,
    num_clients: int,
    first_number: int = 0,
) -> None:
    """Send all requests, `num_clients` at a time, over connections that are kept.

    A refusal that names a time to come again is followed, as the `openai` client does.
    """
    numbers = iter(range(len(requests)))
    lock = threading.Lock()

    def client(index: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", ports[index % len(ports)], timeout=60)
        headers = {"content-type": "application/json", "accept": "image/png"}
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                connection.close()
                return
            while True:
                try:
                    body = json.dumps(requests[number])
                    connection.request("POST", "/v1/generate", body, headers)
                    answer = connection.getresponse()
                    content = answer.read()
                except (OSError, http.client.HTTPException):
                    ledger.note_break()
                    connection.close()
                    continue
                wait_s = answer.getheader("retry-after")
                if wait_s is None:
                    break
                ledger.note_refusal(content)
                time.sleep(float(wait_s))
            ledger.note(first_number + number, answer.status, content)

    threads = [threading.Thread(target=client, args=(index,)) for index in range(num_clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
