"""Which configuration of a bundle is fastest on this machine?

Owns the timing of every configuration that passed its check, in turn within one run so that a
machine that slows down slows all of them, and the entry of model.json that serving obeys.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from engines.errors import BackendError
from engines.pipeline import Pipeline
from engines.runtime.registry import is_installed
from engines.spec import Configuration, ModelSpec
from engines.verdicts import Verdicts, fingerprint

_NUM_WARM_UP = 2
Report = Callable[[str], None]


def tune(
    bundle: Path,
    *,
    batch_sizes: Sequence[int] = (1, 8),
    num_rounds: int = 20,
    num_threads: int | None = None,
    report: Report = lambda line: None,
) -> dict[str, Any]:
    """Time what passed, and write the order, fastest first, into model.json as `preferred`.

    Configurations are ordered by the geometric mean over batch sizes of the median time per
    picture, at one step, with prompts that were never seen before.

    Returns:
        JSON-ready: the machine's CPUs and threads, the rounds, and a row per configuration, the
        fastest first, with median milliseconds per batch by batch size.

    Raises:
        BundleError: a file is missing or damaged.
        BackendError: no configuration passed its check, or one cannot run.
    """
    bundle = Path(bundle)
    spec = ModelSpec.load(bundle)
    chosen = passed(bundle, spec)
    if not chosen:
        raise BackendError(
            f"{bundle}: nothing that is installed passed its check: run `onestep-engines check`"
        )
    pipelines = {}
    for one in chosen:
        report(f"loading {one.backend} {one.precision}")
        pipelines[one] = Pipeline.load(
            bundle, backend=one.backend, precision=one.precision, num_threads=num_threads
        )
    spans_ms: dict[Configuration, dict[int, float]] = {one: {} for one in chosen}
    for batch_size in batch_sizes:
        report(f"timing batches of {batch_size}")
        for one, median_ms in _interleaved(pipelines, batch_size, num_rounds).items():
            spans_ms[one][batch_size] = median_ms
    ordered = sorted(chosen, key=lambda one: per_picture_ms(spans_ms[one]))
    # Read anew: a timing takes minutes, and another command may have written meanwhile.
    current = ModelSpec.load(bundle)
    if [fingerprint(current, o.precision) for o in ordered] != [
        fingerprint(spec, o.precision) for o in ordered
    ]:
        raise BackendError(f"{bundle} was changed during the timing: tune it again")
    current.model_copy(update={"preferred": tuple(ordered)}).save(bundle)
    rows = [
        {
            "backend": one.backend,
            "precision": one.precision,
            "batch_ms": {str(size): round(ms, 3) for size, ms in spans_ms[one].items()},
            "per_picture_ms": round(per_picture_ms(spans_ms[one]), 3),
        }
        for one in ordered
    ]
    return {
        "model": spec.name,
        "num_rounds": num_rounds,
        "threads": num_threads,
        "cpus": os.cpu_count(),
        "configurations": rows,
    }


def passed(bundle: Path, spec: ModelSpec) -> list[Configuration]:
    """What is installed, and passed a check of the graphs that the bundle has now."""
    return [
        Configuration(backend=verdict.backend, precision=verdict.precision)
        for verdict in Verdicts.load(bundle).verdicts
        if verdict.is_passed
        and verdict.precision in spec.precisions
        and verdict.fingerprint == fingerprint(spec, verdict.precision)
        and is_installed(verdict.backend)
    ]


def per_picture_ms(spans_ms: dict[int, float]) -> float:
    """Geometric mean over batch sizes of the time per picture."""
    logs = [math.log(span_ms / size) for size, span_ms in spans_ms.items()]
    return math.exp(statistics.fmean(logs))


def table(result: dict[str, Any]) -> str:
    """The result as aligned text."""
    rows = result["configurations"]
    sizes = list(rows[0]["batch_ms"])
    lines = [
        f"{result['model']}, {result['num_rounds']} rounds, {result['threads'] or 'default'} "
        f"threads of {result['cpus']} CPUs; median milliseconds per batch"
    ]
    lines.append(f"{'backend':12}{'precision':12}" + "".join(f"{'batch ' + s:>12}" for s in sizes))
    for row in rows:
        spans = "".join(f"{row['batch_ms'][size]:>12.1f}" for size in sizes)
        lines.append(f"{row['backend']:12}{row['precision']:12}{spans}")
    return "\n".join(lines)


def _interleaved(
    pipelines: dict[Configuration, Pipeline], batch_size: int, num_rounds: int
) -> dict[Configuration, float]:
    """Median milliseconds of each; who goes first changes from round to round."""
    spans_ms: dict[Configuration, list[float]] = {one: [] for one in pipelines}
    order = list(pipelines)
    for round_ in range(-_NUM_WARM_UP, num_rounds):
        order = [*order[1:], order[0]]
        number = round_ + _NUM_WARM_UP
        prompts = [f"tune {batch_size} {number} {index}" for index in range(batch_size)]
        seeds = range(number * batch_size, (number + 1) * batch_size)
        for one in order:
            width, height = pipelines[one].spec.sizes_px[0]
            start_s = time.perf_counter()
            pipelines[one].generate(prompts, seeds, width=width, height=height, steps=1)
            if round_ >= 0:
                spans_ms[one].append((time.perf_counter() - start_s) * 1000)
    return {one: statistics.median(spans) for one, spans in spans_ms.items()}
