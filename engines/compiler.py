"""TensorRT itself: from a graph to the bytes of a plan, or from a plan and new weights to another.

Owns every call of either package, `tensorrt` (data-centre GPUs, compiles on the GPU that will run
the plan) or `tensorrt_rtx` (RTX GPUs, compiles for a named capability on any machine), and the
translation of their errors. Knows nothing of folders of plans. Running plans is a backend's affair.
"""

from __future__ import annotations

import importlib
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engines.errors import BackendError
from engines.profiles import CAPABILITIES, PACKAGES, BatchRange, Platform, input_shapes
from engines.progress import Phases
from engines.spec import ModelSpec

# From here on every GPU runs what TensorRT for RTX compiled; before, those of its own list alone.
_FIRST_WITHOUT_GAPS = 120
_EXTRAS = {"tensorrt": "onestep[tensorrt]", "tensorrt_rtx": "onestep[tensorrt-rtx]"}
# TensorRT for RTX tunes on the machine that runs a plan; its timing cache does nothing.
_MEASURING_PACKAGE = "tensorrt"
OnProgress = Callable[[str, float], None]


class Compiler:
    """One package, set to compile for one kind of GPU.

    Attributes:
        platform: what its plans run on.
        timings: the timing cache, to be loaded before the first plan and saved after the last;
            stays empty where the package has none.
    """

    def __init__(self, package: str, compute_capability: str | None) -> None:
        """Load `package`; the capability is one of `CAPABILITIES`, or None for this machine's GPU.

        Raises:
            BackendError: the package is missing, or cannot compile for that.
        """
        self._trt = import_package(package, compute_capability)
        self._capability = compute_capability
        found = compute_capability or _local_capability()
        if package == "tensorrt_rtx":
            _require_runnable(found)
        self.platform = Platform(
            package=package,
            package_version=self._trt.__version__,
            compute_capability=found,
        )
        self.timings = b""

    @property
    def keeps_timings(self) -> bool:
        """Whether the package has a timing cache that does something."""
        return self.platform.package == _MEASURING_PACKAGE

    def compile(
        self,
        graph: Path,
        spec: ModelSpec,
        batch: BatchRange,
        *,
        refit: bool = False,
        on_progress: OnProgress = lambda phase, fraction: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> bytes:
        """Compile a graph; a cancelled compilation ends at its next step.

        Raises:
            BackendError: the package refuses the graph, cannot compile it or was cancelled.
        """
        trt, name = self._trt, self.platform.package
        logger = _logger(trt)
        builder = trt.Builder(logger)
        network = parse_graph(trt, builder, graph, logger)
        config = builder.create_builder_config()
        if self._capability is not None:
            config.num_compute_capabilities = 1
            capability = getattr(trt.ComputeCapability, self._capability)
            if not config.set_compute_capability(capability, 0):
                raise BackendError(f"{name} cannot compile for {self._capability}")
        if refit:
            config.set_flag(trt.BuilderFlag.REFIT)
        profile = builder.create_optimization_profile()
        for index in range(network.num_inputs):
            tensor = network.get_input(index)
            profile.set_shape(
                tensor.name, *input_shapes(spec, tensor.name, tuple(tensor.shape), batch)
            )
        if config.add_optimization_profile(profile) < 0:
            raise BackendError(f"{name} refuses batch {batch} for {graph}")
        if self.keeps_timings:
            attach_timings(config, self.timings)
        monitor = _monitor(trt, on_progress, cancelled)
        config.progress_monitor = monitor
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise BackendError(self._complaint(graph, logger.errors, refit))
        if self.keeps_timings:
            self.timings = timings_of(config)
        return bytes(plan)

    def refit(self, plan: bytes, graph: Path) -> bytes:
        """Put the weights of `graph` into a refittable plan of the same architecture.

        Runs on the GPU that the plan is for.

        Raises:
            BackendError: there is no such GPU, or the plan does not take the weights.
        """
        trt, name = self._trt, self.platform.package
        logger = _logger(trt)
        runtime = trt.Runtime(logger)
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise BackendError(f"{name} cannot load the older plan{_reason(logger.errors)}")
        if not engine.refittable:
            raise BackendError("the older plan takes no other weights")
        refitter = trt.Refitter(engine, logger)
        parser_refitter = trt.OnnxParserRefitter(refitter, logger)
        if not parser_refitter.refit_from_file(str(graph)):
            complaint = ""
            if parser_refitter.num_errors:
                complaint = f": {_first_line(parser_refitter.get_error(0).desc())}"
            raise BackendError(f"{name} cannot take the weights of {graph}{complaint}")
        missing = refitter.get_missing_weights()
        if missing:
            raise BackendError(f"{graph} lacks weights that the older plan has: {missing[0]}")
        if not refitter.refit_cuda_engine():
            raise BackendError(f"{name} could not refit the older plan{_reason(logger.errors)}")
        serialization = engine.create_serialization_config()
        # Without this flag the new plan would be the last one that takes weights.
        serialization.set_flag(trt.SerializationFlag.INCLUDE_REFIT)
        refitted = engine.serialize_with_config(serialization)
        if refitted is None:
            raise BackendError(f"{name} could not save the plan{_reason(logger.errors)}")
        return bytes(refitted)

    def _complaint(self, graph: Path, errors: list[str], refit: bool) -> str:
        text = f"{self.platform.package} could not compile {graph}{_reason(errors)}"
        if refit and self.platform.package == "tensorrt_rtx":
            # Seen with 1.7: such a plan is compiled to machine code at once, by the driver.
            text += "; a refittable plan takes a GPU to compile: leave --refit out or build there"
        return text


def import_package(package: str, compute_capability: str | None = None) -> Any:
    """Import a package of TensorRT.

    Raises:
        BackendError: it is unknown or missing, or compiles for no named capability.
    """
    if package not in PACKAGES:
        raise BackendError(f"unknown package {package!r}: choose {' or '.join(PACKAGES)}")
    if compute_capability is not None and package != "tensorrt_rtx":
        raise BackendError(
            f"{package} compiles for the GPU of this machine alone: "
            "leave --compute-capability out, or use --package tensorrt_rtx"
        )
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise BackendError(f"{package} is missing: pip install '{_EXTRAS[package]}'") from error


def parse_graph(trt: Any, builder: Any, graph: Path, logger: Any) -> Any:
    """Parse an ONNX file into a network; the network is strongly typed, as all are since 11.0.

    Raises:
        BackendError: the parser refuses the graph; its first complaint is in the message.
    """
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    # From the file, so that weights beside it are found.
    if not parser.parse_from_file(str(graph)):
        complaint = parser.get_error(0).desc() if parser.num_errors else "no reason given"
        raise BackendError(f"{trt.__name__} refuses {graph}: {_first_line(complaint)}")
    return network


def attach_timings(config: Any, timings: bytes) -> None:
    """Give a build the timing cache; one that does not fit the GPU is dropped for an empty one."""
    cache = config.create_timing_cache(timings)
    if cache is None or not config.set_timing_cache(cache, False):
        config.set_timing_cache(config.create_timing_cache(b""), False)


def timings_of(config: Any) -> bytes:
    """The timing cache after a build, with what it measured."""
    cache = config.get_timing_cache()
    memory = None if cache is None else cache.serialize()
    return b"" if memory is None else bytes(memory)


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


def _require_runnable(capability: str) -> None:
    """Refuse what TensorRT for RTX compiles without a word and then does not load.

    Seen with 1.7 on an H200: "Supported compute capabilities: 8.0 8.6 8.9 12.0 12.1 >12.0".
    """
    if capability in CAPABILITIES or int(capability[2:]) > _FIRST_WITHOUT_GAPS:
        return
    raise BackendError(
        f"TensorRT for RTX does not run on {capability}, only on {', '.join(CAPABILITIES)} and "
        f"newer: pip install '{_EXTRAS['tensorrt']}' and build with --package tensorrt"
    )


def _logger(trt: Any) -> Any:
    """A logger that keeps errors for the message; its base exists only once a package is loaded."""

    class Logger(trt.ILogger):  # type: ignore[misc] # the base is known at run time only
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(_first_line(message))

    return Logger()


def _monitor(trt: Any, on_progress: OnProgress, cancelled: Callable[[], bool]) -> Any:
    """A progress monitor; its base exists only once a package is loaded."""
    phases = Phases()

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc] # the base is known at run time only
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            phases.start(phase_name, num_steps)
            on_progress(phases.name, phases.fraction)

        def step_complete(self, phase_name: str, step: int) -> bool:
            phases.step(phase_name, step)
            on_progress(phases.name, phases.fraction)
            return not cancelled()

        def phase_finish(self, phase_name: str) -> None:
            phases.finish(phase_name)
            on_progress(phases.name, phases.fraction)

    return Monitor()


def _reason(errors: list[str]) -> str:
    return f": {errors[0]}" if errors else ""


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]
