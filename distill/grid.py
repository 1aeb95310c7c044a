"""Sheets of pictures for a person to look at."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def grid_image(images_BHWC: NDArray[np.uint8], num_columns: int) -> Image.Image:
    """Arrange uint8 pictures in rows with a thin white gap."""
    num, height, width, _ = images_BHWC.shape
    num_rows = -(-num // num_columns)
    gap = 4
    sheet = Image.new(
        "RGB", (num_columns * (width + gap) + gap, num_rows * (height + gap) + gap), "white"
    )
    for i, image in enumerate(images_BHWC):
        row, column = divmod(i, num_columns)
        sheet.paste(
            Image.fromarray(image), (gap + column * (width + gap), gap + row * (height + gap))
        )
    return sheet
