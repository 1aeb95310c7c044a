"""Variants in 8 bits: whole or not at all, read by every runtime, checked, and preferred."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from engines.__main__ import main
from engines.compiler import parse_graph
from engines.errors import ExportError
from engines.pipeline import Pipeline
from engines.qdq import candidates
from engines.quantize import Recipe, quantize_bundle
from engines.spec import Configuration, ModelSpec
from engines.verdicts import Verdicts

PROMPTS = ("a", "b c")


@pytest.fixture(scope="module")
def quantized(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with both variants. Shared: a test that alters it works on a copy."""
    folder = Path(shutil.copytree(bundle, tmp_path_factory.mktemp("quantized") / "bundle"))
    for precision in ("int8", "float8"):
        recipe = Recipe(precision, prompts=PROMPTS, num_threads=1, target_error=1.0)
        outcomes = quantize_bundle(folder, recipe)
        assert all(o.num_quantized == o.num_candidates > 0 for o in outcomes.values())
    return folder


def _copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


@pytest.mark.parametrize(
    ("precision", "kind"),
    [("int8", onnx.TensorProto.INT8), ("float8", onnx.TensorProto.FLOAT8E4M3FN)],
)
def test_weights_lie_in_8_bits_and_other_stages_are_the_base(
    quantized: Path, precision: Any, kind: int
) -> None:
    spec = ModelSpec.load(quantized)
    spec.verify(quantized)
    files = spec.stage_files(precision)
    assert files["text"] == spec.stages["text"]
    for stage in ("denoise", "decode"):
        assert files[stage].size_bytes < spec.stages[stage].size_bytes
        graph = onnx.load(quantized / files[stage].file).graph
        kernels = [i for i in graph.initializer if len(i.dims) == 4]
        assert Counter(i.data_type == kind for i in kernels)[True] >= len(kernels) - 2 > 0
        if precision == "int8":
            levels = [onnx.numpy_helper.to_array(i) for i in kernels if i.data_type == kind]
            # More than 7 bits saturate on a CPU without VNNI.
            assert {int(np.abs(array).max()) for array in levels} == {63}
        made = {node.op_type for node in graph.node}
        assert {"QuantizeLinear", "DequantizeLinear"} <= made
    assert not list(quantized.glob(".*.partial"))


def test_first_and_last_convolution_and_the_timestep_path_stay_in_float(bundle: Path) -> None:
    model = ir.load(bundle / "denoise.onnx")
    convolutions = [node.name for node in model.graph if node.op_type == "Conv"]
    chosen = {candidate.node for candidate in candidates(model)}
    assert set(convolutions[1:-1]) <= chosen
    assert not {convolutions[0], convolutions[-1]} & chosen
    # Products of two dimensions are those of the timestep's embedding.
    steering = [node for node in model.graph if node.op_type == "Gemm"]
    flat = [node.name for node in steering if len(node.inputs[0].shape) == 2]
    assert flat and not set(flat) & chosen


@pytest.mark.parametrize("precision", ["int8", "float8"])
@pytest.mark.parametrize("stage", ["denoise", "decode"])
def test_the_parser_of_tensorrt_takes_the_graphs(
    quantized: Path, precision: Any, stage: Any
) -> None:
    trt: Any = pytest.importorskip("tensorrt_rtx")
    logger = trt.Logger(trt.Logger.ERROR)
    path = ModelSpec.load(quantized).graph_path(quantized, stage, precision)
    network = parse_graph(trt, trt.Builder(logger), path, logger)
    kinds = {network.get_layer(i).type for i in range(network.num_layers)}
    assert {trt.LayerType.QUANTIZE, trt.LayerType.DEQUANTIZE} <= kinds


def test_a_graph_in_int8_compiles_for_a_gpu(quantized: Path) -> None:
    trt: Any = pytest.importorskip("tensorrt_rtx")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    path = ModelSpec.load(quantized).graph_path(quantized, "decode", "int8")
    network = parse_graph(trt, builder, path, logger)
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    assert config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    profile = builder.create_optimization_profile()
    profile.set_shape("latents_BChw", (1, 8, 8, 8), (4, 8, 8, 8), (8, 8, 8, 8))
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config) is not None


def test_checked_tuned_and_then_preferred(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _copy(bundle, tmp_path)
    # Random weights leave no room for 8 bits in every stage.
    quantize_bundle(folder, Recipe(stages=("decode",), prompts=PROMPTS, num_threads=1))
    arguments = [str(folder), "--threads", "1"]
    assert main(["tune", *arguments]) == 2
    assert "passed its check: run `onestep-engines check`" in capsys.readouterr().err
    backends = ["--backend", "onnx", "--backend", "openvino"]
    assert main(["check", *arguments, *backends, "--precision", "int8"]) == 0
    assert main(["check", *arguments, "--backend", "onnx", "--precision", "float32"]) == 0
    expected = {("onnx", "int8"), ("openvino", "int8"), ("onnx", "float32")}
    assert {(v.backend, v.precision) for v in Verdicts.load(folder).verdicts} == expected

    out = tmp_path / "tune.json"
    timing = ["--batch", "1", "2", "--rounds", "3", "--json", str(out)]
    assert main(["tune", *arguments, *timing]) == 0
    rows = json.loads(out.read_text())["configurations"]
    assert {(row["backend"], row["precision"]) for row in rows} == expected
    spans = [row["per_picture_ms"] for row in rows]
    assert spans == sorted(spans)
    spec = ModelSpec.load(folder)
    assert [(one.backend, one.precision) for one in spec.preferred] == [
        (row["backend"], row["precision"]) for row in rows
    ]
    first = spec.preferred[0]
    drawn = [
        Pipeline.load(folder, backend=backend, precision=precision, num_threads=1)
        .generate(["a"], [1], width=64, height=64, steps=1)
        .images_BHWC
        for backend, precision in ((None, None), (first.backend, first.precision))
    ]
    np.testing.assert_array_equal(*drawn)


def test_quantising_again_replaces_the_variant_and_forgets_what_was_preferred(
    quantized: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _copy(quantized, tmp_path)
    before = ModelSpec.load(folder)
    preferred = tuple(Configuration(backend="onnx", precision=p) for p in ("int8", "float32"))
    before.model_copy(update={"preferred": preferred}).save(folder)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\n\n a dog \n")
    arguments = ["--calibration", str(prompts), "--stages", "decode", "--threads", "1"]
    assert main(["quantize", str(folder), *arguments]) == 0
    assert "decode: " in capsys.readouterr().out
    after = ModelSpec.load(folder)
    after.verify(folder)
    assert set(after.variants["int8"]) == {"decode"}
    assert after.variants["int8"]["decode"] != before.variants["int8"]["decode"]
    assert after.variants["float8"] == before.variants["float8"]
    assert after.preferred == preferred[1:]
    for entry in before.variants["int8"].values():
        assert not (folder / entry.file).exists()


def test_nodes_that_hurt_go_back_to_float_until_the_target_is_met(
    bundle: Path, tmp_path: Path
) -> None:
    folder, lines = _copy(bundle, tmp_path), list[str]()
    # No error is small enough: every share is tried.
    recipe = Recipe(stages=("decode",), prompts=PROMPTS, num_threads=1, target_error=0.0)
    outcome = quantize_bundle(folder, recipe, report=lines.append)["decode"]
    errors = [float(line.rpartition(" ")[2]) for line in lines if "error" in line]
    assert len(errors) == 6
    assert errors[-1] < errors[0]
    assert outcome.num_quantized == outcome.num_candidates - round(outcome.num_candidates * 0.5)
    path = ModelSpec.load(folder).graph_path(folder, "decode", "int8")
    rounded = [n for n in onnx.load(path).graph.node if n.name.endswith(".weight.dq")]
    assert len(rounded) == outcome.num_quantized


def test_a_full_disk_leaves_the_bundle_as_it_was(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _copy(bundle, tmp_path)
    before = (folder / "model.json").read_bytes()

    def fail(model: ir.Model, path: Path) -> None:
        Path(path).write_bytes(b"half a graph")
        if path.parent == folder:
            raise OSError(28, "No space left on device")
        real(model, path)

    real = ir.save
    monkeypatch.setattr(ir, "save", fail)
    with pytest.raises(ExportError, match=f"cannot write to {folder}: No space left on device"):
        quantize_bundle(folder, Recipe(prompts=PROMPTS, num_threads=1, target_error=1.0))
    assert (folder / "model.json").read_bytes() == before
    assert {path.name for path in folder.iterdir()} == {path.name for path in bundle.iterdir()}


@pytest.mark.parametrize(
    ("content", "message"), [(b"\n \n", "holds no prompt"), (b"\xff\xfe", "is no UTF-8 text")]
)
def test_a_file_without_prompts_is_named(
    content: bytes,
    message: str,
    bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    assert main(["quantize", str(bundle), "--calibration", str(path)]) == 2
    assert f"--calibration: {path} {message}" in capsys.readouterr().err


def test_a_base_in_half_is_refused(bundle: Path, tmp_path: Path) -> None:
    folder = _copy(bundle, tmp_path)
    ModelSpec.load(folder).model_copy(update={"base_precision": "float16"}).save(folder)
    with pytest.raises(ExportError, match="tiny is in float16: quantise a bundle whose base"):
        quantize_bundle(folder, Recipe())
