"""Real teachers: what is loaded from a folder is what the pipeline of diffusers computes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from distill_fixtures import tiny_config
from teacher_folders import KINDS, WORDS, save_tiny_pipeline

from distill.config import ConfigError
from distill.networks.codec import Codec
from distill.networks.conditioning import Conditioning, predict
from distill.sampling import sample_teacher, teacher_timesteps
from distill.teachers.base import Teacher
from distill.teachers.folder import find_teacher
from distill.teachers.load import load_teacher, settled
from distill.teachers.schedules import read_schedule
from engines.noise import unit_noise

CPU = torch.device("cpu")
SHAPE, SEEDS = (4, 8, 8), (3, 7)
SIZE_PX = 32
PROMPTS = ["a red circle", f"{WORDS[1]}, {WORDS[2]}, {WORDS[1]}"]  # the second is cut


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("teachers")
    for kind in (*KINDS, "flow"):
        save_tiny_pipeline(kind, root / kind)
    return root


def _teacher(folders: Path, kind: str) -> Teacher:
    return find_teacher(str(folders / kind)).load(SIZE_PX, CPU)


def _pipeline(folders: Path, kind: str) -> Any:
    pipeline = DiffusionPipeline.from_pretrained(folders / kind, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def _theirs(pipeline: Any, prompts: list[str]) -> tuple[Conditioning, Conditioning]:
    """What the pipeline makes of prompts and, for guidance, of no prompt."""
    encoded = pipeline.encode_prompt(
        prompt=prompts,
        device=CPU,
        num_images_per_prompt=1,
        do_classifier_free_guidance=True,
    )
    if len(encoded) == 2:
        model = pipeline.text_encoder
        ids = pipeline.tokenizer(
            prompts, padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids
        pooled = model(ids).pooler_output
        return Conditioning(encoded[0], pooled), Conditioning(encoded[1], pooled)
    times = pipeline._get_add_time_ids(
        (SIZE_PX, SIZE_PX), (0, 0), (SIZE_PX, SIZE_PX), torch.float32, 40
    ).expand(len(prompts), 6)
    return Conditioning(encoded[0], encoded[2], times), Conditioning(encoded[1], encoded[3], times)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_conditioning_is_that_of_the_pipeline(folders: Path, kind: str) -> None:
    text = _teacher(folders, kind).text
    mine, empty = text.encode(text.tokens(PROMPTS)), text.encode(text.tokens(["", ""]))
    theirs, their_empty = _theirs(_pipeline(folders, kind), PROMPTS)
    torch.testing.assert_close(mine.text_embeds_BLD, theirs.text_embeds_BLD)
    torch.testing.assert_close(mine.pooled_BD, theirs.pooled_BD)
    torch.testing.assert_close(empty.text_embeds_BLD, their_empty.text_embeds_BLD)
    if theirs.time_ids_BS is not None:
        assert torch.equal(mine.time_ids_BS, theirs.time_ids_BS)
        torch.testing.assert_close(empty.pooled_BD, their_empty.pooled_BD)
        assert not empty.pooled_BD.any()
    else:
        assert mine.time_ids_BS is None
    assert (mine.pooled_BD[0] - mine.pooled_BD[1]).abs().max() > 0.01


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_one_prediction_is_the_pipelines(folders: Path, kind: str) -> None:
    teacher, pipeline = _teacher(folders, kind), _pipeline(folders, kind)
    latents = torch.from_numpy(unit_noise(SEEDS, SHAPE))
    timestep_B = torch.tensor([999, 400])
    conditioning = teacher.text.encode(teacher.text.tokens(PROMPTS))
    mine = predict(teacher.unet, latents, timestep_B, conditioning)
    theirs, _ = _theirs(pipeline, PROMPTS)
    added = None
    if theirs.time_ids_BS is not None:
        added = {"text_embeds": theirs.pooled_BD, "time_ids": theirs.time_ids_BS}
    expected = pipeline.unet(
        latents,
        timestep_B,
        encoder_hidden_states=theirs.text_embeds_BLD,
        added_cond_kwargs=added,
    ).sample
    torch.testing.assert_close(mine, expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("kind", KINDS)
def test_the_teacher_draws_as_the_pipeline_does(folders: Path, kind: str, guidance: float) -> None:
    teacher, pipeline = _teacher(folders, kind), _pipeline(folders, kind)
    is_v = pipeline.scheduler.config.get("prediction_type") == "v_prediction"
    pipeline.scheduler = DDIMScheduler.from_config(
        pipeline.scheduler.config,
        timestep_spacing="trailing",
        rescale_betas_zero_snr=is_v,
        clip_sample=False,
        set_alpha_to_one=True,
    )
    latents = torch.from_numpy(unit_noise(SEEDS, SHAPE))
    theirs = pipeline(
        prompt=PROMPTS,
        num_inference_steps=4,
        guidance_scale=guidance,
        latents=latents,
        output_type="latent",
        height=SIZE_PX,
        width=SIZE_PX,
    ).images
    mine = sample_teacher(
        teacher.unet, teacher.text, teacher.diffusion, PROMPTS, SEEDS, SHAPE, 4, guidance
    )
    # Pure noise makes x0 of epsilon nearly fifteen times the network's output.
    torch.testing.assert_close(mine, theirs, atol=2e-3, rtol=1e-3)
    pixels = teacher.codec.decode(mine)
    expected = pipeline.vae.decode(theirs / pipeline.vae.config.scaling_factor).sample
    torch.testing.assert_close(pixels, expected, atol=2e-3, rtol=1e-3)


@torch.no_grad()
def test_a_flow_teacher_draws_as_diffusers_does(folders: Path) -> None:
    teacher = _teacher(folders, "flow")
    assert teacher.diffusion.prediction_type == "flow"
    mine = sample_teacher(
        teacher.unet, teacher.text, teacher.diffusion, PROMPTS, SEEDS, SHAPE, num_steps=4
    )
    timesteps = teacher_timesteps(1001, 4)
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=[timestep / 1000 for timestep in timesteps])
    assert scheduler.timesteps.tolist() == pytest.approx(timesteps)
    latents = torch.from_numpy(unit_noise(SEEDS, SHAPE))
    embeds = teacher.text.encode(teacher.text.tokens(PROMPTS)).text_embeds_BLD
    for timestep in scheduler.timesteps:
        output = teacher.unet(latents, timestep, embeds).sample
        latents = scheduler.step(output, timestep, latents).prev_sample
    torch.testing.assert_close(mine, latents, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("kind", "policy", "prediction"),
    [
        ("sd15", "input_only", "epsilon"),
        ("sd21", "rescale", "v_prediction"),
        ("sdxl", "input_only", "epsilon"),
        ("flow", "none", "flow"),
    ],
)
def test_the_schedule_is_that_of_the_folder(
    folders: Path, kind: str, policy: str, prediction: str
) -> None:
    found = find_teacher(str(folders / kind))
    assert (found.schedule.zero_terminal_snr, found.prediction_type) == (policy, prediction)
    if kind != "flow":
        assert found.schedule.beta_schedule == "scaled_linear"
        assert found.schedule.beta_end == 0.012
        other = find_teacher(str(folders / kind), "none")
        assert other.schedule.zero_terminal_snr == "none"


def test_a_run_takes_the_teachers_schedule(folders: Path, tmp_path: Path) -> None:
    config = tiny_config(f"student.teacher_source={folders / 'sd15'}")
    assert config.teacher.prediction_type == "v_prediction"
    config = settled(config)
    assert config.teacher.prediction_type == "epsilon"
    assert config.teacher.schedule.zero_terminal_snr == "input_only"
    teacher = load_teacher(config, tmp_path, CPU)
    assert teacher.codec.scale == 0.18215
    assert (teacher.codec.downscale, teacher.codec.latent_channels) == (4, 4)
    assert not any(p.requires_grad for p in teacher.unet.parameters())
    own = tiny_config()
    assert settled(own) is own
    # A flow has a timestep more: the student's must start at it.
    with pytest.raises(ConfigError, match=r"student\.timesteps must start at 1000"):
        settled(tiny_config(f"student.teacher_source={folders / 'flow'}"))


@torch.no_grad()
def test_half_precision_files_are_read_in_full(folders: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    pipeline = DiffusionPipeline.from_pretrained(folders / "sdxl", dtype=torch.float16)
    pipeline.save_pretrained(half)
    teacher = find_teacher(str(half)).load(SIZE_PX, CPU)
    every = [*teacher.unet.parameters(), *teacher.codec.model.parameters()]
    every += list(teacher.text.parameters())  # type: ignore[attr-defined] # it is a module
    assert {parameter.dtype for parameter in every} == {torch.float32}


def _broken(folders: Path, tmp_path: Path, name: str, **changes: Any) -> str:
    copy = tmp_path / "copy"
    shutil.copytree(folders / "sd15", copy)
    path = copy / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return str(copy)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "model_index.json",
            {"_class_name": "FluxPipeline"},
            "is a FluxPipeline: a student can be distilled from StableDiffusionPipeline, Stable",
        ),
        (
            "model_index.json",
            {"text_encoder": ["transformers", "NoModel"]},
            "text_encoder is NoModel, which is unknown",
        ),
        (
            "scheduler/scheduler_config.json",
            {"prediction_type": "score"},
            "predicts 'score': known are epsilon, v_prediction, sample",
        ),
        (
            "scheduler/scheduler_config.json",
            {"trained_betas": [0.1]},
            "betas of its own",
        ),
        (
            "scheduler/scheduler_config.json",
            {"beta_schedule": "sigmoid"},
            "scheduler: beta_schedule: Input should be 'linear'",
        ),
    ],
)
def test_what_cannot_be_a_teacher_is_refused(
    folders: Path, tmp_path: Path, name: str, changes: dict[str, Any], message: str
) -> None:
    source = _broken(folders, tmp_path, name, **changes)
    with pytest.raises(ConfigError) as caught:
        find_teacher(source).load(SIZE_PX, CPU)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_inpainting_model_is_refused(folders: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folders / "sd15", copy)
    unet = diffusers.UNet2DConditionModel.from_pretrained(copy / "unet")
    wider = diffusers.UNet2DConditionModel.from_config(unet.config, in_channels=9)
    wider.save_pretrained(copy / "unet")
    with pytest.raises(ConfigError, match="takes 9 channels and its autoencoder gives 4"):
        find_teacher(str(copy)).load(SIZE_PX, CPU)


@pytest.mark.parametrize("source", ["gone", "./gone/there", "a/b/c"])
def test_a_missing_folder_is_named(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=rf"no folder {source}; a hub name has the form"):
        find_teacher(source)


def test_a_folder_without_an_index_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model_index\.json is missing"):
        find_teacher(str(tmp_path))
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(ConfigError, match="is damaged"):
        find_teacher(str(tmp_path))


def test_a_hub_name_without_a_network_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What HF_HUB_OFFLINE=1 and HF_HOME set when the process starts.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError) as caught:
        find_teacher("stabilityai/stable-diffusion-2-1@main")
    message = str(caught.value)
    assert message.startswith("cannot fetch stabilityai/stable-diffusion-2-1@main from the hub (")
    assert "download it where there is a network and give the folder" in message
    assert "\n" not in message


def test_a_scheduler_without_a_prediction_type_predicts_epsilon() -> None:
    # So did the first Stable Diffusion folders, and they still do.
    schedule, prediction = read_schedule({"_class_name": "PNDMScheduler"}, "auto")
    assert prediction == "epsilon"
    assert schedule.beta_schedule == "linear"


@torch.no_grad()
def test_the_codec_encodes_as_the_pipeline_would(folders: Path) -> None:
    codec = Codec.load(folders / "sdxl" / "vae")
    images = torch.rand(1, 3, SIZE_PX, SIZE_PX) * 2 - 1
    mean = codec.model.encode(images).latent_dist.mean
    torch.testing.assert_close(codec.encode(images), mean * 0.13025)
