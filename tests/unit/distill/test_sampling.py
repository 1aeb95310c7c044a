"""The sampling loops, against diffusers' scheduler and against serving's arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from distill_fixtures import tiny_diffusion, tiny_text, tiny_unet

from distill.networks.diffusion import Diffusion
from distill.networks.encoders import TextEncoder
from distill.sampling import Solver, sample_student, sample_teacher, solve, teacher_timesteps
from engines.noise import unit_noise
from engines.spec import ScheduleSpec

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


def _curved(noisy: torch.Tensor, timestep: int) -> torch.Tensor:
    """A denoiser that a solver cannot follow exactly."""
    return torch.tanh(0.5 * noisy) * (1 - timestep / 1500)


# diffusers gives numpy a tensor in a way that numpy 2 is going to refuse.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("num_steps", [1, 2, 5, 8, 25])
@pytest.mark.parametrize("solver", ["ddim", "dpm++"])
def test_the_solvers_step_as_diffusers_do(num_steps: int, solver: Solver) -> None:
    table = ScheduleSpec(zero_terminal_snr="none")
    diffusion = Diffusion.create(table, "sample")
    settings = {
        "beta_schedule": table.beta_schedule,
        "beta_start": table.beta_start,
        "beta_end": table.beta_end,
        "prediction_type": "sample",
        "timestep_spacing": "trailing",
    }
    if solver == "ddim":
        scheduler = DDIMScheduler(**settings, set_alpha_to_one=True, clip_sample=False)
    else:
        scheduler = DPMSolverMultistepScheduler(
            **settings, algorithm_type="dpmsolver++", solver_order=2, final_sigmas_type="zero"
        )
    scheduler.set_timesteps(num_steps)
    noise = torch.from_numpy(unit_noise(SEEDS, SHAPE))
    latents = noise
    for timestep in scheduler.timesteps:
        latents = scheduler.step(_curved(latents, int(timestep)), timestep, latents).prev_sample
    mine = solve(_curved, diffusion, noise, num_steps, solver)
    torch.testing.assert_close(mine, latents, atol=1e-4, rtol=1e-4)


def test_the_step_away_from_pure_noise_is_of_first_order() -> None:
    """The ratio of signal to noise is nothing there, so its logarithm has no finite length."""
    diffusion, noise = tiny_diffusion(), torch.from_numpy(unit_noise(SEEDS, SHAPE))
    assert diffusion.alphas_T[999] == 0

    def drawn(num_steps: int, solver: Solver) -> torch.Tensor:
        return solve(_curved, diffusion, noise, num_steps, solver)

    torch.testing.assert_close(drawn(3, "dpm++"), drawn(3, "ddim"))
    assert (drawn(4, "dpm++") - drawn(4, "ddim")).abs().max() > 1e-3
    assert drawn(25, "dpm++").isfinite().all()


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
