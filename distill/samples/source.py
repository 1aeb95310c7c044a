"""Real pictures for a distillation, encoded as they are drawn or read from disk encoded.

Owns the two ways to distil from a set that does not fit in memory. Both address a sample by the
iteration and its place in the batch, and so have no state.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from distill.config import ConfigError
from distill.dataset import (
    Order,
    ShuffledOrder,
    Source,
    WeightedOrder,
    generator_at,
    to_model_range,
)
from distill.draws import Draws
from distill.methods.base import Sample
from distill.networks.conditioning import Conditioning
from distill.samples.fingerprints import fingerprints, first_difference
from distill.samples.precompute import EMPTY_FILE, Index, read_conditioning, shard_path
from distill.teachers.base import Teacher

# Shape suffixes: B batch, C channel, H/W pixels, h/w latent cells, N rows of a shard.

# The encoder's activations for a whole batch would outweigh those of training on its parts.
_NUM_ENCODED_AT_ONCE = 8


def stream_positions(draws: Draws, batch_size: int) -> Sequence[int]:
    """Places in the whole stream of what the draws name by iteration and place in the batch."""
    start = draws.iteration * batch_size
    places = draws.positions
    if isinstance(places, range) and places.step == 1:
        return range(start + places.start, start + places.stop)
    return [start + place for place in places]


class StreamedSamples:
    """Pictures decoded and encoded when they are drawn; the pictures themselves come along."""

    def __init__(self, source: Source, teacher: Teacher, batch_size: int) -> None:
        """Encode the empty prompt.

        Args:
            source: pictures and captions by position.
            teacher: gives the encoders.
            batch_size: samples of one iteration, of all processes together.
        """
        self._source = source
        self._teacher = teacher
        self._batch_size = batch_size
        with torch.no_grad():
            self._empty = teacher.text.encode(teacher.text.tokens([""]))
            probe = self._encode(torch.from_numpy(source.sample(range(1)).images_BHWC))[1]
        self._shape = (probe.shape[1], probe.shape[2], probe.shape[3])

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one picture's latents."""
        return self._shape

    @torch.no_grad()
    def sample(self, draws: Draws) -> Sample:
        """Latents, conditioning and pictures for the draws' positions."""
        batch = self._source.sample(stream_positions(draws, self._batch_size))
        images_BCHW, latents_BChw = self._encode(torch.from_numpy(batch.images_BHWC))
        text = self._teacher.text
        conditioning = text.encode(text.tokens(batch.captions))
        return Sample(latents_BChw, conditioning, self._empty.expand(len(batch)), images_BCHW)

    def _encode(self, images_BHWC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        codec = self._teacher.codec
        images_BCHW = to_model_range(images_BHWC.to(codec.device))
        parts = images_BCHW.split(_NUM_ENCODED_AT_ONCE)
        return images_BCHW, torch.cat([codec.encode(part).float() for part in parts])


class PrecomputedSamples:
    """Latents and text embeddings that `precompute` wrote, read through memory maps."""

    def __init__(
        self, folder: Path, teacher: Teacher, batch_size: int, *, seed: int, num_together: int
    ) -> None:
        """Open the shards.

        Args:
            folder: that `precompute` wrote.
            teacher: must be the one that encoded them.
            batch_size: samples of one iteration, of all processes together.
            seed: of the run.
            num_together: shards shuffled into each other.

        Raises:
            ConfigError: they are missing, unfinished, damaged, or of other encoders.
        """
        index = Index.load(folder)
        is_other = first_difference(index.made_of, fingerprints(None, teacher))
        if is_other:
            raise ConfigError(
                f"{folder} was made with another {is_other}: remove it and run "
                "`onestep-distill precompute`"
            )
        self._batch_size = batch_size
        self._seed = seed
        self._device = teacher.codec.device
        paths = [shard_path(folder, number) for number in range(index.num_shards)]
        try:
            self._shards: list[Any] = [safe_open(path, "pt") for path in paths]
            empty = read_conditioning(safe_open(folder / EMPTY_FILE, "pt"), 0)
        except (OSError, SafetensorError) as error:
            raise ConfigError(
                f"{folder} is unfinished or damaged ({error}): run `onestep-distill precompute` "
                "again, it goes on where it stopped"
            ) from error
        self._empty = empty.to(self._device)
        self._counts = [_entries(shard, "num_captions_N") for shard in self._shards]
        self._first_caption = [counts.cumsum(0) - counts for counts in self._counts]
        sizes = [len(counts) for counts in self._counts]
        if not sum(sizes):
            raise ConfigError(f"{folder} holds no picture: remove it and precompute another set")
        self._first_row = np.cumsum([0, *sizes])
        weights = [_entries(shard, "weights_N") for shard in self._shards]
        self._order: Order = (
            WeightedOrder(torch.cat(weights).numpy(), seed)
            if index.is_weighted
            else ShuffledOrder([size for size in sizes if size], seed, num_together)
        )
        first = next(shard for shard, size in zip(self._shards, sizes, strict=True) if size)
        _, channels, height, width = first.get_slice("latents_NChw").get_shape()
        self.shape: tuple[int, int, int] = (channels, height, width)

    def __len__(self) -> int:
        """Number of pictures."""
        return int(self._first_row[-1])

    def captions(self, num: int) -> list[str]:
        """About `num` captions spread over the pictures."""
        per_shard = max(1, num // len(self._shards))
        found: list[str] = []
        for shard in self._shards:
            texts = json.loads(shard.metadata()["captions"])
            found += texts[:: max(1, len(texts) // per_shard)]
        return found

    def sample(self, draws: Draws) -> Sample:
        """Latents and conditioning for the draws' positions."""
        latents, conditionings = [], []
        for position in stream_positions(draws, self._batch_size):
            row = self._order.row_at(position)
            number = int(np.searchsorted(self._first_row, row, side="right")) - 1
            row -= int(self._first_row[number])
            drawn = generator_at(self._seed, "caption", position)
            caption = int(self._first_caption[number][row])
            caption += int(drawn.integers(int(self._counts[number][row])))
            latents.append(self._shards[number].get_slice("latents_NChw")[row : row + 1])
            conditionings.append(read_conditioning(self._shards[number], caption))
        return Sample(
            torch.cat(latents).to(self._device).float(),
            Conditioning.cat(conditionings).to(self._device),
            self._empty.expand(len(latents)),
        )


def _entries(shard: Any, name: str) -> torch.Tensor:
    """A small tensor of a shard; empty where every row of the shard was damaged."""
    if name in shard.keys():
        tensor: torch.Tensor = shard.get_tensor(name)
        return tensor
    return torch.zeros(0, dtype=torch.int64)
