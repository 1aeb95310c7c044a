"""The commands that compare, quantise and choose: check, quantize, tune.

Owns their arguments and what they print.
"""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from typing import Any, get_args

from engines.commands.shared import add_bundle, add_threads, count, import_framework, report
from engines.errors import BackendError, ParityError
from engines.runtime.registry import BACKENDS
from engines.spec import ModelSpec, Precision
from engines.verdicts import Verdict

_PRECISIONS = get_args(Precision)


def add_check(commands: Any) -> None:
    """`check`: compare configurations with the reference."""
    check = commands.add_parser(
        "check", help="compare what backends draw with the reference, and note it in the bundle"
    )
    add_bundle(check)
    check.add_argument(
        "--torch", type=Path, help="torch folder of the same model (default: the float32 graphs)"
    )
    check.add_argument(
        "--backend", choices=BACKENDS, action="append", help="default: all installed"
    )
    check.add_argument(
        "--precision", choices=_PRECISIONS, action="append", help="default: all in the bundle"
    )
    add_threads(check)
    check.set_defaults(run=_check)


def add_quantize(commands: Any) -> None:
    """`quantize`: add a variant in 8 bits."""
    quantize = commands.add_parser("quantize", help="add graphs in 8 bits to a bundle")
    add_bundle(quantize)
    quantize.add_argument("--precision", choices=("int8", "float8"), default="int8")
    quantize.add_argument(
        "--calibration", type=Path, help="file with a prompt per line (default: the examples)"
    )
    quantize.add_argument(
        "--stages", type=_stages, default=("denoise", "decode"), help="default: denoise,decode"
    )
    add_threads(quantize)
    quantize.set_defaults(run=_quantize)


def add_tune(commands: Any) -> None:
    """`tune`: time what passed its check and let the bundle prefer the fastest."""
    tune = commands.add_parser("tune", help="find the fastest configuration that passed its check")
    add_bundle(tune)
    tune.add_argument("--batch", type=count, nargs="+", default=[1, 8])
    tune.add_argument("--rounds", type=count, default=20, help="batches timed per size")
    tune.add_argument("--json", type=Path, help="write the numbers here too")
    add_threads(tune)
    tune.set_defaults(run=_tune)


def _stages(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    known = ("text", "denoise", "decode")
    if not set(names) <= set(known) or len(set(names)) != len(names):
        raise argparse.ArgumentTypeError(f"must be some of {','.join(known)}, got {text}")
    return names


def _check(options: argparse.Namespace) -> int:
    from engines.check import check_bundle, configurations

    spec = ModelSpec.load(options.bundle)
    if options.torch is not None:
        import_framework("engines.runtime.torch")
    chosen = configurations(spec, options.backend or (), options.precision or ())
    verdicts = check_bundle(
        options.bundle,
        chosen,
        source=options.torch,
        num_threads=options.threads,
        report=report,
    )
    for verdict in verdicts:
        _print_verdict(verdict)
    for verdict in verdicts:
        if not verdict.is_passed:
            raise ParityError(
                f"pictures differ: {verdict.backend} {verdict.precision} failed "
                f"({verdict.failures[0]})"
            )
    return 0


def _print_verdict(verdict: Verdict) -> None:
    print(f"{verdict.backend} {verdict.precision} against {verdict.reference}")
    for stage, figures in verdict.stages.items():
        print(f"  {stage:8} mean error {figures.mean_error:.6f}  max error {figures.max_error:.6f}")
    for picture in verdict.pictures:
        psnr = "equal" if picture.psnr_db is None else f"{picture.psnr_db:.1f} dB"
        print(
            f"  {picture.what:32} steps {picture.steps}  batch {picture.batch_size}  "
            f"mean {picture.mean_difference:.3f}  max {picture.max_difference:3d}  {psnr}"
        )
    for failure in verdict.failures:
        print(f"  TOO FAR: {failure}")
    print("  passed" if verdict.is_passed else "  failed")


def _quantize(options: argparse.Namespace) -> int:
    try:
        module = importlib.import_module("engines.quantize")
    except ImportError as error:
        raise BackendError(
            f"this command needs {error.name}: pip install 'onestep[distill]'"
        ) from error
    recipe = module.Recipe(
        precision=options.precision,
        stages=options.stages,
        prompts=() if options.calibration is None else _prompts(options.calibration),
        num_threads=options.threads,
    )
    outcomes = module.quantize_bundle(options.bundle, recipe, report=report)
    for stage, outcome in outcomes.items():
        print(
            f"{stage}: {outcome.num_quantized} of {outcome.num_candidates} nodes in "
            f"{options.precision}, error {outcome.error:.4f}"
        )
    print(f"now check it: onestep-engines check {options.bundle} --precision {options.precision}")
    return 0


def _prompts(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise BackendError(f"--calibration: {path} is no UTF-8 text") from error
    prompts = tuple(line.strip() for line in lines if line.strip())
    if not prompts:
        raise BackendError(f"--calibration: {path} holds no prompt: write one per line")
    return prompts


def _tune(options: argparse.Namespace) -> int:
    from engines.tune import table, tune

    result = tune(
        options.bundle,
        batch_sizes=options.batch,
        num_rounds=options.rounds,
        num_threads=options.threads,
        report=report,
    )
    print(table(result))
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0
