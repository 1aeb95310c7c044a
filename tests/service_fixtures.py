"""Parts for the service's tests: limits, jobs, a clock and a pipeline that follow the test.

Owns no test. `ScriptedPipeline` stands in for the engine only where a test must decide when and
how the engine fails or how long it takes; elsewhere a real bundle runs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.pipeline import Generated
from service.jobs import BatchKey, Job
from service.schemas import ModelLimits

SIZE_PX = 16
KEY = BatchKey("tiny", SIZE_PX, SIZE_PX, 1)
_ids = count()


def make_limits(**changes: Any) -> ModelLimits:
    """Limits of a small imaginary model that counts a word as a token."""
    fields: dict[str, Any] = {
        "name": "tiny",
        "description": "for tests",
        "license": "Apache-2.0",
        "sizes_px": ((SIZE_PX, SIZE_PX), (32, SIZE_PX)),
        "max_steps": 4,
        "max_prompt_chars": 60,
        "max_tokens": 8,
        "count_tokens": lambda prompt: len(prompt.split()) + 2,
        "examples": ("a red heart",),
        "styles": ("flat",),
        "can_start_from_image": True,
        "timesteps": (999, 749, 499, 249),
    }
    return ModelLimits(**(fields | changes))


def make_job(**changes: Any) -> Job:
    """A job with an id of its own."""
    fields: dict[str, Any] = {
        "id": f"job-{next(_ids)}",
        "key": KEY,
        "prompt": "a red heart",
        "seed": 1,
        "format": "png",
        "created_s": 0.0,
        "deadline_s": 1e9,
    }
    return Job(**(fields | changes))


class FakeClock:
    """A clock that moves only when told."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class ScriptedPipeline:
    """Paints each picture in its seed's grey; may fail on chosen prompts or wait for a gate."""

    def __init__(self, is_poison: Callable[[Sequence[str]], bool] = lambda prompts: False) -> None:
        self.is_poison = is_poison
        self.runs: list[list[str]] = []
        self.given: list[NDArray[np.uint8] | None] = []
        self.strengths: list[float] = []
        self.warmed: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def warm_up(self, batch_sizes: Iterable[int]) -> None:
        self.warmed = list(batch_sizes)

    def generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        width: int,
        height: int,
        steps: int,
        images_BHWC: NDArray[np.uint8] | None = None,
        strength: float = 0.5,
    ) -> Generated:
        self.runs.append(list(prompts))
        self.given.append(images_BHWC)
        self.strengths.append(strength)
        self.entered.set()
        assert self.gate.wait(timeout=20)
        if self.is_poison(prompts):
            raise RuntimeError("poison")
        images = [np.full((height, width, 3), seed % 256, dtype=np.uint8) for seed in seeds]
        return Generated(np.stack(images), {"denoise": 1.0, "decode": 0.5})
