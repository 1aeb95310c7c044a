"""The sampling loop, over stages that record what they are given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines_fixtures import tiny_spec, write_tokenizer
from numpy.typing import NDArray

from engines.embeds import TextEmbeds
from engines.errors import BadPictureError, OutOfMemoryError
from engines.noise import unit_noise
from engines.pipeline import Pipeline
from engines.runtime.base import Stages
from engines.sampling import plan_steps
from engines.schedule import Schedule
from engines.tokenizer import Tokenizer

SPEC = tiny_spec()
SHAPE = SPEC.latent_shape(64, 64)


class RecordingStages:
    """Arithmetic in place of networks, simple enough to be worked out by hand."""

    def __init__(self) -> None:
        self.text_inputs: list[NDArray[Any]] = []
        self.denoise_inputs: list[tuple[NDArray[Any], ...]] = []

    def text(self, *inputs: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        (ids_BL,) = inputs
        self.text_inputs.append(ids_BL)
        return (np.repeat(ids_BL[:, :, None], SPEC.text.width, axis=2).astype(np.float32),)

    def encode(self, *inputs: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        (images_BHWC,) = inputs
        levels_B = images_BHWC[:, 0, 0, 0].astype(np.float32)
        return (np.broadcast_to(levels_B[:, None, None, None], (len(levels_B), *SHAPE)),)

    def denoise(self, *inputs: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        self.denoise_inputs.append(inputs)
        latents_BChw, _, embeds_BLD = inputs
        return (0.5 * latents_BChw + embeds_BLD.mean(axis=(1, 2))[:, None, None, None],)

    def decode(self, *inputs: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        (latents_BChw,) = inputs
        levels_B = np.clip(latents_BChw.mean(axis=(1, 2, 3)) * 10, 0, 254)
        images = np.broadcast_to(levels_B[:, None, None, None], (len(levels_B), 64, 64, 3)).copy()
        images[:, 0, 0, 0] = 255  # one pixel that differs: a flat picture is refused
        return (images.astype(np.uint8),)


@pytest.fixture
def stages() -> RecordingStages:
    return RecordingStages()


@pytest.fixture
def pipeline(stages: RecordingStages, tmp_path: Path) -> Pipeline:
    write_tokenizer(tmp_path / "tokenizer.json")
    tokenizer = Tokenizer.load(tmp_path, SPEC)
    return Pipeline(
        SPEC, tokenizer, Stages(stages.text, stages.denoise, stages.decode, stages.encode)
    )


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
    assert list(generated.stage_ms) == ["text", "denoise", "decode"]
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
        ({"images_BHWC": np.zeros((2, 64, 64, 3), np.float32)}, "pictures must be uint8"),
        ({"images_BHWC": np.zeros((1, 64, 64, 3), np.uint8)}, r"shape \(2, 64, 64, 3\), got"),
        ({"images_BHWC": np.zeros((2, 64, 64, 3), np.uint8), "strength": 0.0}, "strength must be"),
        ({"images_BHWC": np.zeros((2, 64, 64, 3), np.uint8), "strength": 1.5}, "strength must be"),
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


@pytest.mark.parametrize(
    ("strength", "steps", "expected"),
    [
        (1.0, 4, (999, 749, 499, 249)),
        (1.0, 2, (999, 499)),
        (0.8, 1, (749,)),
        (0.8, 2, (749, 499)),
        (0.75, 3, (749, 499, 249)),
        (0.01, 1, (249,)),
    ],
)
def test_strength_chooses_the_trained_timestep_to_start_at(
    strength: float, steps: int, expected: tuple[int, ...]
) -> None:
    assert plan_steps(SPEC, (64, 64), steps, strength).timesteps == expected


def test_a_weak_change_has_no_room_for_many_steps() -> None:
    with pytest.raises(ValueError, match=r"steps must be in 1\.\.1 at strength 0\.2, got 2"):
        plan_steps(SPEC, (64, 64), 2, 0.2)


def test_a_given_picture_is_noised_to_where_the_loop_starts(
    pipeline: Pipeline, stages: RecordingStages
) -> None:
    images_BHWC = np.stack([np.full((64, 64, 3), level, np.uint8) for level in (3, 7)])
    generated = pipeline.generate(
        ["a", "b"], [1, 2], width=64, height=64, steps=1, images_BHWC=images_BHWC, strength=0.5
    )
    schedule = Schedule.from_spec(SPEC.schedule)
    clean_BChw = np.array([3.0, 7.0])[:, None, None, None]
    noise_BChw = unit_noise([1, 2], SHAPE, 0)
    latents_BChw, timestep_B, _ = stages.denoise_inputs[0]
    assert timestep_B.tolist() == [499, 499]
    np.testing.assert_allclose(
        latents_BChw,
        schedule.alphas[499] * clean_BChw + schedule.sigmas[499] * noise_BChw,
        atol=1e-5,
    )
    assert list(generated.stage_ms) == ["text", "encode", "denoise", "decode"]


def test_a_model_without_an_encoder_says_so(stages: RecordingStages, tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer.json")
    parts = Stages(stages.text, stages.denoise, stages.decode)
    pipeline = Pipeline(SPEC, Tokenizer.load(tmp_path, SPEC), parts)
    picture = np.zeros((1, 64, 64, 3), np.uint8)
    with pytest.raises(ValueError, match="tiny draws from text alone"):
        pipeline.generate(["a"], [1], width=64, height=64, steps=1, images_BHWC=picture)


def test_a_text_is_encoded_once_until_it_is_forgotten(
    stages: RecordingStages, tmp_path: Path
) -> None:
    write_tokenizer(tmp_path / "tokenizer.json")
    embeds = TextEmbeds(Tokenizer.load(tmp_path, SPEC), stages.text, capacity=2)
    (first,) = embeds(["a", "b"])
    (again,) = embeds(["b", "a"])
    np.testing.assert_array_equal(again, first[::-1])
    assert (len(stages.text_inputs), embeds.counts) == (1, (2, 2))
    embeds(["c"])  # "b" is now the one that was wanted least recently
    embeds(["a"])
    assert (len(stages.text_inputs), embeds.counts) == (2, (3, 3))
    embeds(["b"])
    assert (len(stages.text_inputs), embeds.counts) == (3, (3, 4))


class _Scarce(RecordingStages):
    """A device that holds no more than `limit` pictures at once."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def denoise(self, *inputs: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        if len(inputs[0]) > self.limit:
            raise OutOfMemoryError(f"{len(inputs[0])} pictures do not fit")
        return super().denoise(*inputs)


def test_a_batch_that_does_not_fit_is_halved_and_the_size_remembered(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    scarce = _Scarce(limit=3)
    write_tokenizer(tmp_path / "tokenizer.json")
    parts = Stages(scarce.text, scarce.denoise, scarce.decode)
    small = Pipeline(SPEC, Tokenizer.load(tmp_path, SPEC), parts)
    prompts, seeds = ["a", "b", "c", "d", "e", "f", "g"], list(range(7))
    arguments = {"width": 64, "height": 64, "steps": 2}
    drawn = small.generate(prompts, seeds, **arguments).images_BHWC
    np.testing.assert_array_equal(drawn, pipeline.generate(prompts, seeds, **arguments).images_BHWC)
    assert [len(inputs[0]) for inputs in scarce.denoise_inputs] == [3, 3, 3, 3, 1, 1]
    scarce.limit = 0
    with pytest.raises(OutOfMemoryError, match="1 pictures do not fit"):
        small.generate(prompts, seeds, **arguments)


class _Broken(RecordingStages):
    """Gives the wrong numbers for the last picture of a batch."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault

    def denoise(self, *inputs: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        (denoised_BChw,) = super().denoise(*inputs)
        if self.fault != "flat":
            denoised_BChw[-1, 0, 0, 0] = float(self.fault)
        return (denoised_BChw,)

    def decode(self, *inputs: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        with np.errstate(invalid="ignore"):
            (images_BHWC,) = super().decode(*inputs)
        if self.fault == "flat":
            images_BHWC[-1] = 255
        return (images_BHWC,)


@pytest.mark.parametrize("fault", ["nan", "inf", "flat"])
def test_a_picture_that_is_none_is_drawn_again_exactly_or_never_served(
    fault: str, pipeline: Pipeline, stages: RecordingStages, tmp_path: Path
) -> None:
    write_tokenizer(tmp_path / "tokenizer.json")
    tokenizer = Tokenizer.load(tmp_path, SPEC)
    broken, num_loads = _Broken(fault), 0
    parts = Stages(broken.text, broken.denoise, broken.decode)

    def load_exact() -> Stages:
        nonlocal num_loads
        num_loads += 1
        return Stages(stages.text, stages.denoise, stages.decode)

    arguments = {"width": 64, "height": 64, "steps": 1}
    expected = pipeline.generate(["a", "b"], [1, 2], **arguments).images_BHWC
    mended = Pipeline(SPEC, tokenizer, parts, load_exact)
    for _ in range(2):
        drawn = mended.generate(["a", "b"], [1, 2], **arguments).images_BHWC
        np.testing.assert_array_equal(drawn, expected)
    assert num_loads == 1
    assert [len(inputs[0]) for inputs in stages.denoise_inputs] == [2, 1, 1]
    with pytest.raises(BadPictureError, match="1 of 2 pictures came out flat or not finite"):
        Pipeline(SPEC, tokenizer, parts).generate(["a", "b"], [1, 2], **arguments)
    with pytest.raises(BadPictureError, match="1 of 2"):
        again = Pipeline(SPEC, tokenizer, parts, lambda: parts)
        again.generate(["a", "b"], [1, 2], **arguments)
