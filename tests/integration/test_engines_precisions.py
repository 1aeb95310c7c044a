"""Every graph of every kind of model, in every precision, under ONNX Runtime and TensorRT.

What ONNX Runtime draws is compared with torch in float32; TensorRT's parser and builder are the
real ones and need no GPU.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from engines_fixtures import alter_settings, write_tiny_torch_folder, write_tiny_vae
from onnx import TensorProto
from teacher_folders import save_tiny_pipeline
from tensorrt_graphs import parse_and_build

from engines.adopt import adopt
from engines.errors import ExportError
from engines.export import OPSET, ExportOptions, export_bundle, trace
from engines.export.storing import store
from engines.export.tracing import example_inputs
from engines.pipeline import Pipeline
from engines.runtime.base import stage_inputs, stage_outputs
from engines.runtime.modules import ModuleOptions, load_stage
from engines.runtime.onnx import OnnxStage
from engines.spec import ALL_STAGES, ModelSpec, Precision, StageName

trt: Any = pytest.importorskip("tensorrt_rtx")

PRECISIONS: tuple[Precision, ...] = ("float32", "float16")
KINDS = ("emoji", "sd15", "sdxl")
# Largest difference from torch in float32, in standard deviations of what torch gives; for
# pictures in levels of 0..255. In float32 it is the weights that are stored in half.
MAX_GAP = {"float32": 0.02, "float16": 0.05}
MAX_LEVELS = {"float32": 3, "float16": 6}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=KINDS)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A torch folder; SDXL's autoencoder is one that keeps to half, as the mended ones do."""
    folder = tmp_path_factory.mktemp(request.param) / "torch"
    if request.param == "emoji":
        write_tiny_torch_folder(folder)
        return folder
    save_tiny_pipeline(request.param, folder)
    alter_settings(folder / "vae" / "config.json", force_upcast=False)
    return folder


@pytest.fixture(scope="module")
def exported(source: Path) -> Path:
    """Base float32, variant float16, pictures to start from; SDXL's weights beside the graphs."""
    bundle = source.parent / "bundle"
    is_sdxl = (source / "text_encoder_2").is_dir()
    options = ExportOptions(PRECISIONS, is_img2img=True, has_external_weights=is_sdxl)
    export_bundle(source, bundle, options)
    return bundle


def _random_inputs(spec: ModelSpec, stage: StageName) -> tuple[torch.Tensor, ...]:
    random = torch.Generator().manual_seed(0)
    inputs = []
    for name, zeros in zip(stage_inputs(spec, stage), example_inputs(stage, spec), strict=True):
        if name == "timestep_B":
            inputs.append(torch.tensor([999, 499]))
        elif name == "input_ids_BL":
            ids = torch.randint(3, 30, zeros.shape, generator=random)
            ids[:, 6:] = spec.text.pad_token_id
            ids[0, 6] = ids[1, 3] = spec.text.eos_token_id
            inputs.append(ids)
        elif name == "images_BHWC":
            shape = zeros.shape
            inputs.append(torch.randint(0, 256, shape, generator=random, dtype=torch.uint8))
        else:
            inputs.append(torch.randn(zeros.shape, generator=random))
    return tuple(inputs)


def test_onnx_runtime_agrees_with_torch_in_each_precision(source: Path, exported: Path) -> None:
    spec = ModelSpec.load(exported)
    spec.verify(exported)
    assert spec.precisions == PRECISIONS
    for stage in ALL_STAGES:
        inputs = _random_inputs(spec, stage)
        with torch.inference_mode():
            output = load_stage(source, spec, stage, ModuleOptions())(*inputs)
        expected = output if isinstance(output, tuple) else (output,)
        for precision in PRECISIONS:
            graph = spec.graph_path(exported, stage, precision)
            drawn = OnnxStage(graph, spec, stage, 1)(*(tensor.numpy() for tensor in inputs))
            for ours, theirs in zip(drawn, expected, strict=True):
                assert str(ours.dtype) == str(theirs.dtype).removeprefix("torch."), graph.name
                gap = np.abs(ours.astype(float) - theirs.numpy()).max()
                is_picture = ours.dtype == np.uint8
                limit = MAX_LEVELS[precision] if is_picture else MAX_GAP[precision] * theirs.std()
                assert gap <= limit, (graph.name, gap, limit)


def test_pictures_are_drawn_from_text_and_from_pictures(source: Path, exported: Path) -> None:
    prompts, seeds = ["a red circle", "blue ring above green square"], [1, 2]
    reference = Pipeline.load(exported, num_threads=1)
    width, height = reference.spec.sizes_px[0]
    size: dict[str, Any] = {"width": width, "height": height, "steps": 2}
    expected = reference.generate(prompts, seeds, **size).images_BHWC
    half = Pipeline.load(exported, precision="float16", num_threads=1)
    drawn = half.generate(prompts, seeds, **size).images_BHWC
    assert np.abs(drawn.astype(int) - expected).mean() < 1
    again = [
        pipeline.generate(prompts, seeds, images_BHWC=expected, strength=0.5, **size).images_BHWC
        for pipeline in (reference, half)
    ]
    assert np.abs(again[0].astype(int) - again[1]).mean() < 1
    assert np.abs(again[0].astype(int) - expected).mean() > 1


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("stage", ALL_STAGES)
def test_tensorrt_parses_and_builds_every_graph(
    exported: Path, stage: StageName, precision: Precision
) -> None:
    spec = ModelSpec.load(exported)
    network = parse_and_build(trt, spec.graph_path(exported, stage, precision))
    assert [network.get_input(i).name for i in range(network.num_inputs)] == [
        *stage_inputs(spec, stage)
    ]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    assert [output.name for output in outputs] == [*stage_outputs(spec, stage)]
    wanted = trt.DataType.UINT8 if stage == "decode" else trt.DataType.FLOAT
    assert {output.dtype for output in outputs} == {wanted}


def _types(graph: onnx.GraphProto, *op_types: str) -> set[int]:
    """Element types of what nodes of some kinds take, weights included."""
    known = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input)}
    known |= {w.name: w.data_type for w in graph.initializer}
    nodes = [node for node in graph.node if node.op_type in op_types]
    return {known[name] for node in nodes for name in node.input if name in known}


def test_a_half_graph_computes_in_half_and_its_norms_in_float32(exported: Path) -> None:
    spec = ModelSpec.load(exported)
    for stage in ALL_STAGES:
        graph = onnx.load(spec.graph_path(exported, stage, "float16"))
        assert [(entry.domain, entry.version) for entry in graph.opset_import] == [("", OPSET)]
        assert _types(graph.graph, "MatMul", "Conv", "Gemm") == {TensorProto.FLOAT16}, stage
        norms = _types(graph.graph, "LayerNormalization", "InstanceNormalization")
        assert norms == ({TensorProto.FLOAT} if norms else set()), stage
        assert norms or stage in ("encode", "decode")


def test_weights_lie_beside_the_graph_where_that_is_asked(exported: Path) -> None:
    spec = ModelSpec.load(exported)
    is_asked = spec.text.pooled_width is not None
    for precision in PRECISIONS:
        for stage in spec.stage_files(precision).values():
            assert (stage.weights is not None) == is_asked
    if is_asked:
        listed = spec.stages["denoise"].weights
        assert listed is not None and listed.file == "denoise.weights"
        assert (exported / listed.file).stat().st_size == listed.size_bytes > 50_000
        assert spec.stages["denoise"].size_bytes < 1_000_000
        assert {path.name for path in exported.glob("*.weights")} == {
            stage.weights.file
            for precision in PRECISIONS
            for stage in spec.stage_files(precision).values()
            if stage.weights is not None
        }


def test_large_graphs_have_their_weights_beside_them(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if source.parent.name.startswith("emoji"):
        spec = adopt(source)
        module = load_stage(source, spec, "decode", ModuleOptions())
        model = trace(module, "decode", spec)
        monkeypatch.setattr("engines.export.storing.MAX_INLINE_BYTES", 1000)
        assert store(model, tmp_path / "decode.onnx", in_half=True).weights is not None


def test_bfloat16_graphs_are_built(source: Path, tmp_path: Path) -> None:
    if not (source / "text_encoder_2").is_dir():
        return  # the kind with the most inputs is enough
    spec = adopt(source)
    stages: tuple[StageName, ...] = ("text", "denoise", "decode")
    for stage in stages:
        module = load_stage(source, spec, stage, ModuleOptions("bfloat16"))
        inputs = _random_inputs(spec, stage)
        with torch.inference_mode():
            drawn, expected = (
                stage_module(*inputs)
                for stage_module in (module, load_stage(source, spec, stage, ModuleOptions()))
            )
        for ours, theirs in zip(
            drawn if isinstance(drawn, tuple) else (drawn,),
            expected if isinstance(expected, tuple) else (expected,),
            strict=True,
        ):
            limit = 24 if stage == "decode" else 0.25 * float(theirs.std())
            assert float((ours.float() - theirs.float()).abs().max()) <= limit
        path = tmp_path / f"{stage}.onnx"
        store(trace(module, stage, spec), path, in_half=False)
        parse_and_build(trt, path)
        heavy = _types(onnx.load(path).graph, "MatMul", "Conv", "Gemm")
        assert heavy == {TensorProto.BFLOAT16}


def test_an_autoencoder_that_overflows_leaves_its_stages_to_the_base(tmp_path: Path) -> None:
    source = save_tiny_pipeline("sdxl", tmp_path / "source")
    lines: list[str] = []
    spec = export_bundle(
        source, tmp_path / "bundle", ExportOptions(PRECISIONS), report=lines.append
    )
    assert set(spec.variants["float16"]) == {"text", "denoise"}
    assert any("overflows in float16" in line for line in lines)
    assert spec.stage_files("float16")["decode"] == spec.stages["decode"]


def test_the_tiny_autoencoder_draws_many_sizes_and_reads_pictures(tmp_path: Path) -> None:
    source = save_tiny_pipeline("sdxl", tmp_path / "source")
    write_tiny_vae(source / "vae_tiny")
    options = ExportOptions(
        ("float16",), sizes_px=((32, 32), (64, 32)), vae="tiny", is_img2img=True
    )
    spec = export_bundle(source, tmp_path / "bundle", options)
    assert spec.latent.scale == 1.0
    pipeline = Pipeline.load(tmp_path / "bundle", num_threads=1)
    pictures = []
    for width, height in spec.sizes_px:
        size: dict[str, Any] = {"width": width, "height": height, "steps": 1}
        images = pipeline.generate(["a red circle"], [1], **size).images_BHWC
        assert images.shape == (1, height, width, 3)
        again = pipeline.generate(
            ["a red circle"], [1], images_BHWC=images, strength=0.25, **size
        ).images_BHWC
        assert again.shape == images.shape
        pictures.append(images)
    for stage in ALL_STAGES:
        parse_and_build(trt, spec.graph_path(tmp_path / "bundle", stage))


def test_a_picture_needs_an_encoder(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    source = tmp_path / "source"
    write_tiny_torch_folder(source)
    shutil.rmtree(source / "vae")
    write_tiny_vae(source / "vae", channels=8)
    (path,) = (source / "vae").glob("*.safetensors")
    kept = {k: v for k, v in load_file(path).items() if not k.startswith("encoder.")}
    save_file(kept, path, {"format": "pt"})
    with pytest.raises(ExportError, match=r"holds no encoder: leave --img2img out"):
        load_stage(source, adopt(source), "encode", ModuleOptions())


def test_a_precision_is_named_once(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="--precision: name each one once"):
        export_bundle(tmp_path, tmp_path / "out", ExportOptions(("float32", "float32")))
