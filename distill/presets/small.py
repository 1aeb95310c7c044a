"""Presets of the drawn shapes, the bundled emoji model and one's own folder of pictures."""

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
from distill.presets.concepts import EMOJI_CONCEPTS, EMOJI_STYLES, FIVE_STYLES


def shapes_tiny() -> RunConfig:
    """A few seconds on a CPU: every part of the path on drawn shapes, for tests and first looks."""
    few = OptimizerConfig(batch_size=4, iterations=4, warmup_iterations=1)
    return RunConfig(
        name="shapes",
        data=DataConfig(path="shapes", image_size_px=32, num_shapes=48),
        autoencoder=AutoencoderConfig(
            latent_channels=4,
            block_out_channels=(8, 16, 32),
            encoder_layers=(0, 1, 1),
            decoder_layers=(0, 1, 1),
            crop_px=32,
            optimizer=few,
        ),
        text=TextConfig(vocab_size=600, max_tokens=16, width=32, num_layers=1, num_heads=2),
        unet=UnetConfig(
            block_out_channels=(32, 64), attention=(False, True), head_width=16, norm_num_groups=8
        ),
        teacher=TeacherConfig(optimizer=few, ema_decay=0.9),
        student=StudentConfig(
            optimizer=few,
            ema_decay=0.9,
            discriminator=DiscriminatorConfig(features="teacher", image_model=None, lr=5e-4),
        ),
        bf16=False,
        report_every=1,
        sample_every=4,
    )


def emoji_cpu() -> RunConfig:
    """Emoji in two styles at 128 px, an hour and a half on one CPU core with bf16 units."""
    return RunConfig(
        name="emoji",
        description="151 emoji in two styles, 128 px, drawn in one step",
        license="Apache-2.0",
        data=DataConfig(
            path="emoji_train.parquet",
            styles=EMOJI_STYLES,
            concepts=EMOJI_CONCEPTS,
            num_other_captions=0,
        ),
        autoencoder=AutoencoderConfig(optimizer=OptimizerConfig(lr=2e-3, iterations=4500)),
        text=TextConfig(max_tokens=24),
        unet=UnetConfig(block_out_channels=(64, 160, 224), time_scale_shift="scale_shift"),
        teacher=TeacherConfig(
            timestep_shift=3.0,
            optimizer=OptimizerConfig(lr=1e-3, warmup_iterations=200, iterations=4500),
        ),
        student=StudentConfig(
            timestep_weights=(5.0, 1.0, 1.0, 1.0),
            distill_space="latent",
            adversarial_share=0.5,
            lambda_reconstruct=1.0,
            discriminator=DiscriminatorConfig(
                features="teacher",
                image_model=None,
                condition="text",
                noise_timesteps=(50, 700),
                lr=5e-4,
            ),
            optimizer=OptimizerConfig(lr=3e-4, beta1=0.5, warmup_iterations=100, iterations=2300),
        ),
        num_threads=1,
    )


def own_cpu() -> RunConfig:
    """Your own folder of some hundreds of captioned pictures, 64 px, half an hour on one core.

    Set `name`, `description` and `license`, which are written into the finished model. A larger
    set wants more `teacher.optimizer.iterations`; longer captions a larger `text.max_tokens`.
    """
    return RunConfig(
        name="own",
        data=DataConfig(path="pictures", image_size_px=64),
        autoencoder=AutoencoderConfig(
            optimizer=OptimizerConfig(lr=2e-3, batch_size=8, iterations=1000)
        ),
        text=TextConfig(vocab_size=2048, max_tokens=24, width=128),
        unet=UnetConfig(block_out_channels=(64, 96, 128), time_scale_shift="scale_shift"),
        teacher=TeacherConfig(
            timestep_shift=2.0,
            optimizer=OptimizerConfig(lr=1e-3, warmup_iterations=200, iterations=3000),
        ),
        student=StudentConfig(
            timestep_weights=(5.0, 1.0, 1.0, 1.0),
            distill_space="latent",
            adversarial_share=0.5,
            lambda_reconstruct=1.0,
            discriminator=DiscriminatorConfig(
                features="teacher",
                image_model=None,
                condition="text",
                noise_timesteps=(50, 700),
                lr=5e-4,
            ),
            optimizer=OptimizerConfig(lr=3e-4, beta1=0.5, warmup_iterations=50, iterations=600),
        ),
        sample_every=250,
    )


def emoji_many() -> RunConfig:
    """The bundled model: 151 emoji in five styles and other colours, 128 px, on two CPU cores.

    Sixteen pixels per latent cell: at eight, a step of the same UNet takes four times as long
    (docs/experiments.md). The network predicts the clean latents themselves: half of the student's
    training is at pure noise, where that is the whole task.
    """
    base = emoji_cpu()
    return replace(
        base,
        description="151 emoji in five styles, 128 px, drawn in one step",
        data=DataConfig(
            path="emoji_train.parquet",
            styles=FIVE_STYLES,
            concepts=EMOJI_CONCEPTS,
            num_other_captions=1,
            recoloured_share=0.15,
        ),
        autoencoder=AutoencoderConfig(
            latent_channels=64,
            block_out_channels=(8, 32, 64, 128, 256),
            encoder_layers=(0, 1, 1, 1, 1),
            decoder_layers=(0, 1, 1, 1, 1),
            optimizer=OptimizerConfig(lr=2e-3, iterations=3000),
        ),
        teacher=TeacherConfig(
            prediction_type="sample",
            timestep_shift=3.0,
            optimizer=OptimizerConfig(
                lr=1e-3,
                batch_size=32,
                warmup_iterations=200,
                decay_fraction=0.25,
                iterations=9000,
            ),
        ),
        student=replace(
            base.student,
            discriminator=replace(base.student.discriminator, noise_timesteps=(0, 120)),
            optimizer=replace(base.student.optimizer, iterations=1800),
        ),
        num_threads=2,
    )


def emoji_gpu() -> RunConfig:
    """The whole emoji set in its five styles, for one GPU; no whole run of it has been made yet.

    The ablation's smaller teacher made 11 iterations a second on an H200, bound by launches.
    """
    return RunConfig(
        name="emoji",
        description="1,517 emoji in five styles, 128 px, drawn in one step",
        license="Apache-2.0",
        data=DataConfig(path="emoji_train.parquet"),
        autoencoder=AutoencoderConfig(
            optimizer=OptimizerConfig(lr=2e-3, batch_size=64, iterations=10000)
        ),
        text=TextConfig(max_tokens=24),
        unet=UnetConfig(block_out_channels=(64, 160, 224), time_scale_shift="scale_shift"),
        teacher=TeacherConfig(
            timestep_shift=3.0,
            optimizer=OptimizerConfig(
                lr=1e-3, batch_size=128, warmup_iterations=500, iterations=40000
            ),
        ),
        student=StudentConfig(
            timestep_weights=(5.0, 1.0, 1.0, 1.0),
            adversarial_share=0.5,
            lambda_reconstruct=1.0,
            discriminator=DiscriminatorConfig(
                features="teacher",
                image_model=None,
                condition="text",
                noise_timesteps=(0, 120),
                lr=5e-4,
            ),
            optimizer=OptimizerConfig(
                lr=3e-4, beta1=0.5, batch_size=64, warmup_iterations=500, iterations=20000
            ),
        ),
    )
