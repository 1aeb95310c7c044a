"""Backends by name.

Owns the list of names. A backend's framework is imported only when the backend is asked for, so
that a service without torch can list and load the others.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from engines.errors import BackendError
from engines.runtime.base import RuntimeOptions, Stages
from engines.spec import ModelSpec

_MODULES = {
    "onnx": ("engines.runtime.onnx", "pip install onestep"),
    "torch": ("engines.runtime.torch", "pip install 'onestep[distill]'"),
    "openvino": ("engines.runtime.openvino", "pip install 'onestep[openvino]'"),
}
BACKENDS: tuple[str, ...] = tuple(_MODULES)


def is_installed(backend: str) -> bool:
    """Whether a known backend's packages are here; importing them is the only sure test."""
    try:
        importlib.import_module(_MODULES[backend][0])
    except (ImportError, KeyError):
        return False
    return True


def load_stages(
    backend: str, folder: Path, spec: ModelSpec, options: RuntimeOptions | None = None
) -> Stages:
    """Load a model folder's stages with the named backend.

    Raises:
        BackendError: the name is unknown, its packages are missing, or loading failed.
        BundleError: a file of the folder is missing or damaged.
    """
    if backend not in _MODULES:
        raise BackendError(f"unknown backend {backend!r}: choose one of {', '.join(BACKENDS)}")
    module_name, remedy = _MODULES[backend]
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise BackendError(f"backend {backend!r} needs {error.name}: {remedy}") from error
    stages: Stages = module.load_stages(folder, spec, options or RuntimeOptions())
    return stages
