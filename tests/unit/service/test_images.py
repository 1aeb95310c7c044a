"""Encoders keep pixels and write the type they promise."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from service.images import MEDIA_TYPES, encode_image
from service.jobs import ImageFormat


def _gradient(height: int, width: int) -> np.ndarray:
    rows = np.linspace(0, 255, height)[:, None, None]
    columns = np.linspace(0, 255, width)[None, :, None]
    return np.broadcast_to((rows + columns) / 2, (height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize("name", sorted(MEDIA_TYPES))
def test_the_bytes_are_of_the_promised_type_and_close_to_the_pixels(name: ImageFormat) -> None:
    pixels = _gradient(48, 32)
    with Image.open(io.BytesIO(encode_image(pixels, name))) as image:
        assert (image.get_format_mimetype(), image.size) == (MEDIA_TYPES[name], (32, 48))
        decoded = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(decoded - pixels).mean() < 2


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_png_is_lossless(height: int, width: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    with Image.open(io.BytesIO(encode_image(pixels, "png"))) as image:
        assert np.array_equal(np.asarray(image), pixels)
