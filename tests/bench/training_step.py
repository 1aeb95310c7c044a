"""One training step on a GPU, of well-known teachers with random weights and of our own presets.

Run: python -m tests.bench.training_step [--out FILE.json] [--part PART] [CASE...]

Per case the time of an iteration, pictures per second, the share of the card's measured bfloat16
rate that the counted floating-point operations make, and the measured peak of memory beside what
preflight says. Random weights do the same work as trained ones: the figures are of speed and
memory, and of nothing else. "predicted" needs no GPU, and takes a minute or two per case.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch

from distill.config import RunConfig, override
from distill.preflight.fakes import without_weights
from distill.preflight.parts import builder, words_of
from distill.preflight.rehearsal import Rehearsed, rehearse
from distill.presets import preset
from engines.bench.machine import describe_machine
from engines.bench.peaks import cuda_peaks
from engines.bench.statistics import median

GIB = 2**30
_NUM_WARM_UP = 3
_MIN_RUNS = 5


@dataclass(frozen=True)
class Case:
    """A stage of a preset, with some fields set.

    Attributes:
        preset: by name.
        stage: "autoencoder", "teacher" or "student".
        assignments: `section.field=value`.
    """

    preset: str
    stage: str
    assignments: tuple[str, ...] = ()

    @property
    def config(self) -> RunConfig:
        """Of the run."""
        return override(preset(self.preset), list(self.assignments))


_SHAPES = ("data.path=shapes", "data.styles=[]", "data.concepts=[]", "data.num_shapes=200")
# The presets' batches come in equal passes of a few pictures: two passes do what many would.
CASES = {
    "sd-2.1": Case("add_m", "student", ("student.optimizer.batch_size=8",)),
    "sd-2.1 in one pass": Case(
        "add_m", "student", ("student.optimizer.batch_size=8", "scale.micro_batch_size=null")
    ),
    "sdxl": Case("add_xl", "student", ("student.optimizer.batch_size=4", "scale.strategy=ddp")),
    "emoji_gpu autoencoder": Case("emoji_gpu", "autoencoder", _SHAPES),
    "emoji_gpu teacher": Case("emoji_gpu", "teacher", _SHAPES),
    "emoji_gpu student": Case("emoji_gpu", "student", _SHAPES),
}


def predicted(case: Case) -> dict[str, Any]:
    """What preflight counts for one iteration; runs on fake tensors."""
    config = case.config
    with TemporaryDirectory() as folder:
        build = builder(case.stage, config, words_of(config.data), Path(folder))
        footprint = rehearse(build, as_card=True, with_sheet=False)
    return {
        "predicted_gib": round(footprint.iteration_bytes / GIB, 3),
        "by_kind_gib": {
            kind.value: round(num / GIB, 3) for kind, num in footprint.by_kind.items() if num
        },
        "tflop": round(footprint.num_flops / 1e12, 3),
    }


def measured(case: Case, device: str, seconds: float) -> dict[str, Any]:
    """Time and memory of real iterations on the card."""
    config = case.config
    with (
        TemporaryDirectory() as folder,
        without_weights(device),
        # Pictures without pixels are arrays that torch cannot write to, so it takes copies.
        patch.object(torch, "from_numpy", torch.tensor),
    ):
        trainer = builder(case.stage, config, words_of(config.data), Path(folder), device)()
    num_pictures = getattr(config, case.stage).optimizer.batch_size
    _reset_peak(device)
    first_s, _ = _timed(trainer, device)
    for _ in range(_NUM_WARM_UP - 1):
        _timed(trainer, device)
    num_skipped = 0.0
    spans_s: list[float] = []
    while len(spans_s) < _MIN_RUNS or sum(spans_s) < seconds:
        span_s, skipped = _timed(trainer, device)
        spans_s.append(span_s)
        num_skipped += skipped
    middle_s = median(spans_s)
    return {
        "num_runs": len(spans_s),
        "num_skipped": num_skipped,
        "first_s": round(first_s, 4),
        "median_s": round(middle_s, 5),
        "worst_s": round(max(spans_s), 5),
        "batch_size": num_pictures,
        "images_per_s": round(num_pictures / middle_s, 3),
        **_peak(device),
    }


def _timed(trainer: Rehearsed, device: str) -> tuple[float, float]:
    """Seconds of one iteration, and how many updates it left out."""
    start_s = time.perf_counter()
    metrics = trainer.iterate(1.0)
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start_s, metrics.get("skipped", 0.0)


def _reset_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def _peak(device: str) -> dict[str, float | None]:
    if device != "cuda":
        return {"measured_gib": None, "reserved_gib": None}
    return {
        "measured_gib": round(torch.cuda.max_memory_allocated() / GIB, 3),
        "reserved_gib": round(torch.cuda.max_memory_reserved() / GIB, 3),
    }


def line(name: str, row: dict[str, Any], flops_per_s: float | None) -> str:
    """A case as text."""
    words = [f"{name:24}"]
    if "median_s" in row:
        words.append(f"{row['median_s'] * 1000:9.1f} ms {row['images_per_s']:9.2f} images/s")
    if "tflop" in row and "median_s" in row and flops_per_s:
        words.append(f"{row['tflop'] * 1e12 / row['median_s'] / flops_per_s:5.1%} of the rate")
    if row.get("measured_gib"):
        words.append(f"measured {row['measured_gib']:.2f} GiB")
    if "predicted_gib" in row:
        words.append(f"predicted {row['predicted_gib']:.2f} GiB")
    if "predicted_gib" in row and row.get("measured_gib"):
        words.append(f"ratio {row['predicted_gib'] / row['measured_gib']:.3f}")
    return "  ".join(words)


def main() -> int:
    """Measure or predict the cases, and add to the file what is new."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", choices=[*CASES, []])
    parser.add_argument("--out", type=Path, default=Path("bench-results/training-step.json"))
    parser.add_argument("--part", choices=("predicted", "measured"), default="measured")
    parser.add_argument("--seconds", type=float, default=5.0, help="of timed iterations, about")
    args = parser.parse_args()
    if args.part == "measured" and not torch.cuda.is_available():
        print("training_step: torch sees no GPU; --part predicted needs none", file=sys.stderr)
        return 2
    whole: dict[str, Any] = json.loads(args.out.read_text()) if args.out.is_file() else {}
    rows: dict[str, Any] = whole.setdefault("cases", {})
    if args.part == "measured":
        peaks = cuda_peaks()
        whole["machine"] = describe_machine(None) | {"gpu": torch.cuda.get_device_name()}
        whole["bf16_flops_per_s"] = peaks.flops_per_s
    for name in args.cases or CASES:
        case = CASES[name]
        row = rows.setdefault(name, {"assignments": list(case.assignments)})
        try:
            new = (
                predicted(case)
                if args.part == "predicted"
                else measured(case, "cuda", args.seconds)
            )
        except torch.OutOfMemoryError:
            new = {"status": "out of memory"}
        row.update(new)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(whole, indent=2) + "\n")
        print(line(name, row, whole.get("bf16_flops_per_s")), flush=True)
        if args.part == "measured":
            torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main())
