"""onestep-engines export | build | check | bench: a trained model made servable, from a shell.

Owns arguments, printed lines and exit codes: 0 done, 1 pictures differ, 2 anything else that a
user can mend. A framework is imported only by the command that needs it.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from engines.errors import BackendError, EnginesError, ParityError
from engines.plans import ENGINES_FOLDER
from engines.profiles import CAPABILITIES, DEFAULT_BATCHES, PACKAGES
from engines.runtime.registry import BACKENDS
from engines.spec import Precision

_EXIT_DIFFERENT = 1
_EXIT_UNUSABLE = 2
_EXIT_STOPPED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.run(options)
        return code
    except ParityError as error:
        print(f"onestep-engines: {error}", file=sys.stderr)
        return _EXIT_DIFFERENT
    except EnginesError as error:
        print(f"onestep-engines: {error}", file=sys.stderr)
        return _EXIT_UNUSABLE
    except OSError as error:
        print(f"onestep-engines: {error.filename}: {error.strerror}", file=sys.stderr)
        return _EXIT_UNUSABLE
    except KeyboardInterrupt:
        print("onestep-engines: stopped", file=sys.stderr)
        return _EXIT_STOPPED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="onestep-engines", description="From a trained model to something fast."
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    export = commands.add_parser("export", help="write a bundle from a torch folder")
    export.add_argument("source", type=Path, help="folder that `onestep-distill export` wrote")
    export.add_argument("--out", type=Path, required=True, help="bundle folder to write")
    export.set_defaults(run=_export)

    build = commands.add_parser("build", help="compile a bundle's graphs with TensorRT")
    _add_bundle(build)
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

    check = commands.add_parser("check", help="compare a bundle's pictures with torch's")
    _add_bundle(check)
    check.add_argument("--torch", type=Path, required=True, help="torch folder of the same model")
    _add_runtime(check)
    check.set_defaults(run=_check)

    _add_bench(commands)
    return parser


def _add_bench(commands: Any) -> None:
    bench = commands.add_parser(
        "bench", help="time a bundle's stages per batch size, beside what the machine could do"
    )
    _add_bundle(bench)
    bench.add_argument("--batch", type=_count, nargs="+", default=[1, 2, 4, 8, 16])
    bench.add_argument("--steps", type=_count, default=1)
    bench.add_argument("--runs", type=_count, default=20, help="batches timed per size")
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
    _add_runtime(bench)
    bench.set_defaults(run=_bench)


def _add_bundle(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, help="bundle folder, the one with model.json")


def _add_runtime(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backend", choices=BACKENDS, default="onnx")
    parser.add_argument("--threads", type=_count, help="default: the runtime's own choice")


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def _export(options: argparse.Namespace) -> int:
    module = _import_framework("engines.export")
    spec = module.export_bundle(options.source, options.out, report=_report)
    size_bytes = sum(stage.size_bytes for stage in spec.stages.values())
    print(f"{options.out}: {spec.name}, three graphs, {size_bytes / 1e6:.1f} MB")
    return 0


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


def _check(options: argparse.Namespace) -> int:
    module = _import_framework("engines.check")
    report = module.check_bundle(
        options.bundle, options.torch, backend=options.backend, num_threads=options.threads
    )
    for comparison in report.comparisons:
        print(comparison)
    report.require()
    return 0


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


def _import_framework(name: str) -> Any:
    """Import a module that needs the training packages, and say so where they are missing."""
    try:
        module = importlib.import_module(name)
        loading = importlib.import_module("transformers.utils.logging")
    except ImportError as error:
        raise BackendError(
            f"this command needs {error.name}: pip install 'onestep[distill]'"
        ) from error
    # The commands report progress themselves; the frameworks' bars and notes would bury it.
    loading.disable_progress_bar()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    return module


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
