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


@pytest.mark.parametrize("name", ["jpeg", "webp"])
def test_quality_trades_size_for_likeness(name: ImageFormat) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    # A view whose rows do not lie one after the other, as a batch may hand out.
    strided = np.asfortranarray(pixels)
    files = [encode_image(strided, name, quality) for quality in (0, 50, 100)]
    assert len(files[0]) < len(files[1]) < len(files[2])
    errors = []
    for file in files:
        with Image.open(io.BytesIO(file)) as image:
            errors.append(np.abs(np.asarray(image.convert("RGB")).astype(int) - pixels).mean())
    assert errors[0] > errors[1] > errors[2]


def test_jpeg_keeps_the_colour_of_single_pixels() -> None:
    pixels = np.zeros((16, 16, 3), dtype=np.uint8)
    pixels[:, ::2] = (255, 0, 0)
    with Image.open(io.BytesIO(encode_image(pixels, "jpeg"))) as image:
        decoded = np.asarray(image.convert("RGB")).astype(int)
    # Subsampled chroma would share the red between neighbours.
    assert decoded[:, ::2, 0].min() - decoded[:, 1::2, 0].max() > 150
