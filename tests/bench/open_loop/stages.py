"""What the requests of a stage say together: quantiles, statuses, and how it went over time.

Owns the arithmetic and the names in the JSON. Knows neither network nor page.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from engines.bench.statistics import quantile
from tests.bench.open_loop.sending import BROKEN, GIVEN_UP, Sent

QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
_NUM_SLICES = 40
_WORDS = {BROKEN: "connection broken", GIVEN_UP: "given up"}
_WRONG = "200 with a wrong picture"


def summary(sent: Sequence[Sent], rate_per_s: float, duration_s: float) -> dict[str, Any]:
    """One stage, JSON-ready. Latencies are those of right pictures, from when they were due."""
    right = [one for one in sent if one.is_right]
    sizes = [one.batch_size for one in right if one.batch_size]
    return {
        "rate_per_s": rate_per_s,
        "duration_s": duration_s,
        "num_asked": len(sent),
        "num_right": len(right),
        "right_per_s": len(right) / duration_s,
        "statuses": dict(sorted(Counter(map(outcome, sent)).items())),
        "latency_ms": _quantiles_ms([one.latency_s for one in right]),
        # A batch of n shows up in n answers.
        "mean_batch_size": len(sizes) / sum(1 / size for size in sizes) if sizes else None,
        "client_late_p99_ms": _quantiles_ms([one.late_s for one in sent])["p99"],
        "over_time": _over_time(sent, duration_s),
    }


def outcome(one: Sent) -> str:
    """In words or as a status."""
    if one.status == 200 and not one.is_right:
        return _WRONG
    return _WORDS.get(one.status, str(one.status))


def _over_time(sent: Sequence[Sent], duration_s: float) -> list[dict[str, Any]]:
    """Quantiles by when a request was due, in slices of equal length."""
    slice_s = max(1.0, duration_s / _NUM_SLICES)
    rows = []
    for index in range(math.ceil(duration_s / slice_s)):
        from_s = index * slice_s
        some = [one for one in sent if from_s <= one.due_s < from_s + slice_s]
        right_s = [one.latency_s for one in some if one.is_right]
        counts = {"num_asked": len(some), "num_right": len(right_s)}
        rows.append({"at_s": from_s} | counts | _quantiles_ms(right_s))
    return rows


def _quantiles_ms(spans_s: Sequence[float]) -> dict[str, float | None]:
    if not spans_s:
        return dict.fromkeys(QUANTILES)
    return {name: 1000 * quantile(spans_s, fraction) for name, fraction in QUANTILES.items()}
