"""`onestep-engines bench`: from a shell's words to configurations, and from a result to files.

Owns the reading of BACKEND[:PRECISION] and the checks that come before an hour of measuring.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from engines.bench.chart import draw, require_drawable
from engines.bench.measure import Configuration, Device, Plan
from engines.bench.report import Subject, bench
from engines.bench.table import table
from engines.errors import BackendError
from engines.pipeline import Pipeline
from engines.runtime.registry import BACKENDS
from engines.spec import ModelSpec

_STANDARD_OUTPUT = Path("-")


@dataclass(frozen=True)
class Options:
    """The command's arguments.

    Attributes:
        bundle: folder with model.json and the graphs; for a torch backend without `torch_folder`,
            the torch folder itself.
        backends: BACKEND[:PRECISION], the reference first.
        torch_folder: what the torch backends load, beside a bundle.
        batch_sizes: measured one after another.
        steps: denoise steps.
        num_runs: batches timed per size and configuration.
        num_threads: None leaves the choice to the runtimes.
        json: file for the result; "-" prints it instead of the table.
        plot: .svg or .png file.
    """

    bundle: Path
    backends: Sequence[str]
    torch_folder: Path | None
    batch_sizes: Sequence[int]
    steps: int
    num_runs: int
    num_threads: int | None
    json: Path | None = None
    plot: Path | None = None


def run(options: Options) -> None:
    """Measure, print and write.

    Raises:
        BackendError: an argument that the model or this installation cannot follow.
        BundleError: a folder is missing or damaged.
        OSError: a file cannot be written.
    """
    _require_writable(options)
    configurations = [configuration(text, options) for text in options.backends]
    names = [entry.name for entry in configurations]
    if len(set(names)) < len(names):
        raise BackendError(f"--compare: name each configuration once, got {', '.join(names)}")
    spec = ModelSpec.load(options.bundle)
    if options.steps > spec.max_steps:
        raise BackendError(f"--steps: the model knows 1..{spec.max_steps}")
    plan = Plan(
        tuple(dict.fromkeys(options.batch_sizes)),
        spec.sizes_px[0],
        steps=options.steps,
        num_runs=options.num_runs,
    )
    subject = Subject(spec, options.bundle, configurations, options.num_threads)
    result = bench(subject, plan)
    as_json = json.dumps(result, indent=2)
    print(as_json if options.json == _STANDARD_OUTPUT else table(result))
    if options.json not in (None, _STANDARD_OUTPUT):
        assert options.json is not None
        options.json.write_text(as_json + "\n", encoding="utf-8")
    if options.plot is not None:
        draw(result, options.plot)


def configuration(text: str, options: Options) -> Configuration:
    """What BACKEND[:PRECISION] means.

    Raises:
        BackendError: the backend is unknown.
    """
    backend, _, precision = text.partition(":")
    if backend not in BACKENDS:
        raise BackendError(
            f"{text}: unknown backend {backend!r}, choose one of {', '.join(BACKENDS)}"
        )
    folder = options.bundle
    if backend.startswith("torch") and options.torch_folder is not None:
        folder = options.torch_folder
    settings: dict[str, Any] = {"backend": backend, "num_threads": options.num_threads}
    if precision:
        settings["precision"] = precision
    return Configuration(text, partial(Pipeline.load, folder, **settings), _device(backend))


def _device(backend: str) -> Device:
    is_on_gpu = backend.endswith("cuda") or backend.startswith("tensorrt")
    return "cuda" if is_on_gpu else "cpu"


def _require_writable(options: Options) -> None:
    """Fail before measuring where a result would be lost after it."""
    if options.plot is not None:
        require_drawable(options.plot)
    for path in (options.json, options.plot):
        if path is not None and path != _STANDARD_OUTPUT and not path.parent.is_dir():
            raise FileNotFoundError(2, "No such file or directory", str(path))
