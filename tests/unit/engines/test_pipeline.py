"""The sampling loop, over stages that record what they are given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines_fixtures import tiny_spec, write_tokenizer
from numpy.typing import NDArray

from engines.noise import unit_noise
from engines.pipeline import Pipeline
from engines.runtime.base import Stages
from engines.schedule import Schedule
from engines.tokenizer import Tokenizer

SPEC = tiny_spec()
SHAPE = SPEC.latent_shape(64, 64)


class RecordingStages:
    """Arithmetic in place of networks, simple enough to be worked out by hand."""

    def __init__(self) -> None:
        self.text_inputs: list[NDArray[Any]] = []
        self.denoise_inputs: list[tuple[NDArray[Any], ...]] = []

    def text(self, *inputs: NDArray[Any]) -> NDArray[Any]:
        (ids_BL,) = inputs
        self.text_inputs.append(ids_BL)
        return np.repeat(ids_BL[:, :, None], SPEC.text.width, axis=2).astype(np.float32)

    def denoise(self, *inputs: NDArray[Any]) -> NDArray[Any]:
        self.denoise_inputs.append(inputs)
        latents_BChw, _, embeds_BLD = inputs
        return 0.5 * latents_BChw + embeds_BLD.mean(axis=(1, 2))[:, None, None, None]

    def decode(self, *inputs: NDArray[Any]) -> NDArray[Any]:
        (latents_BChw,) = inputs
        levels_B = np.clip(latents_BChw.mean(axis=(1, 2, 3)) * 10, 0, 255)
        images = np.broadcast_to(levels_B[:, None, None, None], (len(levels_B), 64, 64, 3))
        return images.astype(np.uint8)


@pytest.fixture
def stages() -> RecordingStages:
    return RecordingStages()


@pytest.fixture
def pipeline(stages: RecordingStages, tmp_path: Path) -> Pipeline:
    write_tokenizer(tmp_path / "tokenizer.json")
    tokenizer = Tokenizer.load(tmp_path, SPEC)
    return Pipeline(SPEC, tokenizer, Stages(stages.text, stages.denoise, stages.decode))


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_each_step_noises_the_last_estimate_to_its_own_timestep(
    pipeline: Pipeline, stages: RecordingStages, steps: int
) -> None:
    seeds = [3, 4]
    pipeline.generate(["ab", "cde"], seeds, width=64, height=64, steps=steps)
    schedule = Schedule.from_spec(SPEC.schedule)
    timesteps = SPEC.student_timesteps[steps]
    assert len(stages.denoise_inputs) == steps
    expected_BChw = unit_noise(seeds, SHAPE, 0)  # pure noise, unscaled
    for step, (latents_BChw, timestep_B, embeds_BLD) in enumerate(stages.denoise_inputs):
        if step > 0:
            alpha, sigma = schedule.alphas[timesteps[step]], schedule.sigmas[timesteps[step]]
            expected_BChw = alpha * expected_BChw + sigma * unit_noise(seeds, SHAPE, step)
        assert latents_BChw.dtype == np.float32
        assert timestep_B.dtype == np.int64
        assert timestep_B.tolist() == [timesteps[step]] * 2
        np.testing.assert_allclose(latents_BChw, expected_BChw, rtol=1e-5, atol=1e-5)
        text_B = embeds_BLD.mean(axis=(1, 2))[:, None, None, None]
        expected_BChw = 0.5 * latents_BChw + text_B


def test_a_picture_does_not_depend_on_its_batch_mates(pipeline: Pipeline) -> None:
    prompts, seeds = ["ab", "cde", "ab", ""], [5, 6, 7, 8]
    batch = pipeline.generate(prompts, seeds, width=64, height=64, steps=3).images_BHWC
    for index, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        alone = pipeline.generate([prompt], [seed], width=64, height=64, steps=3).images_BHWC
        np.testing.assert_array_equal(alone[0], batch[index])


def test_a_repeated_prompt_is_encoded_once_and_handed_to_each_picture(
    pipeline: Pipeline, stages: RecordingStages
) -> None:
    pipeline.generate(["b", "a", "b"], [1, 2, 3], width=64, height=64, steps=1)
    (ids_BL,) = stages.text_inputs
    assert ids_BL[:, 1].tolist() == [5, 4]
    embeds_BLD = stages.denoise_inputs[0][2]
    assert embeds_BLD[:, 1, 0].tolist() == [5.0, 4.0, 5.0]


def test_the_time_of_every_part_is_told(pipeline: Pipeline) -> None:
    generated = pipeline.generate(["a"], [1], width=64, height=64, steps=1)
    assert list(generated.stage_ms) == ["tokens", "text", "denoise", "decode"]
    assert all(spent_ms >= 0 for spent_ms in generated.stage_ms.values())


def test_warm_up_draws_every_batch_size(pipeline: Pipeline, stages: RecordingStages) -> None:
    pipeline.warm_up([1, 4])
    assert [len(inputs[0]) for inputs in stages.denoise_inputs] == [1, 4]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": [], "seeds": []}, "one seed per prompt"),
        ({"seeds": [1]}, "one seed per prompt"),
        ({"seeds": [1, -1]}, "seed must be in"),
        ({"width": 128}, "size must be one of 64x64"),
        ({"steps": 0}, "steps must be in 1..4"),
        ({"steps": 5}, "steps must be in 1..4"),
    ],
)
def test_what_the_model_was_not_trained_for_is_refused(
    pipeline: Pipeline, changes: dict[str, Any], message: str
) -> None:
    arguments = {"prompts": ["a", "b"], "seeds": [1, 2], "width": 64, "height": 64, "steps": 1}
    arguments |= changes
    prompts, seeds = arguments.pop("prompts"), arguments.pop("seeds")
    with pytest.raises(ValueError, match=message):
        pipeline.generate(prompts, seeds, **arguments)
