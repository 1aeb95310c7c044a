"""Configs survive JSON, and every refusal names the field and what is allowed."""

from __future__ import annotations

import re

import pytest

from distill.config import ConfigError, RunConfig, override
from distill.presets import PRESETS, preset, shapes_tiny


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_survives_json(name: str) -> None:
    config = preset(name)
    assert RunConfig.from_json(config.to_json()) == config


def test_json_keeps_what_was_set() -> None:
    config = override(
        shapes_tiny(),
        ["unet.block_out_channels=[16,32]", "data.path=a b.parquet", "teacher.ema_decay=1"],
    )
    again = RunConfig.from_json(config.to_json())
    assert again.unet.block_out_channels == (16, 32)
    assert again.data.path == "a b.parquet"
    assert again.teacher.ema_decay == 1.0
    assert isinstance(again.teacher.ema_decay, float)


def test_a_whole_number_may_stand_for_a_fraction_or_nothing() -> None:
    config = override(shapes_tiny(), ["student.adversarial_share=1"])
    assert config.student.adversarial_share == 1.0
    assert isinstance(config.student.adversarial_share, float)
    assert override(config, ["student.adversarial_share=null"]).student.adversarial_share is None


def test_the_last_of_two_assignments_holds() -> None:
    assert override(shapes_tiny(), ["seed=1", "seed=2"]).seed == 2


def test_an_unknown_preset_names_those_there_are() -> None:
    with pytest.raises(ConfigError, match="'faces': choose one of ablation_cpu, ablation_gpu"):
        preset("faces")


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("seed", "section.field=value, got 'seed'"),
        ("sed=1", "--set sed: no field 'sed'; fields: name, description,"),
        ("unett.width=1", "--set unett.width: no section 'unett'"),
        ("data.sise=1", "--set data.sise: no field 'sise'; fields: path, heldout_path,"),
        ("seed.deeper=1", "--set seed.deeper: no section 'seed'"),
        ("data=5", "data is a section, set one of its fields"),
        ("seed=many", "seed must be int, got 'many'"),
        ("seed=1.5", "seed must be int, got 1.5"),
        ("seed=true", "seed must be int, got True"),
        ("bf16=1", "bf16 must be bool, got 1"),
        ("data.path=7", "data.path must be str, got 7"),
        ("data.heldout_path=7", "data.heldout_path must be str or NoneType, got 7"),
        ("unet.attention=3", "unet.attention must be a list, got 3"),
        ("unet.block_out_channels=[32,a]", "unet.block_out_channels must be a list"),
        ('unet.block_out_channels=[32,"a"]', "unet.block_out_channels must be int, got 'a'"),
        ("student.teacher_timesteps=[1,2,3]", "student.teacher_timesteps must have 2 entries"),
        ("student.distill_space=text", "student.distill_space must be one of ('pixel', 'latent')"),
        ("teacher.prediction_type=x0", "teacher.prediction_type must be one of ('epsilon',"),
        ("teacher.schedule.beta_start=low", "teacher.schedule.beta_start: Input should be"),
    ],
)
def test_a_wrong_assignment_is_named(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        override(shapes_tiny(), [assignment])


def test_an_unknown_field_in_a_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"unknown field data\.sise; fields: path,"):
        RunConfig.from_json('{"name": "a", "data": {"sise": 1}}')


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["student.timesteps=[]"], "student.timesteps must start at 999"),
        (["student.timesteps=[998,500,2,1]"], "student.timesteps must start at 999"),
        (["student.timesteps=[999,499,749,249]"], "student.timesteps must descend"),
        (["student.timesteps=[999,499,499,249]"], "student.timesteps must descend"),
        (["student.timesteps=[999,499,1,-1]"], "student.timesteps must not be negative"),
        (["student.timesteps=[999,499]"], "student.timestep_weights must have one weight per"),
        (["student.timestep_weights=[0,0,0,0]"], "student.timestep_weights must have"),
        (["student.timestep_weights=[2,-1,0,0]"], "student.timestep_weights must have"),
        (["student.teacher_timesteps=[20,1000]"], "student.teacher_timesteps must be"),
        (["student.teacher_timesteps=[30,20]"], "student.teacher_timesteps must be"),
        (["student.discriminator.noise_timesteps=[-1,9]"], "discriminator.noise_timesteps must be"),
        (["student.lambda_adversarial=0", "student.lambda_distill=0"], "nor all 0"),
        (["student.lambda_distill=-1"], "lambda_distill and lambda_reconstruct must not be neg"),
        (["student.adversarial_share=0"], "student.adversarial_share must be above 0"),
        (["student.discriminator.head_width=12"], "discriminator.head_width must be a multiple"),
        (["student.discriminator.head_width=0"], "discriminator.head_width must be a multiple"),
        (["teacher.prediction_type=epsilon"], 'zero_terminal_snr="rescale" leaves epsilon'),
        (["teacher.optimizer.batch_size=0"], "teacher.optimizer.batch_size must be at least 1"),
        (["student.optimizer.iterations=0"], "student.optimizer.iterations must be at least 1"),
        (["autoencoder.encoder_layers=[1,1]"], "autoencoder.encoder_layers and decoder_layers"),
        (["autoencoder.decoder_layers=[1,1]"], "autoencoder.encoder_layers and decoder_layers"),
        (["unet.attention=[true]"], "unet.attention must match unet.block_out_channels"),
        (["unet.block_out_channels=[]", "unet.attention=[]"], "unet.attention must match"),
        (["unet.norm_num_groups=7"], "must be multiples of unet.norm_num_groups, 7"),
        (["unet.head_width=24"], "must be multiples of unet.head_width, 24"),
        (["text.num_heads=5"], "text.width must be a multiple of text.num_heads"),
        (["data.image_size_px=36"], "data.image_size_px must be a multiple of 8"),
        (["data.image_size_px=0"], "data.image_size_px must be a multiple of 8"),
        (["autoencoder.crop_px=30"], "autoencoder.crop_px must be a multiple of 4"),
    ],
)
def test_values_that_cannot_work_together_are_refused(assignments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        override(shapes_tiny(), assignments)


def test_epsilon_may_end_in_pure_noise_at_the_input_only() -> None:
    config = override(
        shapes_tiny(),
        ["teacher.prediction_type=epsilon", "teacher.schedule.zero_terminal_snr=input_only"],
    )
    assert config.teacher.schedule.zero_terminal_snr == "input_only"


def test_a_stage_is_shaped_by_the_stages_before_it() -> None:
    before = shapes_tiny()
    after = override(before, ["student.lambda_distill=1.0"])
    assert before.that_shapes("autoencoder") == after.that_shapes("autoencoder")
    assert before.that_shapes("teacher") == after.that_shapes("teacher")
    assert before.that_shapes("student") != after.that_shapes("student")
