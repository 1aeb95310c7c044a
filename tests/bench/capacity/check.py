"""How far the model is from the simulation, over a grid of loads.

Owns the grid. The simulation is the truth here: it has no approximation but its length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.bench.capacity.load import EngineTime, OfferedLoad
from tests.bench.capacity.model import Steady, steady
from tests.bench.capacity.simulation import Simulated, simulate

QUANTILES = (0.5, 0.95, 0.99)
ENGINES = (EngineTime(0.002, 0.003, 8), EngineTime(0.010, 0.004, 8), EngineTime(0.005, 0.002, 16))
NUM_ENGINES = (1, 2, 4, 8, 16)
SHARES = (0.2, 0.5, 0.7, 0.85, 0.9)


@dataclass(frozen=True)
class Compared:
    """One load, by the model and as it went."""

    engine: EngineTime
    offered: OfferedLoad
    model: Steady
    simulated: Simulated

    def latency_error(self, quantile: float) -> float:
        """Of the model; positive where it promises too little."""
        return self.model.latency_s(quantile) / self.simulated.latency_s(quantile) - 1

    @property
    def batch_error(self) -> float:
        """Of the mean batch size."""
        return self.model.mean_batch_size / self.simulated.mean_batch_size - 1

    @property
    def utilisation_error(self) -> float:
        """A difference of shares."""
        return self.model.utilisation - self.simulated.utilisation


def compare(
    num_jobs: int,
    engines: Sequence[EngineTime] = ENGINES,
    num_engines: Sequence[int] = NUM_ENGINES,
    shares: Sequence[float] = SHARES,
) -> Iterator[Compared]:
    """Every load of the grid."""
    for engine in engines:
        for num in num_engines:
            for share in shares:
                offered = OfferedLoad(share * num * engine.images_per_s, num)
                yield Compared(
                    engine, offered, steady(engine, offered), simulate(engine, offered, num_jobs, 1)
                )


def lines(rows: Sequence[Compared]) -> Iterator[str]:
    """As a table, and the largest errors below it."""
    yield "The model's figures, and how far each latency is off."
    yield "batch of B, ms  Bmax  engines  load    busy   batch   p50 ms      p95 ms      p99 ms"
    for row in rows:
        engine, offered = row.engine, row.offered
        batch_ms = f"{engine.fixed_s * 1000:g} + {engine.per_image_s * 1000:g}·B"
        yield (
            f"{batch_ms:>14}{engine.max_batch_size:6}{offered.num_engines:9}{offered.share_of(engine):6.0%}"
            f"{row.model.utilisation:8.1%}{row.model.mean_batch_size:8.2f}"
            + "".join(
                f"{row.model.latency_s(q) * 1000:8.1f} {row.latency_error(q):+.0%}"
                for q in QUANTILES
            )
        )
    for is_single in (True, False):
        some = [row for row in rows if (row.offered.num_engines == 1) is is_single]
        if some:
            yield f"\nlargest errors, {'one engine' if is_single else 'several engines'}:"
            worst = {q: max((row.latency_error(q) for row in some), key=abs) for q in QUANTILES}
            yield "  " + ", ".join(f"p{100 * q:g} {error:+.1%}" for q, error in worst.items())
            yield (
                f"  batch {max((row.batch_error for row in some), key=abs):+.1%}, "
                f"busy {100 * max((row.utilisation_error for row in some), key=abs):+.1f} points"
            )
