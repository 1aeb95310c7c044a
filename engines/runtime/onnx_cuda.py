"""ONNX Runtime on a GPU.

Owns the options of its CUDA provider; stages and errors are those of `engines.runtime.onnx`. Needs
no torch. Every stage takes and gives host memory, so it is the slowest of the GPU backends and the
one with the fewest needs.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import onnxruntime

from engines.errors import BackendError
from engines.runtime.base import RuntimeOptions, Stages
from engines.runtime.onnx import CPU_PROVIDER, Provider, load_with
from engines.spec import ModelSpec

PROVIDER = "CUDAExecutionProvider"


def load_stages(folder: Path, spec: ModelSpec, options: RuntimeOptions) -> Stages:
    """Load a bundle's graphs onto the GPU.

    Raises:
        BackendError: this ONNX Runtime has no CUDA provider, or it cannot start.
        BundleError: a graph is missing or of another make.
    """
    if PROVIDER not in onnxruntime.get_available_providers():
        raise BackendError(
            f"onnxruntime {onnxruntime.__version__} has no {PROVIDER}: "
            "pip uninstall onnxruntime, then pip install onnxruntime-gpu"
        )
    # What has no CUDA kernel runs on the CPU, beside it.
    return load_with(folder, spec, options, (provider(options), CPU_PROVIDER))


def provider(options: RuntimeOptions) -> Provider:
    """The CUDA provider and its options.

    Raises:
        BackendError: the device is no GPU.
    """
    named = re.fullmatch(r"cuda(?::(\d+))?", options.device or "cuda")
    if named is None:
        raise BackendError(f"device {options.device!r} is no GPU: give cuda or cuda:N")
    settings: dict[str, Any] = {
        "device_id": int(named[1] or 0),
        # float32 means float32; half precision is a matter of the graphs.
        "use_tf32": 0,
        # Batches of a few sizes: growing by powers of two would hold up to twice the memory.
        "arena_extend_strategy": "kSameAsRequested",
    }
    return PROVIDER, settings
