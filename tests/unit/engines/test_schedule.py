"""The noise schedule against diffusers', and the algebra that undoes it."""

from __future__ import annotations

import numpy as np
import pytest
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st

from engines.schedule import Schedule
from engines.spec import PredictionType, ScheduleSpec


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("zero_terminal_snr", ["none", "input_only", "rescale"])
def test_the_table_is_that_of_diffusers(beta_schedule: str, zero_terminal_snr: str) -> None:
    spec = ScheduleSpec.model_validate(
        {"beta_schedule": beta_schedule, "zero_terminal_snr": zero_terminal_snr}
    )
    theirs = DDPMScheduler(
        num_train_timesteps=spec.num_train_timesteps,
        beta_schedule=beta_schedule,
        beta_start=spec.beta_start,
        beta_end=spec.beta_end,
        rescale_betas_zero_snr=zero_terminal_snr == "rescale",
    )
    ours = Schedule.from_spec(spec)
    # Theirs is float32 throughout, hence the tolerance.
    np.testing.assert_allclose(ours.alphas, theirs.alphas_cumprod.numpy() ** 0.5, atol=3e-5)
    np.testing.assert_allclose(ours.alphas**2 + ours.sigmas**2, 1.0, atol=1e-12)
    assert (np.diff(ours.alphas) < 0).all()
    assert ours.is_input_pure_noise == (zero_terminal_snr != "none")


def test_rescaling_ends_at_exactly_no_signal_and_keeps_the_start() -> None:
    plain = Schedule.from_spec(ScheduleSpec())
    rescaled = Schedule.from_spec(ScheduleSpec(zero_terminal_snr="rescale"))
    assert rescaled.alphas[-1] == 0.0
    assert rescaled.sigmas[-1] == 1.0
    assert rescaled.alphas[0] == pytest.approx(plain.alphas[0], abs=1e-15)
    # What Stable Diffusion's own schedule leaves of the picture at its last timestep.
    assert plain.alphas[-1] == pytest.approx(0.0683, abs=5e-5)


@given(
    prediction=st.sampled_from(["epsilon", "v_prediction", "sample", "flow"]),
    beta_schedule=st.sampled_from(["scaled_linear", "flow"]),
    timestep=st.integers(0, 999),
    clean=st.floats(-4, 4),
    noise=st.floats(-4, 4),
)
def test_a_perfect_network_gives_back_the_clean_latents(
    prediction: PredictionType, beta_schedule: str, timestep: int, clean: float, noise: float
) -> None:
    if beta_schedule == "flow" and prediction in ("epsilon", "v_prediction"):
        return  # neither is defined where alpha and sigma are no sine and cosine
    spec = ScheduleSpec.model_validate({"beta_schedule": beta_schedule})
    schedule = Schedule.from_spec(spec)
    alpha, sigma = schedule.alphas[timestep], schedule.sigmas[timestep]
    output = {
        "epsilon": noise,
        "v_prediction": alpha * noise - sigma * clean,
        "sample": clean,
        "flow": noise - clean,
    }[prediction]
    from_latents, from_output = schedule.denoised_scales(prediction)
    noisy = alpha * clean + sigma * noise
    denoised = from_latents[timestep] * noisy + from_output[timestep] * output
    assert denoised == pytest.approx(clean, abs=1e-9)


def test_epsilon_without_any_signal_is_refused_and_v_prediction_is_not() -> None:
    schedule = Schedule.from_spec(ScheduleSpec(zero_terminal_snr="rescale"))
    with pytest.raises(ValueError, match=r"input_only.*v_prediction"):
        schedule.denoised_scales("epsilon")
    from_latents, from_output = schedule.denoised_scales("v_prediction")
    assert (from_latents[-1], from_output[-1]) == (0.0, -1.0)


def test_a_flow_runs_straight_from_the_picture_to_noise() -> None:
    spec = ScheduleSpec(beta_schedule="flow", num_train_timesteps=1001)
    schedule = Schedule.from_spec(spec)
    theirs = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000)
    # Theirs counts down from 1000 to 1; timestep / 1000 is sigma in both.
    np.testing.assert_allclose(schedule.sigmas[:0:-1], theirs.sigmas.numpy(), atol=1e-7)
    np.testing.assert_allclose(schedule.alphas, 1.0 - schedule.sigmas)
    assert (schedule.alphas[-1], schedule.sigmas[-1]) == (0.0, 1.0)
    assert (schedule.alphas[0], schedule.sigmas[0]) == (1.0, 0.0)
