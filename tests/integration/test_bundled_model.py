"""The model that travels with the project: whole, small, and drawing what it is asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from engines.build import Target, build_engines
from engines.pipeline import Pipeline
from engines.profiles import BatchRange
from engines.spec import STAGES, ModelSpec

MAX_BUNDLE_BYTES = 50 * 10**6
HUES = {"red heart": 0, "green heart": 1, "blue heart": 2}
SEEDS = (1, 2, 3)


@pytest.fixture(scope="module")
def folder(repo_root: Path) -> Path:
    return repo_root / "models" / "emoji"


@pytest.fixture(scope="module")
def emoji(folder: Path) -> Pipeline:
    return Pipeline.load(folder, num_threads=1)


def draw(
    pipeline: Pipeline, prompts: list[str], seeds: list[int], steps: int = 1
) -> NDArray[np.uint8]:
    generated = pipeline.generate(prompts, seeds, width=128, height=128, steps=steps)
    return generated.images_BHWC


def test_the_bundle_is_whole_and_small(folder: Path) -> None:
    spec = ModelSpec.load(folder)
    spec.verify(folder)
    graphs = sum(stage.size_bytes for stage in spec.stages.values())
    assert graphs + (folder / spec.tokenizer_file).stat().st_size <= MAX_BUNDLE_BYTES
    assert spec.license and spec.description and len(spec.styles) >= 2


def test_the_card_names_data_licences_and_limits(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    for word in ("Fluent Emoji", "MIT", "Noto Emoji", "Apache-2.0", "can't", "grid.webp"):
        assert word in card
    assert (folder / "grid.webp").is_file()


@pytest.mark.parametrize("style", ["flat", "3d", "color", "noto", "blob"])
@pytest.mark.parametrize("name", HUES)
def test_a_heart_has_the_colour_that_was_asked(emoji: Pipeline, name: str, style: str) -> None:
    images = draw(emoji, [f"{name}, {style}"] * len(SEEDS), list(SEEDS))
    for image_HWC in images:
        coloured = image_HWC[np.ptp(image_HWC.astype(int), axis=2) > 60]
        assert len(coloured) > 0.2 * 128 * 128
        assert coloured.mean(axis=0).argmax() == HUES[name]
        corners = image_HWC[[0, 0, -1, -1], [0, -1, 0, -1]]
        assert corners.min() > 230


@pytest.mark.parametrize(("colour", "hue"), [("green", 1), ("blue", 2)])
def test_a_thing_takes_a_colour_it_never_has(emoji: Pipeline, colour: str, hue: int) -> None:
    images = draw(emoji, [f"{colour} guitar, flat", "guitar, flat"], [1, 1])
    asked, own = (image[np.ptp(image.astype(int), axis=2) > 60].mean(axis=0) for image in images)
    assert asked.argmax() == hue
    assert own.argmax() == 0, "guitars are red of themselves"


def test_a_given_picture_steers_the_drawing(emoji: Pipeline) -> None:
    given = draw(emoji, ["red heart, flat"], [1])
    weak, strong = (
        emoji.generate(
            ["blue heart, flat"],
            [2],
            width=128,
            height=128,
            steps=1,
            images_BHWC=given,
            strength=strength,
        ).images_BHWC.astype(int)
        for strength in (0.3, 1.0)
    )
    assert np.abs(weak - given).mean() < np.abs(strong - given).mean()
    assert strong[0][np.ptp(strong[0], axis=2) > 60].mean(axis=0).argmax() == HUES["blue heart"]


def test_words_change_the_picture_most_then_style_then_seed(emoji: Pipeline) -> None:
    prompts = ["pizza, flat", "pizza, flat", "pizza, 3d", "rocket, flat"]
    images = draw(emoji, prompts, [4, 9, 4, 4]).astype(int)
    by_seed, by_style, by_word = (np.abs(images[i] - images[0]).mean() for i in (1, 2, 3))
    assert 0 < by_seed < by_style < by_word


@pytest.mark.parametrize("steps", [1, 4])
def test_a_picture_is_the_same_alone_and_in_a_full_batch(emoji: Pipeline, steps: int) -> None:
    prompts = ["red apple, flat", "rocket, 3d", "panda", "star, flat"] * 2
    seeds = list(range(8))
    together = draw(emoji, prompts, seeds, steps).astype(int)
    for i in range(8):
        alone = draw(emoji, [prompts[i]], [seeds[i]], steps)[0].astype(int)
        assert np.abs(together[i] - alone).mean() <= 1


def test_its_graphs_compile_with_tensorrt(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    target = Target("tensorrt_rtx", "SM89", (BatchRange(min=1, opt=4, max=8),))
    records = build_engines(folder, tmp_path / "plans", target)
    assert [record.key.stage for record in records] == [*STAGES, "encode"]
