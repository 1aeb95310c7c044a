"""Which values of a run cannot work together, each rule with the words that name the remedy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from distill.config.sections import OptimizerConfig
from distill.config.student import LoraConfig, StudentConfig

if TYPE_CHECKING:
    from distill.config.run import RunConfig

# Fields that a method leaves out, and the value that says so: else a setting would be ignored in
# silence, and the saved config.json would tell of a loss that was never computed.
_PLAIN = StudentConfig()
_LEVELS = {"discriminator.noise_location": 1.0, "discriminator.noise_scale": 1.0}
_TARGET = {
    name: getattr(_PLAIN, name)
    for name in ("distill_weight", "teacher_guidance", "teacher_timesteps", "teacher_steps")
}
_LEFT_OUT: dict[str, dict[str, object]] = {
    "add": {"fake_score_lr": None, **_LEVELS},
    "regression": {"fake_score_lr": None, "critic_steps": None, **_LEVELS},
    "ladd": {
        "lambda_distill": 0.0,
        "lambda_reconstruct": 0.0,
        "adversarial_share": None,
        "fake_score_lr": None,
        **_TARGET,
    },
    "dmd2": {
        "distill_space": "latent",
        "distill_weight": "none",
        "lambda_reconstruct": 0.0,
        "teacher_steps": 1,
        **_LEVELS,
    },
}


def method_rules(run: RunConfig) -> Iterator[tuple[bool, str]]:
    student, method = run.student, run.student.method
    wrong = []
    for field, value in _LEFT_OUT[method].items():
        section, _, name = field.rpartition(".")
        if getattr(student.discriminator if section else student, name) != value:
            wrong.append(f"student.{field}={json.dumps(value)}")
    yield (
        bool(wrong),
        f'student.method="{method}" has no part for what was set: set {", ".join(wrong)}',
    )
    yield (
        method == "ladd" and student.discriminator.features == "vision",
        'student.method="ladd" judges latents: set student.discriminator.features="teacher"',
    )
    yield (
        method == "ladd" and student.lambda_adversarial == 0,
        'student.method="ladd" has one loss: set student.lambda_adversarial above 0',
    )
    yield (
        method in ("dmd2", "regression") and student.lambda_distill == 0,
        f'student.method="{method}" is nothing without its loss: set student.lambda_distill '
        "above 0",
    )
    yield (
        student.critic_steps is not None and student.critic_steps < 1,
        "student.critic_steps must be at least 1, or null for the method's own",
    )
    for name, number in (
        ("fake_score_lr", student.fake_score_lr),
        ("discriminator.noise_scale", student.discriminator.noise_scale),
    ):
        yield number is not None and number <= 0, f"student.{name} must be above 0"


def lora_rules(run: RunConfig) -> Iterator[tuple[bool, str]]:
    lora = run.student.lora
    yield lora.rank < 0, "student.lora.rank must be at least 1, or 0 to train every weight"
    yield (
        lora.rank == 0 and lora != LoraConfig(),
        "student.lora has no meaning without a rank: set student.lora.rank to at least 1, or "
        "leave student.lora.alpha and target_modules as they are",
    )
    yield (
        lora.alpha is not None and lora.alpha <= 0,
        "student.lora.alpha must be above 0, or null for the rank",
    )
    yield (
        not lora.target_modules or not all(lora.target_modules),
        'student.lora.target_modules must name layers of the UNet, such as ["to_q","to_v"]',
    )
    yield (
        lora.rank > 0 and run.student.initialise == "random",
        'student.lora.rank keeps the teacher\'s weights, student.initialise="random" has none: '
        'set student.initialise="teacher", or student.lora.rank=0',
    )


def schedule_rules(run: RunConfig) -> Iterator[tuple[bool, str]]:
    student, schedule = run.student, run.teacher.schedule
    last = schedule.num_train_timesteps - 1
    yield (
        student.timesteps[:1] != (last,),
        f"student.timesteps must start at {last}, where the input is noise",
    )
    yield (
        list(student.timesteps) != sorted(set(student.timesteps), reverse=True),
        "student.timesteps must descend without repeats",
    )
    yield student.timesteps[-1:] < (0,), "student.timesteps must not be negative"
    weights = student.timestep_weights
    yield (
        len(weights) != len(student.timesteps) or min(weights) < 0 or sum(weights) <= 0,
        "student.timestep_weights must have one weight per timestep, none below 0, not all 0",
    )
    for name, bounds in (
        ("teacher_timesteps", student.teacher_timesteps),
        ("discriminator.noise_timesteps", student.discriminator.noise_timesteps),
    ):
        yield (
            not 0 <= bounds[0] <= bounds[1] <= last,
            f"student.{name} must be a lowest and a highest timestep in 0..{last}",
        )
    yield (
        run.teacher.prediction_type == "epsilon" and schedule.zero_terminal_snr == "rescale",
        'teacher.schedule.zero_terminal_snr="rescale" leaves epsilon undefined at the last '
        'timestep: use "input_only" or v_prediction',
    )
    losses = (student.lambda_adversarial, student.lambda_distill, student.lambda_reconstruct)
    yield (
        min(losses) < 0 or max(losses) == 0,
        "student.lambda_adversarial, lambda_distill and lambda_reconstruct must not be negative, "
        "nor all 0",
    )
    yield (
        student.adversarial_share is not None and student.adversarial_share <= 0,
        "student.adversarial_share must be above 0, or null for fixed weights",
    )
    yield student.teacher_steps < 1, "student.teacher_steps must be at least 1"
    yield (
        student.teacher_steps > 1 and student.distill_weight == "nfsd",
        'student.teacher_steps above 1 has no meaning with student.distill_weight="nfsd", whose '
        "target is one step's residual: choose another weight",
    )
    for name in ("autoencoder", "teacher", "student"):
        optimizer: OptimizerConfig = getattr(run, name).optimizer
        yield optimizer.batch_size < 1, f"{name}.optimizer.batch_size must be at least 1"
        yield optimizer.iterations < 1, f"{name}.optimizer.iterations must be at least 1"


def network_rules(run: RunConfig) -> Iterator[tuple[bool, str]]:
    codec, unet, disc = run.autoencoder, run.unet, run.student.discriminator
    num_groups = 8  # of the heads' group norms
    yield (
        disc.head_width < 1 or disc.head_width % num_groups != 0,
        f"student.discriminator.head_width must be a multiple of {num_groups}",
    )
    yield (
        not 0
        < len(codec.block_out_channels)
        == len(codec.encoder_layers)
        == len(codec.decoder_layers),
        "autoencoder.encoder_layers and decoder_layers must match block_out_channels in length",
    )
    yield (
        not 0 < len(unet.block_out_channels) == len(unet.attention),
        "unet.attention must match unet.block_out_channels in length",
    )
    for name in ("norm_num_groups", "head_width"):
        unit = getattr(unet, name)
        yield (
            unit < 1 or any(width % unit for width in unet.block_out_channels),
            f"unet.block_out_channels must be multiples of unet.{name}, {unit}",
        )
    yield (
        run.text.num_heads < 1 or run.text.width % run.text.num_heads != 0,
        "text.width must be a multiple of text.num_heads",
    )
    multiple = codec.downscale * run.unet_downscale
    size_px = run.data.image_size_px
    yield (
        size_px < 1 or size_px % multiple != 0,
        (f"data.image_size_px must be a multiple of {multiple}"),
    )
    yield (
        codec.crop_px < 1 or codec.crop_px % codec.downscale != 0,
        (f"autoencoder.crop_px must be a multiple of {codec.downscale}"),
    )
