"""Backends by name.

Owns the list of names. A backend's framework is imported only when the backend is asked for, so
that a service without torch can list and load the others.
"""

from __future__ import annotations

import importlib
import logging
import threading
from pathlib import Path

from engines.disk import is_locked
from engines.errors import BackendError, EnginesError
from engines.plans import ENGINES_FOLDER
from engines.runtime.base import RuntimeOptions, Stages
from engines.runtime.choice import list_state
from engines.runtime.warming import WarmingStages
from engines.spec import ModelSpec

_MODULES = {
    "onnx": ("engines.runtime.onnx", "pip install onestep"),
    "torch": ("engines.runtime.torch", "pip install 'onestep[distill]'"),
    "onnx_cuda": ("engines.runtime.onnx_cuda", "pip install 'onestep[onnx-cuda]'"),
    "torch_cuda": ("engines.runtime.torch_cuda", "pip install 'onestep[distill]'"),
    "tensorrt": (
        "engines.runtime.tensorrt",
        "install torch with CUDA from https://pytorch.org; it owns the buffers",
    ),
    "openvino": ("engines.runtime.openvino", "pip install 'onestep[openvino]'"),
}
BACKENDS: tuple[str, ...] = tuple(_MODULES)
# These read a torch folder; all others read a bundle.
_OF_TORCH_FOLDERS = ("torch", "torch_cuda")
_LOOK_INTERVAL_S = 10.0
_log = logging.getLogger(__name__)


def exact_backend(backend: str) -> str:
    """The backend that draws in float32, from the same folder, what another drew as no picture."""
    return "torch" if set(backend.split(",")) <= set(_OF_TORCH_FOLDERS) else "onnx"


def is_installed(backend: str) -> bool:
    """Whether a known backend's packages are here; importing them is the only sure test."""
    try:
        importlib.import_module(_MODULES[backend][0])
    except (ImportError, KeyError):
        return False
    return True


def backend_names(backend: str) -> tuple[str, ...]:
    """The known names in a choice of one backend, or of several with commas between.

    Raises:
        BackendError: a name is unknown.
    """
    names = tuple(backend.split(","))
    for name in names:
        if name not in _MODULES:
            raise BackendError(f"unknown backend {name!r}: choose one of {', '.join(BACKENDS)}")
    return names


def load_stages(
    backend: str, folder: Path, spec: ModelSpec, options: RuntimeOptions | None = None
) -> Stages:
    """Load a model folder's stages with the named backend.

    "A,B" is A where it can be loaded and no build is running. Otherwise it is B, until plans that
    let A load were built into the folder; the change comes between two batches.

    Raises:
        BackendError: a name is unknown, its packages are missing, or loading failed.
        BundleError: a file of the folder is missing or damaged.
    """
    options = options or RuntimeOptions()
    wanted, *fallback = backend_names(backend)
    if not fallback:
        return _load(wanted, folder, spec, options)
    plans = Path(folder) / ENGINES_FOLDER

    num_builds_seen = 0

    def load() -> Stages:
        # A build lists one plan after another: those of the first batch size would be all.
        nonlocal num_builds_seen
        if is_locked(plans):
            num_builds_seen += 1  # so that it is tried again though the list may stay the same
            raise BackendError(f"{plans}: a build is running")
        return _load(wanted, folder, spec, options)

    try:
        return load()
    except EnginesError as error:
        _log.warning("backend_not_ready", extra={"backend": wanted, "reason": str(error)})
    less = load_stages(",".join(fallback), folder, spec, options)
    warming = WarmingStages(less, load, lambda: (list_state(plans), num_builds_seen))
    warming.watch(_LOOK_INTERVAL_S, threading.Event())
    return warming.stages


def _load(backend: str, folder: Path, spec: ModelSpec, options: RuntimeOptions) -> Stages:
    module_name, remedy = _MODULES[backend]
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise BackendError(f"backend {backend!r} needs {error.name}: {remedy}") from error
    stages: Stages = module.load_stages(folder, spec, options)
    return stages
