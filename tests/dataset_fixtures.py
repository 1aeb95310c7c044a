"""Captioned pictures on disk, in every form that the training reads.

Owns what several tests of the sources write. Every picture's colour tells its number.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image


def numbered_png(number: int, size_px: int = 8) -> bytes:
    """A PNG whose red and green channels hold a number below 65536."""
    stream = io.BytesIO()
    colour = (number // 256, number % 256, 7)
    Image.new("RGB", (size_px, size_px), colour).save(stream, "PNG")
    return stream.getvalue()


def numbers_in(images_BHWC: NDArray[np.uint8]) -> list[int]:
    """The numbers that pictures hold."""
    return [int(image[0, 0, 0]) * 256 + int(image[0, 0, 1]) for image in images_BHWC]


def write_parquet(path: Path, numbers: Iterable[int], group_size: int = 4, **extra: Any) -> None:
    """Rows `image`, `captions`, and perhaps other columns of one value."""
    rows = [
        {"image": numbered_png(n), "captions": [f"number {n}", f"no. {n}"], **extra}
        for n in numbers
    ]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=group_size)


def write_tar(path: Path, numbers: Iterable[int], words: str = "txt") -> None:
    """Members NUMBER.png and NUMBER.txt or NUMBER.json."""
    with tarfile.open(path, "w") as archive:
        for n in numbers:
            text = f"number {n}\nno. {n}\n"
            if words == "json":
                text = json.dumps({"caption": f"number {n}", "style": "flat"})
            for suffix, content in (("png", numbered_png(n)), (words, text.encode())):
                member = tarfile.TarInfo(f"{n:05d}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def write_folder(path: Path, numbers: Iterable[int]) -> None:
    """Files NUMBER.png and NUMBER.txt."""
    path.mkdir(parents=True, exist_ok=True)
    for n in numbers:
        (path / f"{n:05d}.png").write_bytes(numbered_png(n))
        (path / f"{n:05d}.txt").write_text(f"number {n}\nno. {n}\n")
