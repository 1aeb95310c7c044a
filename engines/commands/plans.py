"""The command that compiles plans: build."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, get_args

from engines.commands.shared import add_bundle
from engines.errors import BackendError
from engines.plans import ENGINES_FOLDER
from engines.profiles import CAPABILITIES, DEFAULT_BATCHES, PACKAGES
from engines.spec import Precision


def add_build(commands: Any) -> None:
    """`build`: compile a bundle's graphs."""
    build = commands.add_parser("build", help="compile a bundle's graphs with TensorRT")
    add_bundle(build)
    build.add_argument("--out", type=Path, help="folder for the plans (default: BUNDLE/engines)")
    build.add_argument("--package", choices=PACKAGES, default="tensorrt_rtx")
    build.add_argument(
        "--compute-capability",
        choices=CAPABILITIES,
        help="GPU to compile for, with tensorrt_rtx (default: the GPU of this machine)",
    )
    build.add_argument(
        "--batch",
        action="append",
        help="N for a plan of that size alone, or MIN:OPT:MAX; repeat it for several plans "
        f"(default: {', '.join(map(str, DEFAULT_BATCHES))})",
    )
    build.add_argument(
        "--refit",
        action="store_true",
        help="make plans that can take other weights, and use those that are there",
    )
    build.add_argument(
        "--precision",
        choices=get_args(Precision),
        help="which of the bundle's graphs to compile (default: its base)",
    )
    build.set_defaults(run=_build)


def _build(options: argparse.Namespace) -> int:
    from engines.build import Target, build_engines
    from engines.profiles import BatchRange
    from engines.progress import progress_on

    try:
        sizes = options.batch or [str(size) for size in DEFAULT_BATCHES]
        batches = tuple(dict.fromkeys(BatchRange.parse(text) for text in sizes))
    except ValueError as error:
        raise BackendError(f"--batch: {error}") from error
    out = options.out or options.bundle / ENGINES_FOLDER
    target = Target(
        package=options.package,
        compute_capability=options.compute_capability,
        batches=batches,
        refit=options.refit,
        precision=options.precision,
    )
    progress = progress_on(sys.stderr)
    try:
        records = build_engines(options.bundle, out, target, progress=progress)
    finally:
        progress.close()
    for record in records:
        size_mb = record.size_bytes / 1e6
        made = "refitted" if record.made_by == "refit" else "built"
        print(f"{out / record.file}: {size_mb:.1f} MB, {made} in {record.build_s:.1f} s")
    return 0
