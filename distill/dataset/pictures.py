"""Captioned pictures in memory.

Owns reading a whole set into one array, choosing among it and weighing it. Knows nothing of models.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from distill.config import ConfigError, DataConfig
from distill.dataset.forms import REMEDY, open_rows
from distill.dataset.recolour import recoloured
from distill.dataset.rows import DamagedRow, Row, Rows, decode_row
from distill.dataset.shapes import draw_shapes

logger = logging.getLogger(__name__)

# Shape suffixes: N pictures, H/W pixels, C channel.

_MAX_NAMED = 5


@dataclass(frozen=True)
class Pictures:
    """N captioned pictures.

    Attributes:
        images_NHWC: uint8 RGB, composited on white.
        captions: per picture, at least one.
        names: per picture, the concept, or "" where the source has none.
        styles: per picture, the style, or "".
        groups: per picture, the group of the concept, or "".
        weights_N: how often each is drawn, in proportion; None for all alike.
        num_skipped: rows that could not be read.
    """

    images_NHWC: NDArray[np.uint8]
    captions: tuple[tuple[str, ...], ...]
    names: tuple[str, ...]
    styles: tuple[str, ...]
    groups: tuple[str, ...]
    num_skipped: int = 0
    weights_N: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.captions)

    def row(self, index: int) -> Row:
        """One picture."""
        return Row(
            self.images_NHWC[index],
            self.captions[index],
            self.names[index],
            self.styles[index],
            self.groups[index],
        )

    def select(self, indices: Sequence[int]) -> Pictures:
        """Return the pictures at `indices`."""
        return Pictures(
            self.images_NHWC[np.asarray(indices, dtype=np.int64)],
            tuple(self.captions[i] for i in indices),
            tuple(self.names[i] for i in indices),
            tuple(self.styles[i] for i in indices),
            tuple(self.groups[i] for i in indices),
            self.num_skipped,
            None if self.weights_N is None else self.weights_N[list(indices)],
        )


def load_pictures(config: DataConfig) -> Pictures:
    """Read everything that `config.path` names, at `config.image_size_px`.

    Raises:
        ConfigError: the path does not exist, holds no readable captioned picture.
    """
    if config.path == "shapes":
        try:
            drawn = draw_shapes(config.num_shapes, config.image_size_px)
            return _joined([decode_row(raw, config) for raw in drawn], 0)
        except ValueError as error:
            raise ConfigError(f"data.num_shapes: {error}") from error
    return collect(open_rows(config.path, config, "data.path"), config)


def load_heldout(config: DataConfig) -> Pictures | None:
    """Read the (concept, style) pairs kept from training, or None where none are named."""
    if config.heldout_path is None:
        return None
    pictures = collect(open_rows(config.heldout_path, config, "data.heldout_path"), config)
    return filter_pictures(pictures, config)


def filter_pictures(pictures: Pictures, config: DataConfig) -> Pictures:
    """Keep the styles and concepts that the config names.

    Raises:
        ConfigError: nothing is left.
    """
    keep = [
        i
        for i, (name, style) in enumerate(zip(pictures.names, pictures.styles, strict=True))
        if (not config.styles or style in config.styles)
        and (not config.concepts or name in config.concepts)
    ]
    if not keep:
        raise ConfigError("data.styles and data.concepts leave no picture: name ones that exist")
    return pictures.select(keep)


def for_training(pictures: Pictures, config: DataConfig) -> Pictures:
    """Weigh the groups, and add recoloured pictures where the config asks for them."""
    weights_N = np.ones(len(pictures))
    weights_N[np.isin(pictures.groups, config.rare_groups)] = config.rare_group_weight
    if not weights_N.any():
        raise ConfigError("data.rare_group_weight 0 leaves no picture: every group is rare")
    if not config.recoloured_share:
        return replace(pictures, weights_N=weights_N)
    found = []
    named = list(enumerate(zip(pictures.names, pictures.styles, strict=True)))
    for i, (name, style) in tqdm(named, desc="recolouring", unit="picture", delay=2, leave=False):
        is_apt = name and pictures.groups[i] not in config.rare_groups
        other = recoloured(pictures.images_NHWC[i], name, style, salt=0) if is_apt else None
        if other is not None:
            found.append((i, *other))
    if not found:
        raise ConfigError("data.recoloured_share: no picture of the set has one ruling colour")
    indices = [i for i, _, _ in found]
    added = weights_N[indices]
    share = config.recoloured_share / (1 - config.recoloured_share)
    both = pictures.select([*range(len(pictures)), *indices])
    return replace(
        both,
        images_NHWC=np.concatenate([pictures.images_NHWC, np.stack([im for _, im, _ in found])]),
        captions=pictures.captions + tuple(texts for _, _, texts in found),
        weights_N=np.concatenate([weights_N, added * (share * weights_N.sum() / added.sum())]),
    )


def collect(rows: Rows, config: DataConfig) -> Pictures:
    """Decode all rows; damaged ones are left out, counted and the first few named.

    Raises:
        ConfigError: no row can be used.
    """
    kept: list[Row] = []
    reasons: list[str] = []
    for index in range(len(rows)):
        try:
            kept.append(decode_row(rows.read(index), config))
        except DamagedRow as error:
            reasons.append(f"{rows.where(index)}: {error}")
    num_skipped = len(reasons) + rows.num_unreadable_files
    if num_skipped:
        logger.warning(
            "skipped %d damaged or captionless rows of %s: %s",
            num_skipped,
            rows.label,
            "; ".join(reasons[:_MAX_NAMED]),
        )
    if not kept:
        found = "; ".join(reasons[:_MAX_NAMED]) or "no row"
        raise ConfigError(f"{rows.label}: no readable picture with a caption ({found}); {REMEDY}")
    return _joined(kept, num_skipped)


def _joined(rows: Sequence[Row], num_skipped: int) -> Pictures:
    return Pictures(
        np.stack([row.image_HWC for row in rows]),
        tuple(row.captions for row in rows),
        tuple(row.name for row in rows),
        tuple(row.style for row in rows),
        tuple(row.group for row in rows),
        num_skipped,
    )


def probe_prompts(pictures: Pictures, num: int) -> list[str]:
    """`num` prompts spread over the set, for the sheets that a person looks at."""
    stride = max(1, len(pictures) // num)
    return [texts[-1] for texts in pictures.captions[::stride]][:num]
