"""The scheduler of diffusers that samples as a student is sampled here.

The student denoises, adds fresh noise for its next timestep, and denoises again. That is
LCMScheduler's step once its boundary condition, which mixes the noisy latents back in, is scaled
away. Pure noise enters at the last timestep with that timestep's own alpha and sigma, so a table
that keeps some signal there ("input_only") needs no change. Knows no network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler, LCMScheduler

from engines.spec import PredictionType, ScheduleSpec

# Makes c_skip 1e-15 at timestep 1000 and c_out 1 to the last bit of float32.
_TIMESTEP_SCALING = 1e4


def student_scheduler(
    spec: ScheduleSpec, prediction_type: PredictionType, timesteps: Sequence[int]
) -> Any:
    """The scheduler of an exported student.

    Where the student's timesteps are spread evenly, as they are by default, the scheduler visits
    the right ones for each `num_inference_steps`. Others must be given in the call, `timesteps=`.

    A flow gets FlowMatchEulerDiscreteScheduler with `stochastic_sampling`, which does the same on
    a straight line; StableDiffusionPipeline cannot drive that one.
    """
    if spec.beta_schedule == "flow":
        return FlowMatchEulerDiscreteScheduler(
            num_train_timesteps=spec.num_train_timesteps - 1, stochastic_sampling=True
        )
    return LCMScheduler(
        num_train_timesteps=spec.num_train_timesteps,
        beta_schedule=spec.beta_schedule,
        beta_start=spec.beta_start,
        beta_end=spec.beta_end,
        prediction_type=prediction_type,
        rescale_betas_zero_snr=spec.zero_terminal_snr == "rescale",
        original_inference_steps=num_origin_steps(spec.num_train_timesteps, timesteps),
        timestep_scaling=_TIMESTEP_SCALING,
        clip_sample=False,
        # Unused by this scheduler, but the pipeline calls any other value outdated.
        steps_offset=1,
    )


def num_origin_steps(num_timesteps: int, timesteps: Sequence[int]) -> int:
    """Into how many equal parts the schedule is cut so that every timestep ends one."""
    return num_timesteps // math.gcd(num_timesteps, *(timestep + 1 for timestep in timesteps))


def is_evenly_spread(num_timesteps: int, timesteps: Sequence[int]) -> bool:
    """Whether diffusers finds the student's timesteps by their number alone."""
    return num_origin_steps(num_timesteps, timesteps) == len(timesteps)
