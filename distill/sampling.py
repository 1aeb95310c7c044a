"""Drawing with a teacher or a student in torch, to look at it and to judge it.

Owns the sampling loops of training and evaluation. The noise comes from the same per-seed
generator as when serving, so that a picture judged here is the picture served.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from distill.conditioning import PromptEncoder, guided, predict
from distill.diffusion import Diffusion
from engines.noise import unit_noise


def teacher_timesteps(num_timesteps: int, num_steps: int) -> list[int]:
    """Evenly spaced timesteps that start at the last one ("trailing").

    Source: arXiv:2305.08891, section 3.3.
    """
    counted = np.round(np.arange(num_timesteps, 0, -num_timesteps / num_steps))
    timesteps: list[int] = (counted - 1).astype(int).tolist()
    return timesteps


@torch.no_grad()
def sample_teacher(
    unet: nn.Module,
    text: PromptEncoder,
    diffusion: Diffusion,
    prompts: Sequence[str],
    seeds: Sequence[int],
    shape: tuple[int, int, int],
    num_steps: int,
    guidance: float = 1.0,
) -> torch.Tensor:
    """Deterministic DDIM from pure noise. Source: arXiv:2010.02502, eq. 12 with eta 0.

    Returns:
        latents_BChw, float32, scaled.
    """
    conditioning = text.encode(text.tokens(prompts))
    empty = text.encode(text.tokens([""])).expand(len(prompts))
    latents_BChw = torch.from_numpy(unit_noise(seeds, shape)).to(diffusion.device)
    denoised_BChw = latents_BChw
    timesteps = teacher_timesteps(diffusion.num_timesteps, num_steps)
    for i, timestep in enumerate(timesteps):
        timestep_B = torch.full((len(prompts),), timestep, device=diffusion.device)
        prediction_BChw = guided(
            unet, latents_BChw, timestep_B, conditioning, empty=empty, guidance=guidance
        )
        denoised_BChw = diffusion.denoised(prediction_BChw, latents_BChw, timestep_B)
        if i + 1 < len(timesteps):
            alpha, sigma = diffusion.scales(timestep_B)
            noise_BChw = (latents_BChw - alpha * denoised_BChw) / sigma
            alpha, sigma = diffusion.scales(
                torch.full((len(prompts),), timesteps[i + 1], device=diffusion.device)
            )
            latents_BChw = alpha * denoised_BChw + sigma * noise_BChw
    return denoised_BChw


@torch.no_grad()
def sample_student(
    unet: nn.Module,
    text: PromptEncoder,
    diffusion: Diffusion,
    prompts: Sequence[str],
    seeds: Sequence[int],
    shape: tuple[int, int, int],
    timesteps: Sequence[int],
) -> torch.Tensor:
    """The student's sampling: denoise, and for each further timestep add fresh noise and repeat.

    Returns:
        latents_BChw, float32, scaled.
    """
    conditioning = text.encode(text.tokens(prompts))
    latents_BChw = torch.from_numpy(unit_noise(seeds, shape)).to(diffusion.device)
    for step, timestep in enumerate(timesteps):
        timestep_B = torch.full((len(prompts),), timestep, device=diffusion.device)
        if step:
            noise_BChw = torch.from_numpy(unit_noise(seeds, shape, step)).to(diffusion.device)
            latents_BChw = diffusion.add_noise(latents_BChw, noise_BChw, timestep_B)
        prediction_BChw = predict(unet, latents_BChw, timestep_B, conditioning)
        latents_BChw = diffusion.denoised(prediction_BChw, latents_BChw, timestep_B)
    return latents_BChw
