"""What becomes of a picture that a client sends: which are taken, how they are fitted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from picture_files import (
    animated,
    drawn,
    hostile_files,
    jpeg_that_claims,
    mpo,
    png_of_48_bits,
    png_that_claims,
    rgb,
    saved,
    see_through,
    turned,
    webp_that_claims,
)
from PIL import Image

from service.errors import InvalidRequest, PictureTooLarge, ProblemError, status_of
from service.uploads.decoding import starting_picture
from service.uploads.header import Header, read_header

MAX_PX = 16_000_000
SIZE = (48, 32)
EXPECTED = np.asarray(drawn()).astype(int)


def _decoded(content: bytes, size_px: tuple[int, int] = SIZE) -> np.ndarray:
    return rgb(starting_picture(content, None, size_px, MAX_PX), size_px)


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("png", {}),
        ("jpeg", {"quality": 95, "subsampling": 0}),
        ("jpeg", {"quality": 95, "progressive": True}),
        ("webp", {"quality": 95}),
        ("webp", {"lossless": True}),
    ],
)
def test_each_format_is_taken(format: str, options: dict[str, object]) -> None:
    assert np.abs(_decoded(saved(drawn(), format, **options)) - EXPECTED).mean() < 6


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "RGBA", "CMYK"])
def test_each_kind_of_pixel_becomes_rgb(mode: str) -> None:
    image = drawn().convert(mode)
    expected = np.asarray(image.convert("RGB")).astype(int)
    content = saved(image, "jpeg" if mode == "CMYK" else "png", quality=95)
    assert np.abs(_decoded(content) - expected).mean() < 6


def test_sixteen_bits_keep_their_higher_eight() -> None:
    ramp = np.linspace(0, 65535, 48, dtype=np.uint16)
    grey_HWC = _decoded(saved(Image.fromarray(np.tile(ramp, (32, 1)))))
    assert np.abs(grey_HWC - (ramp // 257)[None, :, None]).max() <= 1
    assert np.abs(_decoded(png_of_48_bits(), (4, 4)) - (255, 128, 0)).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_stands_as_it_was_held(orientation: int) -> None:
    assert np.abs(_decoded(turned(orientation)) - EXPECTED).mean() < 6


def test_broken_remarks_do_not_matter() -> None:
    content = saved(drawn(), "png", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert np.abs(_decoded(content) - EXPECTED).max() == 0


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_becomes_white(mode: str) -> None:
    image = Image.new("RGBA", SIZE, (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 24, 32))
    options = {"transparency": 0} if mode == "P" else {}
    if mode == "P":
        palette = Image.new("P", SIZE, 0)
        palette.putpalette([9, 9, 9, 0, 0, 0])
        palette.paste(1, (0, 0, 24, 32))
        content = saved(palette, "png", **options)
    else:
        content = saved(image.convert(mode))
    image_HWC = _decoded(content)
    assert (image_HWC[:, :24] == 0).all()
    assert (image_HWC[:, 24:] == 255).all()


def test_the_middle_is_kept_when_the_proportions_differ() -> None:
    image = Image.new("RGB", (300, 100), "black")
    image.paste("red", (100, 0, 200, 100))
    # A resized edge rings over a few pixels.
    assert (_decoded(saved(image), (32, 32))[:, 4:-4] == (255, 0, 0)).all()
    tall = image.transpose(Image.Transpose.ROTATE_90)
    assert (_decoded(saved(tall), (32, 32))[4:-4] == (255, 0, 0)).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1), (127, 129), (3999, 3001)])
def test_any_size_is_fitted(size: tuple[int, int]) -> None:
    image_HWC = _decoded(saved(Image.new("RGB", size, (10, 200, 30))), (128, 64))
    assert image_HWC.shape == (64, 128, 3)
    assert (image_HWC == (10, 200, 30)).all()


def test_a_large_jpeg_keeps_its_edges() -> None:
    content = saved(drawn(2400, 1600), "jpeg", quality=95)
    assert np.abs(_decoded(content) - EXPECTED).mean() < 6


def test_a_telephones_second_picture_is_passed_over() -> None:
    content = mpo()
    assert np.abs(_decoded(content) - EXPECTED).mean() < 8


@pytest.mark.parametrize(
    ("content", "code"), [pytest.param(*rest, id=name) for name, *rest in hostile_files()]
)
def test_what_is_refused_is_refused_with_its_field(content: bytes, code: str) -> None:
    with pytest.raises(ProblemError) as caught:
        starting_picture(content, None, SIZE, MAX_PX)
    assert status_of(caught.value).code == code
    assert caught.value.field == "image"
    assert caught.value.detail.startswith("image")


@pytest.mark.parametrize(
    ("content", "remedy"),
    [
        (b"", "empty: send a PNG, JPEG or WebP file"),
        (saved(drawn(), "gif"), "must be PNG, JPEG or WebP: convert it"),
        (animated("png"), "animated: send a single frame"),
        (saved(drawn())[:90], "damaged or cut short: save it again"),
        (png_that_claims(9000, 9000), "9000x9000 pixels.*make it smaller"),
    ],
)
def test_a_refusal_says_what_to_do(content: bytes, remedy: str) -> None:
    with pytest.raises(ProblemError, match=remedy):
        starting_picture(content, None, SIZE, MAX_PX)


def test_the_bound_on_pixels_is_exact() -> None:
    content = saved(drawn(100, 50))
    starting_picture(content, None, SIZE, 5000)
    with pytest.raises(PictureTooLarge, match="100x50") as caught:
        starting_picture(content, None, SIZE, 4999)
    assert caught.value.allowed == {"max_px": 4999}


def test_a_mask_becomes_the_alpha() -> None:
    image = drawn(96, 64)
    mask = see_through(image, (48, 0, 96, 64))
    content = starting_picture(saved(image), saved(mask), SIZE, MAX_PX)
    image_HWC = rgb(content, SIZE)
    assert image_HWC.shape == (32, 48, 4)
    assert (image_HWC[:, :24, 3] == 255).all() and (image_HWC[:, 24:, 3] == 0).all()
    assert (
        image_HWC[..., :3] == rgb(starting_picture(saved(image), None, SIZE, MAX_PX), SIZE)
    ).all()


@pytest.mark.parametrize(
    ("mask", "wanted"),
    [
        (saved(see_through(drawn(47, 32), (0, 0, 9, 9))), "48x32"),
        (saved(drawn()), "no transparent pixels"),
        (saved(drawn().convert("RGBA")), "no transparent pixels"),
        (saved(drawn(), "gif"), "PNG"),
        (animated("png"), "animated"),
        (png_that_claims(20000, 20000), "pixels"),
    ],
)
def test_a_mask_that_cannot_be_one_is_refused(mask: bytes, wanted: str) -> None:
    with pytest.raises((InvalidRequest, PictureTooLarge), match=wanted) as caught:
        starting_picture(saved(drawn()), mask, SIZE, MAX_PX)
    assert caught.value.field == "mask"


@pytest.mark.parametrize(
    ("content", "header"),
    [
        (png_that_claims(70000, 3), Header("PNG", 70000, 3)),
        (jpeg_that_claims(65535, 2), Header("JPEG", 65535, 2)),
        (webp_that_claims(16383, 5), Header("WEBP", 16383, 5)),
        (saved(drawn(), "webp", lossless=True), Header("WEBP", 48, 32)),
        (saved(drawn(), "webp"), Header("WEBP", 48, 32)),
        (saved(drawn(), "jpeg", progressive=True), Header("JPEG", 48, 32)),
        (b"GIF89a", None),
        (b"", None),
    ],
)
def test_a_header_is_read_as_it_stands(content: bytes, header: Header | None) -> None:
    assert read_header(content) == header


@given(
    start=st.sampled_from(
        [saved(drawn(), "png"), saved(drawn(), "jpeg"), saved(drawn(), "webp"), b""]
    ),
    cut=st.integers(0, 60),
    tail=st.binary(max_size=60),
)
def test_any_bytes_are_taken_or_refused(start: bytes, cut: int, tail: bytes) -> None:
    content = start[:cut] + tail + start[cut + len(tail) :]
    try:
        pixels = starting_picture(content, None, (16, 8), 10_000)
    except (InvalidRequest, PictureTooLarge) as refusal:
        assert refusal.field == "image"
    else:
        assert len(pixels) == 16 * 8 * 3
