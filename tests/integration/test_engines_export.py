"""Export: what lands in a bundle, what is refused, and that it lands whole or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from engines_fixtures import tiny_autoencoder, tiny_spec
from onnx import TensorProto

from engines.errors import BundleError, ExportError
from engines.export import OPSET, export_bundle
from engines.pipeline import Pipeline
from engines.runtime.modules import DecodeStage, DenoiseStage, load_modules
from engines.schedule import Schedule
from engines.spec import STAGES, LatentSpec, ModelSpec, ScheduleSpec


@pytest.fixture
def writable_source(torch_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(torch_folder, tmp_path / "source"))


def test_a_bundle_holds_what_serving_needs_and_nothing_else(
    bundle: Path, torch_folder: Path
) -> None:
    names = {path.name for path in bundle.iterdir()}
    graphs = {f"{stage}.onnx" for stage in STAGES}
    assert names == {"model.json", "tokenizer.json", "README.md", *graphs}
    spec = ModelSpec.load(bundle)
    spec.verify(bundle)
    assert set(spec.stages) == set(STAGES)
    assert all((bundle / s.file).stat().st_size == s.size_bytes for s in spec.stages.values())
    before = ModelSpec.load(torch_folder)
    assert spec.model_copy(update={"stages": {}, "files": {}}) == before


@pytest.mark.parametrize("stage", STAGES)
def test_a_graph_is_plain_and_knows_nothing_of_the_machine(bundle: Path, stage: str) -> None:
    model = onnx.load(bundle / f"{stage}.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param, "the batch axis is dynamic"
    content = (bundle / f"{stage}.onnx").read_bytes()
    assert b"/torch/" not in content
    assert b".py" not in content


@pytest.mark.parametrize("stage", STAGES)
def test_weights_lie_in_half_and_nothing_is_cast_per_call(
    bundle: Path, stage: str, tmp_path: Path
) -> None:
    model = onnx.load(bundle / f"{stage}.onnx")
    stored = {w.data_type for w in model.graph.initializer if len(w.dims) >= 2}
    assert TensorProto.FLOAT16 in stored
    assert TensorProto.FLOAT not in stored

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    onnxruntime.InferenceSession(str(bundle / f"{stage}.onnx"), options)
    optimised = onnx.load(tmp_path / "optimised.onnx")
    casts = [node for node in optimised.graph.node if node.op_type == "Cast"]
    # What stays: the timestep to float, and the pixels to uint8.
    assert len(casts) == {"text": 0, "denoise": 1, "decode": 1}[stage]
    weights = {w.data_type for w in optimised.graph.initializer}
    assert TensorProto.FLOAT16 not in weights


def test_uint8_comes_last(bundle: Path) -> None:
    graph = onnx.load(bundle / "decode.onnx").graph
    (last,) = [node for node in graph.node if graph.output[0].name in node.output]
    assert last.op_type == "Cast"
    assert graph.output[0].type.tensor_type.elem_type == TensorProto.UINT8


def test_a_failed_export_leaves_the_old_bundle_alone(
    writable_source: Path, bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out" / "bundle"
    shutil.copytree(bundle, out)
    (writable_source / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ExportError, match=r"cannot load .*vae"):
        export_bundle(writable_source, out)
    assert [path.name for path in out.parent.iterdir()] == ["bundle"]
    ModelSpec.load(out).verify(out)


@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae"])
def test_a_missing_part_is_named(writable_source: Path, part: str, tmp_path: Path) -> None:
    shutil.rmtree(writable_source / part)
    with pytest.raises(ExportError, match=f"{writable_source / part}"):
        export_bundle(writable_source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_tokenizer_is_named(writable_source: Path, tmp_path: Path) -> None:
    shutil.rmtree(writable_source / "tokenizer")
    with pytest.raises(BundleError, match=r"tokenizer\.json is missing"):
        export_bundle(writable_source, tmp_path / "out")


def test_an_autoencoder_without_a_decode_stage_is_refused(
    writable_source: Path, tmp_path: Path
) -> None:
    config = writable_source / "vae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"_class_name": "VQModel"}))
    with pytest.raises(ExportError, match="VQModel has no decode stage; use AutoencoderDC"):
        export_bundle(writable_source, tmp_path / "out")


def test_a_spec_that_does_not_fit_the_network_says_so(
    writable_source: Path, tmp_path: Path
) -> None:
    spec = ModelSpec.load(writable_source)
    text = spec.text.model_copy(update={"max_tokens": 99})
    spec.model_copy(update={"text": text}).save(writable_source)
    with pytest.raises(ExportError, match=r"cannot trace the text stage: .*99") as caught:
        export_bundle(writable_source, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_epsilon_at_zero_signal_is_refused(writable_source: Path, tmp_path: Path) -> None:
    tiny_spec(prediction_type="epsilon").save(writable_source)
    with pytest.raises(ExportError, match="input_only"):
        export_bundle(writable_source, tmp_path / "out")


def test_a_folder_that_is_no_bundle_is_never_replaced(torch_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for out in (tmp_path, tmp_path / "notes.txt", torch_folder):
        with pytest.raises(ExportError, match="give"):
            export_bundle(torch_folder, out)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (torch_folder / "unet").is_dir()


class _Constant(torch.nn.Module):
    """A network that answers the same whatever it sees."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(
        self,
        latents_BChw: torch.Tensor,
        timestep_B: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        return_dict: bool,
    ) -> tuple[torch.Tensor]:
        return (torch.full_like(latents_BChw, self.value),)


@pytest.mark.parametrize(
    ("prediction", "zero_terminal_snr", "timestep", "expected"),
    [
        # alpha_999 = 0.0682650 in Stable Diffusion's schedule; noisy latents 1, output 0.5.
        ("epsilon", "input_only", 999, (1 - 0.5 * 0.9976672) / 0.0682650),
        ("v_prediction", "input_only", 999, 0.0682650 - 0.9976672 * 0.5),
        ("v_prediction", "rescale", 999, -0.5),
        ("sample", "rescale", 999, 0.5),
    ],
)
def test_the_denoise_stage_estimates_clean_latents(
    prediction: str, zero_terminal_snr: str, timestep: int, expected: float
) -> None:
    spec = tiny_spec(
        prediction_type=prediction, schedule=ScheduleSpec(zero_terminal_snr=zero_terminal_snr)
    )
    stage = DenoiseStage(_Constant(0.5), Schedule.from_spec(spec.schedule), spec.prediction_type)
    latents_BChw = torch.ones(2, 8, 4, 4)
    denoised = stage(latents_BChw, torch.tensor([timestep] * 2), torch.zeros(2, 12, 32))
    torch.testing.assert_close(denoised, torch.full_like(denoised, expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("class_name", ["AutoencoderDC", "AutoencoderTiny", "AutoencoderKL"])
def test_every_autoencoder_decodes_unscaled_latents_to_levels(class_name: str) -> None:
    torch.manual_seed(0)
    autoencoder = tiny_autoencoder(class_name).eval()
    stage = DecodeStage(autoencoder, LatentSpec(channels=8, downscale=8, scale=0.5, shift=0.1))
    latents_BChw = torch.randn(2, 8, 4, 4)
    with torch.inference_mode():
        images_BHWC = stage(latents_BChw)
        pixels_BCHW = autoencoder.decode(latents_BChw / 0.5 + 0.1).sample
    assert images_BHWC.dtype == torch.uint8
    assert images_BHWC.shape == (2, 32, 32, 3)
    expected_BHWC = ((pixels_BCHW / 2 + 0.5).clamp(0, 1) * 255).permute(0, 2, 3, 1)
    assert (images_BHWC - expected_BHWC).abs().max() <= 0.5 + 1e-3


@pytest.mark.parametrize("class_name", ["AutoencoderTiny", "AutoencoderKL"])
def test_other_autoencoders_are_read_from_their_folder(
    class_name: str, writable_source: Path
) -> None:
    shutil.rmtree(writable_source / "vae")
    tiny_autoencoder(class_name).save_pretrained(writable_source / "vae")
    modules = load_modules(writable_source, ModelSpec.load(writable_source))
    assert type(modules.decode.autoencoder).__name__ == class_name


def test_an_older_bundle_is_replaced_and_nothing_is_left_beside_it(
    many_sizes_bundle: Path,
) -> None:
    assert not (many_sizes_bundle / "stale.txt").exists()
    assert (many_sizes_bundle / "grid.webp").read_bytes() == b"a picture"
    names = {path.name for path in many_sizes_bundle.parent.iterdir()}
    assert names == {"source", "bundle"}


def test_a_model_of_many_sizes_draws_each(many_sizes_bundle: Path) -> None:
    pipeline = Pipeline.load(many_sizes_bundle, num_threads=1)
    assert len(pipeline.spec.sizes_px) == 2
    for width, height in pipeline.spec.sizes_px:
        images = pipeline.generate(["a"], [1], width=width, height=height, steps=1).images_BHWC
        assert images.shape == (1, height, width, 3)
