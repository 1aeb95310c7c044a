"""What is measured in which order: every server under the same loads, in every round.

Owns the loads and the rounds. A round measures the engine alone before and after the servers; one
during which the engine's own speed changed says nothing about servers.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import uvloop

from engines.bench.machine import load_average
from tests.bench.overhead.cores import apart
from tests.bench.overhead.engine import (
    MAX_BATCH_SIZE,
    NO_OP,
    PACES,
    Dial,
    Engine,
    Pace,
    measure_raw,
)
from tests.bench.overhead.loads import Load, Seeds, closed_load, lone_load, poisson_load
from tests.bench.overhead.servers import (
    FASTAPI,
    LITSERVES,
    ONESTEP,
    ONESTEP_PREPARED,
    STATIC,
    Running,
    Server,
    running,
)
from tests.bench.overhead.typing_load import typing_load

NUM_AT_ONCE = 4 * MAX_BATCH_SIZE
TRUSTED_DRIFT = 0.05
# What an answer may take to count under overload, in batches: the queue's six and as many again
# for the part of it that arrives in a rush.
GOOD_BATCHES = 10
OVERLOADED_PACE = "306/s"
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Effort:
    """How long everything is measured for."""

    num_rounds: int
    raw_s: float
    single_s: float
    closed_s: float
    poisson_s: float
    typing_s: float
    warm_up_s: float = 0.4


FULL = Effort(3, raw_s=1.0, single_s=1.5, closed_s=2.5, poisson_s=4.5, typing_s=20.0)
QUICK = Effort(1, raw_s=0.5, single_s=0.6, closed_s=0.8, poisson_s=1.5, typing_s=4.0)


@dataclass(frozen=True)
class Cell:
    """One load at one pace of the engine.

    Attributes:
        share: of the engine's own speed, for arrivals at random.
        is_apart: whether client and server get cores of their own.
    """

    name: str
    pace: str
    num_connections: int = 0
    share: float = 0.0
    is_apart: bool = False


_SINGLES = tuple(
    Cell(name, "no-op", num_connections=1, is_apart=is_apart)
    for name, is_apart in (("no-op, 1 client", False), ("no-op, 1 client, cores apart", True))
)
_CLOSED = tuple(
    Cell(f"{pace}, {NUM_AT_ONCE} clients", pace, num_connections=NUM_AT_ONCE) for pace in PACES
)
_POISSON = Cell("306/s, arrivals at 80%", OVERLOADED_PACE, share=0.8)
_OVERLOAD = tuple(
    Cell(f"306/s, arrivals at {share:.0%}", OVERLOADED_PACE, share=share) for share in (0.9, 1.2)
)
CELLS: dict[Server, tuple[Cell, ...]] = {
    ONESTEP: (*_SINGLES, *_CLOSED, _POISSON, *_OVERLOAD),
    ONESTEP_PREPARED: (*_SINGLES, *_CLOSED, _POISSON),
    FASTAPI: (*_SINGLES, *_CLOSED, _POISSON),
    **dict.fromkeys(LITSERVES, (*_SINGLES, *_CLOSED, _POISSON)),
}


def pace_named(name: str) -> Pace:
    """The pace of a cell."""
    return NO_OP if name == "no-op" else PACES[name]


class Bench:
    """One measurement: its folder, dial and seeds."""

    def __init__(self, folder: Path, effort: Effort, say: Callable[[str], None]) -> None:
        """Make the dial that the servers' engines will read."""
        self._folder = folder
        self._effort = effort
        self._say = say
        self._dial_path = folder / "dial"
        self._dial = Dial(self._dial_path)
        self._engine = Engine(self._dial)
        self._seeds = Seeds()
        # All servers of a round meet the same arrivals.
        self._arrivals_seed = 0

    def client(self) -> dict[str, Any]:
        """What the client itself can do, against a server that only sends bytes."""
        self._say("client alone")
        with running(STATIC, self._dial_path, self._folder) as server:
            return {
                cell.name: self._measure(server, cell, {})
                for cell in (
                    Cell("1 client", "no-op", num_connections=1),
                    Cell(f"{NUM_AT_ONCE} clients", "no-op", num_connections=NUM_AT_ONCE),
                )
            }

    def round(self, number: int, servers: Sequence[Server]) -> dict[str, Any]:
        """Every server once, in a new order, between two measurements of the engine alone."""
        order = list(servers)
        random.Random(number).shuffle(order)
        self._arrivals_seed = number
        load_before, before = load_average(), self._raw()
        measured: dict[str, Any] = {}
        for server in order:
            self._say(f"round {number + 1} of {self._effort.num_rounds}: {server.name}")
            with running(server, self._dial_path, self._folder) as process:
                measured[server.name] = {
                    cell.name: self._measure(process, cell, before) for cell in CELLS[server]
                }
        after = self._raw()
        return {
            "order": [server.name for server in order],
            "engine_images_per_s_before": before,
            "engine_images_per_s_after": after,
            "engine_images_per_s": {pace: (before[pace] + after[pace]) / 2 for pace in PACES},
            "is_discarded": is_disturbed(before, after),
            "load_average_before": load_before,
            "load_average_after": load_average(),
            "servers": measured,
        }

    def typing(self) -> dict[str, Any]:
        """Many people on the realtime route, at the slower pace."""
        self._say("typing")
        self._dial.turn(PACES[OVERLOADED_PACE])
        with running(ONESTEP, self._dial_path, self._folder) as server:
            duration_s = self._effort.typing_s
            typing, cost = _at_cost(
                server, _in_a_loop(typing_load, server.address, duration_s=duration_s, seed=0)
            )
        return typing.summary() | cost

    def _raw(self) -> dict[str, float]:
        speeds = {}
        for name, pace in PACES.items():
            self._dial.turn(pace)
            speeds[name] = measure_raw(self._engine, self._effort.raw_s)
        return speeds

    def _measure(
        self, server: Running, cell: Cell, engine_images_per_s: dict[str, float]
    ) -> dict[str, Any]:
        if cell.is_apart:
            with apart(server.pid) as is_apart:
                together = replace(cell, is_apart=False)
                figures = self._measure(server, together, engine_images_per_s)
            return figures | {"is_apart": is_apart}
        pace, effort = pace_named(cell.pace), self._effort
        self._dial.turn(pace)
        if cell.num_connections == 1:
            asking = partial(lone_load, warm_up_s=effort.warm_up_s, duration_s=effort.single_s)
        elif cell.num_connections:
            asking = _in_a_loop(
                closed_load,
                num_connections=cell.num_connections,
                warm_up_s=effort.warm_up_s,
                duration_s=effort.closed_s,
            )
        else:
            asking = _in_a_loop(
                poisson_load,
                rate_per_s=cell.share * engine_images_per_s[cell.pace],
                duration_s=effort.poisson_s,
                seed=self._arrivals_seed,
            )
        load, cost = _at_cost(server, partial(asking, server.address, self._seeds))
        return _figures(load, pace) | cost


def _in_a_loop(
    asking: Callable[..., Coroutine[Any, Any, _Result]], *arguments: Any, **options: Any
) -> Callable[..., _Result]:
    """A load that many connections make, to be called like one that needs no event loop."""

    def run(*more: Any) -> _Result:
        return uvloop.run(asking(*arguments, *more, **options))

    return run


def _at_cost(server: Running, asking: Callable[[], _Result]) -> tuple[_Result, dict[str, float]]:
    """A load's result, and the CPU seconds of server and client, warm-up included."""
    server_s, client_s = server.cpu_s(), time.process_time()
    result = asking()
    return result, {
        "server_cpu_s": round(server.cpu_s() - server_s, 2),
        "client_cpu_s": round(time.process_time() - client_s, 2),
    }


def is_disturbed(before: Mapping[str, float], after: Mapping[str, float]) -> bool:
    """Whether the engine alone was slower than its sleep, which is as fast as it can be."""
    return any(
        min(before[name], after[name]) < pace.images_per_s * (1 - TRUSTED_DRIFT)
        for name, pace in PACES.items()
    )


def _figures(load: Load, pace: Pace) -> dict[str, Any]:
    """JSON-ready."""
    return {
        "num_asked": len(load.asked),
        "num_right": len(load.right),
        "num_refused": load.num_refused,
        "num_lost": load.num_lost,
        "images_per_s": round(load.images_per_s(MAX_BATCH_SIZE), 2),
        "goodput_per_s": round(load.goodput_per_s(GOOD_BATCHES * pace.batch_ms(MAX_BATCH_SIZE)), 2),
        "p50_ms": round(load.latency_ms(0.5), 3),
        "p99_ms": round(load.latency_ms(0.99), 3),
        "mean_batch_size": round(load.mean_batch_size, 2),
        "lateness_p99_ms": round(load.lateness_ms(0.99), 3),
    }
