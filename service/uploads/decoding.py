"""From a picture that a client sent to pixels of the wanted size.

Owns which files are pictures, how they are fitted and what each refusal says. Runs in a decoder
process, since what decodes strangers' bytes may crash. Knows neither engines nor HTTP.
"""

from __future__ import annotations

import io

# Pillow would import these when a picture first needs them, and a confined process opens no file.
from PIL import (
    Image,
    ImageColor,  # noqa: F401  (imported for its effect, as the three that follow)
    MpoImagePlugin,  # noqa: F401
    TiffImagePlugin,  # noqa: F401  (reads EXIF)
    WebPImagePlugin,  # noqa: F401
)

from service.errors import InvalidRequest, PictureTooLarge, ProblemError
from service.uploads.header import MEDIA_TYPES, read_header

# Resizing starts with whole-number reduction to this many times the wanted size.
_REDUCING_GAP = 3.0
_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPS_SIDES = frozenset({5, 6, 7, 8})


def starting_picture(
    picture: bytes, mask: bytes | None, size_px: tuple[int, int], max_px: int
) -> bytes:
    """Decode a picture and fit it to a size: as large as covers it, the middle kept.

    Args:
        picture: PNG, JPEG or WebP.
        mask: a picture of the same size whose transparent pixels mark what is drawn anew.
        size_px: wanted width and height.
        max_px: refuse what has more pixels.

    Returns:
        RGB rows, three bytes a pixel; with a mask RGBA rows, whose alpha is the mask's.

    Raises:
        InvalidRequest: it is no such picture; names the field and the remedy.
        PictureTooLarge: it has too many pixels.
    """
    image, given_px = _fitted("image", picture, size_px, max_px)
    if mask is None:
        return image.tobytes()
    marks, marked_px = _fitted("mask", mask, size_px, max_px, is_alpha=True)
    if marked_px != given_px:
        raise InvalidRequest(
            f"mask must have the picture's size, {given_px[0]}x{given_px[1]}, "
            f"it is {marked_px[0]}x{marked_px[1]}",
            field="mask",
            allowed={"width": given_px[0], "height": given_px[1]},
        )
    if marks.getextrema()[0] == 255:
        raise InvalidRequest(
            "mask has no transparent pixels: they mark what is drawn anew; "
            "save it as PNG with an alpha channel",
            field="mask",
        )
    image.putalpha(marks)
    return image.tobytes()


def _fitted(
    field: str, content: bytes, size_px: tuple[int, int], max_px: int, *, is_alpha: bool = False
) -> tuple[Image.Image, tuple[int, int]]:
    """A picture, or its alpha, at the wanted size; and the size that it had, upright."""
    try:
        image = _opened(field, content, max_px)
        given_px = image.size
        # JPEG decodes an eighth to a half of the size for a part of the time.
        longer_px = 2 * max(size_px)
        image.draft(None, (longer_px, longer_px))
        image.load()
        turn = _orientation(image)
        if turn in _SWAPS_SIDES:
            size_px, given_px = size_px[::-1], given_px[::-1]
        image = _plain(image)
        if is_alpha:
            # Averages of areas: what lies inside an opaque part must come out opaque to the byte.
            image = _covering(_alpha(image), size_px, Image.Resampling.BOX)
        else:
            image = _on_white(_covering(image, size_px, Image.Resampling.LANCZOS))
        return (image.transpose(_UPRIGHT[turn]) if turn in _UPRIGHT else image), given_px
    except ProblemError:
        raise
    except Image.DecompressionBombError:
        raise _too_large(field, "far more", max_px) from None
    except MemoryError:
        raise InvalidRequest(
            f"{field} takes too much memory to decode: save it again as a plain PNG or JPEG",
            field=field,
        ) from None
    except Exception:
        # Pillow raises errors of many kinds on damaged files.
        raise _damaged(field) from None


def _opened(field: str, content: bytes, max_px: int) -> Image.Image:
    """A picture whose size and number of frames are right, not decoded yet."""
    if not content:
        raise InvalidRequest(f"{field} is empty: send a PNG, JPEG or WebP file", field=field)
    header = read_header(content)
    if header is None:
        raise InvalidRequest(
            f"{field} must be PNG, JPEG or WebP: convert it to one of them",
            field=field,
            allowed=list(MEDIA_TYPES.values()),
        )
    _check_px(field, header.width, header.height, max_px)
    image = Image.open(io.BytesIO(content), formats=[header.format])
    # What Pillow goes by must not be more than what the header was believed to say.
    _check_px(field, *image.size, max_px)
    # A JPEG may carry further pictures behind the first, as telephones write them; that is the one.
    if header.format != "JPEG" and getattr(image, "is_animated", False):
        raise InvalidRequest(f"{field} is animated: send a single frame of it", field=field)
    return image


def _check_px(field: str, width: int, height: int, max_px: int) -> None:
    if width * height > max_px:
        raise _too_large(field, f"{width}x{height}", max_px)


def _too_large(field: str, size: str, max_px: int) -> PictureTooLarge:
    return PictureTooLarge(
        f"{field} has {size} pixels, at most {max_px} in all are allowed: make it smaller",
        field=field,
        allowed={"max_px": max_px},
    )


def _damaged(field: str) -> InvalidRequest:
    return InvalidRequest(
        f"{field} is damaged or cut short: save it again as PNG or JPEG", field=field
    )


def _orientation(image: Image.Image) -> int:
    """How EXIF says it was held; 1, upright, where it says nothing that can be read."""
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:
        # A picture with broken remarks is still a picture.
        return 1


def _plain(image: Image.Image) -> Image.Image:
    """RGB or RGBA, 8 bits each."""
    if image.mode == "I;16":
        # Pillow's conversion would clip 16 bits of grey at 255.
        image = image.point(lambda value: value / 257, "L")
        image.info.pop("transparency", None)  # a grey of 16 bits, which now matches none
    mode = "RGBA" if image.has_transparency_data else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _covering(
    image: Image.Image, size_px: tuple[int, int], resample: Image.Resampling
) -> Image.Image:
    """The largest middle part of the wanted proportions, at the wanted size."""
    scale = min(image.width / size_px[0], image.height / size_px[1])
    width, height = min(scale * size_px[0], image.width), min(scale * size_px[1], image.height)
    left, top = (image.width - width) / 2, (image.height - height) / 2
    return image.resize(
        size_px,
        resample,
        # Sums of floats must not reach past the edge.
        box=(left, top, min(left + width, image.width), min(top + height, image.height)),
        reducing_gap=_REDUCING_GAP,
    )


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def _alpha(image: Image.Image) -> Image.Image:
    return image.getchannel("A") if image.mode == "RGBA" else Image.new("L", image.size, 255)
