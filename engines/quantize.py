"""A variant of a bundle whose convolutions and matrix products run in 8 bits.

Owns calibration with the bundle's own pictures, the choice of nodes that stay in float, and how
the new graphs join the bundle. How a graph is rewritten is in `engines.qdq`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from engines.errors import BackendError, ExportError
from engines.qdq import (
    SWITCHES,
    Candidate,
    Quantized,
    candidates,
    make_switchable,
    quantize,
    watched,
)
from engines.recording import PROMPTS, Call, mean_error, record
from engines.runtime.base import RuntimeOptions, stage_inputs, stage_outputs
from engines.runtime.onnx import OnnxStage
from engines.runtime.registry import load_stages
from engines.spec import ModelSpec, StageFile, StageName, sha256_of
from engines.tokenizer import Tokenizer

# Mean error of a stage's output that is left alone, over the output's mean absolute value.
TARGET_ERROR = 0.02
# Shares of the candidates that go back to float, one after the other, in search of the target.
_FLOAT_SHARES = (0.05, 0.1, 0.2, 0.35, 0.5)
_NUM_CALIBRATION_PROMPTS = 16
# The search runs the stage once per node: a few rows of the first calls must do.
_NUM_SEARCH_ROWS = 2
Report = Callable[[str], None]


@dataclass(frozen=True)
class Recipe:
    """What to make.

    Attributes:
        precision: of the new variant.
        stages: that are quantised; the others are shared with the base.
        prompts: to calibrate with; empty takes the model's own examples.
        target_error: above it, the worst nodes stay in float.
        num_threads: of the CPU; None leaves the choice to the runtime.
    """

    precision: Quantized = "int8"
    stages: tuple[StageName, ...] = ("denoise", "decode")
    prompts: tuple[str, ...] = ()
    target_error: float = TARGET_ERROR
    num_threads: int | None = None


@dataclass(frozen=True)
class StageOutcome:
    """How one stage came out.

    Attributes:
        num_quantized: nodes in 8 bits.
        num_candidates: nodes that could be.
        error: mean error of the output on the calibration's inputs, over its mean absolute value;
            the worst call counts.
    """

    num_quantized: int
    num_candidates: int
    error: float


def quantize_bundle(
    bundle: Path, recipe: Recipe, *, report: Report = lambda line: None
) -> dict[StageName, StageOutcome]:
    """Add a variant to `bundle`; what model.json listed before stays whole until the end.

    Raises:
        BundleError: a file is missing or damaged.
        BackendError: ONNX Runtime cannot run a graph.
        ExportError: the bundle's base is no float32, or a stage holds nothing to quantise.
    """
    bundle = Path(bundle)
    spec = ModelSpec.load(bundle)
    spec.verify(bundle)
    if spec.base_precision != "float32":
        raise ExportError(
            f"{spec.name} is in {spec.base_precision}: quantise a bundle whose base is float32"
        )
    report("drawing pictures to calibrate with")
    calls = _calibration(bundle, spec, recipe)
    outcomes: dict[StageName, StageOutcome] = {}
    files: dict[StageName, StageFile] = {}
    for stage in recipe.stages:
        work = _StageWork(bundle, spec, stage, recipe, calls[stage], report)
        model, outcomes[stage] = work.run()
        files[stage] = _write(bundle, stage, model, recipe.precision)
    _join(bundle, spec, recipe.precision, files)
    return outcomes


def _calibration(bundle: Path, spec: ModelSpec, recipe: Recipe) -> dict[StageName, list[Call]]:
    prompts = recipe.prompts or (*spec.examples, *PROMPTS)[:_NUM_CALIBRATION_PROMPTS]
    options = RuntimeOptions("float32", recipe.num_threads)
    stages = load_stages("onnx", bundle, spec, options)
    return record(spec, Tokenizer.load(bundle, spec), stages, prompts)


@dataclass
class _StageWork:
    """One stage on its way to 8 bits."""

    bundle: Path
    spec: ModelSpec
    stage: StageName
    recipe: Recipe
    calls: list[Call]
    report: Report
    largest: dict[str, float] = field(default_factory=dict)

    def run(self) -> tuple[ir.Model, StageOutcome]:
        """Calibrate, quantise, and take nodes back until the error is small enough."""
        model = self._load()
        found = candidates(model)
        if not found:
            raise ExportError(
                f"the {self.stage} stage holds nothing to quantise: leave it out of --stages"
            )
        self.largest = self._calibrate(model, found)
        error = self._error(found, self.calls)
        self.report(f"{self.stage}: all {len(found)} nodes in 8 bits, error {error:.4f}")
        chosen = found
        if error > self.recipe.target_error:
            chosen, error = self._search(found)
        return self._quantized(chosen), StageOutcome(len(chosen), len(found), error)

    def _search(self, found: list[Candidate]) -> tuple[list[Candidate], float]:
        """Leave the nodes in float that hurt most, each measured alone in 8 bits."""
        self.report(f"{self.stage}: measuring {len(found)} nodes one by one")
        model = self._load()
        make_switchable(model, found, self.largest, self.recipe.precision)
        run = self._session(model)
        some = [_first_rows(call) for call in self.calls[: self.spec.max_steps]]
        inputs, (output, *_) = self._names()

        def alone(switches_N: NDArray[np.bool_]) -> float:
            errors = []
            for call in some:
                feed = dict(zip(inputs, call.inputs, strict=True)) | {SWITCHES: switches_N}
                errors.append(mean_error(run([output], feed)[0], call.outputs[0]))
            return max(errors)

        alone_N = np.array([alone(row) for row in np.eye(len(found), dtype=np.bool_)])
        worst_N = np.argsort(-alone_N, kind="stable")
        for share in _FLOAT_SHARES:
            kept = set(worst_N[: max(1, round(len(found) * share))].tolist())
            chosen = [node for index, node in enumerate(found) if index not in kept]
            error = self._error(chosen, self.calls)
            self.report(f"{self.stage}: {len(kept)} nodes in float, error {error:.4f}")
            if error <= self.recipe.target_error:
                break
        return chosen, error

    def _load(self) -> ir.Model:
        return ir.load(self.spec.graph_path(self.bundle, self.stage, "float32"))

    def _calibrate(self, model: ir.Model, found: list[Candidate]) -> dict[str, float]:
        names = watched(model, {candidate.activation for candidate in found})
        largest = dict.fromkeys(names, 0.0)
        outputs = [f"{name}.largest" for name in names]
        run = self._session(model)
        for call in self.calls:
            seen = run(outputs, dict(zip(self._names()[0], call.inputs, strict=True)))
            for name, value in zip(names, seen, strict=True):
                largest[name] = max(largest[name], float(value))
        return largest

    def _names(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return stage_inputs(self.spec, self.stage), stage_outputs(self.spec, self.stage)

    def _session(self, model: ir.Model) -> Any:
        """The run function of a graph that has other inputs or outputs than a stage's."""
        options = onnxruntime.SessionOptions()
        if self.recipe.num_threads is not None:
            options.intra_op_num_threads = self.recipe.num_threads
        try:
            with _saved(model) as path:
                session = onnxruntime.InferenceSession(
                    str(path), options, providers=["CPUExecutionProvider"]
                )
        except Exception as error:  # the library's exceptions share no base class
            reason = str(error).strip().partition("\n")[0]
            raise BackendError(
                f"ONNX Runtime cannot load the {self.stage} stage: {reason}"
            ) from error
        return session.run

    def _quantized(self, chosen: list[Candidate]) -> ir.Model:
        model = self._load()
        quantize(model, chosen, self.largest, self.recipe.precision)
        return model

    def _error(self, chosen: list[Candidate], calls: Sequence[Call]) -> float:
        with _saved(self._quantized(chosen)) as path:
            stage = OnnxStage(path, self.spec, self.stage, self.recipe.num_threads)
        return max(mean_error(stage(*call.inputs)[0], call.outputs[0]) for call in calls)


def _first_rows(call: Call) -> Call:
    return Call(
        tuple(array[:_NUM_SEARCH_ROWS] for array in call.inputs),
        tuple(array[:_NUM_SEARCH_ROWS] for array in call.outputs),
    )


@contextmanager
def _saved(model: ir.Model) -> Iterator[Path]:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        ir.save(model, path)
        yield path


def _write(bundle: Path, stage: StageName, model: ir.Model, precision: Quantized) -> StageFile:
    """Write a graph under a name of its own: nothing that is listed already is touched."""
    partial = bundle / f".{stage}.{precision}.{os.getpid()}.partial"
    try:
        ir.save(model, partial)
        digest = sha256_of(partial)
        path = bundle / f"{stage}.{precision}-{digest[:8]}.onnx"
        partial.replace(path)
    except OSError as error:
        raise ExportError(f"cannot write to {bundle}: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
    return StageFile(file=path.name, sha256=digest, size_bytes=path.stat().st_size)


def _join(
    bundle: Path, spec: ModelSpec, precision: Quantized, files: dict[StageName, StageFile]
) -> None:
    """List the new graphs in model.json, which is what makes them part of the bundle."""
    old = spec.variants.get(precision, {})
    # What was measured of the old graphs says nothing of the new ones.
    preferred = tuple(entry for entry in spec.preferred if entry.precision != precision)
    update = {"variants": spec.variants | {precision: files}, "preferred": preferred}
    try:
        spec.model_copy(update=update).save(bundle)
    except OSError as error:
        raise ExportError(f"cannot write to {bundle}: {error.strerror}") from error
    kept = {entry.file for entry in files.values()}
    for entry in old.values():
        if entry.file not in kept:
            (bundle / entry.file).unlink(missing_ok=True)
