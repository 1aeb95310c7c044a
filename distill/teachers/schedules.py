"""A diffusers scheduler's settings, read as the schedule of this project.

Owns which schedulers are understood and how the last timestep becomes pure noise for each kind of
prediction. Knows no network.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from distill.config import ConfigError
from engines.spec import PredictionType, ScheduleSpec

_FLOW = "FlowMatchEulerDiscreteScheduler"
_PREDICTIONS: dict[str, PredictionType] = {
    "epsilon": "epsilon",
    "v_prediction": "v_prediction",
    "sample": "sample",
}


def read_schedule(
    settings: Mapping[str, Any], zero_terminal_snr: str
) -> tuple[ScheduleSpec, PredictionType]:
    """The schedule and the prediction type of a scheduler_config.json.

    With `zero_terminal_snr` "auto", a network that predicts epsilon keeps its table and is given
    pure noise at the last timestep all the same, because x0 is undefined where no signal is left;
    one that predicts v has its table rescaled (arXiv:2305.08891, section 3.1).

    Raises:
        ConfigError: the scheduler's table or prediction is none that a student can learn here.
    """
    name = str(settings.get("_class_name", ""))
    num = int(settings.get("num_train_timesteps", 1000))
    if name == _FLOW:
        # A shift moves which timesteps a sampler visits; the line itself stays.
        return ScheduleSpec(beta_schedule="flow", num_train_timesteps=num + 1), "flow"
    predicted = str(settings.get("prediction_type", "epsilon"))
    if predicted not in _PREDICTIONS:
        raise ConfigError(
            f"the teacher's scheduler predicts {predicted!r}: "
            f"known are {', '.join(_PREDICTIONS)}, and {_FLOW}"
        )
    if settings.get("trained_betas") is not None:
        raise ConfigError("the teacher's scheduler lists betas of its own (trained_betas)")
    policy = zero_terminal_snr
    if policy == "auto":
        is_rescaled = bool(settings.get("rescale_betas_zero_snr"))
        policy = "rescale" if predicted == "v_prediction" or is_rescaled else "input_only"
    try:
        schedule = ScheduleSpec.model_validate(
            {
                "num_train_timesteps": num,
                "beta_schedule": settings.get("beta_schedule", "linear"),
                "beta_start": settings.get("beta_start", 0.0001),
                "beta_end": settings.get("beta_end", 0.02),
                "zero_terminal_snr": policy,
            }
        )
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"the teacher's scheduler: {field}: {first['msg']}") from error
    return schedule, _PREDICTIONS[predicted]
