"""What the first bytes of a picture say: its format and size.

Owns the three formats that are accepted. A name or a media type that a client gives is no evidence
and is not looked at; nothing is decoded here, and nothing is allocated by a size that was read.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

# By Pillow's names.
MEDIA_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Start-of-frame markers of JPEG: C0 to CF without tables (C4), extensions (C8), arithmetic (CC).
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_ALONE = frozenset({0x01, *range(0xD0, 0xD8)})
_JPEG_SCAN_OR_END = frozenset({0xD9, 0xDA})


class Header(NamedTuple):
    """A format by Pillow's name, and the size that the file claims."""

    format: str
    width: int
    height: int


def read_header(content: bytes) -> Header | None:
    """Format and size; None when it is neither PNG nor JPEG nor WebP.

    Raises:
        ValueError: it begins like one of them, and has no size where that should be.
    """
    try:
        if content.startswith(_PNG_SIGNATURE):
            return Header("PNG", *_png_size(content))
        if content.startswith(b"\xff\xd8\xff"):
            return Header("JPEG", *_jpeg_size(content))
        if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
            return Header("WEBP", *_webp_size(content))
    except (struct.error, IndexError):
        raise ValueError("the file ends within its header") from None
    return None


def _png_size(content: bytes) -> tuple[int, int]:
    """Source: PNG 1.2, section 4.1.1."""
    kind, width, height = struct.unpack_from(">4sII", content, 12)
    if kind != b"IHDR":
        raise ValueError("its first chunk is not IHDR")
    return width, height


def _jpeg_size(content: bytes) -> tuple[int, int]:
    """Source: ITU-T T.81, annex B."""
    at = 2
    while (at := content.find(b"\xff", at)) >= 0:
        marker = content[at + 1]
        if marker in (0x00, 0xFF) or marker in _JPEG_ALONE:
            at += 1 if marker == 0xFF else 2
            continue
        if marker in _JPEG_SCAN_OR_END:
            break
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", content, at + 5)
            return width, height
        (num_bytes,) = struct.unpack_from(">H", content, at + 2)
        at += 2 + num_bytes
    raise ValueError("no frame before the first scan")


def _webp_size(content: bytes) -> tuple[int, int]:
    """Source: RFC 9649, sections 2.5 to 2.7."""
    kind = content[12:16]
    if kind == b"VP8X":
        width, height = content[24:27], content[27:30]
        if len(height) < 3:
            raise IndexError
        return 1 + int.from_bytes(width, "little"), 1 + int.from_bytes(height, "little")
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", content, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", content, 26)
        return width & 0x3FFF, height & 0x3FFF
    raise ValueError("it holds no picture")
