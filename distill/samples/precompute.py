"""Latents and text embeddings of a whole set, encoded once and kept in shards.

Owns the files of the folder: `index.json` (what made it, how many shards), `empty.safetensors`
(the empty prompt) and one safetensors file per run of rows. Each is written whole or not at all,
so that a run that was killed, or met a full disk, goes on with the next shard.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from distill.config import ConfigError
from distill.dataset import Row, Source, to_model_range
from distill.networks.conditioning import Conditioning
from distill.samples.fingerprints import fingerprints, first_difference
from distill.samples.synthetic import Drawing
from distill.teachers.base import Teacher
from distill.training.checkpoint import CheckpointError

logger = logging.getLogger(__name__)

# Shape suffixes: N readable rows of a shard, M their captions, C channel, h/w latent cells,
# L tokens, D width, S entries of the time ids.

INDEX_FILE, EMPTY_FILE = "index.json", "empty.safetensors"
_ENCODE_ROWS = 32


@dataclass(frozen=True)
class Index:
    """What a folder of shards holds.

    Attributes:
        made_of: fingerprints of source, autoencoder and text encoder; and of the drawing, where
            the teacher drew the pictures.
        num_rows: of the source, readable or not.
        rows_per_shard: rows of the source in all shards but the last.
        dtype: of the tensors on disk.
        is_weighted: rows are drawn by their weights instead of once per epoch.
    """

    made_of: dict[str, str]
    num_rows: int
    rows_per_shard: int
    dtype: str
    is_weighted: bool

    @property
    def num_shards(self) -> int:
        """Files of the whole set."""
        return -(-self.num_rows // self.rows_per_shard)

    @classmethod
    def load(cls, folder: Path) -> Index:
        """Read `folder`/index.json.

        Raises:
            ConfigError: it is missing or damaged.
        """
        try:
            return cls(**json.loads((folder / INDEX_FILE).read_text()))
        except FileNotFoundError as error:
            raise ConfigError(
                f"nothing precomputed in {folder}: run `onestep-distill precompute` first"
            ) from error
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"{folder / INDEX_FILE} is damaged: remove {folder}") from error

    def save(self, folder: Path) -> None:
        """Write `folder`/index.json whole or not at all."""
        partial = folder / (INDEX_FILE + ".partial")
        partial.write_text(json.dumps(asdict(self), indent=2))
        partial.replace(folder / INDEX_FILE)


def shard_path(folder: Path, number: int) -> Path:
    """Where a shard lies."""
    return folder / f"{number:06d}.safetensors"


def precompute(
    source: Source,
    teacher: Teacher,
    folder: Path,
    *,
    dtype: str,
    rows_per_shard: int,
    drawing: Drawing | None = None,
) -> int:
    """Encode what is not yet encoded.

    Args:
        source: pictures and captions; every caption is encoded.
        teacher: gives the encoders.
        folder: where the shards go.
        dtype: of the tensors on disk, "float16", "bfloat16" or "float32".
        rows_per_shard: rows of one file.
        drawing: how the teacher draws a picture for every caption; None encodes the source's.

    Returns:
        Number of shards that this call wrote.

    Raises:
        ConfigError: the folder holds what other encoders or another source made.
        CheckpointError: the disk is full; the shards before stay.
    """
    made_of = fingerprints(source, teacher)
    if drawing is not None:
        made_of["drawing by the teacher"] = drawing.fingerprint(teacher)
    index = Index(made_of, len(source), rows_per_shard, dtype, source.weights_N is not None)
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / INDEX_FILE).exists():
        before = Index.load(folder)
        other = first_difference(before.made_of, made_of)
        other = other or first_difference(made_of, before.made_of)
        if other is None and before != index:
            other = "dtype or number of rows per shard"
        if other:
            raise ConfigError(f"{folder} was made with another {other}: remove it, or give --out")
    missing = [n for n in range(index.num_shards) if not _is_whole(shard_path(folder, n))]
    try:
        index.save(folder)
        with torch.no_grad():
            empty = teacher.text.encode(teacher.text.tokens([""]))
        _write(folder / EMPTY_FILE, _on_disk(empty, index.dtype), {})
        for number in tqdm(missing, desc="precompute"):
            _write_shard(source, teacher, index, folder, number, drawing)
            if number == missing[0]:
                _refuse_too_much(folder, shard_path(folder, number), len(missing) - 1)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"cannot write to {folder} ({error}): make room and run precompute again, "
            "it goes on where it stopped"
        ) from error
    return len(missing)


def _write_shard(
    source: Source,
    teacher: Teacher,
    index: Index,
    folder: Path,
    number: int,
    drawing: Drawing | None,
) -> None:
    start = number * index.rows_per_shard
    found: list[tuple[int, Row]] = []
    for i in range(start, min(start + index.rows_per_shard, index.num_rows)):
        row = source.row(i)
        if row is not None:
            found.append((i, row))
    captions = [text for _, row in found for text in row.captions]
    tensors: dict[str, torch.Tensor] = {}
    if found:
        counts_N = torch.tensor([len(row.captions) for _, row in found])
        weights = None if source.weights_N is None else source.weights_N[[i for i, _ in found]]
        weights_N = None if weights is None else torch.from_numpy(weights)
        if drawing is None:
            latents_NChw = _encoded([row for _, row in found], teacher)
        else:  # a row of its own for every caption; the captions of one share its weight
            latents_NChw = _drawn(found, teacher, drawing)
            if weights_N is not None:
                weights_N = (weights_N / counts_N).repeat_interleave(counts_N)
            counts_N = torch.ones(len(captions), dtype=torch.int64)
        tensors = {
            "latents_NChw": latents_NChw.to(getattr(torch, index.dtype)).contiguous(),
            "num_captions_N": counts_N,
            **_on_disk(_read(captions, teacher), index.dtype),
        }
        if weights_N is not None:
            tensors["weights_N"] = weights_N
    _write(shard_path(folder, number), tensors, {"captions": json.dumps(captions)})


@torch.no_grad()
def _encoded(rows: list[Row], teacher: Teacher) -> torch.Tensor:
    codec, latents = teacher.codec, []
    for start in range(0, len(rows), _ENCODE_ROWS):
        images_BHWC = np.stack([row.image_HWC for row in rows[start : start + _ENCODE_ROWS]])
        images_BCHW = to_model_range(torch.from_numpy(images_BHWC).to(codec.device))
        latents.append(codec.encode(images_BCHW).cpu())
    return torch.cat(latents)


def _drawn(found: list[tuple[int, Row]], teacher: Teacher, drawing: Drawing) -> torch.Tensor:
    height, width, _ = found[0][1].image_HWC.shape
    cells = teacher.codec.downscale
    shape = (teacher.codec.latent_channels, height // cells, width // cells)
    captions = [text for _, row in found for text in row.captions]
    places = [(i, k) for i, row in found for k in range(len(row.captions))]
    return drawing.latents(teacher, captions, places, shape)


@torch.no_grad()
def _read(captions: list[str], teacher: Teacher) -> Conditioning:
    text, embeds = teacher.text, []
    for start in range(0, len(captions), _ENCODE_ROWS):
        embeds.append(text.encode(text.tokens(captions[start : start + _ENCODE_ROWS])).to("cpu"))
    return Conditioning.cat(embeds)


def _on_disk(conditioning: Conditioning, dtype: str) -> dict[str, torch.Tensor]:
    kind = getattr(torch, dtype)
    tensors = {
        "text_embeds_MLD": conditioning.text_embeds_BLD.to("cpu", kind),
        "pooled_MD": conditioning.pooled_BD.to("cpu", kind),
    }
    if conditioning.time_ids_BS is not None:  # sizes in pixels, which half precision would round
        tensors["time_ids_MS"] = conditioning.time_ids_BS.to("cpu", torch.float32)
    # A view of a larger tensor would be refused.
    return {name: tensor.clone().contiguous() for name, tensor in tensors.items()}


def read_conditioning(shard: Any, caption: int) -> Conditioning:
    """One caption's row of an open shard, float32."""
    rows = slice(caption, caption + 1)
    has_ids = "time_ids_MS" in shard.keys()
    return Conditioning(
        shard.get_slice("text_embeds_MLD")[rows].float(),
        shard.get_slice("pooled_MD")[rows].float(),
        shard.get_slice("time_ids_MS")[rows] if has_ids else None,
    )


def _write(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> None:
    partial = path.with_name(path.name + ".partial")
    try:
        save_file(dict(tensors), partial, metadata=metadata)
        with partial.open("rb") as stream:
            os.fsync(stream.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _is_whole(path: Path) -> bool:
    try:
        with safe_open(path, "pt"):  # checks the header against the file's length
            return True
    except (OSError, SafetensorError):
        return False


def _refuse_too_much(folder: Path, first: Path, num_more: int) -> None:
    needed_bytes, free_bytes = first.stat().st_size * num_more, shutil.disk_usage(folder).free
    if needed_bytes > free_bytes:
        raise OSError(
            f"about {needed_bytes / 1e9:.1f} GB more are needed, {free_bytes / 1e9:.1f} GB are free"
        )
