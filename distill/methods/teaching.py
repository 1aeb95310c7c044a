"""What the frozen teacher makes of noisy latents, in one step or in several.

Owns the target of the distillation loss and of the regression on the teacher's pictures. Knows
nothing of the student.
"""

from __future__ import annotations

import torch

from distill.methods.base import Frozen, Sample
from distill.networks.conditioning import guided
from distill.networks.diffusion import Diffusion

# Shape suffixes: B batch, C channel, h/w latent cells.


@torch.no_grad()
def taught(
    frozen: Frozen,
    sample: Sample,
    noisy_BChw: torch.Tensor,
    timestep_B: torch.Tensor,
    *,
    guidance: float,
    num_steps: int = 1,
) -> torch.Tensor:
    """The teacher's x0 for noisy latents, each from its own timestep down in equal steps.

    Steps between are DDIM's, without fresh noise, so that one input has one answer.
    Source: arXiv:2010.02502, eq. 12 with eta 0; arXiv:2311.17042, table 1f, for several steps.

    Args:
        frozen: teacher and schedule.
        sample: whose prompts are asked for.
        noisy_BChw: latents at `timestep_B`.
        timestep_B: model indices.
        guidance: classifier-free guidance scale.
        num_steps: calls of the teacher.

    Returns:
        latents_BChw float32, scaled.
    """
    diffusion, latents_BChw, now_B = frozen.diffusion, noisy_BChw, timestep_B
    for step in range(num_steps):
        prediction_BChw = guided(
            frozen.teacher,
            latents_BChw,
            now_B,
            sample.conditioning,
            empty=sample.empty,
            guidance=guidance,
        )
        denoised_BChw = diffusion.denoised(prediction_BChw, latents_BChw, now_B)
        if step == num_steps - 1:
            return denoised_BChw
        next_B = _lower(timestep_B, num_steps, step + 1)
        latents_BChw = _descend(diffusion, latents_BChw, denoised_BChw, now_B, next_B)
        now_B = next_B
    raise AssertionError("num_steps must be at least 1")


def _lower(start_B: torch.Tensor, num_steps: int, step: int) -> torch.Tensor:
    """Timestep of a step: "trailing" spacing (arXiv:2305.08891, section 3.3), from any start."""
    counted_B = (start_B + 1).double() * (num_steps - step) / num_steps
    return (counted_B.round() - 1).clamp_min(0).long()


def _descend(
    diffusion: Diffusion,
    noisy_BChw: torch.Tensor,
    denoised_BChw: torch.Tensor,
    now_B: torch.Tensor,
    next_B: torch.Tensor,
) -> torch.Tensor:
    """Less noisy latents on the way to x0; a sample that cannot go lower stays as it is."""
    alpha, sigma = diffusion.scales(now_B)
    next_alpha, next_sigma = diffusion.scales(next_B)
    residual_BChw = noisy_BChw - alpha * denoised_BChw
    return next_alpha * denoised_BChw + next_sigma / sigma * residual_BChw
