"""The words after `onestep-distill preflight`. Knows no torch."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Literal

from distill.config import ConfigError

# SD 2.1's step of the paper's preset, not compiled: 123 of an H200's stated 989 TFLOP/s
# (docs/measurements/training-step-h200.json).
MEASURED_PEAK_SHARE = 0.125
Stage = Literal["autoencoder", "teacher", "student"]


@dataclass(frozen=True)
class PreflightOptions:
    """Which card, how many, and how it is told."""

    gpu: str | None = None
    gpu_memory_gib: float | None = None
    num_gpus: int = 1
    peak_share: float = MEASURED_PEAK_SHARE
    stage: Stage = "student"
    as_json: bool = False
    has_sheet: bool = True

    @classmethod
    def read(cls, args: argparse.Namespace) -> PreflightOptions:
        """From parsed words.

        Raises:
            ConfigError: a number is out of its range.
        """
        memory_gib: float | None = args.gpu_memory_gib
        if memory_gib is not None and memory_gib <= 0:
            raise ConfigError("--gpu-memory-gib must be above 0")
        if args.num_gpus < 1:
            raise ConfigError("--num-gpus must be at least 1")
        if not 0 < args.peak_share <= 1:
            raise ConfigError("--peak-share must be above 0 and at most 1")
        return cls(
            args.gpu,
            memory_gib,
            args.num_gpus,
            args.peak_share,
            args.stage,
            args.json,
            not args.no_sheet,
        )


def add_preflight_options(command: argparse.ArgumentParser) -> None:
    """Give the command its own options."""
    command.add_argument("--gpu", help="a known card such as h100, or cpu (h100)")
    command.add_argument("--gpu-memory-gib", type=float, help="memory of a card")
    command.add_argument("--num-gpus", type=int, default=1, help="that share every batch")
    command.add_argument(
        "--peak-share",
        type=float,
        default=MEASURED_PEAK_SHARE,
        help=f"assumed share of the bf16 rate ({MEASURED_PEAK_SHARE})",
    )
    stages = ("autoencoder", "teacher", "student")
    command.add_argument("--stage", choices=stages, default="student", help="(student)")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.add_argument("--no-sheet", action="store_true", help="leave the samples out; faster")
