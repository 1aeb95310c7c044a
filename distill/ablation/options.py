"""What `onestep-distill ablation` can be told.

Owns its options and their defaults; loads no torch, so that --help answers at once.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace

from distill.ablation.rows import ROW_NAMES
from distill.config import ConfigError
from distill.evaluation.options import EvaluateOptions, add_evaluate_options


@dataclass(frozen=True)
class AblationOptions:
    """What is run and how it is judged.

    Attributes:
        rows: names; empty takes all.
        seeds: of the students.
        resume: keep finished runs.
        is_finished_only: tabulate them and train nothing.
        vision_model: transformers folder for the rows that look through one.
        evaluation: judges, numbers of pictures, the teacher's steps and guidance.
    """

    rows: tuple[str, ...]
    seeds: tuple[int, ...]
    resume: bool
    is_finished_only: bool
    vision_model: str | None
    evaluation: EvaluateOptions

    @classmethod
    def read(cls, args: argparse.Namespace) -> AblationOptions:
        """Take the options from the command line.

        Raises:
            ConfigError: a value is out of range.
        """
        rows = tuple(part for part in args.rows.split(",") if part)
        try:
            seeds = tuple(int(part) for part in args.seeds.split(",") if part)
        except ValueError as error:
            raise ConfigError(f"--seeds takes whole numbers, got {args.seeds!r}") from error
        if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise ConfigError(f"--seeds takes different numbers from 0, got {args.seeds!r}")
        # Intervals are over seeds here.
        evaluation = replace(EvaluateOptions.read(args), has_intervals=False)
        return cls(
            rows,
            seeds,
            bool(args.resume or args.finished),
            bool(args.finished),
            args.vision,
            evaluation,
        )


def add_ablation_options(parser: argparse.ArgumentParser) -> None:
    """Options of `ablation`, those of `evaluate` among them."""
    parser.add_argument(
        "--rows", default="", metavar="NAMES", help=f"all, or some of {', '.join(ROW_NAMES)}"
    )
    parser.add_argument("--seeds", default="0,1,2", metavar="0,1,2")
    parser.add_argument("--resume", action="store_true", help="keep finished runs, train the rest")
    parser.add_argument(
        "--finished", action="store_true", help="tabulate the finished runs, train nothing"
    )
    parser.add_argument(
        "--vision", default=None, metavar="FOLDER", help="vision model of some rows' features"
    )
    add_evaluate_options(parser)
