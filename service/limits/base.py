"""What a limiter decides, and the promises that every one keeps.

Cost is counted in pixel-steps. Three limits are tried together, and a claim that any of them
refuses is charged to none:

- the rate: GCRA in its form as a continuous-state leaky bucket. A level drains by the rate, a claim
  raises it by its cost and is refused where it would rise above the burst.
  Source: ITU-T I.371, annex A, figure A.1 (the two forms are equivalent).
- the day: what was spent since midnight UTC.
- the open pictures: accepted, without an outcome.

All arithmetic is on whole numbers, microseconds and millionths of pixel-steps, so that every
implementation decides alike, to the unit.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from service.principal import Allowance

US_PER_S = 1_000_000
US_PER_DAY = 86_400 * US_PER_S
# Nobody knows when a picture will be done; a one-step picture takes well under a second.
OPEN_RETRY_S = 1.0


class Verdict(IntEnum):
    """What was decided; also the first number that the script in Redis returns."""

    ALLOWED = 0
    OPEN = 1
    RATE = 2
    DAY = 3


@dataclass(frozen=True, slots=True)
class Claim:
    """What a request would spend.

    Attributes:
        owner: whose allowance it is.
        cost: pixel-steps of all its pictures.
        job_ids: names of its pictures, which stay open until they are released.
        open_s: after this long they count no more, even when nobody released them.
    """

    owner: str
    allowance: Allowance
    cost: int
    job_ids: tuple[str, ...]
    open_s: float


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a claim was charged, what is left of the burst, and when to come back if not."""

    verdict: Verdict
    remaining: int | None
    retry_after_s: float = 0.0


class Limiter(Protocol):
    """Counts what owners spend."""

    async def take(self, claim: Claim) -> Decision:
        """Charge a claim, or refuse it and charge nothing."""
        ...

    async def give_back(self, claim: Claim) -> None:
        """Undo a charge: the claim's pictures were not accepted after all."""
        ...

    def release(self, owner: str, job_ids: Collection[str]) -> None:
        """These pictures are open no more. Returns at once; may take effect a moment later."""
        ...
