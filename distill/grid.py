"""Sheets of pictures for a person to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

_GAP_PX = 4
_MIN_LABEL_PX = 10
_MAX_TITLE_LINES = 3


def grid_image(images_BHWC: NDArray[np.uint8], num_columns: int) -> Image.Image:
    """Arrange uint8 pictures in rows with a thin white gap."""
    num, height, width, _ = images_BHWC.shape
    num_rows = -(-num // num_columns)
    gap = _GAP_PX
    sheet = Image.new(
        "RGB", (num_columns * (width + gap) + gap, num_rows * (height + gap) + gap), "white"
    )
    for i, image in enumerate(images_BHWC):
        row, column = divmod(i, num_columns)
        sheet.paste(
            Image.fromarray(image), (gap + column * (width + gap), gap + row * (height + gap))
        )
    return sheet


def labelled_rows(prompts: Sequence[str], rows: Mapping[str, NDArray[np.uint8]]) -> Image.Image:
    """The same prompts by several samplers: one row each, its name on the left, prompts on top."""
    sheets = [grid_image(images, num_columns=len(prompts)) for images in rows.values()]
    cell_px = (sheets[0].width - _GAP_PX) // len(prompts)
    label_px = max(_MIN_LABEL_PX, cell_px // 8)
    font = ImageFont.load_default(label_px)
    name_px = max(int(font.getlength(name)) for name in rows) + 3 * _GAP_PX
    titles = [_wrapped(prompt, font, cell_px - _GAP_PX) for prompt in prompts]
    title_px = (label_px + 3) * max(title.count("\n") + 1 for title in titles) + 2 * _GAP_PX
    height = title_px + sum(sheet.height for sheet in sheets)
    page = Image.new("RGB", (name_px + sheets[0].width, height), "white")
    draw = ImageDraw.Draw(page)
    for i, title in enumerate(titles):
        draw.multiline_text(
            (name_px + _GAP_PX + i * cell_px, _GAP_PX), title, "black", font, spacing=2
        )
    top = title_px
    for name, sheet in zip(rows, sheets, strict=True):
        page.paste(sheet, (name_px, top))
        draw.text((_GAP_PX, top + sheet.height // 2), name, "black", font, anchor="lm")
        top += sheet.height
    return page


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width_px: int) -> str:
    """At most three lines of whole words; what does not fit is cut."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if not lines[-1] or font.getlength(longer) <= width_px:
            lines[-1] = longer
        else:
            lines.append(word)
    for i, line in enumerate(lines):
        while line and font.getlength(line) > width_px:
            line = line[:-1]
        lines[i] = line
    return "\n".join(lines[:_MAX_TITLE_LINES])
