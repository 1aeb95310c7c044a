"""What shape and type has every tensor of a graph, once the inputs' are fixed?

Owns shape inference in one walk over the nodes. Where a graph computes shapes from shapes, as it
does when height and width are free, the numbers are worked out on the way; a weight's values are
never needed.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

# Shapes, axes and bounds are small; what is larger is a weight or a table.
MAX_VALUE_ELEMENTS = 1024

Types = dict[str, onnx.TypeProto]
Values = dict[str, NDArray[Any]]


def tensor_types(model: onnx.ModelProto) -> Types:
    """The type of every tensor, in which axes that depend on values stay unknown.

    Args:
        model: its inputs have fixed shapes; weights larger than `MAX_VALUE_ELEMENTS` may be empty.

    Raises:
        Exception: the graph contradicts itself; the library's exceptions share no base class.
    """
    graph = model.graph
    types = {value.name: value.type for value in graph.input}
    values: Values = {}
    for constant in graph.initializer:
        types[constant.name] = helper.make_tensor_type_proto(constant.data_type, constant.dims)
        is_inside = constant.data_location != onnx.TensorProto.EXTERNAL
        if is_inside and math.prod(constant.dims) <= MAX_VALUE_ELEMENTS:
            values[constant.name] = numpy_helper.to_array(constant)
    for node in graph.node:
        shape = fixed_shape(types.get(node.input[0])) if node.op_type == "Shape" else None
        if shape is not None:
            known = [_part_of_shape(node, shape)]
        else:
            types |= _outputs(node, types, values, model)
            known = _evaluated(node, types, values)
        for name, value in zip(node.output, known, strict=False):
            values[name] = value
            element_type = helper.np_dtype_to_tensor_dtype(value.dtype)
            types[name] = helper.make_tensor_type_proto(element_type, value.shape)
    return types


def fixed_shape(of_type: onnx.TypeProto | None) -> tuple[int, ...] | None:
    """The shape of a tensor type, or None where any axis is unknown."""
    if of_type is None or not of_type.tensor_type.HasField("shape"):
        return None
    axes = of_type.tensor_type.shape.dim
    if not all(axis.HasField("dim_value") for axis in axes):
        return None
    return tuple(axis.dim_value for axis in axes)


def _part_of_shape(node: onnx.NodeProto, shape: tuple[int, ...]) -> NDArray[Any]:
    bounds = {attribute.name: attribute.i for attribute in node.attribute}
    part = shape[bounds.get("start", 0) : bounds.get("end", len(shape))]
    return np.array(part, np.int64)


def _outputs(
    node: onnx.NodeProto, types: Types, values: Values, model: onnx.ModelProto
) -> dict[str, onnx.TypeProto]:
    """The types of a node's outputs by its operator's own rule."""
    version = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    return shape_inference.infer_node_outputs(
        onnx.defs.get_schema(node.op_type, version),
        node,
        {name: types[name] for name in node.input if name},
        {name: numpy_helper.from_array(values[name]) for name in node.input if name in values},
        opset_imports=list(model.opset_import),
        ir_version=model.ir_version,
    )


def _evaluated(node: onnx.NodeProto, types: Types, values: Values) -> list[NDArray[Any]]:
    """A node's outputs where all of its inputs are known and everything is small, else nothing."""
    if not all(name in values for name in node.input if name):
        return []
    for name in node.output:
        shape = fixed_shape(types.get(name))
        if shape is None or math.prod(shape) > MAX_VALUE_ELEMENTS:
            return []
    feed = {name: values[name] for name in node.input if name}
    return [np.asarray(result) for result in ReferenceEvaluator(node).run(None, feed)]
