"""Presets of the paper's students: Stable Diffusion teachers at 512 px, for GPUs with 80 GB.

What the paper states is taken from it (arXiv:2311.17042, section 3 and table 1); learning rates,
the average, the teacher's guidance and the three later timesteps it does not state, and are ours.
No run of them has been measured.
"""

from __future__ import annotations

from dataclasses import replace

from distill.config import DataConfig, OptimizerConfig, RunConfig, ScaleConfig, StudentConfig


def add_m() -> RunConfig:
    """ADD-M: Stable Diffusion 2.1's size; name captioned pictures with --data."""
    return RunConfig(
        name="add-m",
        description="one-step text to image, 512 px",
        data=DataConfig(path="pictures", access="stream", image_size_px=512),
        student=StudentConfig(
            teacher_source="stabilityai/stable-diffusion-2-1",
            distill_weight="nfsd",
            optimizer=OptimizerConfig(
                lr=1e-5,
                beta1=0.0,
                batch_size=128,
                warmup_iterations=500,
                decay_fraction=0.25,
                iterations=4000,
            ),
        ),
        scale=ScaleConfig(micro_batch_size=4, recompute=("decoder",)),
        sample_every=250,
    )


def add_xl() -> RunConfig:
    """ADD-XL: SDXL's size, dealt out over several GPUs."""
    medium = add_m()
    return replace(
        medium,
        name="add-xl",
        student=replace(medium.student, teacher_source="stabilityai/stable-diffusion-xl-base-1.0"),
        scale=ScaleConfig(strategy="fsdp", micro_batch_size=2, recompute=("decoder", "student")),
    )
