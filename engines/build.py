"""From a bundle's ONNX graphs to a folder of TensorRT plans.

Owns which plans are kept, made from older ones or compiled, and in what order things reach the
disk, so that a build that dies at any moment leaves no listed plan that is not whole. TensorRT is
`engines.compiler`'s affair; the list and its files are `engines.plans`'.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from engines.compiler import Compiler
from engines.disk import locked, remove_partials, set_aside, sync_folder, write_whole
from engines.errors import BackendError, DamagedPlanError
from engines.plans import CACHE_SUFFIX, ENGINES_FILE, EngineList, EngineRecord, is_whole
from engines.profiles import (
    DEFAULT_BATCHES,
    BatchRange,
    EngineKey,
    StageGraph,
    engine_key,
    stage_graphs,
)
from engines.progress import Lines, Progress, run_cancellable
from engines.spec import ModelSpec, Precision
from engines.timings import load_timings, save_timings

_PLAN_NAME = re.compile(r".+-tensorrt(_rtx)?-SM\d+-b[\d-]+-[0-9a-f]{8}\.plan")


@dataclass(frozen=True)
class Target:
    """What to compile for.

    Attributes:
        package: one of `engines.profiles.PACKAGES`.
        compute_capability: one of `engines.profiles.CAPABILITIES`, or None for this machine's GPU.
        batches: one plan per stage is made for each; a size alone is a plan of fixed shapes.
        refit: make plans that take other weights later, and use such plans where they are there.
        precision: which graphs of the bundle; None takes its base.
    """

    package: str
    compute_capability: str | None
    batches: tuple[BatchRange, ...] = tuple(BatchRange.of(size) for size in DEFAULT_BATCHES)
    refit: bool = False
    precision: Precision | None = None


def build_engines(
    bundle: Path, out: Path, target: Target, *, progress: Progress | None = None
) -> list[EngineRecord]:
    """Make `out` hold a plan for every stage of `bundle` and batch; whole ones are kept.

    Raises:
        BundleError: a graph is missing or damaged, or the bundle has none in that precision.
        BackendError: the package is missing, refuses a graph, or fails to compile it.
        KeyboardInterrupt: it was cancelled; plans that were finished are kept.
    """
    bundle, out = Path(bundle), Path(out)
    progress = progress or Lines(lambda line: None)
    spec = ModelSpec.load(bundle)
    graphs = stage_graphs(bundle, spec, target.precision)
    spec.verify(bundle)
    compiler = Compiler(target.package, target.compute_capability)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out, lambda: progress.line(f"waiting for another build in {out}")):
        build = _Build(spec, out, compiler, progress)
        build.prepare()
        records = []
        for graph in graphs:
            key = engine_key(graph, spec.sizes_px, compiler.platform, target.batches[0])
            for batch in target.batches:
                update = {"batch": batch, "refit": target.refit}
                records.append(build.plan(graph, key.model_copy(update=update)))
        return records


class _Build:
    """One build, holding the lock."""

    def __init__(self, spec: ModelSpec, out: Path, compiler: Compiler, progress: Progress) -> None:
        self._spec = spec
        self._out = out
        self._compiler = compiler
        self._progress = progress
        self._listed = EngineList()

    def prepare(self) -> None:
        """Clear away what dead builds left and read the list and the timing cache."""
        num_partials = remove_partials(self._out)
        if num_partials:
            self._progress.line(f"removed {num_partials} half-written files of a build that died")
        try:
            self._listed = EngineList.load(self._out)
        except DamagedPlanError as error:
            aside = set_aside(self._out / ENGINES_FILE)
            self._progress.line(f"{error}; set aside as {aside.name}, building anew")
        # A plan that a dead build wrote and did not list, or replaced and did not remove.
        listed = {record.file for record in self._listed.engines}
        for path in self._out.glob("*.plan"):
            if _PLAN_NAME.fullmatch(path.name) and path.name not in listed:
                self._remove(path)
                self._progress.line(f"removed {path.name}, which is not listed")
        if self._compiler.keeps_timings:
            self._compiler.timings, ignored = load_timings(self._out, self._compiler.platform)
            if ignored:
                self._progress.line(ignored)

    def plan(self, graph: StageGraph, key: EngineKey) -> EngineRecord:
        """The plan for a key: kept, refitted or compiled."""
        name = f"{graph.path.stem} batch {key.batch}"
        record = self._listed.find(key)
        if record is not None:
            if is_whole(self._out, record):
                self._progress.line(f"{name}: {record.file} is up to date")
                return record
            self._drop(name, record)
        start_s = time.monotonic()
        plan = self._refit(name, graph, key)
        made_by: Literal["compile", "refit"] = "refit" if plan else "compile"
        plan = plan or self._compile(name, graph, key)
        made = EngineRecord(
            file=_plan_name(graph, key),
            graph_file=graph.path.name,
            sha256=hashlib.sha256(plan).hexdigest(),
            size_bytes=len(plan),
            fingerprint=key.fingerprint,
            key=key,
            made_by=made_by,
            build_s=round(time.monotonic() - start_s, 3),
        )
        self._keep(made, plan)
        return made

    def _drop(self, name: str, record: EngineRecord) -> None:
        """Unlist a plan that is not whole before another is written under its name."""
        path = self._out / record.file
        if path.is_file():
            self._progress.line(f"{name}: {path} is damaged, set aside as {set_aside(path).name}")
        else:
            self._progress.line(f"{name}: {path} is missing")
        self._listed = self._listed.without(record)
        self._listed.save(self._out)

    def _keep(self, record: EngineRecord, plan: bytes) -> None:
        """Write a plan, then list it, then remove those that it replaces: in that order."""
        write_whole(self._out / record.file, plan)
        replaced = [other for other in self._listed.engines if record.replaces(other)]
        self._listed = self._listed.having(record)
        self._listed.save(self._out)
        for other in replaced:
            if other.file != record.file:
                self._remove(self._out / other.file)
        sync_folder(self._out)

    @staticmethod
    def _remove(path: Path) -> None:
        """Remove a plan, and before it what a runtime keeps of it."""
        path.with_suffix(CACHE_SUFFIX).unlink(missing_ok=True)
        path.unlink(missing_ok=True)

    def _refit(self, name: str, graph: StageGraph, key: EngineKey) -> bytes | None:
        """A plan out of an older one with other weights; None where that cannot be."""
        base = self._listed.refit_base(key)
        if base is None or not is_whole(self._out, base):
            return None
        self._progress.show(name, f"refitting {base.file}", 0.0)
        try:
            plan = self._compiler.refit((self._out / base.file).read_bytes(), graph.path)
        except BackendError as error:
            self._progress.line(f"{name}: {error}; compiling instead")
            return None
        self._progress.show(name, "refitted", 1.0)
        return plan

    def _compile(self, name: str, graph: StageGraph, key: EngineKey) -> bytes:
        def compile_plan(cancelled: Callable[[], bool]) -> bytes:
            self._progress.line(f"{name}: compiling")
            return self._compiler.compile(
                graph.path,
                self._spec,
                key.batch,
                refit=key.refit,
                on_progress=lambda phase, fraction: self._progress.show(name, phase, fraction),
                cancelled=cancelled,
            )

        def on_cancel() -> None:
            self._progress.line(f"{name}: stopping at the next step; Ctrl-C again stops at once")

        plan = run_cancellable(compile_plan, on_cancel)
        if self._compiler.timings:
            save_timings(self._out, self._compiler.platform, self._compiler.timings)
        return plan


def _plan_name(graph: StageGraph, key: EngineKey) -> str:
    """A name that `_PLAN_NAME` matches; with the fingerprint, so that no plan overwrites another.

    A listed plan is therefore never another key's file, whenever a build dies.
    """
    platform = key.platform
    batch = str(key.batch).replace(":", "-")
    return (
        f"{graph.path.stem}-{platform.package}-{platform.compute_capability}-b{batch}"
        f"-{key.fingerprint[:8]}.plan"
    )
