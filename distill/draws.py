"""Random numbers with an address.

Owns every draw of a distillation. A number is a function of the run's seed, a name, the iteration
and the sample's position in the whole batch, so that the same batch is drawn by one process or
eight, in one pass or in micro-batches, and a resumed run needs no generator's state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from zlib import crc32

import numpy as np
import torch

# Shape suffixes: B samples of this process's part of the batch.


class Draws:
    """The draws of one iteration for some positions of its batch."""

    def __init__(
        self,
        seed: int,
        iteration: int,
        positions: Sequence[int],
        device: torch.device | None = None,
    ) -> None:
        """Name the batch.

        Args:
            seed: of the run.
            iteration: from 0.
            positions: of the samples in the whole batch of all processes.
            device: where the tensors shall lie.
        """
        self.seed = seed
        self.iteration = iteration
        self.positions = positions
        self.device = device or torch.device("cpu")

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.positions)

    def at(self, part: slice) -> Draws:
        """The same draws for some of the samples."""
        return Draws(self.seed, self.iteration, self.positions[part], self.device)

    def normal(self, name: str, shape: Sequence[int] = ()) -> torch.Tensor:
        """Unit Gaussians, float32 (B, *shape)."""
        return self._stack(
            name, lambda generator: generator.standard_normal(tuple(shape), dtype=np.float32)
        )

    def uniform(self, name: str, shape: Sequence[int] = ()) -> torch.Tensor:
        """Numbers in [0, 1), float32 (B, *shape)."""
        return self._stack(name, lambda generator: generator.random(tuple(shape), dtype=np.float32))

    def integers(self, name: str, low: int, high: int) -> torch.Tensor:
        """Integers in low..high, both included, int64 (B,)."""
        return self._stack(name, lambda generator: generator.integers(low, high + 1))

    def choice(self, name: str, weights: Sequence[float]) -> torch.Tensor:
        """Indices drawn in proportion to `weights`, int64 (B,)."""
        edges = np.cumsum(np.asarray(weights, dtype=np.float64))
        # The last edge may be a rounding below 1; a weight of 0 at the end must stay unreachable.
        last = int(np.flatnonzero(np.asarray(weights))[-1])
        return self._stack(
            name,
            lambda generator: min(
                int(np.searchsorted(edges, generator.random() * edges[-1], side="right")), last
            ),
        )

    def _stack(self, name: str, draw: Callable[[np.random.Generator], Any]) -> torch.Tensor:
        high = (self.seed & 0xFFFFFFFF) << 32 | crc32(name.encode())
        rows = []
        for position in self.positions:
            low = self.iteration << 32 | position
            key = np.array([high, low], dtype=np.uint64)
            rows.append(draw(np.random.Generator(np.random.Philox(key=key))))
        return torch.from_numpy(np.asarray(rows)).to(self.device)
