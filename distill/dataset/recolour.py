"""Pictures of one colour, painted in another, so that colours and names can be combined.

Owns which pictures can be recoloured and what the new caption says. A set names few things in more
than one colour; a network that sees "blue apple" beside "red apple" can learn what "blue" does.
"""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Shape suffixes: H/W pixels, C channel.

# Hue in degrees of the colour wheel.
HUES: dict[str, float] = {
    "red": 0.0,
    "orange": 28.0,
    "yellow": 50.0,
    "green": 125.0,
    "blue": 215.0,
    "purple": 275.0,
    "pink": 325.0,
}
_OTHER_COLOURS = frozenset({"black", "white", "brown", "grey", "gray"})
_SATURATED, _BRIGHT = 0.35, 0.25
_MIN_COLOURED = 0.08  # of the picture
_MIN_AGREEING, _WIDTH_DEGREES = 0.7, 30.0
_HELD_OUT_OF = 6


def dominant_hue(image_HWC: NDArray[np.uint8]) -> float | None:
    """The hue in degrees that most coloured pixels share, or None where no hue rules."""
    hue, saturation, value = np.moveaxis(_to_hsv(image_HWC), -1, 0)
    is_coloured = (saturation > _SATURATED) & (value > _BRIGHT)
    if is_coloured.mean() < _MIN_COLOURED:
        return None
    angles = np.deg2rad(hue[is_coloured])
    centre = float(np.rad2deg(np.arctan2(np.sin(angles).mean(), np.cos(angles).mean())) % 360)
    distance = np.abs((hue[is_coloured] - centre + 180) % 360 - 180)
    return centre if (distance < _WIDTH_DEGREES).mean() >= _MIN_AGREEING else None


def rotate_hue(image_HWC: NDArray[np.uint8], degrees: float) -> NDArray[np.uint8]:
    """Turn every pixel's hue; greys, black and white stay as they are."""
    hsv = _to_hsv(image_HWC)
    hue = np.round((hsv[..., 0] + degrees) % 360 / 360 * 255)
    raw = np.dstack([hue, hsv[..., 1] * 255, hsv[..., 2] * 255]).round().astype(np.uint8)
    return np.asarray(Image.fromarray(raw, "HSV").convert("RGB"), dtype=np.uint8)


def plain_name(name: str) -> str:
    """The concept's name without a colour before it: "red apple" is an apple."""
    first, _, rest = name.partition(" ")
    return rest if rest and (first in HUES or first in _OTHER_COLOURS) else name


def is_held_out(name: str, colour: str) -> bool:
    """Whether a pair of name and colour is kept from training: about one in six, by its hash."""
    return crc32(f"{colour} {plain_name(name)}".encode()) % _HELD_OUT_OF == 0


def new_colours(name: str, hue: float, *, held_out: bool = False) -> list[str]:
    """Colours that a thing of this hue can be painted in, those clearly unlike its own."""
    return [
        colour
        for colour, angle in HUES.items()
        if abs((angle - hue + 180) % 360 - 180) > _WIDTH_DEGREES
        and is_held_out(name, colour) == held_out
    ]


def recoloured(
    image_HWC: NDArray[np.uint8], name: str, style: str, salt: int
) -> tuple[NDArray[np.uint8], tuple[str, ...]] | None:
    """One picture in another colour with its captions, or None where no hue rules the picture.

    Args:
        image_HWC: uint8 RGB on white.
        name: the concept.
        style: the style, or "".
        salt: picks the colour; the same salt gives the same one.
    """
    hue = dominant_hue(image_HWC)
    colours = [] if hue is None else new_colours(name, hue)
    if hue is None or not colours:
        return None
    colour = colours[crc32(f"{name} {style} {salt}".encode()) % len(colours)]
    return rotate_hue(image_HWC, HUES[colour] - hue), colour_captions(colour, name, style)


def colour_captions(colour: str, name: str, style: str) -> tuple[str, ...]:
    """What a recoloured picture is called."""
    words = f"{colour} {plain_name(name)}"
    if not style:
        return (words,)
    return words, f"{words}, {style}", f"{style} {words}"


def hue_distance(images_NHWC: NDArray[np.uint8], colours: Sequence[str]) -> NDArray[np.float64]:
    """Degrees between each picture's mean hue and the hue asked for; 180 where it has no colour."""
    distances = []
    for image, colour in zip(images_NHWC, colours, strict=True):
        hue, saturation, value = np.moveaxis(_to_hsv(image), -1, 0)
        is_coloured = (saturation > _SATURATED) & (value > _BRIGHT)
        if not is_coloured.any():
            distances.append(180.0)
            continue
        angles = np.deg2rad(hue[is_coloured])
        centre = np.rad2deg(np.arctan2(np.sin(angles).mean(), np.cos(angles).mean()))
        distances.append(float(abs((HUES[colour] - centre + 180) % 360 - 180)))
    return np.asarray(distances)


def _to_hsv(image_HWC: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Hue in degrees, saturation and value in 0..1."""
    raw = np.asarray(Image.fromarray(image_HWC).convert("HSV"), dtype=np.float64) / 255
    raw[..., 0] *= 360
    return raw
