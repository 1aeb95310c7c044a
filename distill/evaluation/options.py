"""What `onestep-distill evaluate` and `report` can be told.

Owns the options and their defaults; loads no torch, so that --help answers at once.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from distill.config import ConfigError

PAPER_CLIP = "ViT-g-14"
Solver = Literal["ddim", "dpm++"]
SOLVERS: tuple[Solver, ...] = get_args(Solver)


@dataclass(frozen=True)
class EvaluateOptions:
    """One evaluation.

    Attributes:
        features: SqueezeNet's .npz.
        inception: torch-fidelity's weights of Inception v3.
        clip: open_clip's checkpoint of `clip_model`.
        dino: transformers folder of a DINOv2; reported, never used to choose.
        max_pictures: per kind of prompts and sampler.
        seeds_per_prompt: of prompts with several right answers.
        student_steps: numbers of steps; empty takes all that the student knows.
        teacher_steps: numbers of steps.
        solvers: of the teacher.
        guidance: the teacher's scale.
        guidance_sweep: scales among which the best at 25 steps is taken instead.
        has_intervals: of the scores of whole sets.
    """

    features: Path | None = None
    inception: Path | None = None
    clip: Path | None = None
    clip_model: str = PAPER_CLIP
    dino: Path | None = None
    max_pictures: int = 1000
    seeds_per_prompt: int = 4
    student_steps: tuple[int, ...] = ()
    teacher_steps: tuple[int, ...] = (1, 2, 4, 8, 25, 50)
    solvers: tuple[Solver, ...] = SOLVERS
    guidance: float = 1.0
    guidance_sweep: tuple[float, ...] = ()
    has_intervals: bool = True

    def __post_init__(self) -> None:
        """Refuse what cannot be evaluated.

        Raises:
            ConfigError: a value is out of range, or no network is named.
        """
        if self.features is None and self.inception is None:
            raise ConfigError(
                "name the network that judges: --features SQUEEZENET.npz or --inception WEIGHTS.pth"
            )
        files = {"features": self.features, "inception": self.inception, "clip": self.clip}
        for name, path in files.items():
            if path is not None and not path.is_file():
                raise ConfigError(f"--{name}: no file at {path}")
        if self.dino is not None and not (self.dino / "config.json").is_file():
            raise ConfigError(f"--dino: no model at {self.dino}: give a transformers folder")
        if self.max_pictures < 8:
            raise ConfigError("--max-pictures must be at least 8")
        if self.seeds_per_prompt < 1:
            raise ConfigError("--seeds-per-prompt must be at least 1")
        if not set(self.solvers) <= set(SOLVERS):
            raise ConfigError(f"--solvers must be among {', '.join(SOLVERS)}")
        if any(steps < 1 for steps in (*self.student_steps, *self.teacher_steps)):
            raise ConfigError("--student-steps and --teacher-steps must be at least 1")

    @classmethod
    def read(cls, args: argparse.Namespace) -> EvaluateOptions:
        """Take the options from the command line."""
        return cls(
            args.features,
            args.inception,
            args.clip,
            args.clip_model,
            args.dino,
            args.max_pictures,
            args.seeds_per_prompt,
            args.student_steps,
            args.teacher_steps,
            args.solvers,
            args.guidance,
            args.guidance_sweep,
            not args.no_intervals,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values; of files their names, as where they lie says nothing."""
        plain = asdict(self)
        if self.clip is None:
            del plain["clip_model"]
        return {k: v.name if isinstance(v, Path) else v for k, v in plain.items()}


def add_evaluate_options(parser: argparse.ArgumentParser) -> None:
    """Options of `evaluate`."""
    judges = parser.add_argument_group("networks that judge, from local files")
    judges.add_argument("--features", type=Path, metavar="FILE", help="SqueezeNet 1.0 (.npz)")
    judges.add_argument("--inception", type=Path, metavar="FILE", help="Inception v3 (.pth)")
    judges.add_argument("--clip", type=Path, metavar="FILE", help="open_clip checkpoint")
    judges.add_argument("--clip-model", default=PAPER_CLIP, help=f"default {PAPER_CLIP}")
    judges.add_argument("--dino", type=Path, metavar="FOLDER", help="DINOv2; reported only")
    how_much = parser.add_argument_group("how much is drawn")
    how_much.add_argument("--max-pictures", type=int, default=1000, metavar="N", help="of a kind")
    how_much.add_argument("--seeds-per-prompt", type=int, default=4, metavar="N")
    how_much.add_argument("--student-steps", type=_integers, default=(), metavar="1,2,4")
    how_much.add_argument(
        "--teacher-steps", type=_integers, default=EvaluateOptions.teacher_steps, metavar="1,25"
    )
    how_much.add_argument(
        "--solvers", type=_words, default=SOLVERS, metavar="NAMES", help="names, comma between"
    )
    how_much.add_argument("--guidance", type=float, default=1.0, help="the teacher's scale")
    how_much.add_argument(
        "--guidance-sweep",
        type=_numbers,
        default=(),
        metavar="1,2,4",
        help="take the best of these at 25 steps instead",
    )
    how_much.add_argument(
        "--no-intervals", action="store_true", help="leave out the slow intervals of whole sets"
    )


def add_report_options(parser: argparse.ArgumentParser) -> None:
    """Options of `report`."""
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    parser.add_argument(
        "--preset",
        default=None,
        help="compare the configuration with this one's, not the nearest",
    )
    parser.add_argument(
        "--compare",
        type=Path,
        nargs="+",
        default=[],
        metavar="RUN",
        help="runs whose figures join the tables",
    )


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part)


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(",") if part)


def _words(text: str) -> tuple[str, ...]:
    return tuple(part for part in text.split(",") if part)
