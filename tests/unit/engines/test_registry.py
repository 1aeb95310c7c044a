"""Backends are found by name, and what is missing is said with the remedy."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from engines_fixtures import tiny_spec

from engines.errors import BackendError
from engines.runtime.registry import load_stages


def test_an_unknown_backend_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="'abacus': choose one of onnx, torch, "):
        load_stages("abacus", tmp_path, tiny_spec())


def test_a_missing_package_is_named_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(
        BackendError, match=r"'torch' needs torch: pip install 'onestep\[distill\]'"
    ):
        load_stages("torch", tmp_path, tiny_spec())


def test_the_pipeline_loads_no_framework_before_a_backend_is_chosen() -> None:
    # In a process of its own: other tests have loaded them here.
    code = (
        "import sys, engines.pipeline, engines.profiles, engines.bench, engines.__main__; "
        "heavy = {'torch', 'onnx', 'onnxruntime', 'openvino', 'diffusers'}; "
        "sys.exit(bool(heavy & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
