"""Every TensorRT name that the build uses exists in the data-centre package too.

That package compiles only where a GPU is, so nothing of it runs here. tensorrt_11_4_api.json lists
the public classes of tensorrt-cu13-bindings 11.4 and the members of those that the build touches.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

# RTX only; the build touches them where a capability is named, which the other package refuses.
_RTX_ONLY = {"ComputeCapability", "num_compute_capabilities", "set_compute_capability"}
# The object that each local variable of engines.build holds.
_CLASSES = {
    "builder": "Builder",
    "config": "IBuilderConfig",
    "parser": "OnnxParser",
    "profile": "IOptimizationProfile",
}


@pytest.fixture(scope="module")
def api() -> dict[str, Any]:
    path = Path(__file__).with_name("tensorrt_11_4_api.json")
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


@pytest.fixture(scope="module")
def attributes(repo_root: Path) -> set[tuple[str, str]]:
    """(variable, attribute) pairs in the build's source."""
    tree = ast.parse((repo_root / "engines" / "build.py").read_text())
    return {
        (node.value.id, node.attr)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }


def test_every_class_exists(api: dict[str, Any], attributes: set[tuple[str, str]]) -> None:
    used = {name for variable, name in attributes if variable == "trt"}
    used -= {"__version__", "__name__"} | _RTX_ONLY
    assert {"Builder", "OnnxParser", "Logger", "IProgressMonitor"} <= used
    assert used <= set(api["names"])


@pytest.mark.parametrize("variable", sorted(_CLASSES))
def test_every_member_exists(
    variable: str, api: dict[str, Any], attributes: set[tuple[str, str]]
) -> None:
    used = {name for owner, name in attributes if owner == variable} - _RTX_ONLY
    assert used
    assert used <= set(api["members"][_CLASSES[variable]])


def test_the_progress_monitor_overrides_what_the_package_calls(
    api: dict[str, Any], repo_root: Path
) -> None:
    tree = ast.parse((repo_root / "engines" / "build.py").read_text())
    (monitor,) = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        and node.bases
        and ast.unparse(node.bases[0]) == "trt.IProgressMonitor"
    ]
    methods = {node.name for node in monitor.body if isinstance(node, ast.FunctionDef)}
    assert methods - {"__init__"} == set(api["members"]["IProgressMonitor"])
