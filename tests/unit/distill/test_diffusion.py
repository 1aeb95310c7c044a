"""The arithmetic of noise: against itself, and against diffusers' schedulers."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from distill.networks.diffusion import Diffusion
from engines.spec import PredictionType, ScheduleSpec

SCHEDULES = [
    ScheduleSpec(),
    ScheduleSpec(beta_schedule="linear", beta_start=1e-4, beta_end=0.02),
    ScheduleSpec(beta_schedule="squaredcos_cap_v2"),
    ScheduleSpec(zero_terminal_snr="rescale"),
]
FLOW = ScheduleSpec(beta_schedule="flow", num_train_timesteps=1001)


def _latents(num: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (num, 2, 3, 3)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


@pytest.mark.parametrize("prediction", get_args(PredictionType))
def test_a_right_prediction_gives_the_clean_latents(prediction: PredictionType) -> None:
    diffusion = Diffusion.create(ScheduleSpec(), prediction)
    latents, noise = _latents()
    timestep_B = torch.tensor([0, 300, 700, 999])
    noisy = diffusion.add_noise(latents, noise, timestep_B)
    target = diffusion.target(latents, noise, timestep_B)
    # At the last timestep little signal is left, so epsilon's division costs precision.
    tolerance = 1e-4 if prediction == "epsilon" else 1e-5
    torch.testing.assert_close(
        diffusion.denoised(target, noisy, timestep_B), latents, atol=tolerance, rtol=0
    )


@pytest.mark.parametrize("zero_terminal_snr", ["input_only", "rescale"])
def test_pure_noise_enters_at_the_last_timestep_only(zero_terminal_snr: str) -> None:
    spec = ScheduleSpec.model_validate({"zero_terminal_snr": zero_terminal_snr})
    diffusion = Diffusion.create(spec, "v_prediction")
    latents, noise = _latents(2)
    noisy = diffusion.add_noise(latents, noise, torch.tensor([999, 998]))
    assert torch.equal(noisy[0], noise[0])
    assert not torch.equal(noisy[1], noise[1])


def test_signal_is_left_where_the_schedule_says_so() -> None:
    diffusion = Diffusion.create(ScheduleSpec(), "v_prediction")
    latents, noise = _latents(1)
    noisy = diffusion.add_noise(latents, noise, torch.tensor([999]))
    torch.testing.assert_close(noisy - diffusion.sigmas_T[999] * noise, 0.0682659 * latents)


@pytest.mark.parametrize("spec", SCHEDULES, ids=["scaled", "linear", "cosine", "rescaled"])
def test_noise_is_added_as_in_diffusers(spec: ScheduleSpec) -> None:
    diffusion = Diffusion.create(spec, "v_prediction")
    scheduler = DDPMScheduler(
        beta_schedule=spec.beta_schedule,
        beta_start=spec.beta_start,
        beta_end=spec.beta_end,
        rescale_betas_zero_snr=spec.zero_terminal_snr == "rescale",
    )
    latents, noise = _latents()
    timestep_B = torch.tensor([0, 250, 600, 999])
    torch.testing.assert_close(
        diffusion.add_noise(latents, noise, timestep_B),
        scheduler.add_noise(latents, noise, timestep_B),
        atol=2e-5,
        rtol=0,
    )
    torch.testing.assert_close(
        diffusion.target(latents, noise, timestep_B),
        scheduler.get_velocity(latents, noise, timestep_B),
        atol=2e-5,
        rtol=0,
    )
    torch.testing.assert_close(
        diffusion.alphas_T, scheduler.alphas_cumprod.sqrt(), atol=2e-5, rtol=0
    )


def test_a_rescaled_schedule_ends_without_signal() -> None:
    diffusion = Diffusion.create(ScheduleSpec(zero_terminal_snr="rescale"), "v_prediction")
    assert diffusion.alphas_T[-1] == 0.0
    assert diffusion.sigmas_T[-1] == 1.0
    total_T = diffusion.alphas_T**2 + diffusion.sigmas_T**2
    torch.testing.assert_close(total_T, torch.ones(1000))


def test_drawn_timesteps_cover_the_schedule() -> None:
    diffusion = Diffusion.create(ScheduleSpec(num_train_timesteps=10), "v_prediction")
    torch.manual_seed(0)
    even = diffusion.draw_timesteps(20000, 1.0).bincount(minlength=10)
    assert (even - 2000).abs().max() < 200
    noisy = diffusion.draw_timesteps(20000, 3.0)
    assert set(noisy.tolist()) == set(range(10))
    # The mean of 3u / (1 + 2u) over u in 0..1 is 3/2 - 3/4 ln 3 = 0.676; cells count from 0.
    assert noisy.float().mean().item() == pytest.approx(0.676 * 10 - 0.5, abs=0.1)


def test_a_flow_is_that_of_diffusers() -> None:
    diffusion = Diffusion.create(FLOW, "flow")
    scheduler = FlowMatchEulerDiscreteScheduler()
    latents, noise = _latents()
    timestep_B = torch.tensor([1, 250, 600, 1000])
    noisy = diffusion.add_noise(latents, noise, timestep_B)
    theirs = scheduler.scale_noise(latents, timestep_B.float(), noise)
    torch.testing.assert_close(noisy, theirs, atol=1e-6, rtol=0)
    target = diffusion.target(latents, noise, timestep_B)
    # Noise grows along the line at the rate that the network should predict.
    later = scheduler.scale_noise(latents, (timestep_B - 1).float().clamp_min(1), noise)
    step = ((timestep_B - 1).clamp_min(1) - timestep_B).view(-1, 1, 1, 1) / 1000
    torch.testing.assert_close(noisy + step * target, later, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        diffusion.denoised(target, noisy, timestep_B), latents, atol=1e-5, rtol=0
    )
