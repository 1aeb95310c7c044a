"""Folders of diffusers as models: the same latents as its pipelines, and what is refused.

The folders are tiny and their weights random; classes and files are the real ones.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from diffusers import DiffusionPipeline, EulerDiscreteScheduler
from engines_fixtures import alter_settings, tiny_spec, write_tiny_vae
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from teacher_folders import save_tiny_pipeline

from engines.adopt import Overrides, adopt, autoencoder_folder, write_tokenizer
from engines.errors import ExportError
from engines.noise import unit_noise
from engines.runtime.modules import Lora, ModuleOptions, TorchStages, load_modules, stage_precision
from engines.spec import ModelSpec
from engines.tokenizer import Tokenizer

# Of diffusers' own Euler scheduler, with this numpy.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

KINDS = ("sd15", "sd21", "sdxl")
PROMPTS, SEEDS, SHAPE = ["a red circle", "blue ring above green square"], [0, 1], (4, 8, 8)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("folders")
    return {kind: save_tiny_pipeline(kind, root / kind) for kind in KINDS}


@pytest.fixture
def sd(folders: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(folders["sd15"], tmp_path / "sd"))


@pytest.fixture
def sdxl(folders: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(folders["sdxl"], tmp_path / "sdxl"))


@torch.inference_mode()
def _latents(folder: Path, tmp_path: Path, options: ModuleOptions | None = None) -> Any:
    spec = adopt(folder)
    write_tokenizer(folder, spec, tmp_path / "tokenizer.json")
    stages: TorchStages = load_modules(folder, spec, options)
    ids_BL = torch.from_numpy(Tokenizer.load(tmp_path, spec).encode(PROMPTS))
    text = stages.text(ids_BL)
    text = text if isinstance(text, tuple) else (text,)
    noise_BChw = torch.from_numpy(unit_noise(SEEDS, SHAPE))
    return stages.denoise(noise_BChw, torch.tensor([999, 999]), *text)


@torch.inference_mode()
def _theirs(folder: Path, loras: tuple[Lora, ...] = ()) -> Any:
    """What diffusers makes of the same noise."""
    pipeline: Any = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    for lora in loras:
        pipeline.load_lora_weights(lora.path)
        pipeline.fuse_lora(components=["unet"], lora_scale=lora.scale)
        pipeline.unload_lora_weights()
    return _drawn_by(pipeline)


@torch.inference_mode()
def _drawn_by(pipeline: Any) -> Any:
    """Latents of one step of the Euler scheduler.

    That one scales given noise by sigma and then divides by sqrt(1 + sigma^2), so that a little
    less than pure noise would enter; the noise is made larger by as much.
    """
    pipeline.scheduler = EulerDiscreteScheduler.from_config(
        pipeline.scheduler.config, timestep_spacing="trailing"
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler.set_timesteps(1)
    sigma = float(pipeline.scheduler.sigmas[0])
    noise_BChw = torch.from_numpy(unit_noise(SEEDS, SHAPE)) * (1 + sigma**2) ** 0.5 / sigma
    options = {"num_inference_steps": 1, "guidance_scale": 0.0, "output_type": "latent"}
    return pipeline(PROMPTS, latents=noise_BChw, height=32, width=32, **options).images


@pytest.mark.parametrize("kind", KINDS)
def test_latents_are_those_of_diffusers(
    folders: dict[str, Path], kind: str, tmp_path: Path
) -> None:
    drawn, theirs = _latents(folders[kind], tmp_path), _theirs(folders[kind])
    assert (drawn[0] - drawn[1]).abs().mean() > 0.1
    torch.testing.assert_close(drawn, theirs, atol=1e-4 * float(theirs.std()), rtol=1e-4)


def test_a_released_turbo_folder_is_read_as_such(folders: dict[str, Path]) -> None:
    spec = adopt(folders["sdxl"])
    assert spec.prediction_type == "epsilon"
    assert spec.schedule.zero_terminal_snr == "input_only"
    assert spec.student_timesteps[4] == (999, 749, 499, 249)
    assert spec.student_timesteps[1] == (999,)
    assert spec.sizes_px == ((32, 32),)
    assert (spec.latent.scale, spec.latent.downscale, spec.latent.channels) == (0.13025, 4, 4)
    assert (spec.text.width, spec.text.pooled_width, spec.text.max_tokens) == (80, 40, 12)
    assert spec.text.second_pad_token_id != spec.text.pad_token_id
    assert adopt(folders["sd21"]).prediction_type == "v_prediction"
    assert adopt(folders["sd21"]).text.pooled_width is None


def test_what_the_user_says_of_a_model_comes_first(sd: Path, tmp_path: Path) -> None:
    (sd / "README.md").write_text("---\nlicense: mit\ntags: [a]\n---\n# card\n")
    said = Overrides("mine", ((64, 32), (32, 32)), (899, 599, 299))
    for _ in range(2):  # the second time over a model.json
        spec = adopt(sd, said)
        assert (spec.name, spec.license) == ("mine", "mit")
        assert spec.sizes_px == ((64, 32), (32, 32))
        assert spec.student_timesteps == {1: (899,), 2: (899, 599), 3: (899, 599, 299)}
        adopt(sd).save(sd)
    with pytest.raises(ExportError, match=r"multiple of latent.downscale: give other --size"):
        adopt(sd, Overrides(sizes_px=((30, 30),)))


def test_tokens_are_those_of_the_folders_own_tokenizers(sdxl: Path, tmp_path: Path) -> None:
    tokenizer = transformers.CLIPTokenizer.from_pretrained(sdxl / "tokenizer")
    texts = ["a red circle", "", "blue " * 30, "Ring, RING  ring"]
    wanted = tokenizer(texts, padding="max_length", truncation=True, return_tensors="np").input_ids
    whole = json.loads((sdxl / "tokenizer" / "tokenizer.json").read_text())["model"]
    for is_old in (False, True):
        if is_old:  # as the older folders have it: a vocabulary and a list of merges
            (sdxl / "tokenizer" / "tokenizer.json").unlink()
            (sdxl / "tokenizer" / "vocab.json").write_text(json.dumps(whole["vocab"]))
            merges = [" ".join(merge) for merge in whole["merges"]]
            (sdxl / "tokenizer" / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges))
        spec = adopt(sdxl)
        write_tokenizer(sdxl, spec, tmp_path / "tokenizer.json")
        np.testing.assert_array_equal(Tokenizer.load(tmp_path, spec).encode(texts), wanted)


@pytest.mark.parametrize(
    ("kind", "file", "changes", "said"),
    [
        ("sd15", "model_index.json", {"_class_name": "FluxPipeline"}, "a FluxPipeline is not"),
        ("sd15", "unet/config.json", {"in_channels": 9}, "takes 9 channels and gives 4"),
        ("sd15", "unet/config.json", {"cross_attention_dim": 64}, "cross_attention_dim is 64"),
        ("sd15", "unet/config.json", {"time_cond_proj_dim": 8}, "time_cond_proj_dim"),
        ("sd15", "unet/config.json", {"class_embed_type": "timestep"}, "class_embed_type"),
        ("sd15", "unet/config.json", {"_class_name": "UNet3D"}, "a UNet3D is not known"),
        ("sdxl", "unet/config.json", {"addition_embed_type": None}, "must be text_time"),
        ("sd15", "vae/config.json", {"latent_channels": 16}, "gives 16 channels and the UNet"),
        ("sd15", "vae/config.json", {"latents_mean": [0.0]}, "one scale serves all channels"),
        ("sd15", "vae/config.json", {"block_out_channels": None}, "no block_out_channels"),
        ("sd15", "text_encoder/config.json", {"model_type": "t5"}, "model_type 't5'"),
        ("sd15", "text_encoder/config.json", {"use_attention_mask": True}, "use_attention_mask"),
        ("sd15", "scheduler/scheduler_config.json", {"prediction_type": "x"}, "type 'x': known"),
        ("sd15", "scheduler/scheduler_config.json", {"trained_betas": [1]}, "trained_betas"),
        ("sd15", "scheduler/scheduler_config.json", {"beta_schedule": "x"}, "beta_schedule: "),
        (
            *("sd15", "scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}),
            "cannot draw in one step",
        ),
    ],
)
def test_a_model_of_another_kind_is_refused_by_its_settings(
    folders: dict[str, Path], kind: str, file: str, changes: Any, said: str, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folders[kind], tmp_path / "other"))
    alter_settings(folder / file, **changes)
    with pytest.raises(ExportError, match=said) as caught:
        adopt(folder)
    assert "\n" not in str(caught.value)


def test_two_tokenizers_of_other_words_are_refused(sdxl: Path) -> None:
    path = sdxl / "tokenizer_2" / "tokenizer.json"
    whole = json.loads(path.read_text())
    whole["model"]["merges"].pop()
    path.write_text(json.dumps(whole))
    with pytest.raises(ExportError, match="differ in more than their padding"):
        adopt(sdxl)


@pytest.mark.parametrize("file", ["model_index.json", "vae/config.json"])
def test_a_missing_or_damaged_file_is_named(sd: Path, file: str) -> None:
    (sd / file).write_text("[]")
    with pytest.raises(ExportError, match=f"{sd / file} is damaged"):
        adopt(sd)
    (sd / file).unlink()
    with pytest.raises(ExportError, match=f"{sd / file} is missing"):
        adopt(sd)


def test_another_autoencoder_brings_its_own_scale(sd: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"vae_tiny is missing: fetch it with"):
        autoencoder_folder(sd, "tiny")
    with pytest.raises(ExportError, match=r"no config.json there"):
        autoencoder_folder(sd, str(tmp_path / "nowhere"))
    assert autoencoder_folder(sd, "full") is None
    tiny = write_tiny_vae(sd / "vae_tiny")
    assert autoencoder_folder(sd, "tiny") == autoencoder_folder(sd, str(tiny)) == tiny
    spec = adopt(sd, Overrides(vae=tiny))
    assert spec.latent.scale == 1.0
    modules = load_modules(sd, spec, ModuleOptions(vae=tiny))
    assert type(modules.decode.autoencoder).__name__ == "AutoencoderTiny"
    other = write_tiny_vae(tmp_path / "other", channels=8)
    with pytest.raises(ExportError, match="gives 8 channels and the UNet takes 4"):
        adopt(sd, Overrides(vae=other))


def test_an_incomplete_file_of_weights_is_refused(sd: Path) -> None:
    for part in ("unet", "text_encoder"):
        (path,) = (sd / part).glob("*.safetensors")
        whole = load_file(path)
        name = sorted(whole)[3]
        save_file(
            {key: value for key, value in whole.items() if key != name}, path, {"format": "pt"}
        )
        with pytest.raises(ExportError, match=f"{sd / part} is incomplete, it lacks"):
            load_modules(sd, adopt(sd))
        save_file(whole, path, {"format": "pt"})
    (path,) = (sd / "vae").glob("*.safetensors")
    whole = load_file(path)
    decoder = {k: v for k, v in whole.items() if not k.startswith(("encoder.", "quant_conv."))}
    save_file(decoder, path, {"format": "pt"})
    assert load_modules(sd, adopt(sd)).encode is None


def test_pickled_weights_are_not_opened(sd: Path) -> None:
    (path,) = (sd / "unet").glob("*.safetensors")
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()
    with pytest.raises(ExportError, match=f"cannot load {sd / 'unet'}"):
        load_modules(sd, adopt(sd))


def test_half_files_alone_are_read(sd: Path, tmp_path: Path) -> None:
    expected = _latents(sd, tmp_path)
    for part in ("unet", "text_encoder", "vae"):
        (path,) = (sd / part).glob("*.safetensors")
        halved = {name: value.half() for name, value in load_file(path).items()}
        save_file(halved, path.with_suffix(".fp16.safetensors"), {"format": "pt"})
        path.unlink()
    drawn = _latents(sd, tmp_path)
    torch.testing.assert_close(drawn, expected, atol=0.02 * float(expected.std()), rtol=0.02)
    assert not torch.equal(drawn, expected)


def test_sdxl_autoencoders_that_overflow_stay_in_float32(sdxl: Path, sd: Path) -> None:
    spec = adopt(sdxl)
    half, brain = ModuleOptions("float16"), ModuleOptions("bfloat16")
    assert stage_precision(sdxl, spec, "decode", half) == "float32"
    assert stage_precision(sdxl, spec, "decode", brain) == "bfloat16"
    assert stage_precision(sdxl, spec, "denoise", half) == "float16"
    assert load_modules(sdxl, spec, half).decode.dtype == torch.float32
    alter_settings(sdxl / "vae" / "config.json", force_upcast=False)
    assert stage_precision(sdxl, spec, "decode", half) == "float16"
    # Pipelines of one text encoder never obey the field, whose default is true.
    assert stage_precision(sd, adopt(sd), "decode", half) == "float16"


def _with_lora(folder: Path, out: Path, *, seed: int = 0, is_text: bool = True) -> Any:
    """A pipeline with random adapters on its parts, and their file as diffusers writes it."""
    torch.manual_seed(seed)
    pipeline: Any = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    targets = {"unet": ["to_q", "conv1"]}
    if is_text:
        targets |= {"text_encoder": ["q_proj", "out_proj", "fc1"], "text_encoder_2": ["v_proj"]}
    layers = {}
    for part, names in targets.items():
        model = getattr(pipeline, part, None)
        if model is None:
            continue
        config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=names, init_lora_weights=False)
        peft.inject_adapter_in_model(config, model)
        layers[f"{part}_lora_layers"] = peft.get_peft_model_state_dict(model)
    pipeline.save_lora_weights(out, **layers)
    return pipeline


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_a_fused_adapter_draws_what_a_live_one_does(
    folders: dict[str, Path], kind: str, tmp_path: Path
) -> None:
    pipeline = _with_lora(folders[kind], tmp_path / "lora")
    for part in ("unet", "text_encoder", "text_encoder_2"):
        for layer in getattr(pipeline, part, torch.nn.Identity()).modules():
            if isinstance(layer, LoraLayer):
                layer.scale_layer(0.5)
    theirs = _drawn_by(pipeline)
    lora = Lora.parse(f"{tmp_path / 'lora'}:0.5")
    assert lora.scale == 0.5
    drawn = _latents(folders[kind], tmp_path, ModuleOptions(loras=(lora,)))
    scale = float(theirs.std())
    torch.testing.assert_close(drawn, theirs, atol=1e-3 * scale, rtol=1e-3)
    _with_lora(folders[kind], tmp_path / "unet_alone", is_text=False)
    others = [(), (Lora(tmp_path / "lora"),), (Lora(tmp_path / "unet_alone", 0.5),)]
    for other in others:  # neither the scale nor the text encoders' part is without effect
        without = _latents(folders[kind], tmp_path, ModuleOptions(loras=other))
        assert (drawn - without).abs().max() > 0.01 * scale


def test_several_adapters_draw_what_diffusers_draws_with_them(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    for index in range(2):
        _with_lora(folders["sd15"], tmp_path / str(index), seed=index, is_text=False)
    file = tmp_path / "1" / "pytorch_lora_weights.safetensors"
    loras = (Lora(tmp_path / "0", 0.5), Lora.parse(str(file)))
    drawn = _latents(folders["sd15"], tmp_path, ModuleOptions(loras=loras))
    theirs = _theirs(folders["sd15"], loras)
    torch.testing.assert_close(drawn, theirs, atol=1e-3 * float(theirs.std()), rtol=1e-3)


def test_an_adapter_in_the_names_of_kohya_is_the_same_one(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    _with_lora(folders["sd15"], tmp_path / "lora")
    whole = load_file(tmp_path / "lora" / "pytorch_lora_weights.safetensors")
    attention = {name: value for name, value in whole.items() if "conv1" not in name}
    save_file(attention, tmp_path / "plain.safetensors")
    renamed = {}
    for name, value in attention.items():
        layer, _, factor = name.partition(".lora_")
        part, _, path = layer.partition(".")
        prefix = {"unet": "lora_unet", "text_encoder": "lora_te"}[part]
        if part == "text_encoder":
            path = f"text_model.{path.removeprefix('text_model.')}"
        key = f"{prefix}_{path.replace('.', '_')}"
        renamed[f"{key}.lora_{'down' if factor.startswith('A') else 'up'}.weight"] = value
        renamed[f"{key}.alpha"] = torch.tensor(1.0)  # of rank 2: counts half
    save_file(renamed, tmp_path / "kohya.safetensors")
    drawn, expected, without = (
        _latents(folders["sd15"], tmp_path, ModuleOptions(loras=loras))
        for loras in (
            (Lora(tmp_path / "kohya.safetensors"),),
            (Lora(tmp_path / "plain.safetensors", 0.5),),
            (),
        )
    )
    torch.testing.assert_close(drawn, expected, atol=1e-4, rtol=1e-4)
    assert (drawn - without).abs().max() > 0.001


def test_an_adapter_that_does_not_fit_is_named(sd: Path, sdxl: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    _with_lora(sdxl, other)
    empty = tmp_path / "empty.safetensors"
    save_file({"a": torch.zeros(1)}, empty)
    renamed = tmp_path / "renamed.safetensors"
    layers = {"unet.nowhere.to_q.lora_A.weight": torch.zeros(2, 16)}
    layers["unet.nowhere.to_q.lora_B.weight"] = torch.zeros(16, 2)
    save_file(layers, renamed)
    for path, said in (
        (tmp_path / "nowhere", "no such file"),
        (empty, "holds nothing for unet"),
        (other, "another model|does not fit"),
        (renamed, "another model|does not fit"),
    ):
        with pytest.raises(ExportError, match=said) as caught:
            load_modules(sd, adopt(sd), ModuleOptions(loras=(Lora(path),)))
        assert f"--lora {path}" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_folder_with_model_json_is_taken_at_its_word(torch_folder: Path) -> None:
    assert adopt(torch_folder) == ModelSpec.load(torch_folder) == tiny_spec()
