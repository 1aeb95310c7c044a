"""Two digests of a graph: what stays when a model is trained again, and what changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.errors import BundleError
from engines.graphs import GraphDigests, graph_digests


def _model() -> onnx.ModelProto:
    """Linear, bias, resize: weights of two types, scales, a shape and a scalar."""
    weight = np.arange(16, dtype=np.float16).reshape(4, 4)
    initializers = {
        "kernel": weight,
        "bias": np.arange(4, dtype=np.float32),
        "scalar": np.array(2.0, dtype=np.float32),
        "shape": np.array([1, 1, -1, 4], dtype=np.int64),
        "scales": np.array([1, 1, 2, 2], dtype=np.float32),
        "unused": np.ones(4, dtype=np.float32),
        "rows": np.array([0, 1], dtype=np.int64),
        "shared": np.array([1, 1, 1, 1], dtype=np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["kernel"], ["kernel32"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "kernel32"], ["a"]),
        helper.make_node("Add", ["a", "bias"], ["b"]),
        helper.make_node("Mul", ["b", "scalar"], ["c"]),
        helper.make_node("Add", ["c", "shared"], ["d"]),
        helper.make_node("Reshape", ["d", "shape"], ["e"]),
        helper.make_node("Resize", ["e", "", "scales"], ["f"]),
        helper.make_node("Resize", ["f", "", "shared"], ["y"]),
        helper.make_node("Gather", ["kernel32", "rows"], ["picked"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, "h", "w"])
    graph = helper.make_graph(
        nodes, "g", [x], [y], [numpy_helper.from_array(v, k) for k, v in initializers.items()]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _digests(model: onnx.ModelProto, path: Path, **keywords: str) -> GraphDigests:
    path.write_bytes(model.SerializeToString())
    return graph_digests(path, **keywords)


def _set(name: str, scale: float = 3.0, dtype: str | None = None) -> Callable[..., None]:
    def change(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            if tensor.name == name:
                array = numpy_helper.to_array(tensor)
                array = (array * scale).astype(dtype or array.dtype)
                tensor.CopyFrom(numpy_helper.from_array(array, name))

    return change


def _as_floats(model: onnx.ModelProto) -> None:
    """The same bias, doubled, in protobuf's other way of storing floats."""
    for tensor in model.graph.initializer:
        if tensor.name == "bias":
            floats = numpy_helper.to_array(tensor) * 2
            tensor.ClearField("raw_data")
            tensor.float_data.extend(floats.tolist())


def _rename(model: onnx.ModelProto) -> None:
    model.graph.node[1].name = "another"


def _reshape(model: onnx.ModelProto) -> None:
    model.graph.initializer[1].dims[:] = [1, 4]


@pytest.mark.parametrize("change", [_set("kernel"), _set("bias"), _as_floats])
def test_weights_change_one_digest_alone(
    change: Callable[[onnx.ModelProto], None], tmp_path: Path
) -> None:
    model = _model()
    before = _digests(model, tmp_path / "a.onnx")
    assert before == _digests(_model(), tmp_path / "b.onnx")
    change(model)
    after = _digests(model, tmp_path / "c.onnx")
    assert after.architecture == before.architecture
    assert after.weights != before.weights


@pytest.mark.parametrize(
    "change",
    [
        _rename,
        _reshape,
        _set("kernel", dtype="float32"),
        _set("scalar"),
        _set("shape", -1),
        _set("scales"),
        _set("unused"),
        _set("rows"),
        _set("shared"),
    ],
    ids=[
        "node",
        "axes",
        "type",
        "scalar",
        "shape",
        "scales",
        "unused",
        "index",
        "weight and scales",
    ],
)
def test_whatever_a_compiler_may_read_changes_the_architecture(
    change: Callable[[onnx.ModelProto], None], tmp_path: Path
) -> None:
    model = _model()
    before = _digests(model, tmp_path / "a.onnx")
    change(model)
    assert _digests(model, tmp_path / "b.onnx").architecture != before.architecture


def test_no_tensor_is_a_weight_where_a_node_holds_a_graph(tmp_path: Path) -> None:
    model = _model()
    flag = helper.make_tensor_value_info("flag", TensorProto.BOOL, [])
    model.graph.input.append(flag)
    z = helper.make_tensor_value_info("z", TensorProto.FLOAT, [4])
    branch = helper.make_graph([helper.make_node("Identity", ["bias"], ["z"])], "branch", [], [z])
    model.graph.node.append(
        helper.make_node("If", ["flag"], ["z2"], then_branch=branch, else_branch=branch)
    )
    before = _digests(model, tmp_path / "a.onnx")
    _set("bias")(model)
    assert _digests(model, tmp_path / "b.onnx").architecture != before.architecture


def test_weights_beside_the_graph_count_by_their_digest(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    onnx.save(
        _model(),
        path,
        save_as_external_data=True,
        location="a.data",
        size_threshold=0,
    )
    one, other = graph_digests(path, "1" * 64), graph_digests(path, "2" * 64)
    assert one.architecture == other.architecture
    assert one.weights != other.weights


@pytest.mark.parametrize(
    "content",
    [b"", b"no graph at all", b"\xff" * 40, b"\x08\x0a", b"\x3a\x7f\x00"],
    ids=["empty", "text", "ones", "no graph", "cut"],
)
def test_what_is_no_graph_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=f"{path} is no ONNX graph .*export the bundle again"):
        graph_digests(path)


def test_a_graph_cut_inside_a_field_is_named(tmp_path: Path) -> None:
    whole = _model().SerializeToString()
    path = tmp_path / "a.onnx"
    path.write_bytes(whole)
    digests = graph_digests(path)
    taken = []
    for length in range(1, len(whole)):
        path.write_bytes(whole[:length])
        try:
            taken.append(graph_digests(path))
        except BundleError as error:
            assert "\n" not in str(error)
    # Between the graph and the opset that comes last, a model without an opset ends well.
    assert len(taken) == 1
    assert taken[0] != digests


def test_a_graph_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is missing: export or fetch"):
        graph_digests(tmp_path / "a.onnx")
