"""onestep-engines pull | export | build | check | bench: a trained model made servable.

Owns arguments, printed lines and exit codes: 0 done, 1 pictures differ, 2 anything else that a
user can mend. A framework is imported only by the command that needs it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from engines.commands import add_export, add_pull, import_framework, report
from engines.errors import BackendError, EnginesError, ParityError
from engines.runtime.registry import BACKENDS

_EXIT_DIFFERENT = 1
_EXIT_UNUSABLE = 2


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="onestep-engines", description="From a trained model to something fast."
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    add_pull(commands)
    add_export(commands)

    build = commands.add_parser("build", help="compile a bundle's graphs with TensorRT")
    _add_bundle(build)
    build.add_argument("--out", type=Path, help="folder for the plans (default: BUNDLE/engines)")
    build.add_argument("--package", choices=("tensorrt", "tensorrt_rtx"), default="tensorrt_rtx")
    build.add_argument(
        "--compute-capability",
        choices=("SM75", "SM80", "SM86", "SM89", "SM120", "SM121"),
        help="GPU to compile for, with tensorrt_rtx (default: the GPU of this machine)",
    )
    build.add_argument(
        "--batch",
        action="append",
        help="N, or MIN:OPT:MAX; repeat it for several plans (default: 1:4:16)",
    )
    build.set_defaults(run=_build)

    check = commands.add_parser("check", help="compare a bundle's pictures with torch's")
    _add_bundle(check)
    check.add_argument("--torch", type=Path, required=True, help="torch folder of the same model")
    _add_runtime(check)
    check.set_defaults(run=_check)

    bench = commands.add_parser("bench", help="time a bundle's stages per batch size")
    _add_bundle(bench)
    bench.add_argument("--batch", type=_count, nargs="+", default=[1, 2, 4, 8, 16])
    bench.add_argument("--steps", type=_count, default=1)
    bench.add_argument("--runs", type=_count, default=20, help="batches timed per size")
    bench.add_argument("--json", type=Path, help="write the numbers here too; - for the output")
    _add_runtime(bench)
    bench.set_defaults(run=_bench)
    return parser


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


def _build(options: argparse.Namespace) -> int:
    from engines.build import Target, build_engines
    from engines.profiles import BatchRange

    try:
        ranges = [BatchRange.parse(text) for text in options.batch or ["1:4:16"]]
    except ValueError as error:
        raise BackendError(f"--batch: {error}") from error
    out = options.out or options.bundle / "engines"
    for batch in ranges:
        target = Target(options.package, options.compute_capability, batch)
        for record in build_engines(options.bundle, out, target, report=report):
            size_mb = record.size_bytes / 1e6
            print(f"{out / record.file}: {size_mb:.1f} MB, built in {record.build_s:.1f} s")
    return 0


def _check(options: argparse.Namespace) -> int:
    module = import_framework("engines.check")
    parity = module.check_bundle(
        options.bundle, options.torch, backend=options.backend, num_threads=options.threads
    )
    for comparison in parity.comparisons:
        print(comparison)
    parity.require()
    return 0


def _bench(options: argparse.Namespace) -> int:
    from engines.bench import bench, table
    from engines.pipeline import Pipeline

    pipeline = Pipeline.load(options.bundle, backend=options.backend, num_threads=options.threads)
    if options.steps > pipeline.spec.max_steps:
        raise BackendError(f"--steps: the model knows 1..{pipeline.spec.max_steps}")
    result = bench(pipeline, options.batch, steps=options.steps, num_runs=options.runs)
    result |= {"backend": options.backend, "threads": options.threads, "cpus": os.cpu_count()}
    as_json = json.dumps(result, indent=2)
    if options.json == Path("-"):
        print(as_json)
        return 0
    print(table(result))
    if options.json is not None:
        options.json.write_text(as_json + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
