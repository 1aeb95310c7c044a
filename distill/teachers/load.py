"""The teacher that a run's configuration names: its own, or one from elsewhere."""

from __future__ import annotations

from pathlib import Path

import torch

from distill.config import RunConfig
from distill.networks.codec import Codec
from distill.networks.diffusion import Diffusion
from distill.networks.encoders import TextEncoder
from distill.networks.unet import freeze, load_unet
from distill.teachers.base import Teacher
from distill.teachers.folder import TeacherFolder, find_teacher


def foreign_teacher(config: RunConfig) -> TeacherFolder | None:
    """The folder of `student.teacher_source`; None where the run trains its own teacher."""
    source = config.student.teacher_source
    return None if source is None else find_teacher(source, config.student.zero_terminal_snr)


def settled(config: RunConfig) -> RunConfig:
    """The run with the schedule and prediction of the teacher that it names.

    Reads a few lines of JSON, no weights; a hub name is downloaded.

    Raises:
        ConfigError: there is no such teacher, or the student's timesteps do not fit it.
    """
    folder = foreign_teacher(config)
    return config if folder is None else folder.applied(config)


def load_teacher(config: RunConfig, run: Path, device: torch.device) -> Teacher:
    """Read the teacher's weights.

    Args:
        config: of the run, settled.
        run: its folder, which holds its own teacher if it has one.
        device: where everything goes.

    Raises:
        ConfigError: a part is missing or does not fit.
    """
    folder = foreign_teacher(config)
    if folder is not None:
        return folder.load(config.data.image_size_px, device)
    own = run / "teacher" / "model"
    text = TextEncoder.load(own).to(device)
    freeze(text)
    diffusion = Diffusion.create(config.teacher.schedule, config.teacher.prediction_type, device)
    codec = Codec.load(run / "autoencoder" / "model", device)
    return Teacher(freeze(load_unet(own, device)), text, codec, diffusion, text.spec.width)
