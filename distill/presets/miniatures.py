"""Presets of the ablation: a teacher and students small enough to be trained by the dozen.

Owns the one set-up that every row of the ablation departs from.
"""

from __future__ import annotations

from dataclasses import replace

from distill.config import (
    AutoencoderConfig,
    DataConfig,
    DiscriminatorConfig,
    OptimizerConfig,
    RunConfig,
    StudentConfig,
    TeacherConfig,
    TextConfig,
    UnetConfig,
)
from distill.presets.concepts import EMOJI_CONCEPTS

# Two of three concepts, in three styles that draw them differently: a prompt without a style has
# several right answers, which is where regression blurs.
_CONCEPTS = tuple(name for i, name in enumerate(EMOJI_CONCEPTS) if i % 3)
_STYLES = ("flat", "noto", "blob")


# Where EfficientNet-Lite0's maps are last of their size, a quarter to a thirty-second of the
# picture's, which it is given at twice ours (docs/ablation.md).
_VISION_HOOKS, _VISION_SIDE_PX = (2, 4, 10, 15), 128


def _student(optimizer: OptimizerConfig, noise_timesteps: tuple[int, int]) -> StudentConfig:
    """The full row: both losses, the teacher's features, both conditions."""
    return StudentConfig(
        timestep_weights=(4.0, 1.0, 1.0, 1.0),
        distill_space="latent",
        adversarial_share=0.5,
        ema_decay=0.99,
        discriminator=DiscriminatorConfig(
            features="teacher",
            hooks=_VISION_HOOKS,
            input_size_px=_VISION_SIDE_PX,
            image_model=None,
            noise_timesteps=noise_timesteps,
            lr=1e-3,
        ),
        optimizer=optimizer,
    )


def ablation_tiny() -> RunConfig:
    """Every row on drawn shapes in a minute or two, to see that it works; it shows nothing."""
    few = OptimizerConfig(batch_size=4, iterations=4, warmup_iterations=1)
    return RunConfig(
        name="ablation-tiny",
        data=DataConfig(path="shapes", image_size_px=16, num_shapes=40),
        autoencoder=AutoencoderConfig(
            latent_channels=4,
            block_out_channels=(8, 16),
            encoder_layers=(0, 1),
            decoder_layers=(0, 1),
            crop_px=16,
            optimizer=few,
        ),
        text=TextConfig(vocab_size=600, max_tokens=16, width=32, num_layers=1, num_heads=2),
        unet=UnetConfig(
            block_out_channels=(32, 64), attention=(False, True), head_width=16, norm_num_groups=8
        ),
        teacher=TeacherConfig(optimizer=few, ema_decay=0.9),
        student=_student(few, (20, 800)),
        bf16=False,
        report_every=2,
        sample_every=4,
        num_threads=1,
    )


def ablation_cpu() -> RunConfig:
    """A hundred emoji in three styles, 64 px: two to three hours on two cores.

    The heads look at little noise, where there is something to see (docs/experiments.md).
    """
    return RunConfig(
        name="ablation",
        data=DataConfig(
            path="emoji_train.parquet",
            image_size_px=64,
            styles=_STYLES,
            concepts=_CONCEPTS,
            num_other_captions=0,
        ),
        autoencoder=AutoencoderConfig(
            crop_px=64, optimizer=OptimizerConfig(lr=2e-3, iterations=1500)
        ),
        text=TextConfig(max_tokens=16, width=128),
        unet=UnetConfig(block_out_channels=(64, 96, 128), time_scale_shift="scale_shift"),
        teacher=TeacherConfig(
            timestep_shift=2.0,
            optimizer=OptimizerConfig(
                lr=1e-3, batch_size=32, warmup_iterations=200, iterations=4000
            ),
        ),
        student=_student(
            OptimizerConfig(lr=3e-4, beta1=0.5, batch_size=8, warmup_iterations=20, iterations=300),
            (0, 120),
        ),
        sample_every=1000,
        num_threads=1,
    )


def ablation_gpu() -> RunConfig:
    """The same pictures and networks with batches that a GPU gets through in the same time."""
    small = ablation_cpu()
    return replace(
        small,
        autoencoder=replace(
            small.autoencoder,
            optimizer=replace(small.autoencoder.optimizer, batch_size=64, iterations=2000),
        ),
        teacher=replace(
            small.teacher,
            optimizer=replace(small.teacher.optimizer, batch_size=128, iterations=4000),
        ),
        student=_student(
            OptimizerConfig(
                lr=3e-4, beta1=0.5, batch_size=32, warmup_iterations=50, iterations=500
            ),
            (0, 120),
        ),
    )
