"""From rounds to a few figures with intervals, and which goals they meet.

Owns the goals. Knows nothing of how anything was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from engines.bench.statistics import Ratio, speed_ratio
from tests.bench.overhead.engine import MAX_BATCH_SIZE, PACES
from tests.bench.overhead.rounds import NUM_AT_ONCE, OVERLOADED_PACE
from tests.bench.overhead.servers import LITSERVES, ONESTEP, ONESTEP_PREPARED

SINGLE = "no-op, 1 client"
APART = f"{SINGLE}, cores apart"
POISSON = "306/s, arrivals at 80%"


def closed(pace: str) -> str:
    """The name of the cell in which as many as four batches ask at once."""
    return f"{pace}, {NUM_AT_ONCE} clients"


@dataclass(frozen=True)
class Verdict:
    """One figure, the ends of its 95 % interval where there are several rounds, and its goal."""

    what: str
    value: float
    low: float | None
    high: float | None
    goal: float
    is_at_least: bool

    @property
    def is_met(self) -> bool:
        """Whether the figure itself is on the right side; the interval says how sure that is."""
        return self.value >= self.goal if self.is_at_least else self.value <= self.goal

    def as_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self) | {"is_met": self.is_met}


class Rounds:
    """The rounds that count."""

    def __init__(self, rounds: Sequence[dict[str, Any]]) -> None:
        """Leave out the discarded ones."""
        self.kept = [one for one in rounds if not one["is_discarded"]]

    def engine(self, pace: str) -> list[float]:
        """The engine's own pictures per second, round by round."""
        return [one["engine_images_per_s"][pace] for one in self.kept]

    def of(self, server: str, cell: str, figure: str) -> list[float]:
        """A figure, round by round; empty where that server was not measured."""
        return [
            one["servers"][server][cell][figure] for one in self.kept if server in one["servers"]
        ]

    def share(self, server: str, pace: str) -> Ratio:
        """Pictures per second over HTTP as a share of the engine's own."""
        return speed_ratio(self.of(server, closed(pace), "images_per_s"), self.engine(pace))

    def best_litserve(self, pace: str) -> str | None:
        """Its window that gives most pictures per second; None where it was not measured."""
        shares = {
            server.name: self.share(server.name, pace).value
            for server in LITSERVES
            if self.of(server.name, closed(pace), "images_per_s")
        }
        return max(shares, key=lambda name: shares[name], default=None)


def verdicts(rounds: Rounds, client: dict[str, Any], typing: dict[str, Any]) -> list[Verdict]:
    """Every goal, in the order in which they are told."""
    found: list[Verdict] = []

    def at_least(what: str, ratio: Ratio, goal: float) -> None:
        found.append(Verdict(what, ratio.value, ratio.low, ratio.high, goal, True))

    def at_most(what: str, ratio: Ratio, goal: float) -> None:
        found.append(Verdict(what, ratio.value, ratio.low, ratio.high, goal, False))

    for pace in PACES:
        for server in (ONESTEP, ONESTEP_PREPARED):
            at_least(f"{server.name}: share of {pace}", rounds.share(server.name, pace), 0.95)
    for server, limits_ms in ((ONESTEP_PREPARED, (0.6, 1.5)), (ONESTEP, (2.0, 4.0))):
        for cell, words in ((SINGLE, "one client"), (APART, "the same, cores apart")):
            for figure, limit_ms in zip(("p50_ms", "p99_ms"), limits_ms, strict=True):
                at_most(
                    f"{server.name}: {words}, {figure.replace('_', ' ')}",
                    _median(rounds.of(server.name, cell, figure)),
                    limit_ms,
                )
    batch_ms = [1000 * MAX_BATCH_SIZE / speed for speed in rounds.engine(OVERLOADED_PACE)]
    p99_ms = rounds.of(ONESTEP.name, POISSON, "p99_ms")
    at_most("onestep: p99 at 80% over a batch's time", speed_ratio(p99_ms, batch_ms), 3.0)
    above, below = (
        rounds.of(ONESTEP.name, f"{OVERLOADED_PACE}, arrivals at {share}", "goodput_per_s")
        for share in ("120%", "90%")
    )
    at_least("onestep: goodput at 120% over that at 90%", speed_ratio(above, below), 0.9)
    for pace in PACES:
        if (peer := rounds.best_litserve(pace)) is not None:
            ours, theirs = (
                rounds.of(name, closed(pace), "images_per_s")
                for name in (ONESTEP_PREPARED.name, peer)
            )
            at_least(f"prepared, times {peer}, at {pace}", speed_ratio(ours, theirs), 1.05)
    if typing:
        at_most("typing: p99 ms", Ratio(typing["p99_ms"], None, None), 400.0)
        at_most("typing: older after newer", Ratio(typing["num_stale"], None, None), 0)
    fastest = client[f"{NUM_AT_ONCE} clients"]["images_per_s"]
    times = fastest / max(pace.images_per_s for pace in PACES.values())
    at_least("client: times the highest rate", Ratio(times, None, None), 3.0)
    return found


def _median(values: Sequence[float]) -> Ratio:
    """The median with its interval: its ratio to one."""
    return speed_ratio(values, [1.0] * len(values))
