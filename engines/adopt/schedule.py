"""A diffusers scheduler's settings, read as the schedule of this project.

Owns which schedules are understood, what pure noise at the last timestep means for each kind of
prediction, and which timesteps a student of unknown training is asked for. Knows no network.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from pydantic import ValidationError

from engines.adopt.settings import read_settings
from engines.errors import ExportError
from engines.spec import PredictionType, ScheduleSpec

_PREDICTIONS: tuple[PredictionType, ...] = ("epsilon", "v_prediction", "sample")
_DEFAULT_NUM_STEPS = 4


def read_schedule(folder: Path) -> tuple[ScheduleSpec, PredictionType]:
    """The schedule and prediction type of `folder`/scheduler.

    A student starts from pure noise whatever its table says of the last timestep. Where the table
    keeps some signal there, as Stable Diffusion's does, it stays what the clean latents are
    reckoned with ("input_only"); that is how SD-Turbo and SDXL-Turbo were released.

    Raises:
        ExportError: the table or the prediction is of a kind that is not known here.
    """
    path = folder / "scheduler" / "scheduler_config.json"
    settings = read_settings(path)
    predicted = settings.get("prediction_type", "epsilon")
    if predicted not in _PREDICTIONS:
        raise ExportError(f"{path}: prediction_type {predicted!r}: known are {_PREDICTIONS}")
    if settings.get("trained_betas") is not None:
        raise ExportError(f"{path}: trained_betas: a list of betas of its own is not supported")
    known = get_args(ScheduleSpec.model_fields["beta_schedule"].annotation)
    is_rescaled = bool(settings.get("rescale_betas_zero_snr"))
    try:
        schedule = ScheduleSpec.model_validate(
            {
                "num_train_timesteps": settings.get("num_train_timesteps", 1000),
                "beta_schedule": settings.get("beta_schedule", "linear"),
                "beta_start": settings.get("beta_start", 0.0001),
                "beta_end": settings.get("beta_end", 0.02),
                "zero_terminal_snr": "rescale" if is_rescaled else "input_only",
            }
        )
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ExportError(f"{path}: {field}: {first['msg']} (known: {known})") from error
    if is_rescaled and predicted == "epsilon":
        raise ExportError(
            f"{path}: rescale_betas_zero_snr leaves no signal at the last timestep, where epsilon "
            "says nothing of the picture: this model cannot draw in one step"
        )
    return schedule, predicted


def student_timesteps(
    schedule: ScheduleSpec, timesteps: Sequence[int] = ()
) -> dict[int, tuple[int, ...]]:
    """Which timesteps each number of steps visits, by that number.

    Args:
        schedule: of the model.
        timesteps: those the student was trained for, descending; fewer steps visit some of them,
            spread evenly. Empty takes one to four steps, each ending an equal part of the schedule
            ("trailing"), as the released samplers of SD-Turbo and SDXL-Turbo do.
    """
    if timesteps:
        num = len(timesteps)
        return {
            k: tuple(timesteps[index * num // k] for index in range(k)) for k in range(1, num + 1)
        }
    total = schedule.num_train_timesteps
    return {
        k: tuple(round(total - index * total / k) - 1 for index in range(k))
        for k in range(1, min(_DEFAULT_NUM_STEPS, total) + 1)
    }
