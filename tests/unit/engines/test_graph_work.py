"""The work of a graph: by hand for single operators, and against torch's own count for models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.errors import BundleError
from engines.graph_work import Graph
from engines.roofline import Op, Peaks, Work

FREE = "batch"


def _write(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list[int | str]],
    weights: dict[str, np.ndarray] | None = None,
) -> Graph:
    """A graph of float32 inputs whose last node makes the output."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), path)
    return Graph(path)


def test_a_matrix_product_by_hand(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    weight = np.zeros((5, 7), np.float32)
    graph = _write(tmp_path / "g.onnx", nodes, {"x": [FREE, 4, 5]}, {"w": weight})
    (op,) = graph.count(3, (1, 1)).ops
    assert op.flops == 2 * 3 * 4 * 5 * 7
    assert op.num_bytes == 4 * (3 * 4 * 5 + 5 * 7 + 3 * 4 * 7)


def test_a_runtime_that_computes_in_two_bytes_moves_half(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    weight = np.zeros((5, 7), np.float32)
    graph = _write(tmp_path / "g.onnx", nodes, {"x": [FREE, 5]}, {"w": weight})
    own, half = graph.count(3, (1, 1)), graph.count(3, (1, 1), float_bytes=2)
    assert half.flops == own.flops
    assert 2 * half.num_bytes == own.num_bytes


@pytest.mark.parametrize(("is_transposed", "shape"), [(0, (6, 5)), (1, (5, 6))])
def test_a_gemm_by_hand(tmp_path: Path, is_transposed: int, shape: tuple[int, int]) -> None:
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["a"]),
        helper.make_node("Gemm", ["a", "w", "bias"], ["y"], transA=is_transposed),
    ]
    weights = {
        "shape": np.array(shape, np.int64),
        "w": np.zeros((5, 7), np.float32),
        "bias": np.zeros(7, np.float32),
    }
    (op,) = _write(tmp_path / "g.onnx", nodes, {"x": [FREE, 10]}, weights).count(3, (1, 1)).ops
    assert op.flops == 2 * 6 * 5 * 7
    assert op.num_bytes == 4 * (6 * 5 + 5 * 7 + 7 + 6 * 7)


def test_a_grouped_convolution_by_hand_with_free_height_and_width(tmp_path: Path) -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], group=2, strides=[2, 2], pads=[1] * 4)]
    weights = {"w": np.zeros((8, 3, 3, 3), np.float32)}
    graph = _write(tmp_path / "g.onnx", nodes, {"x": [FREE, 6, "h", "w"]}, weights)
    (op,) = graph.count(5, (16, 12)).ops
    num_outputs = 5 * 8 * 8 * 6
    assert op.flops == 2 * num_outputs * 3 * 9
    assert op.num_bytes == 4 * (5 * 6 * 16 * 12 + 8 * 3 * 9 + num_outputs)


def test_a_transposed_convolution_by_hand(tmp_path: Path) -> None:
    nodes = [helper.make_node("ConvTranspose", ["x", "w"], ["y"], group=2, strides=[2, 2])]
    weights = {"w": np.zeros((6, 4, 2, 2), np.float32)}
    graph = _write(tmp_path / "g.onnx", nodes, {"x": [FREE, 6, 4, 4]}, weights)
    (op,) = graph.count(1, (4, 4)).ops
    # Each input value meets 4 channels of its group at 2 x 2 places.
    assert op.flops == 2 * (6 * 4 * 4) * 4 * 4
    assert op.num_bytes == 4 * (6 * 16 + 6 * 4 * 4 + 8 * 64)


def test_an_einsum_multiplies_once_per_combination_of_indices(tmp_path: Path) -> None:
    nodes = [helper.make_node("Einsum", ["x", "w"], ["y"], equation="bij,jk->bik")]
    weights = {"w": np.zeros((5, 7), np.float32)}
    (op,) = _write(tmp_path / "g.onnx", nodes, {"x": [FREE, 4, 5]}, weights).count(3, (1, 1)).ops
    assert op.flops == 2 * 3 * 4 * 5 * 7
    one = [helper.make_node("Einsum", ["x"], ["y"], equation="bij->bji")]
    with pytest.raises(BundleError, match=r"bij->bji.*export the bundle again"):
        _write(tmp_path / "one.onnx", one, {"x": [FREE, 4, 5]}).count(3, (1, 1))


def test_weights_stored_in_half_count_as_the_floats_that_a_runtime_makes(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["half"], ["w"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    weights = {"half": np.zeros((5, 7), np.float16)}
    (op,) = _write(tmp_path / "g.onnx", nodes, {"x": [FREE, 5]}, weights).count(1, (1, 1)).ops
    assert op.num_bytes == 4 * (5 + 35 + 7)


def test_an_attentions_scores_move_no_bytes(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "kt"], ["scores"]),
        helper.make_node("Add", ["scores", "mask"], ["masked"]),
        helper.make_node("Softmax", ["masked"], ["weights"]),
        helper.make_node("MatMul", ["weights", "v"], ["y"]),
    ]
    inputs: dict[str, list[int | str]] = {name: [FREE, 10, 4] for name in "qkv"}
    weights = {"mask": np.zeros((10, 10), np.float32)}
    first, second = _write(tmp_path / "g.onnx", nodes, inputs, weights).count(2, (1, 1)).ops
    assert first.flops == second.flops == 2 * 2 * 10 * 10 * 4
    assert first.num_bytes == 4 * 2 * (2 * 10 * 4)  # q and k
    assert second.num_bytes == 4 * 2 * (2 * 10 * 4)  # v and the result


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_a_norm_reads_and_writes_once(tmp_path: Path, kind: str) -> None:
    if kind == "layer":
        nodes = [helper.make_node("LayerNormalization", ["x", "scale"], ["y"])]
    else:
        nodes = [
            helper.make_node("Mul", ["x", "x"], ["square"]),
            helper.make_node("ReduceMean", ["square", "axis"], ["mean"]),
            helper.make_node("Sqrt", ["mean"], ["root"]),
            helper.make_node("Div", ["x", "root"], ["y"]),
        ]
    weights = {"scale": np.ones(16, np.float32), "axis": np.array([-1], np.int64)}
    (op,) = _write(tmp_path / "g.onnx", nodes, {"x": [FREE, 9, 16]}, weights).count(2, (1, 1)).ops
    assert (op.flops, op.num_bytes) == (0, 2 * 4 * 2 * 9 * 16)


def test_a_mean_that_is_no_norm_and_single_values_are_free(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Sigmoid", ["x"], ["s"]),
        helper.make_node("ReduceMean", ["s", "axis"], ["y"]),
    ]
    weights = {"axis": np.array([-1], np.int64)}
    graph = _write(tmp_path / "g.onnx", nodes, {"x": [FREE, 9]}, weights)
    assert graph.count(2, (1, 1)).ops == ()


def test_an_operator_without_a_rule_is_refused(tmp_path: Path) -> None:
    foreign = helper.make_node("FusedConv", ["x"], ["y"], domain="com.microsoft")
    known = helper.make_node("MatMulInteger", ["x", "x"], ["y"])
    with pytest.raises(BundleError, match=r"com\.microsoft\.FusedConv.*onestep-engines export"):
        _write(tmp_path / "foreign.onnx", [foreign], {"x": [FREE, 9]})
    with pytest.raises(BundleError, match="MatMulInteger"):
        _write(tmp_path / "integer.onnx", [known], {"x": [9, 9]})
    branch = helper.make_graph([], "b", [], [helper.make_tensor_value_info("x", 1, None)])
    nested = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    with pytest.raises(BundleError, match=r"ai\.onnx\.If"):
        _write(tmp_path / "nested.onnx", [nested], {"x": [FREE, 9], "c": [1]})


def test_a_graph_fixed_to_another_size_is_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "x"], ["y"])]
    with pytest.raises(BundleError, match="axis 0 of x is fixed to 2, not 3"):
        _write(tmp_path / "g.onnx", nodes, {"x": [2, 9, 9]}).count(3, (1, 1))
    with pytest.raises(BundleError, match="axis 1 of x is free"):
        _write(tmp_path / "h.onnx", nodes, {"x": [2, "n", 9]}).count(2, (1, 1))


def test_shapes_that_cannot_be_known_are_refused(tmp_path: Path) -> None:
    contradiction = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    weights = {"w": np.zeros((5, 7), np.float32)}
    with pytest.raises(BundleError, match=r"cannot infer the shapes of .*g\.onnx"):
        _write(tmp_path / "g.onnx", contradiction, {"x": [FREE, 4]}, weights).count(1, (1, 1))
    by_value = [
        helper.make_node("NonZero", ["x"], ["places"]),
        helper.make_node("Cast", ["places"], ["p"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "p"], ["y"]),
    ]
    with pytest.raises(BundleError, match="shape of p depends on values"):
        _write(tmp_path / "v.onnx", by_value, {"x": [FREE, 2]}).count(2, (1, 1))


def test_a_file_that_is_no_graph_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "g.onnx"
    path.write_bytes(b"no graph at all")
    with pytest.raises(BundleError, match=f"cannot read {path}") as caught:
        Graph(path)
    assert "\n" not in str(caught.value)


def test_weights_beside_the_graph_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "g.onnx"
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    _write(path, nodes, {"x": [FREE, 64]}, {"w": np.zeros((64, 64), np.float32)})
    onnx.save(onnx.load(path), path, save_as_external_data=True, size_threshold=0, location="w.bin")
    (tmp_path / "w.bin").unlink()
    assert Graph(path).count(2, (1, 1)).flops == 2 * 2 * 64 * 64


def test_each_operator_waits_for_its_slower_resource() -> None:
    work = Work((Op("a", "MatMul", 600, 10), Op("b", "MatMul", 100, 40)))
    peaks = Peaks(flops_per_s=100.0, bytes_per_s=10.0, float_bytes=4, how="by hand")
    assert work.floor_s(peaks) == 6.0 + 4.0
    assert (work.flops, work.num_bytes) == (700, 50)
