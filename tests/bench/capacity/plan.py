"""From a load and a promise of latency to engines and money.

Owns the search for the least number of engines. Knows the model and no service.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.bench.capacity.load import EngineTime, OfferedLoad
from tests.bench.capacity.model import Overloaded, Steady, steady

# More engines than that at one line: split the line, as Redis has to be split long before.
MAX_ENGINES = 1024
_S_PER_HOUR = 3600


class OutOfReach(ValueError):
    """No number of engines keeps the promise."""


@dataclass(frozen=True)
class Promise:
    """This share of the pictures within this time.

    Attributes:
        besides_s: what HTTP, encoding and the queue's own trips take; not the model's to know.
    """

    quantile: float
    within_s: float
    besides_s: float = 0.0


@dataclass(frozen=True)
class Plan:
    """What a load needs; `num_spare` more engines run than the promise asks for."""

    offered: OfferedLoad
    num_spare: int
    steady: Steady
    price_per_hour: float

    @property
    def num_replicas(self) -> int:
        """Engines to run."""
        return self.offered.num_engines + self.num_spare

    @property
    def cost_per_hour(self) -> float:
        """Of all of them, drawing or not."""
        return self.num_replicas * self.price_per_hour

    @property
    def cost_per_thousand(self) -> float:
        """Of a thousand pictures at this load."""
        return 1000 * self.cost_per_hour / (self.offered.rate_per_s * _S_PER_HOUR)


def plan(
    engine: EngineTime,
    rate_per_s: float,
    promise: Promise,
    *,
    num_spare: int = 0,
    price_per_hour: float = 0.0,
) -> Plan:
    """The least number of engines that keeps the promise, and what comes of it.

    Raises:
        OutOfReach: one picture alone takes too long, or it would take too many engines.
    """
    allowed_s = promise.within_s - promise.besides_s
    if engine.batch_s(1) > allowed_s:
        raise OutOfReach("a picture drawn at once and alone takes longer than that")

    def keeps(num_engines: int) -> bool:
        try:
            found = steady(engine, OfferedLoad(rate_per_s, num_engines))
        except Overloaded:
            return False
        return found.latency_s(promise.quantile) <= allowed_s

    # More engines never make it later, so that the least number is found by halving.
    too_few, enough = 0, 1
    while not keeps(enough):
        too_few, enough = enough, enough * 2
        if enough > MAX_ENGINES:
            raise OutOfReach(f"more than {MAX_ENGINES} engines at one queue: split the queue")
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        too_few, enough = (too_few, middle) if keeps(middle) else (middle, enough)
    offered = OfferedLoad(rate_per_s, enough)
    return Plan(offered, num_spare, steady(engine, offered), price_per_hour)
