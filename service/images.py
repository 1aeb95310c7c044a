"""Pixels to files.

Owns the encoders' settings: a lossless picture should leave within about a millisecond at the
bundled model's size, because the encoder shares its cores with the engine.
"""

from __future__ import annotations

import io
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.jobs import ImageFormat

MEDIA_TYPES: dict[ImageFormat, str] = {
    "png": "image/png",
    "jpeg": "image/jpeg",
    "webp": "image/webp",
}
_SAVE_OPTIONS: dict[ImageFormat, dict[str, int]] = {
    # Run lengths only: on drawn pictures both faster and smaller than zlib's usual level 1, and
    # several times faster than higher levels, which save a few percent.
    "png": {"compress_level": 1, "compress_type": zlib.Z_RLE},
    # No chroma subsampling: flat coloured edges would bleed.
    "jpeg": {"quality": 92, "subsampling": 0},
    "webp": {"quality": 90, "method": 2},
}


def encode_image(pixels_HWC: NDArray[np.uint8], format: ImageFormat) -> bytes:
    """Encode one RGB picture (H height, W width, C=3 channels; uint8)."""
    buffer = io.BytesIO()
    Image.fromarray(pixels_HWC).save(buffer, format=format, **_SAVE_OPTIONS[format])
    return buffer.getvalue()
