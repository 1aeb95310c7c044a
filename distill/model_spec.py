"""What a finished student says of itself in model.json.

Owns the translation of a run's config into the contract with serving. Touches no disk.
"""

from __future__ import annotations

import itertools

from distill.config import RunConfig
from distill.networks.codec import Codec
from engines.spec import LatentSpec, ModelSpec, TextSpec


def timesteps_by_steps(timesteps: tuple[int, ...]) -> dict[int, tuple[int, ...]]:
    """Which of the student's timesteps each number of steps uses, spread over all of them.

    One step uses the first; all steps use all; between, the first and evenly spaced others.
    """
    num = len(timesteps)
    chosen = {}
    for num_steps in range(1, num + 1):
        indices = [i * num // num_steps for i in range(num_steps)]
        chosen[num_steps] = tuple(timesteps[i] for i in indices)
    return chosen


def student_spec(config: RunConfig, codec: Codec, text: TextSpec) -> ModelSpec:
    """What serving must know of the finished student; the graphs are added at export."""
    size = config.data.image_size_px
    styles = config.data.styles
    names = config.data.concepts[:: max(1, len(config.data.concepts) // 12)][:12]
    return ModelSpec(
        name=config.name,
        description=config.description,
        license=config.license,
        prediction_type=config.teacher.prediction_type,
        schedule=config.teacher.schedule,
        student_timesteps=timesteps_by_steps(config.student.timesteps),
        sizes_px=((size, size),),
        latent=LatentSpec(
            channels=codec.latent_channels,
            downscale=codec.downscale,
            scale=codec.scale,
            shift=codec.shift,
        ),
        text=text,
        examples=tuple(
            f"{name}, {style}" if style else name
            for name, style in zip(names, itertools.cycle(styles or ("",)))
        ),
        styles=styles,
    )
