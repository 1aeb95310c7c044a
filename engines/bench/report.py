"""From configurations and a plan to one JSON-ready result, and to text.

Owns what a result holds: rows per configuration and batch size, their share of the roofline,
ratios, machine and peaks, all from the same run.

The result:

    model, size_px, steps, num_runs, num_warm_up
    machine          processor, cores, threads, versions, load_average_before and _after
    peaks            per device: flops_per_s, bytes_per_s, float_bytes, how; drift: how far the
                     measurements before and after the runs lie apart
    not_counted      why there is no roofline, or null
    configurations   name, device, batches:
                       batch_size, median_ms, p99_ms, images_per_s, gflop, floor_ms,
                       roofline_share, peak_memory_bytes,
                       stages: name -> median_ms, p99_ms, gflop, floor_ms, roofline_share
    ratios           name, reference, batch_size, value, low, high: above 1, `name` is faster
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from engines.bench.machine import PeakMemory, describe_machine, load_average
from engines.bench.measure import Configuration, Device, Plan, Run, Stopwatch
from engines.bench.peaks import better_of, drift, measure_peaks
from engines.bench.statistics import median, quantile, speed_ratio
from engines.errors import BundleError
from engines.graph_work import Graph
from engines.roofline import Peaks, Work
from engines.spec import STAGES, ModelSpec

StageWork = Mapping[str, Work]
MeasurePeaks = Callable[[Device, int | None], Peaks]


@dataclass(frozen=True)
class Subject:
    """What is measured: one model, in one or several configurations.

    Attributes:
        spec: of the model that all configurations run.
        bundle: where its graphs are, for the count of their work; a folder without graphs is
            measured too, and has no roofline.
        configurations: the first is the reference of the ratios.
        num_threads: as the runtimes were told.
    """

    spec: ModelSpec
    bundle: Path
    configurations: Sequence[Configuration]
    num_threads: int | None = None


def bench(
    subject: Subject, plan: Plan, *, measure_peaks: MeasurePeaks = measure_peaks
) -> dict[str, Any]:
    """Measure, count and compare; the result is described at the head of this module.

    Raises:
        BundleError, BackendError: a configuration cannot be loaded or fails.
    """
    load_before = load_average()
    devices = {c.name: c.device for c in subject.configurations}
    pipelines = {c.name: c.load() for c in subject.configurations}
    before = {d: measure_peaks(d, subject.num_threads) for d in dict.fromkeys(devices.values())}
    runs, memory = _measure_all(Stopwatch(pipelines, plan), plan, len(pipelines))
    after = {device: measure_peaks(device, subject.num_threads) for device in before}
    peaks = {device: better_of(before[device], after[device]) for device in before}
    work, not_counted = _count_all(subject, plan, peaks)
    machine = describe_machine(subject.num_threads)
    return {
        "model": subject.spec.name,
        "size_px": list(plan.size_px),
        "steps": plan.steps,
        "num_runs": plan.num_runs,
        "num_warm_up": plan.num_warm_up,
        "machine": machine
        | {"load_average_before": load_before, "load_average_after": load_average()},
        "peaks": {
            device: asdict(found) | {"drift": round(drift(before[device], after[device]), 4)}
            for device, found in peaks.items()
        },
        "not_counted": not_counted,
        "configurations": [
            {
                "name": name,
                "device": device,
                "batches": [
                    _row(size, runs[size][name], work.get((device, size)), peaks[device])
                    # One process holds all configurations: its memory is no one's own.
                    | {"peak_memory_bytes": memory[size] if len(devices) == 1 else None}
                    for size in plan.batch_sizes
                ],
            }
            for name, device in devices.items()
        ],
        "ratios": _ratios(runs),
    }


def _measure_all(
    stopwatch: Stopwatch, plan: Plan, num_configurations: int
) -> tuple[dict[int, dict[str, list[Run]]], dict[int, dict[str, Any]]]:
    """Runs by batch size and configuration, and peak memory by batch size."""
    runs, memory = {}, {}
    watch = PeakMemory()
    num_batches = len(plan.batch_sizes) * (plan.num_runs + plan.num_warm_up)
    with tqdm(total=num_batches * num_configurations, desc="bench", unit="run") as bar:
        for batch_size in plan.batch_sizes:
            bar.set_postfix_str(f"batch {batch_size}")
            watch.reset()
            runs[batch_size] = stopwatch.measure(batch_size, bar.update)
            memory[batch_size] = watch.read()
    return runs, memory


def _count_all(
    subject: Subject, plan: Plan, peaks: Mapping[Device, Peaks]
) -> tuple[dict[tuple[Device, int], StageWork], str | None]:
    """Each stage's work by device and batch size, or why it cannot be counted."""
    width, height = plan.size_px
    _, latent_height, latent_width = subject.spec.latent_shape(width, height)
    work: dict[tuple[Device, int], StageWork] = {}
    try:
        graphs = {s: Graph(subject.spec.graph_path(subject.bundle, s)) for s in STAGES}
        for device, found in peaks.items():
            for size in plan.batch_sizes:
                counted: dict[str, Work] = {
                    stage: graph.count(
                        size, (latent_height, latent_width), float_bytes=found.float_bytes
                    )
                    for stage, graph in graphs.items()
                }
                # The span of the denoise stage covers all of its steps.
                counted["denoise"] = Work(counted["denoise"].ops * plan.steps)
                work[device, size] = counted
    except BundleError as error:
        return {}, str(error)
    return work, None


def _row(
    batch_size: int, runs: Sequence[Run], work: StageWork | None, peaks: Peaks
) -> dict[str, Any]:
    whole = Work(tuple(op for stage in work.values() for op in stage.ops)) if work else None
    figures = _figures([run.whole_ms for run in runs], whole, peaks)
    return {
        "batch_size": batch_size,
        **figures,
        "images_per_s": round(batch_size * 1000 / figures["median_ms"], 2),
        "stages": {
            name: _figures(
                [run.stage_ms[name] for run in runs], work.get(name) if work else None, peaks
            )
            for name in runs[0].stage_ms
        },
    }


def _figures(spans_ms: Sequence[float], work: Work | None, peaks: Peaks) -> dict[str, Any]:
    middle_ms = median(spans_ms)
    figures: dict[str, Any] = {
        "median_ms": round(middle_ms, 3),
        "p99_ms": round(quantile(spans_ms, 0.99), 3),
    }
    if work is None:
        return figures | {"gflop": None, "floor_ms": None, "roofline_share": None}
    floor_ms = work.floor_s(peaks) * 1000
    return figures | {
        "gflop": round(work.flops / 1e9, 4),
        "floor_ms": round(floor_ms, 4),
        "roofline_share": round(floor_ms / middle_ms, 4),
    }


def _ratios(runs: Mapping[int, Mapping[str, Sequence[Run]]]) -> list[dict[str, Any]]:
    rows = []
    for batch_size, by_name in runs.items():
        reference, *others = by_name
        for name in others:
            ratio = speed_ratio(
                [run.whole_ms for run in by_name[reference]],
                [run.whole_ms for run in by_name[name]],
            )
            row = {"name": name, "reference": reference, "batch_size": batch_size}
            rows.append(row | asdict(ratio))
    return rows
