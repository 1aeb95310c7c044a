"""How much work is a graph?

Owns the count of arithmetic and memory traffic of an ONNX graph for one batch size and picture
size. Reads shapes and types, never a weight's values. Knows nothing of machines or of time.

Counted: matrix products and convolutions (2 FLOP per multiply-add), and one read and one write
per normalisation. Everything else is taken as fused into its neighbours and free, so that a time
derived from it is a bound from below. Each counted node reads its inputs and writes its outputs
once, in the types that the graph computes in: weights stored in half and cast count as the floats
that a runtime folds them to. The scores between the two products of an attention move no bytes: a
fused kernel keeps them on the chip.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from engines.errors import BundleError
from engines.graph_shapes import MAX_VALUE_ELEMENTS, fixed_shape, tensor_types
from engines.roofline import Op, Work

_NORMS = {
    "BatchNormalization",
    "GroupNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "LpNormalization",
    "MeanVarianceNormalization",
    "RMSNormalization",
}
_PRODUCTS = {"Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul"}
# Heavy operators without a rule here: a count that leaves one out would be silently too small.
_UNKNOWN = {
    "Attention",
    "ConvInteger",
    "DeformConv",
    "DFT",
    "GRU",
    "LSTM",
    "MatMulInteger",
    "QLinearConv",
    "QLinearMatMul",
    "RNN",
    "STFT",
}
# What may stand between an attention's products beside the softmax itself.
_BESIDE_SOFTMAX = {"Add", "Cast", "Div", "IsNaN", "Mul", "Softmax", "Sub", "Where"}
_FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}


@dataclass(frozen=True)
class _Tensor:
    shape: tuple[int, ...]
    num_bytes: int

    @classmethod
    def of(cls, shape: tuple[int, ...], element_type: int, float_bytes: int | None) -> _Tensor:
        num_bytes = helper.tensor_dtype_to_np_dtype(element_type).itemsize
        if float_bytes is not None and element_type in _FLOATS:
            num_bytes = float_bytes
        return cls(shape, math.prod(shape) * num_bytes)

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)


class Graph:
    """A graph's nodes without its weights, ready to be counted for several batch sizes."""

    def __init__(self, path: Path) -> None:
        """Read a graph; weights beside it are not read, weights inside are dropped.

        Raises:
            BundleError: the file is no graph, or holds an operator whose work is not known here.
        """
        self._path = path
        try:
            self._model = onnx.load(path, load_external_data=False)
        except Exception as error:  # the library's exceptions share no base class
            raise BundleError(
                f"cannot read {path} ({_first_line(error)}): export the bundle again"
            ) from error
        for node in self._model.graph.node:
            is_nested = any(attribute.HasField("g") for attribute in node.attribute)
            if node.op_type in _UNKNOWN or node.domain not in ("", "ai.onnx") or is_nested:
                raise BundleError(
                    f"{path} holds {node.domain or 'ai.onnx'}.{node.op_type}, whose work cannot be "
                    "counted: measure the bundle that `onestep-engines export` wrote"
                )
        for tensor in self._model.graph.initializer:
            if math.prod(tensor.dims) > MAX_VALUE_ELEMENTS:
                tensor.ClearField("raw_data")

    def count(
        self, batch_size: int, latent_hw: tuple[int, int], *, float_bytes: int | None = None
    ) -> Work:
        """Count the graph's work.

        Args:
            batch_size: for the first axis of every input.
            latent_hw: height and width for the free axes of inputs with four axes.
            float_bytes: bytes per number where a runtime computes in another type than the
                graph says; None takes the graph's own.

        Raises:
            BundleError: the graph is fixed to other shapes, or its shapes cannot be inferred.
        """
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        for value in model.graph.input:
            self._fix_axes(value, batch_size, latent_hw)
        try:
            types = tensor_types(model)
        except Exception as error:  # the library's exceptions share no base class
            raise BundleError(
                f"cannot infer the shapes of {self._path} ({_first_line(error)}): "
                "export the bundle again"
            ) from error
        tensors = {
            name: _Tensor.of(shape, of_type.tensor_type.elem_type, float_bytes)
            for name, of_type in types.items()
            if (shape := fixed_shape(of_type)) is not None
        }
        return Work(tuple(_ops(self._path, model.graph, tensors)))

    def _fix_axes(
        self, value: onnx.ValueInfoProto, batch_size: int, latent_hw: tuple[int, int]
    ) -> None:
        axes = value.type.tensor_type.shape.dim
        wanted = {0: batch_size}
        if len(axes) == 4:
            wanted |= {2: latent_hw[0], 3: latent_hw[1]}
        for index, axis in enumerate(axes):
            if axis.HasField("dim_value"):
                if index in wanted and axis.dim_value != wanted[index]:
                    raise BundleError(
                        f"{self._path}: axis {index} of {value.name} is fixed to "
                        f"{axis.dim_value}, not {wanted[index]}: count it at that size"
                    )
            elif index in wanted:
                axis.dim_value = wanted[index]
            else:
                raise BundleError(
                    f"{self._path}: axis {index} of {value.name} is free and is neither batch nor "
                    "picture size: export the bundle again"
                )


def _ops(path: Path, graph: onnx.GraphProto, tensors: Mapping[str, _Tensor]) -> Iterator[Op]:
    kept = _attention_scores(graph, tensors)
    squares = {name for node in graph.node if _is_square(node) for name in node.output}
    for node in graph.node:
        is_norm = node.op_type in _NORMS or (
            # A norm by the root mean square, spelt out.
            node.op_type == "ReduceMean" and node.input[0] in squares
        )
        if not is_norm and node.op_type not in _PRODUCTS:
            continue
        names = [name for name in (*node.input, *node.output) if name]
        for name in names:
            if name not in tensors:
                raise BundleError(
                    f"{path}: the shape of {name} depends on values: export the bundle again"
                )
        if is_norm:
            yield Op(node.name, node.op_type, 0, 2 * tensors[node.input[0]].num_bytes)
            continue
        moved = (tensors[name].num_bytes for name in dict.fromkeys(names) if name not in kept)
        yield Op(node.name, node.op_type, 2 * _num_macs(path, node, tensors), sum(moved))


def _num_macs(path: Path, node: onnx.NodeProto, tensors: Mapping[str, _Tensor]) -> int:
    if node.op_type == "Einsum":
        return _einsum_macs(path, node, [tensors[name] for name in node.input])
    left, right = (tensors[name] for name in node.input[:2])
    output = tensors[node.output[0]]
    if node.op_type == "MatMul":
        return output.num_elements * left.shape[-1]
    if node.op_type == "Gemm":
        is_transposed = any(a.name == "transA" and a.i for a in node.attribute)
        return output.num_elements * left.shape[0 if is_transposed else 1]
    if node.op_type == "Conv":  # weights: out, in / groups, kernel
        return output.num_elements * math.prod(right.shape[1:])
    assert node.op_type == "ConvTranspose"  # weights: in, out / groups, kernel
    return left.num_elements * math.prod(right.shape[1:])


def _einsum_macs(path: Path, node: onnx.NodeProto, operands: list[_Tensor]) -> int:
    """One multiply-add for every combination of indices."""
    equation = next(a.s.decode() for a in node.attribute if a.name == "equation").replace(" ", "")
    terms = equation.partition("->")[0].split(",")
    if len(terms) != 2 or "..." in equation:
        raise BundleError(
            f"{path} holds the product {equation}, whose work cannot be counted: write it as a "
            "product of two operands with named axes and export the bundle again"
        )
    sizes = {
        letter: size
        for term, operand in zip(terms, operands, strict=True)
        for letter, size in zip(term, operand.shape, strict=True)
    }
    return math.prod(sizes.values())


def _is_square(node: onnx.NodeProto) -> bool:
    is_product_with_itself = node.op_type == "Mul" and node.input[0] == node.input[1]
    return node.op_type == "Pow" or is_product_with_itself


def _attention_scores(graph: onnx.GraphProto, tensors: Mapping[str, _Tensor]) -> set[str]:
    """Names of the tensors that go from a product into a softmax, or from one into a product."""
    makers = {name: [node] for node in graph.node for name in node.output}
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    sizes = {name: tensor.num_elements for name, tensor in tensors.items()}
    scores: set[str] = set()
    for softmax in (node for node in graph.node if node.op_type == "Softmax"):
        size = sizes.get(softmax.output[0], 0)
        for start, neighbours in ((softmax.input[0], makers), (softmax.output[0], users)):
            names = [start]
            while names:
                name = names.pop()
                for node in neighbours.get(name, ()):
                    if node.op_type in ("MatMul", "Einsum"):
                        scores.add(name)
                    elif node.op_type in _BESIDE_SOFTMAX:
                        further = node.input if neighbours is makers else node.output
                        # A mask or a scale is smaller than the scores and leads elsewhere.
                        names += [name for name in further if sizes.get(name) == size]
    return scores


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
