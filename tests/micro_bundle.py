"""A bundle of three graphs of a few nodes each, quick to compile with the real compiler.

It has the inputs and outputs of a model and draws nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from engines_fixtures import tiny_spec
from onnx import TensorProto, helper, numpy_helper

from engines.spec import StageFile, sha256_of


def write_micro_bundle(folder: Path, seed: int = 0, num_channels: int = 8) -> Path:
    """Write a bundle that draws nothing; `seed` is its training, the channels its architecture."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(rng.standard_normal(shape, dtype=np.float32), name)

    latents = ("latents_BChw", TensorProto.FLOAT, ["B", 8, 8, 8])
    embeds = ("text_embeds_BLD", TensorProto.FLOAT, ["B", 12, 32])
    node = helper.make_node
    graphs: dict[str, tuple[list[Any], list[Any], Any, list[onnx.TensorProto]]] = {
        "text": (
            [node("Gather", ["table", "input_ids_BL"], ["text_embeds_BLD"])],
            [("input_ids_BL", TensorProto.INT64, ["B", 12])],
            embeds,
            [weight("table", 64, 32)],
        ),
        "denoise": (
            [
                node("Conv", ["latents_BChw", "widen"], ["wide"]),
                node("Conv", ["wide", "narrow"], ["drawn"]),
                node("Cast", ["timestep_B"], ["time"], to=TensorProto.FLOAT),
                node("Reshape", ["time", "column"], ["time_B111"]),
                node("ReduceMean", ["text_embeds_BLD", "last_axes"], ["told"], keepdims=1),
                node("Reshape", ["told", "column"], ["told_B111"]),
                node("Add", ["drawn", "time_B111"], ["timed"]),
                node("Add", ["timed", "told_B111"], ["denoised_BChw"]),
            ],
            [latents, ("timestep_B", TensorProto.INT64, ["B"]), embeds],
            ("denoised_BChw", TensorProto.FLOAT, ["B", 8, 8, 8]),
            [
                weight("widen", num_channels, 8, 1, 1),
                weight("narrow", 8, num_channels, 1, 1),
                numpy_helper.from_array(np.array([-1, 1, 1, 1]), "column"),
                numpy_helper.from_array(np.array([1, 2]), "last_axes"),
            ],
        ),
        "decode": (
            [
                node("Conv", ["latents_BChw", "to_rgb"], ["rgb"]),
                node("Transpose", ["rgb"], ["levels"], perm=[0, 2, 3, 1]),
                node("Cast", ["levels"], ["images_BHWC"], to=TensorProto.UINT8),
            ],
            [latents],
            ("images_BHWC", TensorProto.UINT8, ["B", 8, 8, 3]),
            [weight("to_rgb", 3, 8, 1, 1)],
        ),
    }
    stages: Any = {}
    for stage, (nodes, inputs, output, weights) in graphs.items():
        values = [helper.make_tensor_value_info(*entry) for entry in (*inputs, output)]
        graph = helper.make_graph(nodes, stage, values[:-1], values[-1:], weights)
        path = folder / f"{stage}.onnx"
        opset = helper.make_opsetid("", 20)
        onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=10), path)
        stages[stage] = StageFile(
            file=path.name, sha256=sha256_of(path), size_bytes=path.stat().st_size
        )
    tiny_spec(stages=stages).save(folder)
    return folder
