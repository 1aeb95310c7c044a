"""The sampling loops, against diffusers' scheduler and against serving's arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from distill_fixtures import tiny_diffusion, tiny_text, tiny_unet

from distill.encoders import TextEncoder
from distill.sampling import sample_student, sample_teacher, teacher_timesteps
from engines.noise import unit_noise

PROMPTS = ["a red circle", "blue square above green ring"]
SEEDS = [3, 7]
SHAPE = (4, 8, 8)


@pytest.fixture(scope="module")
def text() -> TextEncoder:
    return tiny_text()


@pytest.fixture(scope="module")
def unet() -> torch.nn.Module:
    return tiny_unet().eval()


@pytest.mark.parametrize("num_steps", [1, 2, 4, 25, 50, 333, 1000])
def test_timesteps_start_at_the_last(num_steps: int) -> None:
    timesteps = teacher_timesteps(1000, num_steps)
    assert len(timesteps) == num_steps
    assert timesteps[0] == 999
    assert timesteps[-1] >= 0
    assert timesteps == sorted(set(timesteps), reverse=True)


@torch.no_grad()
@pytest.mark.parametrize("num_steps", [1, 2, 5])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_teacher_draws_as_ddim_in_diffusers(
    unet: torch.nn.Module, text: TextEncoder, num_steps: int, guidance: float
) -> None:
    mine = sample_teacher(unet, text, tiny_diffusion(), PROMPTS, SEEDS, SHAPE, num_steps, guidance)

    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
        set_alpha_to_one=True,
        clip_sample=False,
    )
    scheduler.set_timesteps(num_steps)
    assert scheduler.timesteps.tolist() == teacher_timesteps(1000, num_steps)
    latents = torch.from_numpy(unit_noise(SEEDS, SHAPE))
    prompts, empty = text(text.tokens(PROMPTS)), text(text.tokens(["", ""]))
    for timestep in scheduler.timesteps:
        prediction = unet(latents, timestep, prompts).sample
        if guidance != 1.0:
            free = unet(latents, timestep, empty).sample
            prediction = free + guidance * (prediction - free)
        step = scheduler.step(prediction, timestep, latents, eta=0.0)
        latents = step.prev_sample
    # The last step of diffusers lands on its estimate of the clean latents.
    torch.testing.assert_close(mine, step.pred_original_sample, atol=2e-4, rtol=1e-3)


@torch.no_grad()
def test_the_student_draws_step_by_step(unet: torch.nn.Module, text: TextEncoder) -> None:
    diffusion = tiny_diffusion()
    drawn = sample_student(unet, text, diffusion, PROMPTS, SEEDS, SHAPE, (999, 499))

    embeds = text(text.tokens(PROMPTS))
    alpha, sigma = diffusion.alphas_T[499].item(), diffusion.sigmas_T[499].item()
    first = -unet(torch.from_numpy(unit_noise(SEEDS, SHAPE)), torch.tensor([999, 999]), embeds)[0]
    noisy = alpha * first + sigma * torch.from_numpy(unit_noise(SEEDS, SHAPE, step=1))
    output = unet(noisy, torch.tensor([499, 499]), embeds)[0]
    torch.testing.assert_close(drawn, alpha * noisy - sigma * output, atol=1e-4, rtol=1e-4)


def test_a_picture_depends_on_its_own_seed_and_prompt(
    unet: torch.nn.Module, text: TextEncoder
) -> None:
    diffusion = tiny_diffusion()
    both = sample_student(unet, text, diffusion, PROMPTS, SEEDS, SHAPE, (999, 499))
    alone = sample_student(unet, text, diffusion, PROMPTS[1:], SEEDS[1:], SHAPE, (999, 499))
    torch.testing.assert_close(both[1:], alone, atol=1e-5, rtol=1e-4)
    other = sample_student(unet, text, diffusion, PROMPTS[1:], [8], SHAPE, (999, 499))
    assert np.abs((other - alone).numpy()).max() > 0.1
