"""How much of the engine's own speed reaches the clients of the service.

Measures the engine alone at several batch sizes, then starts the real service with the same
bundle and asks it for 200 pictures at once, in the same run on the same machine. Prints a table,
writes JSON, and fails when a request was lost. Client and service share the cores.

    make bench-bundle MODEL=models/emoji ARGS="--repeats 5"
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import itertools
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvloop
from bench.load import LoadResult, run_load
from service_process import running_service

from engines.pipeline import Pipeline
from engines.spec import ModelSpec
from service.settings import Settings

ENGINE_BATCH_SIZES = (1, 2, 4, 8, 16)
NUM_REQUESTS = 200
CONCURRENCIES = (1, 8, 32, NUM_REQUESTS)
GOAL_MEAN_BATCH = 4.0
GOAL_RATIO = 0.9
TRUSTED_DRIFT = 0.1
PACKAGES = ("onnxruntime", "numpy", "pillow", "fastapi", "uvicorn", "uvloop", "httptools", "orjson")


def main() -> int:
    """Measure, print, write; 1 when a request was lost."""
    arguments = _parser().parse_args()
    # Before and after the service: a machine that changes its pace meanwhile shows in both.
    before = measure_engine(arguments.model, arguments.repeats)
    runs = measure_service(arguments)
    after = measure_engine(arguments.model, arguments.repeats)
    engine = {size: round((before[size] + after[size]) / 2, 2) for size in ENGINE_BATCH_SIZES}
    rows = [_row(concurrency, result, engine) for concurrency, result in runs]
    report = {
        "machine": describe_machine(arguments.machine),
        "versions": {name: importlib.metadata.version(name) for name in ("onestep", *PACKAGES)},
        "model": arguments.model.name,
        "max_batch_size": arguments.max_batch_size,
        "engine_images_per_s": engine,
        "engine_images_per_s_before": before,
        "engine_images_per_s_after": after,
        "service": rows,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    print_report(report)
    print(f"\nwritten to {arguments.out}")
    return 1 if any(row["num_lost"] for row in rows) else 0


def measure_engine(bundle: Path, num_repeats: int) -> dict[int, float]:
    """Batch size -> pictures per second of the pipeline alone, the median of several runs."""
    pipeline = Pipeline.load(bundle)
    width, height = pipeline.spec.sizes_px[0]
    prompts = _prompts(pipeline.spec)
    pipeline.warm_up(ENGINE_BATCH_SIZES)
    images_per_s = {}
    for batch_size in ENGINE_BATCH_SIZES:
        batch = [prompts[index % len(prompts)] for index in range(batch_size)]
        seconds = []
        # As many pictures at every size, so that every figure rests on as much work.
        for _ in range(max(3, num_repeats * max(ENGINE_BATCH_SIZES) // batch_size)):
            started_s = time.perf_counter()
            pipeline.generate(batch, range(batch_size), width=width, height=height, steps=1)
            seconds.append(time.perf_counter() - started_s)
        images_per_s[batch_size] = round(batch_size / statistics.median(seconds), 2)
    return images_per_s


def measure_service(arguments: argparse.Namespace) -> list[tuple[int, LoadResult]]:
    """One result per concurrency; the full burst is repeated."""
    prompts = _prompts(ModelSpec.load(arguments.model))
    results = []
    with (
        tempfile.TemporaryDirectory() as folder,
        running_service(
            arguments.model,
            Path(folder),
            max_batch_size=arguments.max_batch_size,
            log_level="WARNING",
            deadline_s=600,
        ) as service,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        address = urlsplit(service.url)
        for concurrency in CONCURRENCIES:
            num_repeats = arguments.repeats if concurrency == NUM_REQUESTS else 1
            for _ in range(num_repeats):
                result = runner.run(
                    run_load(
                        str(address.hostname),
                        int(address.port or 0),
                        num_connections=concurrency,
                        num_requests=NUM_REQUESTS,
                        prompts=prompts,
                    )
                )
                results.append((concurrency, result))
    return results


def engine_pace(engine: dict[int, float], batch_size: float) -> float:
    """The engine's own pictures per second at a batch size, linear between measured sizes."""
    sizes = sorted(engine)
    if batch_size <= sizes[0]:
        return engine[sizes[0]]
    for lower, upper in itertools.pairwise(sizes):
        if batch_size <= upper:
            part = (batch_size - lower) / (upper - lower)
            return engine[lower] + part * (engine[upper] - engine[lower])
    return engine[sizes[-1]]


def _row(concurrency: int, result: LoadResult, engine: dict[int, float]) -> dict[str, Any]:
    own = engine_pace(engine, result.mean_batch_size)
    return {
        "concurrency": concurrency,
        "num_requests": len(result.answers),
        "num_lost": result.num_lost + max(0, NUM_REQUESTS - len(result.answers)),
        "mean_batch_size": round(result.mean_batch_size, 2),
        "images_per_s": round(result.images_per_s, 2),
        "engine_images_per_s": round(own, 2),
        "ratio": round(result.images_per_s / own, 3),
        "p50_ms": round(result.latency_ms(0.50), 1),
        "p99_ms": round(result.latency_ms(0.99), 1),
    }


def print_report(report: dict[str, Any]) -> None:
    """The table that a person reads."""
    machine = report["machine"]
    print(f"\n{machine['name']}: {machine['cpu']}, {machine['num_cores']} cores; ", end="")
    print(f"model {report['model']}, one step, largest batch {report['max_batch_size']}\n")
    print("engine alone   " + "".join(f"{size:>9}" for size in report["engine_images_per_s"]))
    print(
        "images/s       "
        + "".join(f"{pace:>9.1f}" for pace in report["engine_images_per_s"].values())
    )
    print("\nat once  lost  mean batch  images/s  engine's own  ratio   p50 ms   p99 ms")
    for row in report["service"]:
        print(
            "{concurrency:>7}{num_lost:>6}{mean_batch_size:>12.2f}{images_per_s:>10.1f}"
            "{engine_images_per_s:>14.1f}{ratio:>7.2f}{p50_ms:>9.0f}{p99_ms:>9.0f}".format(**row)
        )
    bursts = [row for row in report["service"] if row["concurrency"] == NUM_REQUESTS]
    ratio = statistics.median(row["ratio"] for row in bursts)
    batch = statistics.median(row["mean_batch_size"] for row in bursts)
    lost = sum(row["num_lost"] for row in report["service"])
    print(f"\n{NUM_REQUESTS} at once, median of {len(bursts)}:")
    print(f"  lost        {lost}      goal 0             {_verdict(lost == 0)}")
    print(f"  mean batch  {batch:<6.2f} goal over {GOAL_MEAN_BATCH:.0f}        ", end="")
    print(_verdict(batch > GOAL_MEAN_BATCH))
    print(
        f"  ratio       {ratio:<6.2f} goal at least {GOAL_RATIO}  {_verdict(ratio >= GOAL_RATIO)}"
    )

    before, after = report["engine_images_per_s_before"], report["engine_images_per_s_after"]
    drift = max(abs(before[size] / after[size] - 1) for size in ENGINE_BATCH_SIZES)
    if drift > TRUSTED_DRIFT:
        print(
            f"  The engine's own pace changed by {drift:.0%} meanwhile: the machine was not quiet,"
        )
        print("  and the ratio cannot be trusted.")


def _verdict(is_met: bool) -> str:
    return "met" if is_met else "NOT MET"


def describe_machine(name: str) -> dict[str, Any]:
    """What a figure depends on besides the code."""
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                cpu = line.partition(":")[2].strip()
                break
    return {
        "name": name,
        "cpu": cpu,
        "num_cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "system": platform.system(),
    }


def _prompts(spec: ModelSpec) -> list[str]:
    return list(spec.examples) or ["a red heart", "a blue star", "a green tree"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=Path("models/emoji"), help="bundle folder")
    parser.add_argument("--out", type=Path, default=Path("bench-results/service.json"))
    parser.add_argument("--machine", default="unnamed machine", help="a name for the report")
    parser.add_argument("--repeats", type=int, default=3, help="repeats of the full burst")
    parser.add_argument(
        "--max-batch-size",
        type=int,
        default=Settings.model_fields["max_batch_size"].default,
        help="the service's setting",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
