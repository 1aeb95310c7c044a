"""Every TensorRT name that the backend, and its double in the tests, use is the packages' own.

tensorrt_11_4_api.json lists the public classes of tensorrt-cu13-bindings 11.4 and the
members of those that run plans; TensorRT for RTX is asked itself.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
import tensorrt_double

rtx: Any = pytest.importorskip("tensorrt_rtx")

# RTX only; asked for with hasattr before any is used.
_RTX_ONLY = {
    "create_runtime_cache",
    "set_runtime_cache",
    "dynamic_shapes_kernel_specialization_strategy",
    "DynamicShapesKernelSpecializationStrategy",
}
# The object that each name in engines.runtime.execution holds.
_CLASSES = {
    "_runtime": "Runtime",
    "engine": "ICudaEngine",
    "config": "IRuntimeConfig",
    "context": "IExecutionContext",
    "cache": "IRuntimeCache",
}


@pytest.fixture(scope="module")
def api() -> dict[str, Any]:
    path = Path(__file__).with_name("tensorrt_11_4_api.json")
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


@pytest.fixture(scope="module")
def attributes(repo_root: Path) -> set[tuple[str, str]]:
    """(object, attribute) pairs in the sources; `self.x.y` is the pair (x, y)."""
    pairs = set()
    for path in (repo_root / "engines" / "runtime").glob("*.py"):
        text = path.read_text()
        if "trt." not in text:
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Attribute):
                owner = node.value
                if isinstance(owner, ast.Name):
                    pairs.add((owner.id, node.attr))
                elif isinstance(owner, ast.Attribute):
                    pairs.add((owner.attr, node.attr))
    return pairs


def test_every_class_exists(api: dict[str, Any], attributes: set[tuple[str, str]]) -> None:
    used = {name for owner, name in attributes if owner in ("trt", "_trt")}
    used -= {"__version__", "__name__"}
    assert {"Runtime", "ILogger", "ExecutionContextAllocationStrategy"} <= used
    assert used - _RTX_ONLY <= set(api["names"])
    assert used <= set(dir(rtx))


@pytest.mark.parametrize("owner", sorted(_CLASSES))
def test_every_member_exists(
    owner: str, api: dict[str, Any], attributes: set[tuple[str, str]]
) -> None:
    name = _CLASSES[owner]
    used = {attribute for other, attribute in attributes if other == owner}
    assert used
    assert used <= set(dir(getattr(rtx, name)))
    if name != "IRuntimeCache":
        assert used - _RTX_ONLY <= set(api["members"][name])


def test_every_enum_value_exists(api: dict[str, Any], repo_root: Path) -> None:
    from engines.runtime.execution import _DTYPES

    assert set(_DTYPES) <= set(api["members"]["DataType"])
    assert set(_DTYPES) <= set(rtx.DataType.__members__)
    assert "USER_MANAGED" in api["members"]["ExecutionContextAllocationStrategy"]
    assert "USER_MANAGED" in rtx.ExecutionContextAllocationStrategy.__members__
    assert "EAGER" in rtx.DynamicShapesKernelSpecializationStrategy.__members__
    for level in ("INTERNAL_ERROR", "ERROR", "WARNING"):
        assert level in api["members"]["ILogger"]
        assert hasattr(rtx.ILogger, level)


@pytest.mark.parametrize("name", [*_CLASSES.values(), "ILogger"])
def test_the_double_has_nothing_that_the_packages_have_not(name: str, api: dict[str, Any]) -> None:
    double = getattr(tensorrt_double, name)
    public = {member for member in dir(double) if not member.startswith("_")}
    if name == "IRuntimeConfig":
        public.add("dynamic_shapes_kernel_specialization_strategy")
    assert public <= set(dir(getattr(rtx, name)))
    if name != "IRuntimeCache":
        assert public - _RTX_ONLY <= set(api["members"][name])
