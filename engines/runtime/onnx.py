"""The ONNX Runtime backend, on the CPU.

Owns session options and the translation of ONNX Runtime's errors. Knows nothing of prompts,
seeds or schedules.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from engines.errors import BackendError, BundleError
from engines.runtime.base import INPUTS, OUTPUTS, Stages
from engines.spec import ModelSpec, StageName

_FATAL = 4  # ONNX Runtime's severity: what it would print is raised as an exception anyway


class OnnxStage:
    """One graph in one session."""

    def __init__(self, path: Path, stage: StageName, num_threads: int | None) -> None:
        """Load and optimise the graph; weights stored in half are folded to float here."""
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = _FATAL
        options.inter_op_num_threads = 1
        # A waiting thread sleeps instead of spinning: each stage has threads of its own, and the
        # service encodes and answers on the same cores while they wait.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if num_threads is not None:
            options.intra_op_num_threads = num_threads
        self._stage = stage
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the library's exceptions share no base class
            raise BackendError(
                f"ONNX Runtime cannot load {path} ({_first_line(error)}): export the bundle again"
            ) from error
        names = tuple(entry.name for entry in self._session.get_inputs())
        if names != INPUTS[stage]:
            raise BundleError(
                f"{path} takes {', '.join(names)} instead of {', '.join(INPUTS[stage])}: "
                "export the bundle again"
            )

    def __call__(self, *inputs: NDArray[Any]) -> NDArray[Any]:
        """Run the graph on arrays in the order of `INPUTS`."""
        feed = dict(zip(INPUTS[self._stage], inputs, strict=True))
        try:
            (output,) = self._session.run([OUTPUTS[self._stage]], feed)
        except Exception as error:  # the library's exceptions share no base class
            raise BackendError(
                f"ONNX Runtime failed in the {self._stage} stage: {_first_line(error)}"
            ) from error
        return np.asarray(output)


def load_stages(folder: Path, spec: ModelSpec, num_threads: int | None) -> Stages:
    """Load a bundle's three graphs."""

    def load(stage: StageName) -> OnnxStage:
        return OnnxStage(spec.graph_path(folder, stage), stage, num_threads)

    return Stages(text=load("text"), denoise=load("denoise"), decode=load("decode"))


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
