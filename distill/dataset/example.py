"""An example of a folder of captioned pictures: drawn shapes, as PNG with a text file beside."""

from __future__ import annotations

from pathlib import Path

from distill.config import ConfigError
from distill.dataset.shapes import draw_shapes

NUM_PICTURES, SIZE_PX = 200, 64


def write_example(folder: Path) -> int:
    """Write the example's pictures and captions; return how many.

    Raises:
        ConfigError: the folder holds files, or cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ConfigError(f"--example: {folder} is not empty: name a new folder")
        for number, row in enumerate(draw_shapes(NUM_PICTURES, SIZE_PX)):
            name = f"{number:03d}-{row['name'].replace(' ', '-')}"
            row["image"].save(folder / f"{name}.png")
            words = "\n".join(row["captions"][:2])  # the third says "flat", as all of them are
            (folder / f"{name}.txt").write_text(words + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--example: cannot write {folder}: {error}") from error
    return NUM_PICTURES
