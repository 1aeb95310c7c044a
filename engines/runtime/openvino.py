"""The OpenVINO backend, on the CPU.

Owns how a graph is compiled for latency and in float32, requests that threads share, and the
translation of OpenVINO's errors. It reads the bundle's own ONNX graphs. Knows nothing of prompts,
seeds or schedules.
"""

from __future__ import annotations

import queue
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

from engines.errors import BackendError, BundleError
from engines.runtime.base import RuntimeOptions, Stages, stage_inputs, stage_outputs
from engines.spec import ModelSpec, StageName


class OpenVinoStage:
    """One compiled graph, and the requests that are free at the moment."""

    def __init__(
        self, core: Any, path: Path, spec: ModelSpec, stage: StageName, num_threads: int | None
    ) -> None:
        """Compile the graph; weights stored in half are folded to float here."""
        self._stage = stage
        self._inputs = stage_inputs(spec, stage)
        self._outputs = stage_outputs(spec, stage)
        config: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            # Without it a CPU that has bfloat16 would compute in it, whatever the graph says.
            "INFERENCE_PRECISION_HINT": "f32",
        }
        if num_threads is not None:
            config["INFERENCE_NUM_THREADS"] = num_threads
        try:
            self._compiled = core.compile_model(core.read_model(path), "CPU", config)
        except Exception as error:  # the library raises plain RuntimeError, and others
            raise BackendError(
                f"OpenVINO cannot load {path} ({_reason(error)}): export the bundle again"
            ) from error
        # A port may carry the names of tensors inside the graph too.
        if len(self._compiled.inputs) != len(self._inputs) or not all(
            name in port.names
            for name, port in zip(self._inputs, self._compiled.inputs, strict=True)
        ):
            found = ", ".join("/".join(sorted(port.names)) for port in self._compiled.inputs)
            raise BundleError(
                f"{path} takes {found} instead of {', '.join(self._inputs)}: "
                "export the bundle again"
            )
        # A request serves one call at a time; there are as many as calls ever ran at once.
        self._free: queue.LifoQueue[Any] = queue.LifoQueue()

    def __call__(self, *inputs: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        """Run the graph on arrays in the order of `stage_inputs`."""
        self._require_fitting(inputs)
        try:
            request = self._free.get_nowait()
        except queue.Empty:
            request = self._compiled.create_infer_request()
        try:
            outputs = request.infer(dict(zip(self._inputs, inputs, strict=True)))
            # Copied before another thread may take the request and write over them.
            return tuple(np.array(outputs[name]) for name in self._outputs)
        except Exception as error:  # the library raises plain RuntimeError, and others
            raise BackendError(
                f"OpenVINO failed in the {self._stage} stage: {_reason(error)}"
            ) from error
        finally:
            self._free.put(request)

    def _require_fitting(self, inputs: tuple[NDArray[Any], ...]) -> None:
        """Refuse what the library would cast or reinterpret in silence."""
        for name, array, port in zip(self._inputs, inputs, self._compiled.inputs, strict=True):
            shape = openvino.PartialShape(list(array.shape))
            if array.dtype != port.element_type.to_dtype() or not port.partial_shape.compatible(
                shape
            ):
                raise BackendError(
                    f"OpenVINO's {self._stage} stage takes {name} as "
                    f"{port.element_type.to_dtype()} {port.partial_shape}, "
                    f"not {array.dtype} {shape}"
                )


def load_stages(folder: Path, spec: ModelSpec, options: RuntimeOptions) -> Stages:
    """Compile a bundle's graphs."""
    present = spec.stage_files(options.precision)
    core = openvino.Core()

    def load(stage: StageName) -> OpenVinoStage:
        path = spec.graph_path(folder, stage, options.precision)
        return OpenVinoStage(core, path, spec, stage, options.num_threads)

    return Stages(
        text=load("text"),
        denoise=load("denoise"),
        decode=load("decode"),
        encode=load("encode") if "encode" in present else None,
    )


def _reason(error: Exception) -> str:
    """The line that says what is wrong: those before it name OpenVINO's own source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [
        line
        for line in lines
        if not line.startswith(("Exception from", "Check '")) and not line.endswith(":")
    ]
    return (telling or lines or [type(error).__name__])[0]
