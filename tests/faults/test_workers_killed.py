"""Workers die in the middle of their batches; whoever asked for a picture gets it, once."""

from __future__ import annotations

import io
import random
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
from fleet import Fleet, Ledger, ask_all, running_fleet
from PIL import Image

from engines.spec import ModelSpec

NUM_REQUESTS = 10_000
NUM_CLIENTS = 48
KILL_EVERY_S = 3.0
# Alone and in a batch the order of sums differs.
MAX_LEVELS = 1


def _kill_now_and_then(fleet: Fleet, over: threading.Event, killed: list[float]) -> None:
    chosen = random.Random(0)
    while not over.wait(KILL_EVERY_S):
        fleet.kill_worker(chosen.randrange(len(fleet.workers)))
        killed.append(time.monotonic())
        fleet.start_worker()


def _pixels(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image).astype(int)


def test_workers_that_are_killed_lose_nothing_and_draw_nothing_twice(
    bundle: Path, tmp_path: Path
) -> None:
    model = ModelSpec.load(bundle).name
    # Every wish comes many times, so that its pictures can be compared.
    requests = [{"prompt": "heart", "seed": number % 50} for number in range(NUM_REQUESTS)]
    ledger, over, killed = Ledger(), threading.Event(), []
    with running_fleet(
        bundle, tmp_path, num_apis=2, num_workers=3, lease_s=1, max_queue_depth=1000
    ) as fleet:
        killer = threading.Thread(target=_kill_now_and_then, args=(fleet, over, killed))
        with ledger.counting_ends(fleet):
            killer.start()
            ask_all(fleet.ports, requests, ledger, NUM_CLIENTS)
            over.set()
            killer.join()
        with fleet.client() as client:
            prefix = f"onestep:{{{model}}}:"
            counters = client.hgetall(prefix + "counters")
            left = {name: client.exists(prefix + name) for name in ("open", "due", "queues")}
            dead = client.xlen(prefix + "dead")
        fleet.wait_for_workers(model, 3)
        assert fleet.stop() == [0] * 5
    print(f"{len(killed)} workers killed, {counters}, refused: {Counter(ledger.refused)}")

    assert len(killed) >= 3
    # Killed in the middle: without it the test would show nothing.
    assert int(counters["redelivered"]) > 0
    # None lost, none answered twice, none failed.
    assert sorted(ledger.told) == list(range(NUM_REQUESTS))
    assert {status for told in ledger.told.values() for status, _ in told} == {200}
    assert {len(told) for told in ledger.told.values()} == {1}
    # Every job came to one end, which was told once. A refusal may have left a job behind whose
    # acceptance could not be told.
    assert NUM_REQUESTS <= len(ledger.ends) <= NUM_REQUESTS + len(ledger.refused)
    assert len(ledger.refused) < NUM_REQUESTS / 100
    assert set(ledger.ends.values()) == {1}
    assert (left, dead) == ({"open": 0, "due": 0, "queues": 0}, 0)
    # Whoever drew it, after whatever: the same picture.
    first = {seed: _pixels(ledger.told[seed][0][1]) for seed in range(50)}
    for number in range(0, NUM_REQUESTS, 7):
        drawn = _pixels(ledger.told[number][0][1])
        assert abs(drawn - first[number % 50]).max() <= MAX_LEVELS
