"""Pixels to files.

Owns the encoders and their settings. The encoders share their cores with the engine, so a picture
at the bundled model's size should leave within a fraction of a millisecond.
"""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from service.jobs import ImageFormat

MEDIA_TYPES: dict[ImageFormat, str] = {
    "png": "image/png",
    "jpeg": "image/jpeg",
    "webp": "image/webp",
}
_JPEG_QUALITY = 92
_WEBP_QUALITY = 90
# The encoder's effort, 0 to 6: more takes longer than it saves.
_WEBP_METHOD = 2
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Colour type 2 (RGB), 8 bits, deflate, adaptive filters, not interlaced.
_PNG_RGB8 = (8, 2, 0, 0, 0)
_PNG_FILTER_SUB = 1


def encode_image(
    pixels_HWC: NDArray[np.uint8], format: ImageFormat, quality: int | None = None
) -> bytes:
    """Encode one RGB picture (H height, W width, C=3 channels; uint8).

    `quality`, 0 to 100, is of JPEG and WebP; None takes 92 and 90.
    """
    if format == "png":
        return _encode_png(pixels_HWC)
    if format == "jpeg":
        # No chroma subsampling: flat coloured edges would bleed.
        content: bytes = simplejpeg.encode_jpeg(
            np.ascontiguousarray(pixels_HWC),
            quality=_JPEG_QUALITY if quality is None else quality,
            colorspace="RGB",
            colorsubsampling="444",
        )
        return content
    buffer = io.BytesIO()
    Image.fromarray(pixels_HWC).save(
        buffer,
        format="webp",
        quality=_WEBP_QUALITY if quality is None else quality,
        method=_WEBP_METHOD,
    )
    return buffer.getvalue()


def _encode_png(pixels_HWC: NDArray[np.uint8]) -> bytes:
    """Write a PNG with one filter for every row and run-length compression.

    A general encoder tries five filters on each row; on drawn pictures that takes two to four
    times as long as all of this, for about a tenth of the size. Source: PNG 1.2, sections 3 to 6.
    """
    height, width, num_channels = pixels_HWC.shape
    samples = pixels_HWC.reshape(height, width * num_channels)
    rows = np.empty((height, 1 + width * num_channels), dtype=np.uint8)
    rows[:, 0] = _PNG_FILTER_SUB
    rows[:, 1 : 1 + num_channels] = samples[:, :num_channels]
    # Each sample less the one a pixel to its left, modulo 256.
    np.subtract(
        samples[:, num_channels:], samples[:, :-num_channels], out=rows[:, 1 + num_channels :]
    )
    deflate = zlib.compressobj(level=1, strategy=zlib.Z_RLE)
    body = deflate.compress(rows.data) + deflate.flush()
    header = struct.pack(">IIBBBBB", width, height, *_PNG_RGB8)
    return b"".join(
        (
            _PNG_SIGNATURE,
            _png_chunk(b"IHDR", header),
            _png_chunk(b"IDAT", body),
            _png_chunk(b"IEND", b""),
        )
    )


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(content, zlib.crc32(kind))
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)
