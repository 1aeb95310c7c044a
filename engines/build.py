"""From a bundle's ONNX graphs to TensorRT plans.

Owns parsing, optimisation profiles and how a plan appears on disk: locked, whole, listed with
its digest and fingerprint. Works over either package: `tensorrt` (data-centre GPUs, compiles on
the GPU that will run the plan) or `tensorrt_rtx` (RTX GPUs, compiles for a named capability on
any machine). Running plans is a backend's affair, not this module's.
"""

from __future__ import annotations

import fcntl
import importlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.errors import BackendError
from engines.profiles import BatchRange, EngineKey, EngineList, EngineRecord, input_shapes
from engines.spec import STAGES, ModelSpec, StageName, sha256_of

PACKAGES = {
    "tensorrt": "pip install 'onestep[tensorrt]'",
    "tensorrt_rtx": "pip install 'onestep[tensorrt-rtx]'",
}
CAPABILITIES = ("SM75", "SM80", "SM86", "SM89", "SM120", "SM121")
_REPORT_INTERVAL_S = 1.0
Report = Callable[[str], None]


@dataclass(frozen=True)
class Target:
    """What to compile for.

    Attributes:
        package: a key of `PACKAGES`.
        compute_capability: one of `CAPABILITIES`, or None for the GPU of this machine.
        batch: the batch sizes that the plan takes.
    """

    package: str
    compute_capability: str | None
    batch: BatchRange


def build_engines(
    bundle: Path, out: Path, target: Target, *, report: Report = lambda line: None
) -> list[EngineRecord]:
    """Compile the three stages of `bundle` into `out`, one plan each; a fresh plan is kept.

    Raises:
        BundleError: a graph is missing or damaged.
        BackendError: the package is missing, refuses a graph, or fails to compile it.
    """
    bundle, out = Path(bundle), Path(out)
    spec = ModelSpec.load(bundle)
    spec.verify(bundle)
    trt = _import(target)
    capability = target.compute_capability or _local_capability()
    out.mkdir(parents=True, exist_ok=True)
    records = []
    with _locked(out, report):
        for stage in STAGES:
            graph = spec.graph_path(bundle, stage)
            key = EngineKey(
                graph_sha256=spec.stages[stage].sha256,
                package=target.package,
                package_version=trt.__version__,
                compute_capability=capability,
                batch=target.batch,
                sizes_px=spec.sizes_px,
            )
            listed = EngineList.load(out)
            record = listed.find(out, key)
            if record is None:
                start_s = time.monotonic()
                plan = _compile(trt, graph, spec, stage, target, report)
                record = _write(out, stage, key, plan, time.monotonic() - start_s)
                listed.having(record).save(out)
            else:
                report(f"{stage}: {record.file} is up to date")
            records.append(record)
    return records


def parse_graph(trt: Any, builder: Any, graph: Path, logger: Any) -> Any:
    """Parse an ONNX file into a network; the network is strongly typed, as all are since 11.0.

    Raises:
        BackendError: the parser refuses the graph; its first complaint is in the message.
    """
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(graph.read_bytes()):
        complaint = parser.get_error(0).desc() if parser.num_errors else "no reason given"
        raise BackendError(f"{trt.__name__} refuses {graph}: {complaint.strip()}")
    return network


def _import(target: Target) -> Any:
    if target.package not in PACKAGES:
        raise BackendError(f"unknown package {target.package!r}: choose {' or '.join(PACKAGES)}")
    if target.compute_capability is not None and target.package != "tensorrt_rtx":
        raise BackendError(
            f"{target.package} compiles for the GPU of this machine alone: "
            "leave --compute-capability out, or use --package tensorrt_rtx"
        )
    try:
        return importlib.import_module(target.package)
    except ImportError as error:
        raise BackendError(f"{target.package} is missing: {PACKAGES[target.package]}") from error


def _local_capability() -> str:
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        lines = []
    if not lines:
        raise BackendError(
            "no GPU found here: give --compute-capability "
            f"({', '.join(CAPABILITIES)}) with --package tensorrt_rtx"
        )
    return f"SM{lines[0].replace('.', '')}"


def _compile(
    trt: Any, graph: Path, spec: ModelSpec, stage: StageName, target: Target, report: Report
) -> bytes:
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    report(f"{stage}: parsing {graph.name}")
    network = parse_graph(trt, builder, graph, logger)
    config = builder.create_builder_config()
    if target.compute_capability is not None:
        config.num_compute_capabilities = 1
        capability = getattr(trt.ComputeCapability, target.compute_capability)
        if not config.set_compute_capability(capability, 0):
            raise BackendError(f"{target.package} cannot compile for {target.compute_capability}")
    profile = builder.create_optimization_profile()
    for name, shapes in input_shapes(spec, stage, target.batch).items():
        profile.set_shape(name, *shapes)
    if config.add_optimization_profile(profile) < 0:
        raise BackendError(f"{target.package} refuses batch {target.batch} for the {stage} stage")
    monitor = _monitor(trt, stage, report)
    config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BackendError(
            f"{target.package} could not compile {graph}: its own log above says why"
        )
    return bytes(plan)


def _monitor(trt: Any, stage: StageName, report: Report) -> Any:
    """A progress monitor; its base class exists only once the package is imported."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc] # the base is known at run time only
        def __init__(self) -> None:
            super().__init__()
            self._num_steps: dict[str, int] = {}
            self._last_s = time.monotonic()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._num_steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            now_s = time.monotonic()
            if now_s - self._last_s >= _REPORT_INTERVAL_S:
                self._last_s = now_s
                report(f"{stage}: {phase_name} {step + 1}/{self._num_steps.get(phase_name, '?')}")
            return True

        def phase_finish(self, phase_name: str) -> None:
            self._num_steps.pop(phase_name, None)

    return Monitor()


def _write(
    out: Path, stage: StageName, key: EngineKey, plan: bytes, build_s: float
) -> EngineRecord:
    batch = str(key.batch).replace(":", "-")
    path = out / f"{stage}-{key.package}-{key.compute_capability}-b{batch}.plan"
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        partial.write_bytes(plan)
        partial.replace(path)
    except OSError as error:
        raise BackendError(f"cannot write {path}: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
    return EngineRecord(
        stage=stage,
        file=path.name,
        sha256=sha256_of(path),
        size_bytes=len(plan),
        fingerprint=key.fingerprint,
        key=key,
        build_s=round(build_s, 3),
    )


@contextmanager
def _locked(out: Path, report: Report) -> Iterator[None]:
    """Let one build at a time write into `out`."""
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(f"waiting for another build in {out}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
