"""Who asks, and what they may spend.

Owns the frozen records that authentication makes, the limits count by and the routes obey. Knows
neither keys nor requests.
"""

from __future__ import annotations

from dataclasses import dataclass

from service.jobs import Priority

# Owner of whatever is asked without a key.
ANONYMOUS = ""
# Numbers in Redis' Lua are doubles, exact to 2^53, and a burst is counted in millionths.
MAX_BURST_PIXEL_STEPS = 2**31
# The burst of a rate that names none, in seconds of that rate.
BURST_S = 10


@dataclass(frozen=True, slots=True)
class Allowance:
    """What an owner may spend; 0 stands for no limit.

    A pixel-step is one pixel of one picture through one denoise step, so that a picture costs
    width x height x steps whatever the model.

    Attributes:
        rate_pixel_steps_per_s: what comes back every second.
        burst_pixel_steps: what may be spent at once after a rest.
        daily_pixel_steps: what may be spent from midnight to midnight, UTC.
        max_open_pictures: accepted pictures without an outcome.
    """

    rate_pixel_steps_per_s: int = 0
    burst_pixel_steps: int = 0
    daily_pixel_steps: int = 0
    max_open_pictures: int = 0

    @property
    def is_unlimited(self) -> bool:
        """Whether nothing has to be counted."""
        return not (self.rate_pixel_steps_per_s or self.daily_pixel_steps or self.max_open_pictures)

    @property
    def effective_burst(self) -> int:
        """The burst, or the one that belongs to a rate that names none."""
        own = self.burst_pixel_steps or self.rate_pixel_steps_per_s * BURST_S
        return min(own, MAX_BURST_PIXEL_STEPS)


@dataclass(frozen=True, slots=True)
class Principal:
    """The holder of a key, or everyone where no keys are asked.

    Attributes:
        owner: id of the key; never its secret.
        models: names that may be used; None allows all.
        priority: of requests that name none, and the highest that one may name.
    """

    owner: str = ANONYMOUS
    models: tuple[str, ...] | None = None
    priority: Priority = Priority.INTERACTIVE
    allowance: Allowance = Allowance()

    def may_use(self, model: str) -> bool:
        """Whether the model is one of those allowed."""
        return self.models is None or model in self.models
