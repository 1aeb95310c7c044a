"""Which prompts are asked and which pictures answer: by kind, by hash, and counted."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from distill.config import ConfigError
from distill.dataset import Pictures
from distill.dataset.recolour import HUES, dominant_hue, is_held_out
from distill.evaluation.prompts import (
    Size,
    caption_set,
    chosen,
    colour_set,
    one_prompt_per_concept,
    prompt_sets,
    together,
)


def _disc(hue_name: str, value: int) -> NDArray[np.uint8]:
    """A disc of one colour on white."""
    from PIL import Image

    hsv = np.full((16, 16, 3), (0, 0, 255), dtype=np.uint8)
    y, x = np.mgrid[:16, :16]
    hsv[(y - 8) ** 2 + (x - 8) ** 2 < 36] = (round(HUES[hue_name] / 360 * 255), 220, value)
    return np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"), dtype=np.uint8)


def _set(rows: list[tuple[str, str]], *, has_names: bool = True) -> Pictures:
    """Pictures of (name, style), each unlike the others."""
    images = np.stack([_disc("red", 120 + 7 * i % 130) for i in range(len(rows))])
    names = tuple(name if has_names else "" for name, _ in rows)
    styles = tuple(style if has_names else "" for _, style in rows)
    captions = tuple((f"a {name} {style}".strip(), name) for name, style in rows)
    return Pictures(images, captions, names, styles, tuple("Food" if n else "" for n in names))


ROWS = [(f"thing {i}", style) for i in range(10) for style in ("flat", "noto")]


def test_named_pictures_are_asked_with_and_without_style() -> None:
    pictures = _set(ROWS)
    heldout = _set([("thing 0", "3d")])
    styled, unstyled, pairs = prompt_sets(pictures, heldout, Size(max_pictures=12, num_seeds=3))
    assert (styled.kind, unstyled.kind, pairs.kind) == (
        "with style",
        "without style",
        "held-out pairs",
    )
    assert len(styled.prompts) == len(styled.real) == 12
    for prompt, name, style in zip(styled.prompts, styled.real.names, styled.styles, strict=True):
        assert prompt == f"{name}, {style}"
    # Four concepts, three seeds each, held against all their pictures in both styles.
    assert len(set(unstyled.prompts)) == 4
    assert all(unstyled.prompts.count(prompt) == 3 for prompt in unstyled.prompts)
    assert len(set(unstyled.seeds)) == 12
    assert sorted(set(unstyled.real.names)) == sorted(set(unstyled.prompts))
    assert len(unstyled.real) == 8
    assert pairs.prompts == ("thing 0, 3d",)


def test_two_kinds_can_be_held_against_the_real_pictures_of_both() -> None:
    styled, unstyled = prompt_sets(_set(ROWS), None, Size(max_pictures=12, num_seeds=3))
    both = together("both", [styled, unstyled])
    assert both.prompts == styled.prompts + unstyled.prompts
    assert both.seeds == styled.seeds + unstyled.seeds
    assert both.styles[:12] == styled.styles and set(both.styles[12:]) == {""}
    assert both.num_in_set == len(both.prompts) == len(both.concepts) == len(both.groups)

    def each(pictures: Pictures) -> list[bytes]:
        return [image.tobytes() for image in pictures.images_NHWC]

    parts = each(styled.real) + each(unstyled.real)
    assert len(set(parts)) < len(parts), "some answer to both"
    assert each(both.real) == list(dict.fromkeys(parts))


def test_the_choice_does_not_depend_on_the_order_of_the_files() -> None:
    size = Size(max_pictures=8, num_seeds=2)
    there = prompt_sets(_set(ROWS), None, size)
    back = prompt_sets(_set(ROWS[::-1]), None, size)
    for a, b in zip(there, back, strict=True):
        assert set(a.prompts) == set(b.prompts)
    assert chosen(["a", "b", "c"], 5) == [0, 1, 2]


def test_the_fingerprint_knows_prompts_seeds_and_pictures() -> None:
    from dataclasses import replace

    asked = prompt_sets(_set(ROWS), None, Size(8, 2))[0]
    assert asked.fingerprint == prompt_sets(_set(ROWS), None, Size(8, 2))[0].fingerprint
    assert asked.fingerprint != prompt_sets(_set(ROWS), None, Size(9, 2))[0].fingerprint
    assert asked.fingerprint != replace(asked, seeds=asked.seeds[::-1]).fingerprint
    other = replace(asked.real, images_NHWC=255 - asked.real.images_NHWC)
    assert asked.fingerprint != replace(asked, real=other).fingerprint


def test_a_folder_without_names_is_split_in_two_halves() -> None:
    pictures = _set([(f"thing {i}", "") for i in range(40)], has_names=False)
    (asked,) = prompt_sets(pictures, None, Size(max_pictures=100, num_seeds=3))
    assert asked.kind == "captions"
    assert asked.floor is not None
    assert len(asked.floor) + len(asked.real) == 40
    assert min(len(asked.floor), len(asked.real)) > 5
    half, other = (
        {image.tobytes() for image in part.images_NHWC} for part in (asked.floor, asked.real)
    )
    assert not half & other
    # Every caption once for the distances, then further seeds for the diversity.
    num = asked.num_in_set
    assert asked.prompts[:num] == tuple(texts[0] for texts in asked.floor.captions)
    assert len(asked.prompts) == 3 * num
    assert len(set(asked.seeds)) == len(asked.seeds)
    assert asked.concepts == ()


def test_the_halves_do_not_depend_on_the_order() -> None:
    rows = [(f"thing {i}", "") for i in range(20)]
    a = caption_set(_set(rows, has_names=False), Size())
    pictures = _set(rows, has_names=False).select(list(range(20))[::-1])
    b = caption_set(pictures, Size())
    assert set(a.prompts) == set(b.prompts)


def test_too_few_pictures_cannot_be_judged() -> None:
    with pytest.raises(ConfigError, match="2 pictures are too few to judge by"):
        caption_set(_set([("a", ""), ("b", "")], has_names=False), Size())


def test_colours_are_pairs_that_training_never_sees() -> None:
    pictures = _set([(f"thing {i}", "flat") for i in range(12)])
    asked = colour_set(pictures, Size(max_pictures=50))
    assert len(asked.prompts) == len(asked.real) > 3
    for prompt, colour, name in zip(asked.prompts, asked.colours, asked.concepts, strict=True):
        assert prompt == f"{colour} {name}, flat"
        assert is_held_out(name, colour)
    for image, colour in zip(asked.real.images_NHWC, asked.colours, strict=True):
        hue = dominant_hue(image)
        assert hue is not None
        assert abs((hue - HUES[colour] + 180) % 360 - 180) < 5


def test_a_colour_that_exists_is_not_held_out() -> None:
    pictures = _set([(f"thing {i}", "flat") for i in range(12)])
    before = colour_set(pictures, Size(50))
    named = f"{before.colours[0]} {before.concepts[0]}"
    more = _set([*[(f"thing {i}", "flat") for i in range(12)], (named, "flat")])
    after = colour_set(more, Size(50))
    assert f"{named}, flat" in before.prompts
    assert f"{named}, flat" not in after.prompts


def test_a_set_without_a_ruling_hue_has_no_colours() -> None:
    grey = Pictures(np.full((1, 8, 8, 3), 128, np.uint8), (("a",),), ("a",), ("",), ("",))
    with pytest.raises(ConfigError, match="no picture of the set has one ruling colour"):
        colour_set(grey, Size())


def test_the_sheet_shows_every_concept_once() -> None:
    prompts = one_prompt_per_concept(_set(ROWS))
    assert len(prompts) == 10
    assert {prompt.split(", ")[1] for prompt in prompts} == {"flat", "noto"}
    captions = one_prompt_per_concept(_set(ROWS, has_names=False), max_prompts=7)
    assert len(captions) == 7
    assert all(caption.startswith("a thing") for caption in captions)
