"""The command that measures: bench."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any

from engines.commands.shared import add_bundle, add_threads, count
from engines.errors import BackendError
from engines.runtime.registry import BACKENDS


def add_bench(commands: Any) -> None:
    """`bench`: time a bundle beside what the machine could do."""
    bench = commands.add_parser(
        "bench", help="time a bundle's stages per batch size, beside what the machine could do"
    )
    add_bundle(bench)
    bench.add_argument("--batch", type=count, nargs="+", default=[1, 2, 4, 8, 16])
    bench.add_argument("--steps", type=count, default=1)
    bench.add_argument("--runs", type=count, default=20, help="batches timed per size")
    bench.add_argument(
        "--compare",
        nargs="+",
        default=[],
        metavar="BACKEND[:PRECISION]",
        help="measure these in turn with --backend and print how many times as fast they are",
    )
    bench.add_argument(
        "--torch", type=Path, help="torch folder of the same model, for the torch backends"
    )
    bench.add_argument("--json", type=Path, help="write the numbers here too; - for the output")
    bench.add_argument("--plot", type=Path, help="draw them: a file ending in .svg or .png")
    bench.add_argument("--backend", choices=BACKENDS, default="onnx")
    add_threads(bench)
    bench.set_defaults(run=_bench)


def _bench(options: argparse.Namespace) -> int:
    try:
        command = importlib.import_module("engines.bench.command")
    except ImportError as error:
        raise BackendError(
            f"this command needs {error.name}: pip install 'onestep[bench]'"
        ) from error
    command.run(
        command.Options(
            bundle=options.bundle,
            backends=[options.backend, *options.compare],
            torch_folder=options.torch,
            batch_sizes=options.batch,
            steps=options.steps,
            num_runs=options.runs,
            num_threads=options.threads,
            json=options.json,
            plot=options.plot,
        )
    )
    return 0
