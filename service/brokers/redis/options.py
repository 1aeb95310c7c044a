"""How the queue behaves, the same for every process at it."""

from __future__ import annotations

from dataclasses import dataclass

from service.batching import AGEING_S


@dataclass(frozen=True)
class RedisOptions:
    """Bounds of the queue.

    Attributes:
        max_depth: open jobs per model.
        lease_s: after which a job whose worker gave no sign of life is handed out again.
        max_deliveries: after which it fails for good.
        ageing_s: how much longer a background job waits.
    """

    max_depth: int = 256
    lease_s: float = 10.0
    max_deliveries: int = 3
    ageing_s: float = AGEING_S
