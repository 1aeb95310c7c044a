"""onestep-distill: from captioned pictures to a one-step student, one command per stage."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distill.ablation.options import add_ablation_options
from distill.config import ConfigError, RunConfig, override
from distill.evaluation.options import add_evaluate_options, add_report_options
from distill.preflight.options import add_preflight_options
from distill.presets import PRESETS, preset


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="onestep-distill", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    about = {
        "data": "count what the training would read",
        "autoencoder": "train the picture autoencoder",
        "teacher": "train the diffusion teacher",
        "precompute": "encode the whole set once, for --set data.access=precomputed",
        "preflight": "estimate memory and time of a training, without a GPU and before it starts",
        "train": "distil the one-step student",
        "evaluate": "print distances and retrieval scores of student and teacher",
        "export": "write the student as a diffusers folder with model.json",
        "ablation": "train students that differ in one thing each, and tabulate them",
    }
    for name, text in about.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--preset", default="shapes_tiny", choices=sorted(PRESETS))
        command.add_argument("--out", type=Path, default=None, help="run folder (runs/NAME)")
        command.add_argument("--data", default=None, help="folder of pictures, Parquet or tars")
        if name in ("precompute", "preflight", "train", "evaluate", "export", "ablation"):
            command.add_argument(
                "--teacher", default=None, help="diffusers folder or hub name (the run's own)"
            )
        command.add_argument("--heldout", default=None, help="Parquet file of held-out pairs")
        command.add_argument(
            "--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", dest="assignments"
        )
        if name in ("autoencoder", "teacher", "train"):
            command.add_argument(
                "--resume",
                nargs="?",
                const="last",
                choices=("last", "best"),
                help="continue from the last snapshot, or from the best one with other settings",
            )
            command.add_argument(
                "--dry-run", action="store_true", help="one iteration, nothing kept"
            )
            command.add_argument(
                "--no-preflight", action="store_true", help="start on a GPU without estimating"
            )
        if name == "data":
            command.add_argument(
                "--example", type=Path, metavar="FOLDER", help="write a small set of pictures there"
            )
        if name == "precompute":
            kinds = ("float16", "bfloat16", "float32")
            command.add_argument("--dtype", choices=kinds, default="float16", help="on disk")
            command.add_argument("--rows-per-shard", type=int, default=512, help="of one file")
            text = "have the teacher draw a picture for every caption, in this many steps"
            command.add_argument("--synthetic-steps", type=int, default=None, help=text)
            command.add_argument(
                "--synthetic-guidance", type=float, default=None, help="of that drawing (1)"
            )
            command.add_argument(
                "--synthetic-solver", choices=("ddim", "dpm++"), default=None, help="dpm++"
            )
        if name == "evaluate":
            add_evaluate_options(command)
        if name == "preflight":
            add_preflight_options(command)
        if name == "ablation":
            add_ablation_options(command)
        if name == "export":
            command.add_argument("--to", type=Path, default=None, help="folder to write")
    text = "write a student's difference from its teacher as a LoRA of a given rank"
    extract = commands.add_parser("extract-lora", help=text, description=text)
    for name, text in (("teacher", "it was made from"), ("student", "every weight trained")):
        extract.add_argument(
            f"--{name}",
            type=Path,
            required=True,
            metavar="FOLDER",
            help=f"diffusers folder; {text}",
        )
    extract.add_argument("--rank", type=int, required=True, help="of every layer's factors")
    extract.add_argument("--out", type=Path, default=None, help="folder to write (STUDENT-lora)")
    text = "write one page of a run's figures, curves and pictures"
    add_report_options(commands.add_parser("report", help=text, description=text))
    return parser


def _config(args: argparse.Namespace) -> RunConfig:
    assignments = list(args.assignments)
    if args.data is not None:
        assignments.append(f"data.path={args.data}")
    if args.heldout is not None:
        assignments.append(f"data.heldout_path={args.heldout}")
    if getattr(args, "teacher", None) is not None:
        assignments.append(f"student.teacher_source={args.teacher}")
    return override(preset(args.preset), assignments)


def _report(args: argparse.Namespace) -> int:
    from distill.evaluation.report import write_report

    for path in write_report(args.run, args.preset, args.compare):
        print(path)
    return 0


def _extract_lora(args: argparse.Namespace) -> int:
    with _named_extra():
        from distill.export.lora import extract_lora

    for line in extract_lora(args.teacher, args.student, args.rank, args.out).lines():
        print(line)
    return 0


@contextmanager
def _named_extra() -> Iterator[None]:
    """Tell how to install what is missing."""
    try:
        yield
    except ImportError as error:
        raise ConfigError(f"training needs {error.name}: pip install 'onestep[distill]'") from error


def main(argv: list[str] | None = None) -> int:
    """Run one command; return the exit code.

    0; 2 for a user's mistake; 3 for a training that an alarm ended; 130 for an interrupted one.
    """
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    try:
        if args.command == "report":
            return _report(args)
        if args.command == "extract-lora":
            return _extract_lora(args)
        config = _config(args)
        run = args.out or Path("runs") / config.name
        # The stages load torch; --help and a wrong field should not wait for it.
        with _named_extra():
            from distill import stages
        return stages.run(args.command, config, run, args)
    except ConfigError as error:
        print(f"onestep-distill: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
