"""How near a GPU's own limits come the usual ways to run SD-Turbo- and SDXL-Turbo-shaped models.

First measures the card's bfloat16 product and copy rates; then, per model, autoencoder, number of
steps and batch size, each variant: eager, channels_last, compile, cuda_graph, blocks_cuda_graph,
compile_cuda_graph. Weights are random and made on the card: the figures are of speed, and of
nothing else. Every finished row is written at once, so that a run that is cut goes on where it
stopped.

    python -m tests.bench.bench_gpu --out bench-results/gpu.json
    python -m tests.bench.bench_gpu --tiny --out bench-results/tiny.json     # no GPU: does it run?
"""

from __future__ import annotations

import argparse
import functools
import gc
import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from engines.bench.machine import describe_machine
from engines.bench.peaks import Sizes, cpu_peaks, cuda_peaks
from engines.bench.statistics import median, quantile
from engines.roofline import Peaks, Work
from tests.bench.gpu_models import MODELS, Shapes, TextToPicture, build, make_inputs, shrunk
from tests.bench.gpu_results import Results
from tests.bench.gpu_variants import VARIANTS, Effort, Variant, prepare, time_variant
from tests.bench.torch_work import count_work

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_FINISHED = ("ok", "out of memory", "skipped: needs CUDA")
_TINY_EFFORT = Effort(num_runs=5, num_warm_up=1, max_seconds=1.0)
_TINY_SIZES = Sizes(product=256, copy_bytes=2**22)


@dataclass(frozen=True)
class Setting:
    """What one run of this program measures, as chosen on the command line."""

    device: str
    dtype: str
    is_tiny: bool
    effort: Effort
    variants: tuple[Variant, ...]


@dataclass(frozen=True)
class Case:
    """One model at one batch size."""

    shapes: Shapes
    vae: str
    steps: int
    batch_size: int


def main(arguments: list[str] | None = None) -> int:
    """Measure what is missing in the file; 2 where that cannot be."""
    options = _parser().parse_args(arguments)
    if not options.tiny and not torch.cuda.is_available():
        print("bench_gpu: torch sees no GPU; --tiny shows on a CPU that it runs", file=sys.stderr)
        return 2
    setting = Setting(
        device="cpu" if options.tiny else "cuda",
        dtype="float32" if options.tiny else options.dtype,
        is_tiny=options.tiny,
        effort=_TINY_EFFORT if options.tiny else Effort(options.runs, 10, options.seconds),
        variants=tuple(variant for variant in VARIANTS if variant.name in options.variants),
    )
    machine = describe_machine(None)
    try:
        results = Results(options.out, machine | {"gpu": _gpu(setting)})
    except ValueError as error:
        print(f"bench_gpu: {error}", file=sys.stderr)
        return 2
    cases = [
        Case(shrunk(MODELS[name]) if options.tiny else MODELS[name], vae, steps, batch_size)
        for name, vae, steps, batch_size in itertools.product(
            options.models, options.vaes, options.steps, options.batch
        )
    ]
    torch.backends.cudnn.benchmark = True  # every variant may choose its convolutions by trying
    peaks = cpu_peaks(1, _TINY_SIZES) if options.tiny else cuda_peaks()
    results.start_run(peaks)
    print(f"peaks: {peaks.flops_per_s / 1e12:.2f} TFLOP/s, {peaks.bytes_per_s / 1e9:.0f} GB/s")
    print(HEAD)
    with tqdm(total=len(cases) * len(setting.variants), desc="bench", unit="row") as bar:
        for row in _measure_missing(cases, setting, results, peaks, bar):
            bar.clear()
            print(line(row), flush=True)
    return 0


def _measure_missing(
    cases: list[Case], setting: Setting, results: Results, peaks: Peaks, bar: tqdm[object]
) -> Iterator[dict[str, Any]]:
    """Yield every row, those of an earlier run as they were."""
    for (shapes, vae), group in itertools.groupby(cases, lambda case: (case.shapes, case.vae)):
        model: TextToPicture | None = None
        for case, variant in itertools.product(list(group), setting.variants):
            key = {
                "model": shapes.name,
                "vae": vae,
                "steps": case.steps,
                "batch_size": case.batch_size,
                "variant": variant.name,
                "dtype": setting.dtype,
            }
            row = results.find(key)
            if row is None or row["status"] not in _FINISHED:
                if model is None:
                    model = build(shapes, vae, setting.device, _DTYPES[setting.dtype])
                row = key | measure(model, case, variant, setting, peaks)
                eager = results.find(key | {"variant": "eager"}) or row
                row["ratio_to_eager"] = _ratio(eager, row)
                results.add(row)
            bar.update()
            yield row


def measure(
    model: TextToPicture, case: Case, variant: Variant, setting: Setting, peaks: Peaks
) -> dict[str, Any]:
    """One row without its key; what went wrong is in its status."""
    is_cuda = setting.device == "cuda"
    if variant.needs_cuda and not is_cuda:
        return _empty("skipped: needs CUDA")
    _free(is_cuda)
    try:
        dtype = _DTYPES[setting.dtype]
        inputs = make_inputs(case.shapes, case.batch_size, case.steps, setting.device, dtype)
        with torch.inference_mode():
            timing = time_variant(prepare(model, inputs, variant), inputs, setting.effort)
    except torch.OutOfMemoryError:
        return _empty("out of memory")
    except Exception as error:  # a compiler or a capture that fails must not cost the other rows
        return _empty(f"failed: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
    work = count_case(case, dtype)
    middle_ms = median(timing.spans_s) * 1000
    floor_ms = work.floor_s(peaks) * 1000
    return {
        "status": "ok",
        "num_runs": len(timing.spans_s),
        "median_ms": round(middle_ms, 4),
        "p99_ms": round(quantile(timing.spans_s, 0.99) * 1000, 4),
        "images_per_s": round(timing.images_per_s, 2),
        "gflop": round(work.flops / 1e9, 3),
        "floor_ms": round(floor_ms, 4),
        "roofline_share": round(floor_ms / middle_ms, 4),
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if is_cuda else None,
    }


@functools.cache
def count_case(case: Case, dtype: torch.dtype) -> Work:
    """The work of one batch: text once, the UNet once per step, the decoder once."""
    model = build(case.shapes, case.vae, "meta", dtype)
    inputs = make_inputs(case.shapes, case.batch_size, 1, "meta", dtype)
    texts: list[Any] = []
    noise_BChw, timestep_B = inputs.noise_SBChw[0], inputs.timestep_SB[0]
    text = count_work(lambda: texts.extend(model.text(inputs.input_ids_BL)))
    denoise = count_work(lambda: model.denoise(noise_BChw, timestep_B, *texts))
    decode = count_work(lambda: model.decode(noise_BChw))
    return Work(text.ops + denoise.ops * case.steps + decode.ops)


def _ratio(eager: dict[str, Any], row: dict[str, Any]) -> float | None:
    """How many times as fast as eager, by median latency."""
    if eager["status"] != "ok" or row["status"] != "ok":
        return None
    return round(eager["median_ms"] / row["median_ms"], 4)


def _empty(status: str) -> dict[str, Any]:
    figures = ("num_runs", "median_ms", "p99_ms", "images_per_s", "gflop", "floor_ms")
    return {"status": status} | dict.fromkeys(
        (*figures, "roofline_share", "peak_memory_bytes"), None
    )


def _free(is_cuda: bool) -> None:
    """Let go of what the row before used; it may have ended in the middle."""
    gc.collect()
    torch.compiler.reset()
    if is_cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _gpu(setting: Setting) -> str:
    return "none, tiny models on the CPU" if setting.is_tiny else torch.cuda.get_device_name()


HEAD = (
    f"{'model':11}{'vae':>5}{'steps':>6}{'batch':>6}  {'variant':19}{'median ms':>10}{'p99 ms':>9}"
    f"{'images/s':>9}{'x eager':>8}{'share':>7}{'peak MB':>9}"
)


def line(row: dict[str, Any]) -> str:
    """A row as text under `HEAD`."""
    key = f"{row['model']:11}{row['vae']:>5}{row['steps']:>6}{row['batch_size']:>6}"
    key += f"  {row['variant']:19}"
    if row["status"] != "ok":
        return f"{key}{row['status']}"
    memory, ratio = row["peak_memory_bytes"], row["ratio_to_eager"]
    return (
        f"{key}{row['median_ms']:>10.2f}{row['p99_ms']:>9.2f}{row['images_per_s']:>9.1f}"
        f"{'-' if ratio is None else f'{ratio:.2f}':>8}{row['roofline_share']:>7.0%}"
        f"{'-' if memory is None else f'{memory / 1e6:,.0f}':>9}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("bench-results/gpu.json"))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--vaes", nargs="+", choices=("kl", "tiny"), default=["kl", "tiny"])
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    names = [variant.name for variant in VARIANTS]
    parser.add_argument("--variants", nargs="+", choices=names, default=names)
    parser.add_argument("--dtype", choices=("bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--runs", type=int, default=100, help="timed batches per row, at most")
    parser.add_argument("--seconds", type=float, default=10.0, help="per row, about")
    parser.add_argument("--tiny", action="store_true", help="shrunk models on the CPU")
    return parser


if __name__ == "__main__":
    sys.exit(main())
