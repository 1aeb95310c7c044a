"""What a finished student says of itself, and the folder that it leaves in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny, LCMScheduler
from distill_fixtures import tiny_codec, tiny_config, tiny_text, tiny_unet

from distill.config import ConfigError, RunConfig
from distill.export import export_student, parameter_counts, student_scheduler
from distill.model_spec import student_spec, timesteps_by_steps
from distill.networks.codec import Codec, raw_encode
from engines.spec import ModelSpec, ScheduleSpec


def test_each_number_of_steps_spreads_over_the_timesteps() -> None:
    assert timesteps_by_steps((999, 749, 499, 249)) == {
        1: (999,),
        2: (999, 499),
        3: (999, 749, 499),
        4: (999, 749, 499, 249),
    }
    assert timesteps_by_steps((999,)) == {1: (999,)}


def _write_run(run: Path) -> RunConfig:
    """A run whose three trainings are finished, with random weights."""
    codec, text = tiny_codec(), tiny_text()
    codec.model.register_to_config(scaling_factor=0.7)
    codec.model.save_pretrained(run / "autoencoder" / "model")
    tiny_unet().save_pretrained(run / "student" / "model" / "unet")
    text.save(run / "student" / "model")
    (run / "grid.webp").write_bytes(b"a picture")
    return tiny_config()


def test_the_exported_folder_describes_itself(tmp_path: Path) -> None:
    config = _write_run(tmp_path / "run")
    out = tmp_path / "out"
    export_student(config, tmp_path / "run", out)
    spec = ModelSpec.load(out)
    assert spec.name == "shapes"
    assert spec.student_timesteps == timesteps_by_steps((999, 749, 499, 249))
    assert spec.sizes_px == ((32, 32),)
    assert spec.latent_shape(32, 32) == (4, 8, 8)
    assert spec.latent.scale == 0.7
    assert (spec.prediction_type, spec.schedule.zero_terminal_snr) == ("v_prediction", "rescale")
    assert spec.text.max_tokens == config.text.max_tokens
    assert spec.stages == {}
    assert RunConfig.from_json((out / "training.json").read_text()) == config
    assert (out / "grid.webp").read_bytes() == b"a picture"
    assert json.loads((out / "vae" / "config.json").read_text())["_class_name"] == "AutoencoderDC"
    counts = parameter_counts(out)
    assert counts["unet"] == sum(p.numel() for p in tiny_unet().parameters())
    assert set(counts) == {"unet", "text_encoder", "vae"}


def test_diffusers_reads_the_scheduler(tmp_path: Path) -> None:
    export_student(_write_run(tmp_path / "run"), tmp_path / "run", tmp_path / "out")
    scheduler = LCMScheduler.from_pretrained(tmp_path / "out" / "scheduler")
    assert scheduler.config.prediction_type == "v_prediction"
    assert scheduler.config.rescale_betas_zero_snr
    # Zero up to the tiny floor that diffusers keeps for its float16 steps.
    assert scheduler.alphas_cumprod[-1].item() == pytest.approx(0.0, abs=1e-6)
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [999, 749, 499, 249]


def test_a_schedule_that_is_not_rescaled_stays_so() -> None:
    scheduler = student_scheduler(ScheduleSpec(zero_terminal_snr="input_only"), "epsilon", (999,))
    assert not scheduler.config.rescale_betas_zero_snr
    assert scheduler.config.prediction_type == "epsilon"


def test_export_replaces_a_model_and_nothing_else(tmp_path: Path) -> None:
    config, run, out = _write_run(tmp_path / "run"), tmp_path / "run", tmp_path / "out"
    export_student(config, run, out)
    (out / "stale.txt").write_text("from an older version")
    export_student(config, run, out)
    assert not (out / "stale.txt").exists()
    assert not (tmp_path / "out.partial").exists()

    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "holiday.txt").write_text("precious")
    with pytest.raises(ConfigError, match=r"--to .*photos: exists and is no exported model"):
        export_student(config, run, photos)
    assert (photos / "holiday.txt").read_text() == "precious"


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("student/model/unet/config.json", "no student in .*: run `onestep-distill train` first"),
        ("autoencoder/model/config.json", "no autoencoder at .*: run `onestep-distill autoenc"),
    ],
)
def test_an_unfinished_run_is_not_exported(tmp_path: Path, missing: str, message: str) -> None:
    config = _write_run(tmp_path / "run")
    (tmp_path / "run" / missing).unlink()
    with pytest.raises(ConfigError, match=message):
        export_student(config, tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_examples_name_concepts_in_turn_with_the_styles() -> None:
    names = [f"thing {i}" for i in range(30)]
    config = tiny_config(f"data.concepts={json.dumps(names)}", 'data.styles=["flat", "3d"]')
    spec = student_spec(config, tiny_codec(), tiny_text().spec)
    assert spec.examples[:3] == ("thing 0, flat", "thing 2, 3d", "thing 4, flat")
    assert len(spec.examples) == 12
    plain = tiny_config('data.concepts=["rose"]')
    assert student_spec(plain, tiny_codec(), tiny_text().spec).examples == ("rose",)


@torch.no_grad()
def test_the_codec_scales_what_the_autoencoder_gives(tmp_path: Path) -> None:
    _write_run(tmp_path)
    codec = Codec.load(tmp_path / "autoencoder" / "model")
    images_BCHW = torch.rand((2, 3, 32, 32)) * 2 - 1
    latents_BChw = codec.encode(images_BCHW)
    assert latents_BChw.shape == (2, 4, 8, 8)
    torch.testing.assert_close(latents_BChw, raw_encode(codec.model, images_BCHW) * 0.7)
    decoded_BCHW = codec.decode(latents_BChw)
    assert decoded_BCHW.shape == images_BCHW.shape
    torch.testing.assert_close(decoded_BCHW, codec.model.decode(latents_BChw / 0.7).sample)
    assert not any(p.requires_grad for p in codec.model.parameters())


@torch.no_grad()
def test_the_codec_takes_other_autoencoders(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tiny = AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    tiny.save_pretrained(tmp_path)
    codec = Codec.load(tmp_path)
    assert codec.encode(torch.zeros((1, 3, 8, 8))).shape == (1, 4, 4, 4)


def test_an_unknown_autoencoder_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderXL"}')
    with pytest.raises(ConfigError, match="diffusers has no class 'AutoencoderXL'"):
        Codec.load(tmp_path)
