"""The ONNX Runtime backend, on the CPU unless other providers are given.

Owns session options and the translation of ONNX Runtime's errors. Knows nothing of prompts,
seeds or schedules.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from engines.errors import BackendError, BundleError, OutOfMemoryError
from engines.runtime.base import RuntimeOptions, Stages, stage_inputs, stage_outputs
from engines.spec import ModelSpec, StageName

Provider = tuple[str, dict[str, Any]]
CPU_PROVIDER: Provider = ("CPUExecutionProvider", {})
# What its arena, a plain allocation and CUDA say; no error class of its own tells them apart.
_NO_MEMORY = ("failed to allocate memory", "bad_alloc", "out of memory")
_FATAL = 4  # ONNX Runtime's severity: what it would print is raised as an exception anyway


class OnnxStage:
    """One graph in one session."""

    def __init__(
        self,
        path: Path,
        spec: ModelSpec,
        stage: StageName,
        num_threads: int | None,
        providers: tuple[Provider, ...] = (CPU_PROVIDER,),
    ) -> None:
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
        self._inputs = stage_inputs(spec, stage)
        self._outputs = list(stage_outputs(spec, stage))
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=list(providers)
            )
        except Exception as error:  # the library's exceptions share no base class
            raise BackendError(
                f"ONNX Runtime cannot load {path} ({_first_line(error)}): export the bundle again"
            ) from error
        started = self._session.get_providers()[0]
        if started != providers[0][0]:
            # The library itself falls back without a word that a program could see.
            raise BackendError(
                f"ONNX Runtime cannot start {providers[0][0]} and would use {started}: check that "
                "the GPU's driver and the CUDA and cuDNN libraries of onnxruntime-gpu are installed"
            )
        names = tuple(entry.name for entry in self._session.get_inputs())
        if names != self._inputs:
            raise BundleError(
                f"{path} takes {', '.join(names)} instead of {', '.join(self._inputs)}: "
                "export the bundle again"
            )

    def __call__(self, *inputs: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        """Run the graph on arrays in the order of `stage_inputs`."""
        feed = dict(zip(self._inputs, inputs, strict=True))
        try:
            outputs = self._session.run(self._outputs, feed)
        except Exception as error:  # the library's exceptions share no base class
            is_full = any(words in str(error).lower() for words in _NO_MEMORY)
            raise (OutOfMemoryError if is_full else BackendError)(
                f"ONNX Runtime failed in the {self._stage} stage: {_first_line(error)}"
            ) from error
        return tuple(np.asarray(output) for output in outputs)


def load_stages(folder: Path, spec: ModelSpec, options: RuntimeOptions) -> Stages:
    """Load a bundle's graphs."""
    return load_with(folder, spec, options, (CPU_PROVIDER,))


def load_with(
    folder: Path, spec: ModelSpec, options: RuntimeOptions, providers: tuple[Provider, ...]
) -> Stages:
    """Load a bundle's graphs with these providers, the first of which must start."""
    present = spec.stage_files(options.precision)

    def load(stage: StageName) -> OnnxStage:
        path = spec.graph_path(folder, stage, options.precision)
        return OnnxStage(path, spec, stage, options.num_threads, providers)

    return Stages(
        text=load("text"),
        denoise=load("denoise"),
        decode=load("decode"),
        encode=load("encode") if "encode" in present else None,
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
