"""What an ONNX file is made of, read without the onnx package.

Owns two digests of a graph: of its architecture, and of the weights' values. Two models that were
trained apart from one configuration share the first and differ in the second; that is when a plan
can be refitted. Knows of protobuf's wire format what that takes, and no operator's meaning.

Field numbers are those of onnx.proto. Source: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

import hashlib
import mmap
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from engines.errors import BundleError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_INITIALIZER = 1, 5
_NODE_INPUT, _NODE_OP_TYPE, _NODE_ATTRIBUTE = 1, 4, 5
_ATTRIBUTE_SUBGRAPHS = (6, 11)
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME, _TENSOR_LOCATION = 1, 2, 8, 14
# float, uint8, int8, float16, double, bfloat16, the float8s, uint4, int4, float4
_WEIGHT_TYPES = frozenset({1, 2, 3, 10, 11, 16, 17, 18, 19, 20, 21, 22, 23})
# Where a compiler reads values while it compiles (a Resize's scales, a Clip's bounds), a plan
# cannot take others later. So a tensor is a weight only if nothing but these takes it.
_WEIGHT_OPERATORS = frozenset(
    {
        *("Add", "BatchNormalization", "Cast", "Conv", "ConvTranspose", "DequantizeLinear", "Div"),
        *("Gather", "GatherND", "Gemm", "GroupNormalization", "InstanceNormalization"),
        *("LayerNormalization", "MatMul", "Mul", "RMSNormalization", "Sub", "Transpose"),
    }
)


@dataclass(frozen=True)
class GraphDigests:
    """Hex digests of one graph.

    Attributes:
        architecture: everything but the weights' values: nodes, names, shapes, types, constants.
        weights: the weights' values, by name.
    """

    architecture: str
    weights: str


@dataclass(frozen=True)
class _Field:
    """One field of a message: where it begins and ends, and where its value lies."""

    number: int
    begin: int
    value: int
    end: int
    varint: int


def graph_digests(path: Path, external_sha256: str | None = None) -> GraphDigests:
    """Digest the graph in `path`.

    Args:
        path: an ONNX file.
        external_sha256: digest of the file beside it that holds its weights, if there is one.

    Raises:
        BundleError: the file is missing or no ONNX graph.
    """
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ) as file:
            with memoryview(file) as view:
                return _Digester(view, external_sha256).run()
    except FileNotFoundError as error:
        raise BundleError(f"{path} is missing: export or fetch the bundle again") from error
    except (ValueError, IndexError) as error:  # an empty file cannot be mapped: ValueError
        raise BundleError(f"{path} is no ONNX graph ({error}): export the bundle again") from error


class _Digester:
    def __init__(self, view: memoryview, external_sha256: str | None) -> None:
        self._view = view
        self._architecture = hashlib.sha256()
        self._weights = hashlib.sha256((external_sha256 or "").encode())

    def run(self) -> GraphDigests:
        num_graphs = 0
        for part in self._fields(0, len(self._view)):
            if part.number == _MODEL_GRAPH:
                num_graphs += 1
                self._graph(part)
            else:
                self._architecture.update(self._view[part.begin : part.end])
        if num_graphs != 1:
            raise ValueError("it holds no graph")
        return GraphDigests(self._architecture.hexdigest(), self._weights.hexdigest())

    def _graph(self, graph: _Field) -> None:
        operators = self._operators(graph)
        for part in self._fields(graph.value, graph.end):
            if part.number == _GRAPH_INITIALIZER:
                self._initializer(part, operators)
            else:
                self._architecture.update(self._view[part.begin : part.end])

    def _operators(self, graph: _Field) -> dict[bytes, set[str]]:
        """Tensor name -> types of the nodes that take it; empty where a node holds a graph.

        A graph inside a node may take tensors from outside by name, unseen here.
        """
        operators: dict[bytes, set[str]] = defaultdict(set)
        for node in self._fields(graph.value, graph.end):
            if node.number != _GRAPH_NODE:
                continue
            inputs, op_type = [], ""
            for part in self._fields(node.value, node.end):
                if part.number == _NODE_INPUT:
                    inputs.append(bytes(self._view[part.value : part.end]))
                elif part.number == _NODE_OP_TYPE:
                    op_type = bytes(self._view[part.value : part.end]).decode()
                elif part.number == _NODE_ATTRIBUTE and any(
                    attribute.number in _ATTRIBUTE_SUBGRAPHS
                    for attribute in self._fields(part.value, part.end)
                ):
                    return {}
            for name in inputs:
                operators[name].add(op_type)
        return operators

    def _initializer(self, tensor: _Field, operators: dict[bytes, set[str]]) -> None:
        """Send what describes a tensor to one digest and its values to the other."""
        described: list[_Field] = []
        values: list[_Field] = []
        name, data_type, has_axes = b"", 0, False
        for part in self._fields(tensor.value, tensor.end):
            if part.number == _TENSOR_NAME:
                name = bytes(self._view[part.value : part.end])
            elif part.number == _TENSOR_TYPE:
                data_type = part.varint
            has_axes |= part.number == _TENSOR_DIMS
            is_value = part.number not in (
                *(_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME, _TENSOR_LOCATION),
            )
            (values if is_value else described).append(part)
        used_by = operators.get(name, set())
        is_weight = data_type in _WEIGHT_TYPES and has_axes and bool(used_by)
        is_weight = is_weight and used_by <= _WEIGHT_OPERATORS
        for part in described:
            self._architecture.update(self._view[part.begin : part.end])
        digest = self._weights if is_weight else self._architecture
        digest.update(name)
        for part in values:
            digest.update(self._view[part.begin : part.end])

    def _fields(self, begin: int, end: int) -> Iterator[_Field]:
        """Walk the fields of the message in [begin, end)."""
        at = begin
        while at < end:
            start = at
            tag, at = self._varint(at)
            wire_type, varint = tag & 7, 0
            if wire_type == _VARINT:
                value = at
                varint, at = self._varint(at)
            elif wire_type == _BYTES:
                length, value = self._varint(at)
                at = value + length
            elif wire_type in (_FIXED64, _FIXED32):
                value = at
                at += 8 if wire_type == _FIXED64 else 4
            else:
                raise ValueError(f"byte {start} begins no field")
            if at > end:
                raise ValueError(f"it is cut short at byte {end}")
            yield _Field(tag >> 3, start, value, at, varint)

    def _varint(self, at: int) -> tuple[int, int]:
        """(number, where the next byte lies)."""
        number = 0
        for shift in range(0, 70, 7):
            byte = self._view[at]
            at += 1
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number, at
        raise ValueError(f"byte {at} ends no number")
