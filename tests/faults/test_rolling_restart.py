"""Every process is replaced, again and again, under load; no request fails.

The control replaces the one API process as one would without a thought: stop, then start.
"""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest
from fleet import Fleet, Ledger, ask_all, running_fleet

from engines.spec import ModelSpec

NUM_RESTARTS = 20
NUM_REQUESTS = 10_000
NUM_CLIENTS = 32


class _Load:
    """Requests without a pause, until as many were sent as are wanted and all is replaced."""

    def __init__(self, port: int, num_requests: int) -> None:
        self.ledger = Ledger()
        self._port = port
        self._num_requests = num_requests
        self._thread = threading.Thread(target=self._run)
        self.over = threading.Event()

    def _run(self) -> None:
        while not (self.over.is_set() and len(self.ledger.told) >= self._num_requests):
            first = len(self.ledger.told)
            requests = [{"prompt": "heart", "seed": first + index} for index in range(500)]
            ask_all([self._port], requests, self.ledger, NUM_CLIENTS, first_number=first)

    def __enter__(self) -> _Load:
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self.over.set()
        self._thread.join()


@pytest.fixture
def listener() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0), backlog=2048)


def test_a_rolling_restart_fails_no_request(
    bundle: Path, tmp_path: Path, listener: socket.socket
) -> None:
    model = ModelSpec.load(bundle).name
    with (
        listener,
        running_fleet(bundle, tmp_path, num_apis=0, num_workers=1, lease_s=2) as fleet,
    ):
        fleet.wait_for_workers(model, 1)
        fleet.start_api_at(listener)
        with _Load(listener.getsockname()[1], NUM_REQUESTS) as load:
            for _ in range(NUM_RESTARTS):
                fleet.replace_api(listener)
                fleet.replace_worker(model)
    ledger = load.ledger
    print(f"{len(ledger.told)} requests through {NUM_RESTARTS} restarts of each process")
    assert len(ledger.told) >= NUM_REQUESTS
    assert {status for told in ledger.told.values() for status, _ in told} == {200}
    assert (ledger.num_broken, ledger.refused) == (0, []), ledger.refused[:3]


def test_stopping_before_starting_does_fail_requests(bundle: Path, tmp_path: Path) -> None:
    with running_fleet(bundle, tmp_path, num_apis=1, num_workers=1, lease_s=2) as fleet:
        with _Load(fleet.ports[0], 500) as load:
            _stop_then_start(fleet)
    assert load.ledger.num_broken > 0


def _stop_then_start(fleet: Fleet) -> None:
    fleet.stop_apis()
    fleet.start_api(port=fleet.ports[0])
