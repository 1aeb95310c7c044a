"""Which nodes of a graph are computed in 8 bits, and how a graph says so.

Owns the pairs of QuantizeLinear and DequantizeLinear around convolutions and matrix products, and
the scales that they carry. Symmetric, without zero points, and with the result left in float: the
form that TensorRT, ONNX Runtime and OpenVINO all read. Knows nothing of pipelines or files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any, Literal

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

Quantized = Literal["int8", "float8"]
SWITCHES = "is_rounded"
_LARGEST = {"int8": 127.0, "float8": 448.0}
# Int8 weights use 7 bits. A CPU without VNNI adds two products in 16 bits, and with all 8 the sum
# saturates: pictures then differ from machine to machine.
_LARGEST_WEIGHT = {"int8": 63.0, "float8": 448.0}
_DTYPES: dict[str, Any] = {"int8": np.int8, "float8": ml_dtypes.float8_e4m3fn}


@dataclass(frozen=True)
class Candidate:
    """A node that can be computed in 8 bits.

    Attributes:
        node: its name.
        activation: name of the value that flows into it.
        axis: of the weights' output channels, each of which has a scale.
    """

    node: str
    activation: str
    axis: int


def candidates(model: ir.Model) -> list[Candidate]:
    """Convolutions and products with fixed weights that a stage's first input flows through.

    Left out, and so in float: the first and the last of them, which touch latents and pixels; what
    depends on timestep or text alone, which is small and steers the rest; and grouped
    convolutions, which have too few products per scale to gain anything.
    """
    nodes = [node for node in model.graph if _weights(node) is not None]
    after_input = _downstream(model, {model.graph.inputs[0]})
    chosen = [node for node in nodes if node.inputs[0] in after_input]
    has_before = _downstream(model, {node.outputs[0] for node in chosen})
    has_after = _upstream(model, {value for node in chosen if (value := node.inputs[0])})
    return [
        Candidate(str(node.name), str(node.inputs[0].name), _axis(node))
        for node in chosen
        if node.inputs[0] is not None
        and node.inputs[0] in has_before
        and node.outputs[0] in has_after
    ]


def watched(model: ir.Model, activations: Set[str]) -> list[str]:
    """Add the largest absolute value of each activation as an output; return their names."""
    names = []
    for value in _values(model, activations):
        magnitude = ir.node("Abs", [value])
        largest = ir.node("ReduceMax", [magnitude.outputs[0]], {"keepdims": 0})
        model.graph.extend([magnitude, largest])
        output = largest.outputs[0]
        output.name = f"{value.name}.largest"
        output.dtype, output.shape = ir.DataType.FLOAT, ir.Shape([])
        model.graph.outputs.append(output)
        names.append(str(value.name))
    return names


def quantize(
    model: ir.Model,
    chosen: list[Candidate],
    largest: Mapping[str, float],
    precision: Quantized,
) -> None:
    """Put the pairs around the chosen nodes of `model`, in place.

    Args:
        model: as exported, weights stored in float or in half.
        chosen: some of its `candidates`.
        largest: the largest absolute value that calibration saw, by activation.
        precision: of weights and activations.
    """
    by_name = {str(node.name): node for node in model.graph}
    pairs: dict[str, ir.Value] = {}
    for candidate in chosen:
        node = by_name[candidate.node]
        rounded = _shared_pair(model, node, candidate, (largest, precision), pairs)
        array = _weights(node)
        assert array is not None
        weights = _stored(model, node, (array, candidate.axis), precision)
        node.replace_input_with(0, rounded)
        node.replace_input_with(1, weights)
    RemoveUnusedNodesPass()(model)


def make_switchable(
    model: ir.Model, found: list[Candidate], largest: Mapping[str, float], precision: Quantized
) -> None:
    """Add the input `SWITCHES`, bool, one per candidate: true rounds what flows into its node.

    One loaded graph then measures every node alone. Weights stay as they are: with a scale per
    channel they lose far less, and as constants they let the runtime prepare them once.
    """
    switches = ir.Value(
        name=SWITCHES, shape=ir.Shape([len(found)]), type=ir.TensorType(ir.DataType.BOOL)
    )
    model.graph.inputs.append(switches)
    by_name = {str(node.name): node for node in model.graph}
    pairs: dict[str, ir.Value] = {}
    for index, candidate in enumerate(found):
        node = by_name[candidate.node]
        rounded = _shared_pair(model, node, candidate, (largest, precision), pairs)
        place = _initializer(model, f"{SWITCHES}.{index}", np.array(index, np.int64))
        switch = ir.node("Gather", [switches, place])
        either = ir.node("Where", [switch.outputs[0], rounded, node.inputs[0]])
        model.graph.insert_before(node, [switch, either])
        node.replace_input_with(0, either.outputs[0])


def _shared_pair(
    model: ir.Model,
    node: ir.Node,
    candidate: Candidate,
    form: tuple[Mapping[str, float], Quantized],
    pairs: dict[str, ir.Value],
) -> ir.Value:
    """What flows into a node, rounded; nodes with the same source share one pair."""
    largest, precision = form
    if candidate.activation not in pairs:
        value = node.inputs[0]
        assert value is not None
        scale = max(largest[candidate.activation], 1e-12) / _LARGEST[precision]
        pairs[candidate.activation] = _pair(model, value, scale, precision)
    return pairs[candidate.activation]


def _weights(node: ir.Node) -> NDArray[np.float32] | None:
    """A node's fixed weights, if it is one that can be computed in 8 bits."""
    if node.op_type not in ("Conv", "Gemm", "MatMul") or len(node.inputs) < 2:
        return None
    attributes = node.attributes
    if node.op_type == "Conv" and attributes.get_int("group", 1) != 1:
        return None
    if node.op_type == "Gemm" and (
        attributes.get_int("transA", False) or attributes.get_float("alpha", 1.0) != 1.0
    ):
        return None
    value = node.inputs[1]
    producer = value.producer() if value is not None else None
    if producer is not None and producer.op_type == "Cast":
        value = producer.inputs[0]
    if value is None or not value.is_initializer() or value.const_value is None:
        return None
    array = value.const_value.numpy()
    return array.astype(np.float32) if array.ndim >= 2 else None


def _axis(node: ir.Node) -> int:
    if node.op_type == "MatMul":
        return 1
    if node.op_type == "Gemm":
        return 0 if node.attributes.get_int("transB", 0) else 1
    return 0


def _downstream(model: ir.Model, start: set[ir.Value]) -> set[ir.Value]:
    reached = set(start)
    for node in model.graph:
        if any(value in reached for value in node.inputs if value is not None):
            reached.update(node.outputs)
    return reached


def _upstream(model: ir.Model, start: set[ir.Value]) -> set[ir.Value]:
    reached = set(start)
    for node in reversed(model.graph):
        if any(value in reached for value in node.outputs):
            reached.update(value for value in node.inputs if value is not None)
    return reached


def _values(model: ir.Model, names: Set[str]) -> Iterator[ir.Value]:
    yield from [value for value in model.graph.inputs if value.name in names]
    for node in list(model.graph):
        yield from [value for value in node.outputs if value.name in names]


def _initializer(model: ir.Model, name: str, array: NDArray[Any]) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(
        name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    model.graph.initializers.add(value)
    return value


def _pair(model: ir.Model, value: ir.Value, scale: float, precision: Quantized) -> ir.Value:
    """Round an activation to 8 bits and back, at its source so that all its users share it."""
    scale_value = _initializer(model, f"{value.name}.scale", np.array(scale, np.float32))
    zero = _initializer(model, f"{value.name}.zero", np.zeros((), _DTYPES[precision]))
    down = ir.node("QuantizeLinear", [value, scale_value, zero], name=f"{value.name}.q")
    up = ir.node("DequantizeLinear", [down.outputs[0], scale_value, zero], name=f"{value.name}.dq")
    _name(down.outputs[0], f"{value.name}.{precision}", zero.dtype, value.shape)
    _name(up.outputs[0], f"{value.name}.rounded", ir.DataType.FLOAT, value.shape)
    producer = value.producer()
    if producer is None:
        model.graph.insert_before(model.graph[0], [down, up])
    else:
        model.graph.insert_after(producer, [down, up])
    return up.outputs[0]


def _stored(
    model: ir.Model, node: ir.Node, weights: tuple[NDArray[np.float32], int], precision: Quantized
) -> ir.Value:
    """Keep weights in 8 bits with a scale per output channel, turned to float inside the graph."""
    array, axis = weights
    others = tuple(index for index in range(array.ndim) if index != axis)
    limit = _LARGEST_WEIGHT[precision]
    scale = np.abs(array).max(axis=others, keepdims=True) / limit
    scale = np.where(scale > 0, scale, 1.0).astype(np.float32)
    levels = np.clip(array / scale, -limit, limit)
    rounded = (np.rint(levels) if precision == "int8" else levels).astype(_DTYPES[precision])
    name = f"{node.name}.weight"
    up = ir.node(
        "DequantizeLinear",
        [
            _initializer(model, f"{name}.{precision}", rounded),
            _initializer(model, f"{name}.scale", scale.ravel()),
            _initializer(model, f"{name}.zero", np.zeros(scale.size, rounded.dtype)),
        ],
        {"axis": axis},
        name=f"{name}.dq",
    )
    _name(up.outputs[0], name, ir.DataType.FLOAT, ir.Shape(array.shape))
    model.graph.insert_before(node, up)
    return up.outputs[0]


def _name(value: ir.Value, name: str, dtype: ir.DataType | None, shape: ir.Shape | None) -> None:
    assert dtype is not None
    value.name, value.dtype, value.shape = name, dtype, shape
