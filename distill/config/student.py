"""The distillation of a student: method, losses, discriminator."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from distill.config.sections import OptimizerConfig

DistillWeight = Literal["exponential", "none"]
FeatureSource = Literal["teacher", "folder"]


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Frozen features and the trained heads on them.

    Attributes:
        features: "teacher" takes the teacher's own down and middle blocks at a drawn noise level
            (Source: arXiv:2403.12015, section 3); "folder" takes a transformers vision model.
        folder: where that model lies, e.g. a local DINOv2.
        hooks: hidden states of the folder's model that get a head.
        input_size_px: side of the picture that the folder's model is given.
        noise_timesteps: range of timesteps drawn for the teacher's features.
    """

    features: FeatureSource = "teacher"
    folder: str | None = None
    hooks: tuple[int, ...] = (2, 5, 8, 11)
    input_size_px: int = 224
    noise_timesteps: tuple[int, int] = (20, 800)
    head_width: int = 64
    lr: float = 5e-4
    r1_gamma: float = 1e-5


@dataclass(frozen=True)
class StudentConfig:
    """Adversarial Diffusion Distillation. Source: arXiv:2311.17042, section 3.

    Attributes:
        timesteps: the student's few timesteps, descending; the first must be the last of the
            schedule, where its input is pure noise.
        timestep_weights: how often each is drawn.
        distill_weight: c(t); "exponential" is alpha_t.
        lambda_distill: weight of the distillation loss.
        teacher_timesteps: range of t drawn for the teacher's target.
        teacher_guidance: classifier-free guidance scale of the teacher's target.
        adversarial_share: hold the adversarial loss's gradient on the student's picture at this
            share of the other losses' together, whatever its own size, instead of a fixed weight
            (the paper's, None). Source: arXiv:2012.09841, eq. 7.
        lambda_reconstruct: weight of a plain regression on the real latents, not in the paper
            (0 there). On a small set, where most captions have one right answer, it holds the
            student to it.
    """

    timesteps: tuple[int, ...] = (999, 749, 499, 249)
    timestep_weights: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
    distill_weight: DistillWeight = "exponential"
    lambda_distill: float = 2.5
    distill_space: Literal["pixel", "latent"] = "pixel"
    lambda_adversarial: float = 1.0
    adversarial_share: float | None = None
    lambda_reconstruct: float = 0.0
    teacher_timesteps: tuple[int, int] = (20, 980)
    teacher_guidance: float = 1.0
    ema_decay: float = 0.999
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(lr=1e-4, beta1=0.0, beta2=0.99)
    )
