"""In which order an endless stream of samples visits the rows.

Owns the map from a sample's position to a row: a pure function of the seed, so that a training is
resumed from its iteration number alone, and any number of processes take disjoint positions of one
and the same stream. Knows nothing of what the rows hold.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from distill.config import ConfigError
from distill.dataset.recent import Recent


class Order(Protocol):
    """Position to row."""

    def row_at(self, position: int) -> int:
        """Index of the row that the sample at `position` shows."""
        ...


class ShuffledOrder:
    """Every row once per epoch; blocks in random order, their rows shuffled a few blocks together.

    With one block it is a plain shuffle. With more, only `num_together` blocks are visited at a
    time, and each is read once per epoch.
    """

    def __init__(self, block_sizes: Sequence[int], seed: int, num_together: int) -> None:
        """Describe the rows.

        Args:
            block_sizes: rows in each block, in the order of the rows.
            seed: of the run.
            num_together: blocks shuffled into each other.
        """
        self.num_rows = sum(block_sizes)
        self._sizes = np.asarray(block_sizes, dtype=np.int64)
        self._first = np.cumsum(self._sizes) - self._sizes
        self._seed = seed
        self._num_together = max(1, num_together)
        self._epochs = Recent(self._blocks_of, 2)
        self._windows = Recent(self._rows_of, 4)

    def row_at(self, position: int) -> int:
        """Index of the row that the sample at `position` shows."""
        epoch, place = divmod(position, self.num_rows)
        _, first = self._epochs.get(epoch)
        window = int(np.searchsorted(first, place, side="right")) - 1
        return int(self._windows.get((epoch, window))[place - int(first[window])])

    def _blocks_of(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The epoch's order of blocks, and the place at which each window begins."""
        blocks = generator_at(self._seed, "blocks", epoch).permutation(len(self._sizes))
        starts = np.arange(0, len(blocks), self._num_together)
        sizes = np.add.reduceat(self._sizes[blocks], starts)
        return blocks, np.cumsum(sizes) - sizes

    def _rows_of(self, key: tuple[int, int]) -> NDArray[np.int64]:
        epoch, window = key
        blocks, _ = self._epochs.get(epoch)
        chosen = blocks[window * self._num_together : (window + 1) * self._num_together]
        rows = np.concatenate([np.arange(self._sizes[b]) + self._first[b] for b in chosen])
        return generator_at(self._seed, "rows", epoch, window).permutation(rows)


class WeightedOrder:
    """Every position draws a row anew, each as often as its weight says."""

    def __init__(self, weights_N: NDArray[np.float64], seed: int) -> None:
        """Weigh the rows."""
        self._edges = np.cumsum(weights_N)
        self._last = int(np.flatnonzero(weights_N)[-1])
        self._seed = seed

    def row_at(self, position: int) -> int:
        """Index of the row that the sample at `position` shows."""
        drawn = generator_at(self._seed, "row", position).random() * self._edges[-1]
        # The last edge may be a rounding below the sum of the weights.
        return min(int(np.searchsorted(self._edges, drawn, side="right")), self._last)


@dataclass(frozen=True)
class Slices:
    """Which positions one process takes in which iteration and micro-batch.

    Attributes:
        batch_size: samples of one iteration, of all processes together.
        rank: this process.
        num_ranks: processes.
        num_micro_batches: passes into which each process splits its part.
    """

    batch_size: int
    rank: int = 0
    num_ranks: int = 1
    num_micro_batches: int = 1

    def __post_init__(self) -> None:
        """Refuse a batch that cannot be split evenly."""
        if self.batch_size % (self.num_ranks * self.num_micro_batches):
            raise ConfigError(
                f"batch_size {self.batch_size} does not divide by {self.num_ranks} processes "
                f"times {self.num_micro_batches} micro-batches"
            )

    @property
    def size(self) -> int:
        """Samples of one micro-batch of one process."""
        return self.batch_size // (self.num_ranks * self.num_micro_batches)

    def at(self, iteration: int, micro_batch: int = 0) -> range:
        """Positions in the stream; the processes' parts of one iteration lie side by side."""
        part = self.rank * self.num_micro_batches + micro_batch
        start = iteration * self.batch_size + part * self.size
        return range(start, start + self.size)

    def following(self, positions: range) -> range:
        """What this process asks for after `positions`."""
        iteration, offset = divmod(positions.start, self.batch_size)
        micro_batch = offset // self.size - self.rank * self.num_micro_batches + 1
        if micro_batch == self.num_micro_batches:
            return self.at(iteration + 1)
        return self.at(iteration, micro_batch)


def generator_at(seed: int, name: str, *address: int) -> np.random.Generator:
    """A generator for one named draw at an address of up to three numbers."""
    key = np.array([seed & 0xFFFFFFFFFFFFFFFF, crc32(name.encode())], dtype=np.uint64)
    padded = itertools.islice(itertools.chain(address, itertools.repeat(0)), 3)
    counter = np.array([0, *padded], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))
