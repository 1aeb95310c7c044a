"""Captioned pictures in memory.

Owns reading Parquet (columns `image` bytes and `captions` list or `caption` string, the form of
Hugging Face datasets) into one array, skipping what is damaged, and drawing random batches.
Knows nothing of models.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image

from distill.config import ConfigError, DataConfig
from distill.recolour import recoloured
from distill.shapes import draw_shapes

logger = logging.getLogger(__name__)


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
        ConfigError: the path does not exist, holds no Parquet file or no readable picture.
    """
    if config.path == "shapes":
        try:
            rows = draw_shapes(config.num_shapes, config.image_size_px)
            return _collect(rows, config, "shapes")
        except ValueError as error:
            raise ConfigError(f"data.num_shapes: {error}") from error
    return _read_parquet(config.path, config, "data.path")


def load_heldout(config: DataConfig) -> Pictures | None:
    """Read the (concept, style) pairs kept from training, or None where none are named."""
    if config.heldout_path is None:
        return None
    pictures = _read_parquet(config.heldout_path, config, "data.heldout_path")
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
    if not config.recoloured_share:
        return replace(pictures, weights_N=weights_N)
    found = []
    for i, (name, style) in enumerate(zip(pictures.names, pictures.styles, strict=True)):
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


def _read_parquet(source: str, config: DataConfig, field: str) -> Pictures:
    path = Path(source)
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise ConfigError(f"{field}: no Parquet file at {path}")
    return _collect(_parquet_rows(files), config, f"{field} {path}")


def _parquet_rows(files: Sequence[Path]) -> Iterator[Mapping[str, Any]]:
    for file in files:
        try:
            parquet = pq.ParquetFile(file)
            for group in range(parquet.num_row_groups):  # whole groups before a damaged one
                for batch in parquet.iter_batches(batch_size=256, row_groups=[group]):
                    yield from batch.to_pylist()
        except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
            logger.warning("skipping the rest of %s: %s", file, error)
            yield {"image": None, "file": str(file)}


def _decode(row: Mapping[str, Any], size_px: int) -> NDArray[np.uint8] | None:
    content = row.get("image")
    if isinstance(content, dict):  # the datasets library nests bytes beside a path
        content = content.get("bytes")
    if isinstance(content, Image.Image):
        picture = content
    elif isinstance(content, bytes):
        try:
            picture = Image.open(io.BytesIO(content))
            picture.load()
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            return None
    else:
        return None
    picture = picture.convert("RGBA")
    ground = Image.new("RGBA", picture.size, "white")
    ground.alpha_composite(picture)
    flat = ground.convert("RGB")
    if flat.size != (size_px, size_px):
        flat = flat.resize((size_px, size_px), Image.Resampling.LANCZOS)
    return np.asarray(flat, dtype=np.uint8)


def _captions(row: Mapping[str, Any], config: DataConfig) -> tuple[str, ...]:
    captions = row.get("captions") or row.get("caption") or []
    if isinstance(captions, str):
        captions = [captions]
    kept = tuple(c.strip() for c in captions if isinstance(c, str) and c.strip())
    names = [n.lower() for n in (row.get("name"), *(row.get("alt_names") or ())) if n]
    if config.num_other_captions is None or not names:
        return kept
    is_named = [any(name in c.lower() for name in names) for c in kept]
    named = tuple(c for c, is_one in zip(kept, is_named, strict=True) if is_one)
    others = sorted((c for c in kept if c not in named), key=len, reverse=True)
    return named + tuple(others[: config.num_other_captions]) if named else kept


def _collect(rows: Iterator[Mapping[str, Any]], config: DataConfig, source: str) -> Pictures:
    images, captions, names, styles, groups = [], [], [], [], []
    num_skipped = 0
    for row in rows:
        image = _decode(row, config.image_size_px)
        texts = _captions(row, config)
        if image is None or not texts:
            num_skipped += 1
            continue
        images.append(image)
        captions.append(texts)
        names.append(row.get("name") or "")
        styles.append(row.get("style") or "")
        groups.append(row.get("group") or "")
    if num_skipped:
        logger.warning("skipped %d damaged or captionless rows of %s", num_skipped, source)
    if not images:
        raise ConfigError(f"{source}: no readable picture with a caption")
    return Pictures(
        np.stack(images), tuple(captions), tuple(names), tuple(styles), tuple(groups), num_skipped
    )


def probe_prompts(pictures: Pictures, num: int) -> list[str]:
    """`num` prompts spread over the set, for the sheets that a person looks at."""
    stride = max(1, len(pictures) // num)
    return [texts[-1] for texts in pictures.captions[::stride]][:num]


def to_model_range(images_BHWC: torch.Tensor) -> torch.Tensor:
    """uint8 BHWC in 0..255 to float32 BCHW in [-1, 1]."""
    return images_BHWC.permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def to_uint8(images_BCHW: torch.Tensor) -> NDArray[np.uint8]:
    """Float BCHW in [-1, 1] to uint8 BHWC in 0..255, rounded and clamped."""
    scaled = images_BCHW.float().add(1.0).mul(127.5).round().clamp(0, 255)
    array: NDArray[np.uint8] = scaled.permute(0, 2, 3, 1).to(torch.uint8).cpu().numpy()
    return array
