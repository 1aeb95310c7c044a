"""One captioned picture: from what a file holds to pixels and words.

Owns decoding, fitting to the square, and which captions count. Every source of pictures ends here.
Knows nothing of files' forms.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from distill.config import DataConfig

# Shape suffixes: B batch, H/W pixels, C channel.

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


class DamagedRow(Exception):
    """A row cannot be used; the message says why."""


@dataclass(frozen=True)
class Row:
    """One readable picture at the training's size, and at least one caption."""

    image_HWC: NDArray[np.uint8]
    captions: tuple[str, ...]
    name: str
    style: str
    group: str


class Rows(Protocol):
    """Undecoded rows in a fixed order, each read by its index.

    Attributes:
        label: what the user called it.
        block_sizes: how many consecutive rows are quick to read together; they add up to all.
        fingerprint: differs where the rows differ.
        num_unreadable_files: files that gave no row at all.
    """

    label: str
    block_sizes: tuple[int, ...]
    fingerprint: str
    num_unreadable_files: int

    def __len__(self) -> int:
        """Number of rows, readable or not."""
        ...

    def read(self, index: int, *, with_image: bool = True) -> Mapping[str, Any]:
        """`image` bytes, `captions`, and perhaps `name`, `style`, `group`.

        Raises:
            DamagedRow: it cannot be read.
        """
        ...

    def where(self, index: int) -> str:
        """What to call a row in a log."""
        ...


def decode_row(raw: Mapping[str, Any], config: DataConfig) -> Row:
    """Decode one row.

    Raises:
        DamagedRow: the picture cannot be decoded or has no caption.
    """
    captions = captions_of(raw, config)
    if not captions:
        raise DamagedRow("no caption")
    image_HWC = decode_image(raw.get("image"), config)
    name, style, group = (str(raw.get(key) or "") for key in ("name", "style", "group"))
    return Row(image_HWC, captions, name, style, group)


def decode_image(content: Any, config: DataConfig) -> NDArray[np.uint8]:
    """Encoded bytes, or a Pillow picture, to uint8 RGB on white, `config.image_size_px` square.

    Raises:
        DamagedRow: it is no picture, or a damaged one.
    """
    if isinstance(content, dict):  # the datasets library nests bytes beside a path
        content = content.get("bytes")
    if isinstance(content, Image.Image):
        return _fitted(content, config)
    if not isinstance(content, bytes):
        raise DamagedRow("no picture")
    try:
        with Image.open(io.BytesIO(content)) as picture:
            return _fitted(ImageOps.exif_transpose(picture), config)
    except UnidentifiedImageError as error:
        raise DamagedRow("not a picture") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DamagedRow(f"damaged picture: {error}") from error


def _fitted(picture: Image.Image, config: DataConfig) -> NDArray[np.uint8]:
    whole = picture.convert("RGBA")
    ground = Image.new("RGBA", whole.size, "white")
    ground.alpha_composite(whole)
    flat = ground.convert("RGB")
    size = (config.image_size_px, config.image_size_px)
    if flat.size != size:
        lanczos = Image.Resampling.LANCZOS
        if config.fit == "crop":
            flat = ImageOps.fit(flat, size, lanczos)
        elif config.fit == "pad":
            flat = ImageOps.pad(flat, size, lanczos, color="white")
        else:
            flat = flat.resize(size, lanczos)
    return np.asarray(flat, dtype=np.uint8)


def captions_of(raw: Mapping[str, Any], config: DataConfig) -> tuple[str, ...]:
    """The captions that the config keeps, without empty ones."""
    captions = raw.get("captions") or raw.get("caption") or raw.get("text") or []
    if isinstance(captions, str):
        captions = [captions]
    kept = tuple(c.strip() for c in captions if isinstance(c, str) and c.strip())
    names = [n.lower() for n in (raw.get("name"), *(raw.get("alt_names") or ())) if n]
    if config.num_other_captions is None or not names:
        return kept
    is_named = [any(name in c.lower() for name in names) for c in kept]
    named = tuple(c for c, is_one in zip(kept, is_named, strict=True) if is_one)
    others = sorted((c for c in kept if c not in named), key=len, reverse=True)
    return named + tuple(others[: config.num_other_captions]) if named else kept


def to_model_range(images_BHWC: torch.Tensor) -> torch.Tensor:
    """uint8 BHWC in 0..255 to float32 BCHW in [-1, 1]."""
    return images_BHWC.permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def to_uint8(images_BCHW: torch.Tensor) -> NDArray[np.uint8]:
    """Float BCHW in [-1, 1] to uint8 BHWC in 0..255, rounded and clamped."""
    scaled = images_BCHW.float().add(1.0).mul(127.5).round().clamp(0, 255)
    array: NDArray[np.uint8] = scaled.permute(0, 2, 3, 1).to(torch.uint8).cpu().numpy()
    return array
