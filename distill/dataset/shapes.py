"""A small captioned set that the project draws itself: coloured shapes and how they stand.

Owns the drawing and the captions, both functions of an index, so that the set needs no download
and is the same everywhere. Every test of training uses it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from PIL import Image, ImageDraw

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "green": (46, 160, 67),
    "blue": (38, 98, 217),
    "yellow": (245, 196, 40),
    "purple": (136, 72, 200),
    "black": (30, 30, 34),
}
SHAPES = ("circle", "square", "triangle", "ring")
RELATIONS = ("left of", "above", "inside")

Box = tuple[float, float, float, float]


def _paint(draw: ImageDraw.ImageDraw, shape: str, box: Box, colour: tuple[int, int, int]) -> None:
    left, top, right, bottom = box
    thick = max(1, round((right - left) / 6))
    if shape == "circle":
        draw.ellipse(box, fill=colour)
    elif shape == "ring":
        draw.ellipse(box, outline=colour, width=thick)
    elif shape == "square":
        draw.rectangle(box, fill=colour)
    else:
        draw.polygon([((left + right) / 2, top), (right, bottom), (left, bottom)], fill=colour)


def _boxes(relation: str, size: float) -> tuple[Box, Box]:
    def box(x: float, y: float, side: float) -> Box:
        return (
            (x - side / 2) * size,
            (y - side / 2) * size,
            (x + side / 2) * size,
            (y + side / 2) * size,
        )

    if relation == "left of":
        return box(0.27, 0.5, 0.36), box(0.73, 0.5, 0.36)
    if relation == "above":
        return box(0.5, 0.27, 0.36), box(0.5, 0.73, 0.36)
    return box(0.5, 0.54, 0.26), box(0.5, 0.5, 0.86)


def _combinations() -> list[tuple[str, str, str | None, str | None, str | None]]:
    single = [(c, s, None, None, None) for c, s in itertools.product(COLOURS, SHAPES)]
    pairs = [
        (c1, s1, relation, c2, s2)
        for (c1, s1, relation, c2, s2) in itertools.product(
            COLOURS, SHAPES, RELATIONS, COLOURS, SHAPES
        )
        if c1 != c2
    ]
    # A fixed stride spreads a short prefix of the pairs over all colours, shapes and relations.
    stride = 397
    return single + [pairs[(i * stride) % len(pairs)] for i in range(len(pairs))]


def draw_shapes(num: int, size_px: int) -> Iterator[dict[str, Any]]:
    """Draw the first `num` pictures of the set.

    Args:
        num: how many; single shapes come first, then pairs in a relation.
        size_px: side of the square picture.

    Yields:
        rows with `image` (a PIL picture), `captions`, `name`, `style` and `group`.

    Raises:
        ValueError: `num` is larger than the set.
    """
    combinations = _combinations()
    if not 1 <= num <= len(combinations):
        raise ValueError(f"num_shapes must be in 1..{len(combinations)}, got {num}")
    scale = 4  # drawn large, then reduced: smooth edges
    for colour, shape, relation, colour2, shape2 in combinations[:num]:
        picture = Image.new("RGB", (size_px * scale, size_px * scale), "white")
        draw = ImageDraw.Draw(picture)
        name = f"{colour} {shape}"
        if relation is None or colour2 is None or shape2 is None:
            side = size_px * scale
            _paint(draw, shape, (side * 0.2, side * 0.2, side * 0.8, side * 0.8), COLOURS[colour])
        else:
            first, second = _boxes(relation, size_px * scale)
            _paint(draw, shape2, second, COLOURS[colour2])
            _paint(draw, shape, first, COLOURS[colour])
            name = f"{colour} {shape} {relation} {colour2} {shape2}"
        yield {
            "image": picture.resize((size_px, size_px), Image.Resampling.LANCZOS),
            "captions": [name, f"a {name}", f"{name}, flat"],
            "name": name,
            "style": "flat",
            "group": relation or "single",
        }
