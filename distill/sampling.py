"""Drawing with a teacher or a student in torch, to look at it and to judge it.

Owns the sampling loops of training and evaluation. The noise comes from the same per-seed
generator as when serving, so that a picture judged here is the picture served.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import nn

from distill.networks.conditioning import PromptEncoder, guided, predict
from distill.networks.diffusion import Diffusion
from engines.noise import unit_noise

Solver = Literal["ddim", "dpm++"]


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
    solver: Solver = "ddim",
) -> torch.Tensor:
    """Deterministic sampling from pure noise, by DDIM or by DPM-Solver++(2M).

    Returns:
        latents_BChw, float32, scaled.
    """
    conditioning = text.encode(text.tokens(prompts))
    empty = text.encode(text.tokens([""])).expand(len(prompts))
    noise_BChw = torch.from_numpy(unit_noise(seeds, shape)).to(diffusion.device)

    def denoise(noisy_BChw: torch.Tensor, timestep: int) -> torch.Tensor:
        timestep_B = torch.full((len(prompts),), timestep, device=diffusion.device)
        prediction_BChw = guided(
            unet, noisy_BChw, timestep_B, conditioning, empty=empty, guidance=guidance
        )
        return diffusion.denoised(prediction_BChw, noisy_BChw, timestep_B)

    return solve(denoise, diffusion, noise_BChw, num_steps, solver)


def solve(
    denoise: Callable[[torch.Tensor, int], torch.Tensor],
    diffusion: Diffusion,
    noise_BChw: torch.Tensor,
    num_steps: int,
    solver: Solver,
) -> torch.Tensor:
    """Follow the deterministic path from noise to a clean picture.

    DDIM holds the denoised picture still over a step (arXiv:2010.02502, eq. 12 with eta 0).
    DPM-Solver++(2M) extends the last two along a line in the logarithm of the signal-to-noise
    ratio (arXiv:2211.01095, algorithm 2); the step away from pure noise and the step to the clean
    picture have no finite length there, so they are of first order.

    Args:
        denoise: noisy latents and a timestep to x0.
        diffusion: the schedule.
        noise_BChw: unit Gaussian.
        num_steps: calls of `denoise`.
        solver: which of the two.
    """
    latents_BChw, before_BChw, before_h = noise_BChw, None, math.inf
    timesteps = teacher_timesteps(diffusion.num_timesteps, num_steps)
    for timestep, following in itertools.pairwise((*timesteps, None)):
        assert timestep is not None
        denoised_BChw = denoise(latents_BChw, timestep)
        if following is None:
            return denoised_BChw
        alpha, sigma = _levels(diffusion, timestep)
        next_alpha, next_sigma = _levels(diffusion, following)
        h = _log_ratio(next_alpha, next_sigma) - _log_ratio(alpha, sigma)
        aim_BChw = denoised_BChw
        if solver == "dpm++" and before_BChw is not None and math.isfinite(before_h):
            aim_BChw = denoised_BChw + h / (2 * before_h) * (denoised_BChw - before_BChw)
        latents_BChw = next_alpha * aim_BChw + next_sigma / sigma * (
            latents_BChw - alpha * aim_BChw
        )
        before_BChw, before_h = denoised_BChw, h
    raise AssertionError("the last timestep has no following one")


def _levels(diffusion: Diffusion, timestep: int) -> tuple[float, float]:
    return diffusion.alphas_T[timestep].item(), diffusion.sigmas_T[timestep].item()


def _log_ratio(alpha: float, sigma: float) -> float:
    return math.log(alpha) - math.log(sigma) if alpha > 0 else -math.inf


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
