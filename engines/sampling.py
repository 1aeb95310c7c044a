"""The only sampling loop, and which timesteps it visits.

Owns the arithmetic between denoise steps. It is written over arrays of any kind, numpy's or a
device's, so that a backend may record it. Knows nothing of prompts, seeds or files.

Shape suffixes: B batch, S steps, L tokens, D width, C channel, H/W pixels, h/w latent.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from engines.runtime.base import Arrays, Stages
from engines.schedule import Schedule
from engines.spec import ModelSpec

Spans = MutableMapping[str, float]


@dataclass(frozen=True)
class Plan:
    """What a loop depends on beside its arrays; the key of a record of it.

    Attributes:
        size_px: width and height.
        timesteps: visited, descending.
        is_from_image: it starts from a picture's latents and not from pure noise.
    """

    size_px: tuple[int, int]
    timesteps: tuple[int, ...]
    is_from_image: bool = False


def plan_steps(
    spec: ModelSpec, size_px: tuple[int, int], steps: int, strength: float | None = None
) -> Plan:
    """Choose the timesteps of a picture.

    Args:
        spec: of the model.
        size_px: width and height.
        steps: number of denoise steps.
        strength: None draws from pure noise. Otherwise how much of a given picture is drawn anew,
            in (0, 1]: the loop starts at the trained timestep that is nearest to this share of the
            schedule, and goes on over those below it.

    Raises:
        ValueError: a size, number of steps or strength that the model cannot do.
    """
    if size_px not in spec.sizes_px:
        sizes = ", ".join(f"{width}x{height}" for width, height in spec.sizes_px)
        raise ValueError(f"size must be one of {sizes}, got {size_px[0]}x{size_px[1]}")
    if steps not in spec.student_timesteps:
        raise ValueError(f"steps must be in 1..{spec.max_steps}, got {steps}")
    if strength is None:
        return Plan(size_px, spec.student_timesteps[steps])
    if not 0.0 < strength <= 1.0:
        raise ValueError(f"strength must be above 0 and at most 1, got {strength:g}")
    trained = spec.student_timesteps[spec.max_steps]
    wanted = strength * (spec.schedule.num_train_timesteps - 1)
    start = min(range(len(trained)), key=lambda index: abs(trained[index] - wanted))
    left = trained[start:]
    if steps > len(left):
        raise ValueError(f"steps must be in 1..{len(left)} at strength {strength:g}, got {steps}")
    visited = tuple(left[index * len(left) // steps] for index in range(steps))
    return Plan(size_px, visited, is_from_image=True)


class SamplingLoop:
    """The body that a backend's runner calls or records."""

    def __init__(self, stages: Stages, schedule: Schedule, plan: Plan, spans_ms: Spans) -> None:
        """Fix everything but the arrays; milliseconds of each stage are added to `spans_ms`."""
        self._stages = stages
        self._schedule = schedule
        self._plan = plan
        self._spans_ms = spans_ms

    def __call__(self, noise_BSChw: Any, timestep_BS: Any, *given: Any) -> Arrays:
        """Estimate clean latents, noise them again to the next timestep, estimate again.

        Args:
            noise_BSChw: unit Gaussian noise for every step, float32.
            timestep_BS: int64.
            given: latents_BChw of a picture, where the plan starts from one; then the text stage's
                outputs.

        Returns:
            images_BHWC uint8 and the clean latents denoised_BChw float32.
        """
        clean_BChw: Any = None
        if self._plan.is_from_image:
            clean_BChw, *given_text = given
        else:
            given_text = list(given)
        with _timed(self._spans_ms, "denoise"):
            for step, timestep in enumerate(self._plan.timesteps):
                noise_BChw = noise_BSChw[:, step]
                if clean_BChw is None:
                    noisy_BChw = noise_BChw  # a student starts from pure noise
                else:
                    alpha = float(self._schedule.alphas[timestep])
                    sigma = float(self._schedule.sigmas[timestep])
                    noisy_BChw = alpha * clean_BChw + sigma * noise_BChw
                (clean_BChw,) = self._stages.denoise(noisy_BChw, timestep_BS[:, step], *given_text)
        with _timed(self._spans_ms, "decode"):
            (images_BHWC,) = self._stages.decode(clean_BChw)
        return images_BHWC, clean_BChw


@contextmanager
def _timed(spans_ms: Spans, name: str) -> Iterator[None]:
    start_s = time.perf_counter()
    yield
    spans_ms[name] = spans_ms.get(name, 0.0) + (time.perf_counter() - start_s) * 1000
