"""How fast is a bundle under a backend?

Owns the timing of each stage and of the whole, per batch size. Measures the pipeline alone:
no queue, no HTTP, no image files.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from engines.pipeline import Pipeline

_NUM_WARM_UP = 3


def bench(
    pipeline: Pipeline, batch_sizes: Sequence[int], *, steps: int = 1, num_runs: int = 20
) -> dict[str, Any]:
    """Time `num_runs` batches of every size, each with new seeds and different prompts.

    Returns:
        JSON-ready: size_px, steps, num_runs and one row per batch size with median and p99
        milliseconds of the whole and of every stage, and pictures per second at the median.
    """
    width, height = pipeline.spec.sizes_px[0]
    rows = [_bench_batch(pipeline, batch_size, steps, num_runs) for batch_size in batch_sizes]
    return {
        "model": pipeline.spec.name,
        "size_px": [width, height],
        "steps": steps,
        "num_runs": num_runs,
        "batches": rows,
    }


def _bench_batch(pipeline: Pipeline, batch_size: int, steps: int, num_runs: int) -> dict[str, Any]:
    width, height = pipeline.spec.sizes_px[0]
    prompts = [f"bench prompt {index}" for index in range(batch_size)]
    spans_ms: dict[str, list[float]] = {}
    for run in range(-_NUM_WARM_UP, num_runs):
        seeds = range((run + _NUM_WARM_UP) * batch_size, (run + _NUM_WARM_UP + 1) * batch_size)
        start_s = time.perf_counter()
        generated = pipeline.generate(prompts, seeds, width=width, height=height, steps=steps)
        whole_ms = (time.perf_counter() - start_s) * 1000
        if run >= 0:
            for name, span_ms in {"whole": whole_ms, **generated.stage_ms}.items():
                spans_ms.setdefault(name, []).append(span_ms)
    stages = {name: _summary(spans) for name, spans in spans_ms.items()}
    whole = stages.pop("whole")
    return {
        "batch_size": batch_size,
        **whole,
        "images_per_s": round(batch_size * 1000 / whole["median_ms"], 2),
        "stages": stages,
    }


def _summary(spans_ms: Sequence[float]) -> dict[str, float]:
    ordered = sorted(spans_ms)

    def quantile(fraction: float) -> float:
        """Nearest rank: with few runs the p99 is the slowest one."""
        return round(ordered[math.ceil(fraction * len(ordered)) - 1], 3)

    return {"median_ms": quantile(0.5), "p99_ms": quantile(0.99)}


def table(result: dict[str, Any]) -> str:
    """The result as aligned text."""
    width, height = result["size_px"]
    title = f"{result['model']}, {width}x{height} px, {result['steps']} steps, "
    lines = [title + f"{result['num_runs']} runs per batch size; median milliseconds"]
    stages = list(result["batches"][0]["stages"])
    columns = ["batch", "whole", "p99", "images/s", *stages]
    lines.append("".join(f"{column:>10}" for column in columns))
    for row in result["batches"]:
        spans = [row["stages"][name]["median_ms"] for name in stages]
        numbers = [row["median_ms"], row["p99_ms"], row["images_per_s"], *spans]
        cells = "".join(f"{number:>10.1f}" for number in numbers)
        lines.append(f"{row['batch_size']:>10}{cells}")
    return "\n".join(lines)
