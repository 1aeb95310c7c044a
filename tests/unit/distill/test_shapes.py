"""The drawn set: the same every time, and the captions tell the truth."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from numpy.typing import NDArray

from distill.dataset.shapes import COLOURS, RELATIONS, SHAPES, draw_shapes

SIZE_PX = 64
NUM = 400


def _drawn() -> list[tuple[str, NDArray[np.int64]]]:
    return [
        (row["name"], np.asarray(row["image"], dtype=np.int64)) for row in draw_shapes(NUM, SIZE_PX)
    ]


def _where(image_HWC: NDArray[np.int64], colour: str) -> NDArray[np.intp]:
    """(row, column) of every pixel that has the colour."""
    return np.argwhere(np.abs(image_HWC - np.array(COLOURS[colour])).max(axis=2) <= 24)


def test_the_set_is_the_same_every_time() -> None:
    first, second = list(draw_shapes(40, 16)), list(draw_shapes(40, 16))
    for a, b in zip(first, second, strict=True):
        assert np.array_equal(np.asarray(a.pop("image")), np.asarray(b.pop("image")))
        assert a == b


def test_no_two_pictures_share_a_name() -> None:
    names = [row["name"] for row in draw_shapes(1464, 4)]
    assert len(set(names)) == len(names)


def test_a_short_prefix_holds_every_colour_shape_and_relation() -> None:
    rows = list(draw_shapes(60, 4))
    words = " ".join(row["name"] for row in rows)
    for word in (*COLOURS, *SHAPES, *RELATIONS):
        assert word in words
    assert {row["group"] for row in rows} == {"single", *RELATIONS}
    assert all(row["name"] in caption for row in rows for caption in row["captions"])


def test_the_colours_are_those_of_the_caption() -> None:
    for name, image in _drawn():
        for colour in COLOURS:
            assert bool(len(_where(image, colour))) == (colour in name), name


@pytest.mark.parametrize("relation", RELATIONS)
def test_the_relation_holds_in_the_picture(relation: str) -> None:
    num_checked = 0
    for name, image in _drawn():
        if f" {relation} " not in name:
            continue
        first, second = name.split(f" {relation} ")
        a, b = _where(image, first.split()[0]), _where(image, second.split()[0])
        if relation == "left of":
            assert a[:, 1].max() < b[:, 1].min(), name
        elif relation == "above":
            assert a[:, 0].max() < b[:, 0].min(), name
        else:
            assert (a.min(0) > b.min(0)).all() and (a.max(0) < b.max(0)).all(), name
        num_checked += 1
    assert num_checked > 50


def test_the_shapes_differ_in_form() -> None:
    areas = {}
    for row in islice(draw_shapes(len(COLOURS) * len(SHAPES), SIZE_PX), len(SHAPES)):
        image = np.asarray(row["image"], dtype=np.int64)
        areas[row["name"].split()[1]] = len(_where(image, "red")) / (0.6 * SIZE_PX) ** 2
    assert areas["square"] == pytest.approx(1.0, abs=0.06)
    assert areas["circle"] == pytest.approx(np.pi / 4, abs=0.06)
    assert areas["triangle"] == pytest.approx(0.5, abs=0.06)
    # A sixth of the side is drawn all round: 1 - (2/3)^2 of the circle.
    assert areas["ring"] == pytest.approx(np.pi / 4 * 5 / 9, abs=0.06)


@pytest.mark.parametrize("num", [0, 10**6])
def test_more_than_there_are_is_refused(num: int) -> None:
    with pytest.raises(ValueError, match=r"num_shapes must be in 1\.\."):
        next(draw_shapes(num, 8))
