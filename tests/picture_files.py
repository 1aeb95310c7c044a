"""Picture files for the tests of uploads: good ones, broken ones, and bombs made at test time."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def drawn(width: int = 48, height: int = 32) -> Image.Image:
    """A picture whose four corners can be told apart."""
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    w, h = width // 2, height // 2
    draw.rectangle((0, 0, w - 1, h - 1), fill="red")
    draw.rectangle((w, 0, width, h - 1), fill="green")
    draw.rectangle((0, h, w - 1, height), fill="blue")
    return image


def heart(colour: str, size_px: int = 128) -> Image.Image:
    """A heart on white, such as a person might draw."""
    side = 4 * size_px
    image = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(image)
    for left in (0.14, 0.48):
        draw.ellipse([side * at for at in (left, 0.18, left + 0.38, 0.56)], fill=colour)
    corners = ((0.165, 0.45), (0.835, 0.45), (0.5, 0.86))
    draw.polygon([(side * x, side * y) for x, y in corners], fill=colour)
    return image.resize((size_px, size_px), Image.Resampling.LANCZOS)


def saved(image: Image.Image, format: str = "png", **options: Any) -> bytes:
    """The file of a picture."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def rgb(content: bytes, size_px: tuple[int, int]) -> np.ndarray:
    """Rows of pixels, wide enough to subtract."""
    return np.frombuffer(content, np.uint8).reshape(size_px[1], size_px[0], -1).astype(int)


def see_through(image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    """A mask: transparent inside the box."""
    mask = Image.new("RGBA", image.size, "black")
    mask.paste((0, 0, 0, 0), box)
    return mask


def png_chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk with its checksum."""
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def png_header(width: int, height: int) -> bytes:
    """The IHDR chunk of a grey picture."""
    return png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))


def large_png(width: int, height: int) -> bytes:
    """A whole picture of one grey: hundreds of times smaller than what it decodes to."""
    deflate = zlib.compressobj(9)
    row = b"\0" * (1 + width)
    body = b"".join(deflate.compress(row) for _ in range(height)) + deflate.flush()
    chunks = png_header(width, height) + png_chunk(b"IDAT", body) + png_chunk(b"IEND", b"")
    return PNG_SIGNATURE + chunks


def png_that_claims(width: int, height: int) -> bytes:
    """A header with nothing of what it announces."""
    return PNG_SIGNATURE + png_header(width, height) + png_chunk(b"IDAT", b"x\x9c\x03\0\0\0\0\x01")


def png_with_second_header(width: int, height: int) -> bytes:
    """A harmless picture that says behind its header that it is another size."""
    content = saved(drawn())
    end = len(PNG_SIGNATURE) + len(png_header(1, 1))
    return content[:end] + png_header(width, height) + content[end:]


def _frame_of(jpeg: bytes) -> tuple[int, int]:
    start = jpeg.index(b"\xff\xc0")
    return start, start + 2 + int.from_bytes(jpeg[start + 2 : start + 4], "big")


def jpeg_that_claims(width: int, height: int) -> bytes:
    """A small JPEG with another size in its header."""
    content = saved(drawn(), "jpeg")
    start, _ = _frame_of(content)
    return content[: start + 5] + struct.pack(">HH", height, width) + content[start + 9 :]


def jpeg_with_second_header(width: int, height: int) -> bytes:
    """A JPEG whose second frame header has another size."""
    content, other = saved(drawn(), "jpeg"), jpeg_that_claims(width, height)
    start, end = _frame_of(content)
    return content[:end] + other[start:end] + content[end:]


def webp_that_claims(width: int, height: int) -> bytes:
    """The canvas of an extended WebP without a frame."""
    sides = b"".join((side - 1).to_bytes(3, "little") for side in (width, height))
    chunk = b"VP8X" + struct.pack("<I", 10) + b"\x10\0\0\0" + sides
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def animated(format: str) -> bytes:
    """Two frames."""
    return saved(drawn(), format, save_all=True, append_images=[heart("red").resize((48, 32))])


def turned(orientation: int) -> bytes:
    """A JPEG that says how it was held; upright it shows what `drawn` does."""
    undo = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    image = drawn() if undo is None else drawn().transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(image, "jpeg", exif=exif, quality=95, subsampling=0)


def mpo() -> bytes:
    """A JPEG with a second picture behind it, as telephones write."""
    return saved(drawn(), "mpo", save_all=True, append_images=[Image.new("RGB", (48, 32))])


def png_of_48_bits() -> bytes:
    """Four by four pixels of orange with 16 bits a channel."""
    row = b"\0" + struct.pack(">3H", 65535, 32896, 0) * 4
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0))
    body = png_chunk(b"IDAT", zlib.compress(row * 4))
    return PNG_SIGNATURE + header + body + png_chunk(b"IEND", b"")


def ordinary_files() -> Iterator[tuple[str, bytes]]:
    """Name and content of what must be taken, so that each path of the decoder is walked."""
    image = drawn()
    for mode in ("RGB", "RGBA", "L", "LA", "P", "1"):
        yield f"png {mode}", saved(image.convert(mode))
    yield "png with transparent colour", saved(image, transparency=(255, 0, 0))
    yield "png of 16 bits", saved(Image.fromarray(np.full((9, 9), 999, np.uint16)))
    yield "png of 48 bits", png_of_48_bits()
    yield "interlaced png", saved(image, interlace=True)
    yield "png with remarks", saved(image, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    for orientation in range(1, 9):
        yield f"jpeg held as {orientation}", turned(orientation)
    yield "progressive jpeg", saved(image, "jpeg", progressive=True)
    yield "large jpeg", saved(drawn(1600, 1200), "jpeg")
    for mode in ("L", "CMYK"):
        yield f"jpeg {mode}", saved(image.convert(mode), "jpeg")
    yield "mpo", mpo()
    exif = Image.Exif()
    exif[0x0112] = 6
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/></x:xmpmeta>'
    for options in ({}, {"lossless": True}, {"exif": exif}, {"xmp": xmp}):
        yield f"webp {options}", saved(image, "webp", **options)
    yield "webp RGBA", saved(image.convert("RGBA"), "webp")
    yield "png with xmp", saved(image, exif=exif, xmp=xmp)


def hostile_files() -> Iterator[tuple[str, bytes, str]]:
    """Name, content and the code of the refusal that it must meet at 16 megapixels."""
    whole = {format: saved(heart("red"), format) for format in ("png", "jpeg", "webp")}
    yield "empty", b"", "invalid_request"
    yield "no picture", b"hello, world", "invalid_request"
    yield "gif", saved(drawn(), "gif"), "invalid_request"
    yield "bmp", saved(drawn(), "bmp"), "invalid_request"
    yield "svg", b'<svg xmlns="http://www.w3.org/2000/svg"/>', "invalid_request"
    yield "signature alone", PNG_SIGNATURE, "invalid_request"
    yield "animated png", animated("png"), "invalid_request"
    yield "animated webp", animated("webp"), "invalid_request"
    for format, content in whole.items():
        for share in (0.1, 0.5, 0.9):
            yield (
                f"{format} cut at {share:.0%}",
                content[: int(share * len(content))],
                "invalid_request",
            )
    yield "png without size", PNG_SIGNATURE + png_header(0, 9), "invalid_request"
    yield "webp without frame", webp_that_claims(48, 32), "invalid_request"
    yield "png of 81 megapixels", large_png(9000, 9000), "picture_too_large"
    yield "png header of 400 megapixels", png_that_claims(20000, 20000), "picture_too_large"
    yield "png header of 2^62 pixels", png_that_claims(2**31 - 1, 2**31 - 1), "picture_too_large"
    yield "png with two headers", png_with_second_header(5000, 5000), "picture_too_large"
    yield "png with a huge header", png_with_second_header(30000, 30000), "picture_too_large"
    yield "jpeg header of 4 gigapixels", jpeg_that_claims(65535, 65535), "picture_too_large"
    yield "jpeg with two headers", jpeg_with_second_header(5000, 5000), "picture_too_large"
    yield "webp canvas of 144 megapixels", webp_that_claims(12000, 12000), "picture_too_large"
    yield "webp canvas of 268 megapixels", webp_that_claims(16383, 16383), "picture_too_large"
