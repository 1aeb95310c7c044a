"""ONNX Runtime's providers and what it says when memory runs out, on graphs made for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from engines_fixtures import tiny_spec
from onnx import TensorProto, helper

from engines.errors import BackendError, OutOfMemoryError
from engines.runtime.base import RuntimeOptions
from engines.runtime.onnx import CPU_PROVIDER, OnnxStage
from engines.runtime.onnx_cuda import PROVIDER, provider
from engines.runtime.registry import load_stages

SPEC = tiny_spec()


def _decoder(path: Path, num_values: int) -> Path:
    """A graph in the decode stage's names whose output takes `num_values` floats a row."""
    nodes = [
        helper.make_node("ReduceSum", ["latents_BChw", "axes"], ["sum_B"], keepdims=0),
        helper.make_node("Reshape", ["sum_B", "column"], ["sum_B1"]),
        helper.make_node("Expand", ["sum_B1", "wide"], ["images_BHWC"]),
    ]
    constants = [
        helper.make_tensor("axes", TensorProto.INT64, [3], [1, 2, 3]),
        helper.make_tensor("column", TensorProto.INT64, [2], [-1, 1]),
        helper.make_tensor("wide", TensorProto.INT64, [2], [1, num_values]),
    ]
    latents = helper.make_tensor_value_info("latents_BChw", TensorProto.FLOAT, ["B", 8, 8, 8])
    images = helper.make_tensor_value_info("images_BHWC", TensorProto.FLOAT, ["B", num_values])
    graph = helper.make_graph(nodes, "decoder", [latents], [images], constants)
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return path


def test_a_batch_beyond_all_memory_is_told_from_other_failures(tmp_path: Path) -> None:
    latents_BChw = np.ones((1, 8, 8, 8), dtype=np.float32)
    (row,) = OnnxStage(_decoder(tmp_path / "small.onnx", 3), SPEC, "decode", 1)(latents_BChw)
    assert row.shape == (1, 3)
    huge = OnnxStage(_decoder(tmp_path / "huge.onnx", 2**46), SPEC, "decode", 1)
    with pytest.raises(OutOfMemoryError, match=r"decode stage: .*allocate memory"):
        huge(latents_BChw)
    with pytest.raises(BackendError) as caught:
        huge(latents_BChw[:, :1])
    assert not isinstance(caught.value, OutOfMemoryError)


@pytest.mark.filterwarnings("ignore:Specified provider:UserWarning")
def test_a_provider_that_does_not_start_is_no_silent_cpu(tmp_path: Path) -> None:
    path = _decoder(tmp_path / "small.onnx", 3)
    absent = ("ROCMExecutionProvider", {})
    with pytest.raises(BackendError, match=r"cannot start ROCM.* would use CPU.*driver"):
        OnnxStage(path, SPEC, "decode", 1, (absent, CPU_PROVIDER))


def test_the_cuda_backend_names_the_package_that_it_needs(tmp_path: Path) -> None:
    if PROVIDER in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime-gpu is installed")
    with pytest.raises(BackendError, match=r"has no CUDA.*pip install onnxruntime-gpu"):
        load_stages("onnx_cuda", tmp_path, SPEC)


def test_the_cuda_provider_takes_the_device() -> None:
    assert provider(RuntimeOptions())[1]["device_id"] == 0
    assert provider(RuntimeOptions(device="cuda:3"))[1]["device_id"] == 3
    with pytest.raises(BackendError, match="'cpu' is no GPU: give cuda or cuda:N"):
        provider(RuntimeOptions(device="cpu"))
