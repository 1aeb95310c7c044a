"""A bundle of three small ONNX graphs that were never a network, written in milliseconds.

They have the names, shapes and types of real stages, and arithmetic that keeps rows apart.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from engines_fixtures import tiny_spec, write_tokenizer
from onnx import TensorProto, helper, numpy_helper

from engines.spec import STAGES, ModelSpec, StageFile, StageName, sha256_of

_FLOAT, _INT64, _UINT8 = TensorProto.FLOAT, TensorProto.INT64, TensorProto.UINT8


def write_graph_bundle(folder: Path, *, scale: float = 1.0) -> ModelSpec:
    """Write the bundle; `scale` makes its pictures, and its graphs' digests, others."""
    folder.mkdir(parents=True, exist_ok=True)
    spec = tiny_spec(tokenizer_file="tokenizer.json")
    write_tokenizer(folder / "tokenizer.json")
    random = np.random.default_rng(0)

    def constant(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(random.standard_normal(shape).astype(np.float32), name)

    text = helper.make_graph(
        [helper.make_node("Gather", ["table", "input_ids_BL"], ["text_embeds_BLD"])],
        "text",
        [helper.make_tensor_value_info("input_ids_BL", _INT64, ["B", 12])],
        [helper.make_tensor_value_info("text_embeds_BLD", _FLOAT, ["B", 12, 32])],
        [constant("table", 64, 32)],
    )
    denoise = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["text_embeds_BLD", "inner"], ["mean"], keepdims=1),
            helper.make_node("Unsqueeze", ["mean", "last"], ["mean_B111"]),
            helper.make_node("Cast", ["timestep_B"], ["time"], to=_FLOAT),
            helper.make_node("Reshape", ["time", "column"], ["time_B111"]),
            helper.make_node("Div", ["time_B111", "thousand"], ["part"]),
            helper.make_node("Conv", ["latents_BChw", "kernel"], ["mixed"]),
            helper.make_node("Add", ["mixed", "mean_B111"], ["warm"]),
            helper.make_node("Add", ["warm", "part"], ["denoised_BChw"]),
        ],
        "denoise",
        [
            helper.make_tensor_value_info("latents_BChw", _FLOAT, ["B", 8, 8, 8]),
            helper.make_tensor_value_info("timestep_B", _INT64, ["B"]),
            helper.make_tensor_value_info("text_embeds_BLD", _FLOAT, ["B", 12, 32]),
        ],
        [helper.make_tensor_value_info("denoised_BChw", _FLOAT, ["B", 8, 8, 8])],
        [
            constant("kernel", 8, 8, 1, 1),
            numpy_helper.from_array(np.array([1, 2]), "inner"),
            numpy_helper.from_array(np.array([3]), "last"),
            numpy_helper.from_array(np.array([-1, 1, 1, 1]), "column"),
            numpy_helper.from_array(np.float32(1000), "thousand"),
        ],
    )
    decode = helper.make_graph(
        [
            helper.make_node("ConvTranspose", ["latents_BChw", "kernel"], ["raw"], strides=[8, 8]),
            helper.make_node("Mul", ["raw", "contrast"], ["wide"]),
            helper.make_node("Add", ["wide", "middle"], ["shifted"]),
            helper.make_node("Clip", ["shifted", "low", "high"], ["levels"]),
            helper.make_node("Transpose", ["levels"], ["last"], perm=[0, 2, 3, 1]),
            helper.make_node("Round", ["last"], ["whole"]),
            helper.make_node("Cast", ["whole"], ["images_BHWC"], to=_UINT8),
        ],
        "decode",
        [helper.make_tensor_value_info("latents_BChw", _FLOAT, ["B", 8, 8, 8])],
        [helper.make_tensor_value_info("images_BHWC", _UINT8, ["B", 64, 64, 3])],
        [
            constant("kernel", 8, 3, 8, 8),
            numpy_helper.from_array(np.float32(10 * scale), "contrast"),
            numpy_helper.from_array(np.float32(128), "middle"),
            numpy_helper.from_array(np.float32(0), "low"),
            numpy_helper.from_array(np.float32(255), "high"),
        ],
    )
    files: dict[StageName, StageFile] = {}
    for stage, graph in zip(STAGES, (text, denoise, decode), strict=True):
        path = folder / f"{stage}.onnx"
        opset = [helper.make_opsetid("", 20)]
        onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
        files[stage] = StageFile(
            file=path.name, sha256=sha256_of(path), size_bytes=path.stat().st_size
        )
    spec = spec.model_copy(
        update={
            "stages": files,
            "files": {"tokenizer.json": sha256_of(folder / "tokenizer.json")},
        }
    )
    spec.save(folder)
    return spec
