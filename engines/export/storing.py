"""From an ONNX graph in memory to files.

Owns how weights are stored: inside the graph's file or beside it, float32 ones in half where that
costs nothing; and that nothing of the machine that traced the graph goes along.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from engines.spec import ListedFile, StageFile, sha256_of

# Above it weights lie in a file of their own; protobuf itself holds no more than 2 GiB.
MAX_INLINE_BYTES = 1_500_000_000
_MIN_EXTERNAL_BYTES = 1024


def store(
    model: ir.Model, path: Path, *, in_half: bool, has_external_weights: bool = False
) -> StageFile:
    """Write a graph, and its weights beside it where they are many or that is asked for.

    Args:
        model: changed on the way.
        path: to write; weights go to the same name with the ending `.weights`.
        in_half: whether float32 matrices and kernels are stored as float16.
        has_external_weights: ask for the file of weights whatever their size.
    """
    if in_half:
        store_in_half(model)
    strip(model)
    num_bytes = sum(
        value.const_value.nbytes
        for value in model.graph.initializers.values()
        if value.const_value is not None
    )
    if not has_external_weights and num_bytes <= MAX_INLINE_BYTES:
        ir.save(model, path)
        return StageFile(**_listed(path))
    weights = path.with_suffix(".weights")
    ir.save(model, path, external_data=weights.name, size_threshold_bytes=_MIN_EXTERNAL_BYTES)
    return StageFile(**_listed(path), weights=ListedFile(**_listed(weights)))


def _listed(path: Path) -> dict[str, str | int]:
    size_bytes = path.stat().st_size
    return {"file": path.name, "sha256": sha256_of(path), "size_bytes": size_bytes}


def store_in_half(model: ir.Model) -> None:
    """Keep matrices and kernels as float16, cast to float32 inside the graph.

    Runtimes fold the casts when they load the graph, so that nothing is cast per call. Vectors
    stay float32: they are small, and the schedule tables and norms among them need the digits.
    """
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None:
            continue
        if tensor.dtype != ir.DataType.FLOAT or len(tensor.shape) < 2:
            continue
        array = tensor.numpy()
        if np.abs(array).max(initial=0.0) > np.finfo(np.float16).max:
            continue
        uses = list(value.uses())
        del model.graph.initializers[name]
        half = ir.Value(
            name=f"{name}.half",
            shape=value.shape,
            type=ir.TensorType(ir.DataType.FLOAT16),
            const_value=ir.tensor(array.astype(np.float16), name=f"{name}.half"),
        )
        model.graph.initializers.add(half)
        cast = ir.node("Cast", [half], {"to": ir.DataType.FLOAT}, name=f"{name}.cast")
        cast.outputs[0].name = name
        cast.outputs[0].shape = value.shape
        cast.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        model.graph.insert_before(model.graph[0], cast)
        for user, index in uses:
            user.replace_input_with(index, cast.outputs[0])


def strip(model: ir.Model) -> None:
    """Remove what the tracer notes of the machine it ran on: stack traces with local paths."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.doc_string = model.graph.doc_string = None
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        node.metadata_props.clear()
        node.doc_string = None
    for value in model.graph.initializers.values():
        value.metadata_props.clear()
        value.doc_string = None
