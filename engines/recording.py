"""What a model's own stages are given while it draws.

Owns fixed prompts and seeds, and stages that note each call. Calibration and parity need inputs
from where the model really goes: its own prompts, timesteps and latents, not random numbers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.pipeline import Pipeline
from engines.runtime.base import Arrays, Stage, Stages
from engines.spec import ModelSpec, StageName
from engines.tokenizer import Tokenizer

PROMPTS = (
    "a red heart",
    "a blue circle above a yellow square",
    "a smiling face",
    "a cat",
    "a green tree",
    "an umbrella with rain drops",
    "a rocket",
    "a slice of pizza",
)


@dataclass(frozen=True)
class Call:
    """One call of a stage, as numpy arrays."""

    inputs: Arrays
    outputs: Arrays


@dataclass
class Recorder:
    """Hands out stages that note what they are given and what they answer."""

    calls: dict[StageName, list[Call]] = field(default_factory=lambda: defaultdict(list))

    def watch(self, stages: Stages) -> Stages:
        """The same stages, noted."""

        def noting(name: StageName, stage: Stage) -> Stage:
            def call(*inputs: Any) -> Arrays:
                outputs = stage(*inputs)
                self.calls[name].append(Call(inputs, outputs))
                return outputs

            return call

        return replace(
            stages,
            text=noting("text", stages.text),
            denoise=noting("denoise", stages.denoise),
            decode=noting("decode", stages.decode),
        )


def draw(
    pipeline: Pipeline, prompts: Sequence[str], seeds: Sequence[int], steps: int
) -> NDArray[np.uint8]:
    """Pictures of the model's first size."""
    width, height = pipeline.spec.sizes_px[0]
    return pipeline.generate(prompts, seeds, width=width, height=height, steps=steps).images_BHWC


def record(
    spec: ModelSpec,
    tokenizer: Tokenizer,
    stages: Stages,
    prompts: Sequence[str],
    *,
    batch_size: int = 4,
    first_seed: int = 0,
) -> dict[StageName, list[Call]]:
    """Draw every prompt with a seed of its own, at every number of steps; return the calls.

    The largest number of steps comes first: so many first calls of denoise visit most timesteps.

    Args:
        spec: of the model.
        tokenizer: its own.
        stages: to be called.
        prompts: to draw.
        batch_size: pictures per call.
        first_seed: the others count up from it.
    """
    recorder = Recorder()
    pipeline = Pipeline(spec, tokenizer, recorder.watch(stages))
    for begin in range(0, len(prompts), batch_size):
        some = prompts[begin : begin + batch_size]
        seeds = range(first_seed + begin, first_seed + begin + len(some))
        for steps in range(spec.max_steps, 0, -1):
            draw(pipeline, some, seeds, steps)
    return recorder.calls


def mean_error(tested: NDArray[Any], expected: NDArray[Any]) -> float:
    """Mean absolute difference over the expected array's mean absolute value."""
    expected = expected.astype(np.float64)
    return float(np.abs(tested - expected).mean() / max(float(np.abs(expected).mean()), 1e-12))


def max_error(tested: NDArray[Any], expected: NDArray[Any]) -> float:
    """Largest absolute difference over the expected array's largest absolute value."""
    expected = expected.astype(np.float64)
    return float(np.abs(tested - expected).max() / max(float(np.abs(expected).max()), 1e-12))
