"""The measured peak of a real training on a CPU, by torch's profiler.

Owns an instrument that sees every allocation of torch's CPU allocator and shares nothing with
preflight's own count. Arrays that numpy would own are copied into torch, so that both count them.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from torch.profiler import ProfilerActivity, profile

from distill.preflight.rehearsal import Rehearsed


def measured_peak(build: Callable[[], Rehearsed]) -> int:
    """Highest running total of allocated bytes over building a trainer and two iterations."""

    def run() -> None:
        trainer = build()
        trainer.iterate(1.0)
        trainer.iterate(1.0)

    return peak_of(run)


def peak_of(run: Callable[[], object]) -> int:
    """Highest running total of allocated bytes while something runs."""
    gc.collect()
    with (
        patch.object(torch, "from_numpy", lambda array: torch.tensor(array)),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler,
    ):
        run()
    events: list[Any] = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    total = peak = 0
    for _, num_bytes in changes:
        total += num_bytes
        peak = max(peak, total)
    return peak
