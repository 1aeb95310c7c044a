"""The teacher's answer in several steps, and the regression on it."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler
from distill_fixtures import tiny_config, tiny_draws, tiny_frozen, tiny_sample, tiny_unet

from distill.config import ConfigError
from distill.methods.base import Fake, Frozen, Sample
from distill.methods.registry import build_method
from distill.methods.teaching import taught
from distill.networks.conditioning import guided
from distill.sampling import solve
from distill.step import Batch, run_student

# Shape suffixes: B batch, C channel, h/w latent cells.

LAST = 999


@pytest.fixture(scope="module")
def frozen() -> Frozen:
    return tiny_frozen()


def _denoised(
    frozen: Frozen, sample: Sample, noisy_BChw: torch.Tensor, timestep: int, guidance: float
) -> torch.Tensor:
    timestep_B = torch.full((len(sample),), timestep)
    prediction = guided(
        frozen.teacher,
        noisy_BChw,
        timestep_B,
        sample.conditioning,
        empty=sample.empty,
        guidance=guidance,
    )
    return frozen.diffusion.denoised(prediction, noisy_BChw, timestep_B)


@torch.no_grad()
@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_from_noise_it_is_ddim(frozen: Frozen, num_steps: int) -> None:
    sample, noise_BChw = tiny_sample(2), tiny_draws(2).normal("noise", (4, 8, 8))
    got = taught(
        frozen, sample, noise_BChw, torch.tensor([LAST] * 2), guidance=2.0, num_steps=num_steps
    )

    def denoise(noisy_BChw: torch.Tensor, timestep: int) -> torch.Tensor:
        return _denoised(frozen, sample, noisy_BChw, timestep, 2.0)

    expected = solve(denoise, frozen.diffusion, noise_BChw, num_steps, "ddim")
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_from_between_it_steps_as_diffusers_does(frozen: Frozen) -> None:
    """Three steps from timestep 599 are 599, 399, 199, whatever the other samples start from."""
    sample, noisy_BChw = tiny_sample(2), tiny_draws(2).normal("noisy", (4, 8, 8))
    start_B = torch.tensor([599, 149])
    got = taught(frozen, sample, noisy_BChw, start_B, guidance=1.0, num_steps=3)
    schedule = tiny_config().teacher.schedule
    scheduler = DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=schedule.beta_start,
        beta_end=schedule.beta_end,
        beta_schedule=schedule.beta_schedule,
        prediction_type=frozen.diffusion.prediction_type,
        clip_sample=False,
        rescale_betas_zero_snr=schedule.zero_terminal_snr == "rescale",
        set_alpha_to_one=True,
    )
    for row, (timesteps, stride) in enumerate((((599, 399, 199), 200), ((149, 99, 49), 50))):
        alone, latents = sample.at(slice(row, row + 1)), noisy_BChw[row : row + 1]
        scheduler.num_inference_steps = 1000 // stride  # decides how far one step goes
        for timestep in timesteps:
            prediction = guided(
                frozen.teacher,
                latents,
                torch.tensor([timestep]),
                alone.conditioning,
                empty=alone.empty,
                guidance=1.0,
            )
            step = scheduler.step(prediction, timestep, latents)
            latents = step.prev_sample
        torch.testing.assert_close(
            got[row : row + 1], step.pred_original_sample, rtol=1e-3, atol=1e-4
        )


def test_the_regression_is_the_distance_to_where_the_teacher_arrives(frozen: Frozen) -> None:
    config = tiny_config(
        "student.method=regression", "student.teacher_steps=3", "student.distill_space=latent"
    ).student
    method, batch = build_method(config, frozen), Batch(tiny_sample(2), tiny_draws(2))
    fake = run_student(tiny_unet(seed=3), frozen, config, batch)
    losses = method.student_losses(batch.sample, fake, batch.draws)
    noisy_BChw = frozen.diffusion.add_noise(
        batch.sample.latents_BChw, fake.noise_BChw, fake.timestep_B
    )
    target = taught(frozen, batch.sample, noisy_BChw, fake.timestep_B, guidance=1.0, num_steps=3)
    gap = fake.latents_BChw.detach().double() - target.double()
    expected = 2.5 * (gap**2).sum().item() / gap.numel()
    assert set(losses) == {"regress"}
    assert losses["regress"].item() == pytest.approx(expected, rel=1e-5)
    (gradient,) = torch.autograd.grad(losses["regress"], fake.latents_BChw)
    torch.testing.assert_close(gradient.double(), 2.5 * 2 * gap / gap.numel(), rtol=1e-4, atol=1e-9)


def test_the_regression_compares_pixels_when_asked(frozen: Frozen) -> None:
    config = tiny_config("student.method=regression", "student.distill_space=pixel").student
    method, batch = build_method(config, frozen), Batch(tiny_sample(2), tiny_draws(2))
    latents_BChw = batch.sample.latents_BChw.clone().requires_grad_()
    noise_BChw = batch.draws.normal("student_noise", (4, 8, 8))
    fake = Fake(latents_BChw, torch.tensor([LAST, 499]), noise_BChw)
    loss = method.student_losses(batch.sample, fake, batch.draws)["regress"]
    noisy_BChw = frozen.diffusion.add_noise(
        batch.sample.latents_BChw, fake.noise_BChw, fake.timestep_B
    )
    with torch.no_grad():
        target = taught(frozen, batch.sample, noisy_BChw, fake.timestep_B, guidance=1.0)
        gap = frozen.codec.decode(latents_BChw) - frozen.codec.decode(target)
    assert loss.item() == pytest.approx(2.5 * gap.double().pow(2).mean().item(), rel=1e-5)
    assert method.is_in_pixels
    assert len(method.modules) == 0


@pytest.mark.parametrize(
    ("assignments", "words"),
    [
        (("student.teacher_steps=0",), "teacher_steps must be at least 1"),
        (("student.teacher_steps=2", "student.distill_weight=nfsd"), "choose another weight"),
    ],
)
def test_a_number_of_steps_that_means_nothing_is_refused(
    assignments: tuple[str, ...], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        tiny_config(*assignments)
