"""One iteration of Adversarial Diffusion Distillation: a discriminator phase, a generator phase.

Owns the order of the two phases and which gradients flow where. Touches no disk.
Source: arXiv:2311.17042, section 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from distill.autoencoder import Codec
from distill.config import StudentConfig
from distill.device import half_precision
from distill.diffusion import Diffusion
from distill.discriminator import Discriminator
from distill.features import Features
from distill.losses import distillation, hinge_discriminator, hinge_generator, r1_penalty

# Shape suffixes: B batch, C channel, h/w latent cells, L tokens, D width.


@dataclass(frozen=True)
class Networks:
    """What the step runs; only student and discriminator are trained."""

    student: nn.Module
    teacher: nn.Module
    discriminator: Discriminator
    features: Features
    codec: Codec
    diffusion: Diffusion


@dataclass(frozen=True)
class Sample:
    """One batch: real latents and text, and the embedding of the empty caption."""

    latents_BChw: torch.Tensor
    text_embeds_BLD: torch.Tensor
    empty_embeds_BLD: torch.Tensor


@dataclass(frozen=True)
class Optimizers:
    """The two optimizers, and the norm at which the student's gradient is clipped."""

    student: torch.optim.Optimizer
    discriminator: torch.optim.Optimizer
    grad_clip: float


def denoise_with_student(networks: Networks, config: StudentConfig, sample: Sample) -> torch.Tensor:
    """The student's x0 for real latents noised to one of its timesteps, with gradients."""
    num = len(sample.latents_BChw)
    weights = torch.tensor(config.timestep_weights)
    chosen_B = torch.multinomial(weights, num, replacement=True)
    timestep_B = torch.tensor(config.timesteps)[chosen_B].to(networks.diffusion.device)
    noise_BChw = torch.randn_like(sample.latents_BChw)
    noisy_BChw = networks.diffusion.add_noise(sample.latents_BChw, noise_BChw, timestep_B)
    prediction_BChw = networks.student(noisy_BChw, timestep_B, sample.text_embeds_BLD).sample
    return networks.diffusion.denoised(prediction_BChw, noisy_BChw, timestep_B)


@torch.no_grad()
def teacher_target(
    networks: Networks, config: StudentConfig, sample: Sample, fake_BChw: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The teacher's x0 for the student's noised again, one step, and c(t)."""
    num = len(fake_BChw)
    low, high = config.teacher_timesteps
    timestep_B = torch.randint(low, high + 1, (num,)).to(networks.diffusion.device)
    noisy_BChw = networks.diffusion.add_noise(fake_BChw, torch.randn_like(fake_BChw), timestep_B)
    prediction_BChw = networks.teacher(noisy_BChw, timestep_B, sample.text_embeds_BLD).sample
    if config.teacher_guidance != 1.0:
        free_BChw = networks.teacher(noisy_BChw, timestep_B, sample.empty_embeds_BLD).sample
        prediction_BChw = free_BChw + config.teacher_guidance * (prediction_BChw - free_BChw)
    target_BChw = networks.diffusion.denoised(prediction_BChw, noisy_BChw, timestep_B)
    weight_B = torch.ones(num, device=networks.diffusion.device)
    if config.distill_weight == "exponential":
        weight_B = networks.diffusion.alphas_T[timestep_B]
    return target_BChw, weight_B


def discriminator_phase(
    networks: Networks,
    config: StudentConfig,
    features: tuple[list[torch.Tensor], list[torch.Tensor]],
    condition_BD: torch.Tensor,
    optimizer: torch.optim.Optimizer,
) -> dict[str, float]:
    """Train the heads on real and detached fake features: hinge, and R1 on the heads' inputs."""
    real = [f.detach().float().requires_grad_() for f in features[0]]
    fake = [f.detach().float() for f in features[1]]
    real_logits = networks.discriminator(real, condition_BD)
    fake_logits = networks.discriminator(fake, condition_BD)
    hinge = hinge_discriminator(real_logits, fake_logits)
    penalty = r1_penalty(real_logits, real)
    optimizer.zero_grad(set_to_none=True)
    (hinge + config.discriminator.r1_gamma * penalty).backward()
    # One bad batch must not spoil the heads for good.
    gradients = [p.grad for p in networks.discriminator.parameters() if p.grad is not None]
    if torch.isfinite(nn.utils.get_total_norm(gradients)):
        optimizer.step()
    right = [(r > 0).float().mean() for r in real_logits]
    right += [(f < 0).float().mean() for f in fake_logits]
    return {
        "loss_d": hinge.item(),
        "r1": penalty.item(),
        "d_accuracy": torch.stack(right).mean().item(),
    }


def generator_phase(
    networks: Networks,
    config: StudentConfig,
    sample: Sample,
    fake_BChw: torch.Tensor,
    fake_features: list[torch.Tensor],
) -> dict[str, float]:
    """Send the losses' gradients into the student; its optimizer steps afterwards.

    Each loss is differentiated with respect to the student's picture first, so that their
    shares can be reported without a second pass through the student.
    """
    heads = networks.discriminator.requires_grad_(False)
    logits = heads([f.float() for f in fake_features], sample.text_embeds_BLD[:, -1].float())
    losses = {"adversarial": config.lambda_adversarial * hinge_generator(logits)}
    target_BChw, weight_B = teacher_target(networks, config, sample, fake_BChw.detach())
    in_space = networks.codec.decode if config.distill_space == "pixel" else _identity
    with torch.no_grad():
        target = in_space(target_BChw)
    losses["distill"] = config.lambda_distill * distillation(in_space(fake_BChw), target, weight_B)
    if config.lambda_reconstruct:
        distance = (fake_BChw - sample.latents_BChw).pow(2).mean()
        losses["reconstruct"] = config.lambda_reconstruct * distance
    gradients = {k: torch.autograd.grad(loss, fake_BChw)[0] for k, loss in losses.items()}
    if config.adversarial_share is not None:
        pull = sum((g for k, g in gradients.items() if k != "adversarial"), torch.tensor(0.0))
        norm = gradients["adversarial"].norm().clamp_min(1e-12)
        gradients["adversarial"] *= config.adversarial_share * pull.norm() / norm
    metrics = {f"loss_{k}": loss.item() for k, loss in losses.items()}
    metrics |= {f"grad_{k}": gradient.norm().item() for k, gradient in gradients.items()}
    fake_BChw.backward(torch.stack(list(gradients.values())).sum(0))
    networks.discriminator.requires_grad_(True)
    return metrics


def _identity(latents_BChw: torch.Tensor) -> torch.Tensor:
    return latents_BChw


def distill_step(
    networks: Networks,
    config: StudentConfig,
    sample: Sample,
    optimizers: Optimizers,
    *,
    bf16: bool,
) -> Mapping[str, float]:
    """Both phases on one batch, with a single forward pass of the student.

    Returns:
        Losses, gradient norms on the student's picture by loss, and the heads' accuracy. A step
        whose gradient is not finite leaves the student as it was and counts as `skipped`.
    """
    low, high = config.discriminator.noise_timesteps
    level_B = torch.randint(low, high + 1, (len(sample.latents_BChw),))
    level_B = level_B.to(networks.diffusion.device)
    text = sample.text_embeds_BLD
    optimizers.student.zero_grad(set_to_none=True)
    with half_precision(networks.diffusion.device, enabled=bf16):
        fake_BChw = denoise_with_student(networks, config, sample)
        fake_features = networks.features(fake_BChw, text, level_B)
        with torch.no_grad():
            real_features = networks.features(sample.latents_BChw, text, level_B)
    metrics = discriminator_phase(
        networks,
        config,
        (real_features, fake_features),
        text[:, -1].float(),
        optimizers.discriminator,
    )
    with half_precision(networks.diffusion.device, enabled=bf16):
        metrics |= generator_phase(networks, config, sample, fake_BChw, fake_features)
    norm = nn.utils.clip_grad_norm_(networks.student.parameters(), optimizers.grad_clip)
    is_finite = bool(torch.isfinite(norm))
    if is_finite:
        optimizers.student.step()
    return metrics | {
        "grad_norm": norm.item() if is_finite else 0.0,
        "skipped": float(not is_finite),
    }
