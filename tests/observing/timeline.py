"""An hour of operation in a minute: calm, mixed, overload with deaths, and one fault after another.

Owns the processes, the load and the order of faults; what is seen meanwhile is `Seen`.
"""

from __future__ import annotations

import http.client
import json
import random
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fleet import Fleet

from observing.server import PrometheusServer

State = str
STATES: tuple[State, ...] = ("no error yet", "steady", "faulty")
# Short, so that leases, deadlines and queues come to their ends within the test.
SETTINGS: dict[str, object] = {
    "lease_s": 1,
    "max_deliveries": 3,
    "max_queue_depth": 24,
    "deadline_s": 8,
    "max_batch_size": 4,
    "gpu_hourly_cost": 2.5,
}
GOOD: dict[str, Any] = {"prompt": "heart"}
MIXED: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/v1/generate", GOOD),
    ("/v1/generate", GOOD | {"num_images": 2, "priority": "background"}),
    ("/v1/generate", GOOD | {"width": 7}),
    ("/v1/images/generations", GOOD),
    ("/v1/images/generations", {"prompt": ["heart"]}),
    ("/nothing", GOOD),
)


class ObservedFleet(Fleet):
    """A fleet whose processes are scraped, under the jobs that prometheus.yml names."""

    def __init__(self, bundle: Path, folder: Path, targets: Path) -> None:
        super().__init__(bundle, folder, **SETTINGS)
        self._targets = targets
        self._scraped: list[tuple[str, int]] = []

    def _start(self, *arguments: str, **settings: object) -> tuple[subprocess.Popen[bytes], Path]:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        self._scraped.append((arguments[0], port))
        self.list_targets()
        return super()._start(*arguments, admin_port=port, **settings)

    def list_targets(self, *, is_empty: bool = False) -> None:
        """Tell Prometheus whom to scrape; the dead among them stay listed."""
        rows = [
            {"targets": [f"127.0.0.1:{port}"], "labels": {"job": f"onestep-{command}"}}
            for command, port in ([] if is_empty else self._scraped)
        ]
        path = self._targets.with_suffix(".new")
        path.write_text(json.dumps(rows))
        path.replace(self._targets)


@contextmanager
def load(
    port: int, num_clients: int, pause_s: float, wishes: tuple[tuple[str, dict[str, Any]], ...]
) -> Iterator[None]:
    """Clients that ask again and again until the end of the block, whatever they are told."""
    is_over = threading.Event()

    def client(index: int) -> None:
        chosen = random.Random(index)
        while not is_over.is_set():
            path, body = wishes[chosen.randrange(len(wishes))]
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=15)
            try:
                body = body | ({"seed": chosen.randrange(1000)} if path == "/v1/generate" else {})
                connection.request(
                    "POST", path, json.dumps(body), {"content-type": "application/json"}
                )
                connection.getresponse().read()
            except (OSError, http.client.HTTPException):
                pass
            finally:
                connection.close()
            is_over.wait(pause_s * chosen.uniform(0.5, 1.5))

    threads = [threading.Thread(target=client, args=(index,)) for index in range(num_clients)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


@dataclass
class Seen:
    """What there was to see.

    Attributes:
        complaints: by state, what the look at it found.
        fired_calmly: alerts that fired before anything was wrong.
        fired: all that fired.
        begin_s, end_s: when.
    """

    complaints: dict[State, list[str]] = field(default_factory=dict)
    fired_calmly: set[str] = field(default_factory=set)
    fired: set[str] = field(default_factory=set)
    begin_s: float = 0.0
    end_s: float = 0.0


def live_through(
    fleet: ObservedFleet,
    prometheus: PrometheusServer,
    model: str,
    look: Callable[[State], list[str]],
) -> Seen:
    """Start, work, suffer; `look` is called in each state, under way."""
    seen = Seen()
    for _ in range(2):
        fleet.start_worker()
    fleet.start_api()
    fleet.wait_for_workers(model, 2)
    # Until then a process is listed that has not begun to answer.
    until_s = time.monotonic() + 60
    while len(prometheus.query("onestep_ready")) < 3 and time.monotonic() < until_s:
        time.sleep(0.5)
    time.sleep(3)
    seen.begin_s = time.time()
    port = fleet.ports[0]
    with load(port, 4, 0.1, (("/v1/generate", GOOD),)):
        time.sleep(12)
        seen.complaints["no error yet"] = look("no error yet")
    with load(port, 6, 0.1, MIXED):
        time.sleep(10)
        seen.complaints["steady"] = look("steady")
    # How long a picture takes here says how busy this machine is with other things.
    seen.fired_calmly = prometheus.fired(seen.begin_s, but_for="latency")
    with load(port, 48, 0.0, MIXED):
        time.sleep(4)
        fleet.kill_worker_at_work(0, model)
        time.sleep(4)
        seen.complaints["faulty"] = look("faulty")
        prometheus.wait_for_alerts(
            {"OnestepRejectsMany", "OnestepTargetIsDown", "OnestepRedeliversJobs"}, 10
        )
        # What the second one leaves behind, this one gives up.
        fleet.start_worker(max_deliveries=1)
        fleet.wait_for_workers(model, 2)
        fleet.kill_worker_at_work(0, model)
        prometheus.wait_for_alerts({"OnestepDeadLetters"}, 10)
        fleet.kill_worker(0)
        prometheus.wait_for_alerts(
            {
                *("OnestepHasNoWorkers", "OnestepOldestJobIsOld"),
                *("OnestepErrorBudgetBurnsFast", "OnestepErrorBudgetBurns"),
                "OnestepErrorBudgetBurnsSlowly",
            },
            20,
        )
    with load(port, 4, 0.1, (("/v1/generate", GOOD),)):
        fleet.redis.let_files_grow(False)
        prometheus.wait_for_alerts({"OnestepRedisDoesNotPersist"}, 10)
        fleet.redis.let_files_grow(True)
        with fleet.client() as client:
            used = client.info("memory")["used_memory"]
            client.config_set("maxmemory", int(used * 1.2))
            prometheus.wait_for_alerts({"OnestepRedisIsFull"}, 10)
            client.config_set("maxmemory", 0)
        fleet.redis.pause()
        prometheus.wait_for_alerts({"OnestepQueueIsUnavailable", "OnestepIsNotReady"}, 10)
        fleet.redis.resume()
    fleet.list_targets(is_empty=True)
    prometheus.wait_for_alerts({"OnestepIsAbsent"}, 15)
    seen.fired = prometheus.fired(seen.begin_s)
    seen.end_s = time.time()
    return seen
