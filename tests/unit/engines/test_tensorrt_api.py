"""Every TensorRT name that makes a plan exists in both packages.

The data-centre package compiles only where a GPU is, so nothing of it runs here.
tensorrt_11_4_api.json lists the public classes of its bindings, 11.4, and the members of those that
are used; `tests/tensorrt_api.py` writes it. The other package is asked itself. What runs plans is
compared in test_tensorrt_runtime_api.py.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# RTX only; touched where a capability is named, which the other package refuses.
RTX_ONLY = {
    ("", "ComputeCapability"),
    ("IBuilderConfig", "num_compute_capabilities"),
    ("IBuilderConfig", "set_compute_capability"),
}
# What a name holds wherever it is no local assignment that says so: parameters and attributes.
NAMES = {
    "builder": "Builder",
    "config": "IBuilderConfig",
    "network": "INetworkDefinition",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "runtime": "Runtime",
}
# What a method returns; None is nothing of TensorRT's. One that is not here has to be added.
RETURNS = {
    ("Builder", "build_serialized_network"): "IHostMemory",
    ("Builder", "create_builder_config"): "IBuilderConfig",
    ("Builder", "create_network"): "INetworkDefinition",
    ("Builder", "create_optimization_profile"): "IOptimizationProfile",
    ("IBuilderConfig", "create_timing_cache"): "ITimingCache",
    ("IBuilderConfig", "get_timing_cache"): "ITimingCache",
    ("ICudaEngine", "create_execution_context"): "IExecutionContext",
    ("ICudaEngine", "create_runtime_config"): "IRuntimeConfig",
    ("ICudaEngine", "create_serialization_config"): "ISerializationConfig",
    ("ICudaEngine", "serialize_with_config"): "IHostMemory",
    ("INetworkDefinition", "get_input"): "ITensor",
    ("ITimingCache", "serialize"): "IHostMemory",
    ("Refitter", "get_missing_weights"): None,
    ("Runtime", "deserialize_cuda_engine"): "ICudaEngine",
}
Use = tuple[str, str]


def _uses(tree: ast.Module) -> Iterator[Use]:
    """(class, member) of every attribute that belongs to TensorRT; class "" is the package."""
    held: dict[str, str | None] = dict(NAMES) | {"trt": "", "self._trt": ""}
    assigned = [node for node in ast.walk(tree) if isinstance(node, ast.Assign)]
    for node in sorted(assigned, key=lambda node: node.lineno):
        call = node.value
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
            owner = held.get(ast.unparse(call.func.value))
            if owner is not None:
                name = ast.unparse(node.targets[0])
                member = call.func.attr
                held[name] = member if owner == "" else RETURNS[owner, member]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        owner = held.get(ast.unparse(node.value))
        if owner is not None:
            yield owner, node.attr
        elif ast.unparse(node.value).startswith("trt."):
            yield ast.unparse(node.value).removeprefix("trt."), node.attr


@pytest.fixture(scope="module")
def trees(repo_root: Path) -> dict[str, ast.Module]:
    """The modules of engines that call TensorRT."""
    sources = {path: path.read_text() for path in (repo_root / "engines").rglob("*.py")}
    return {
        str(path.relative_to(repo_root)): ast.parse(text)
        for path, text in sources.items()
        if "trt." in text
    }


@pytest.fixture(scope="module")
def uses(trees: dict[str, ast.Module]) -> dict[Use, str]:
    """Each use outside engines/runtime, and a module that it is in."""
    making = {path: tree for path, tree in trees.items() if "/runtime/" not in path}
    found = {use: path for path, tree in making.items() for use in _uses(tree)}
    return {use: path for use, path in found.items() if not use[1].startswith("__")}


@pytest.fixture(scope="module")
def api() -> dict[str, Any]:
    path = Path(__file__).with_name("tensorrt_11_4_api.json")
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


def test_the_calls_of_a_build_and_a_refit_are_found(uses: dict[Use, str]) -> None:
    assert {
        ("", "Builder"),
        ("BuilderFlag", "REFIT"),
        ("Builder", "build_serialized_network"),
        ("IBuilderConfig", "progress_monitor"),
        ("IBuilderConfig", "set_timing_cache"),
        ("INetworkDefinition", "num_inputs"),
        ("IOptimizationProfile", "set_shape"),
        ("ITensor", "shape"),
        ("OnnxParser", "parse_from_file"),
        ("OnnxParserRefitter", "refit_from_file"),
        ("Refitter", "refit_cuda_engine"),
        ("Runtime", "deserialize_cuda_engine"),
        ("ICudaEngine", "serialize_with_config"),
        ("ISerializationConfig", "set_flag"),
        ("SerializationFlag", "INCLUDE_REFIT"),
        ("ILogger", "ERROR"),
    } <= set(uses)


def test_every_name_exists_in_the_data_centre_package(
    uses: dict[Use, str], api: dict[str, Any]
) -> None:
    missing = {
        f"{path}: {owner or 'trt'}.{member}"
        for (owner, member), path in uses.items()
        if (owner, member) not in RTX_ONLY
        and member not in (api["members"][owner] if owner else api["names"])
    }
    assert not missing


def test_every_name_exists_in_the_rtx_package(uses: dict[Use, str]) -> None:
    trt: Any = pytest.importorskip("tensorrt_rtx")
    missing = {
        f"{path}: {owner or 'trt'}.{member}"
        for (owner, member), path in uses.items()
        if not hasattr(getattr(trt, owner) if owner else trt, member)
    }
    assert not missing


def test_what_is_called_rtx_only_is_so_and_is_used(
    uses: dict[Use, str], api: dict[str, Any]
) -> None:
    for owner, member in RTX_ONLY:
        assert (owner, member) in uses
        assert member not in (api["members"][owner] if owner else api["names"])


@pytest.mark.parametrize(
    ("base", "extra"), [("trt.IProgressMonitor", set()), ("trt.ILogger", {"min_severity"})]
)
def test_our_classes_override_what_the_package_calls(
    base: str, extra: set[str], trees: dict[str, ast.Module], api: dict[str, Any]
) -> None:
    ours = [
        node
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and node.bases and ast.unparse(node.bases[0]) == base
    ]
    theirs = {name for name in api["members"][base.removeprefix("trt.")] if name.islower()}
    assert ours
    for one in ours:
        methods = {node.name for node in one.body if isinstance(node, ast.FunctionDef)}
        assert methods - {"__init__"} == theirs - extra


def test_a_name_that_does_not_exist_is_found() -> None:
    source = (
        "builder = trt.Builder(logger)\n"
        "config = builder.create_builder_config()\n"
        "config.set_flag(trt.BuilderFlag.FP16)\n"
        "self._engine = self._runtime.x()\n"
    )
    assert set(_uses(ast.parse(source))) == {
        ("", "Builder"),
        ("", "BuilderFlag"),
        ("Builder", "create_builder_config"),
        ("IBuilderConfig", "set_flag"),
        ("BuilderFlag", "FP16"),
    }
