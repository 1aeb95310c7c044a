"""Samples by their position in one endless stream.

Owns what a position shows: which picture, which of its captions, whether recoloured. All of it is
a function of the run's seed and the position, so there is no state to save. Knows nothing of
models or devices.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from distill.config import ConfigError, DataConfig
from distill.dataset.order import Order, ShuffledOrder, Slices, WeightedOrder, generator_at
from distill.dataset.pictures import Pictures
from distill.dataset.recolour import recoloured
from distill.dataset.rows import DamagedRow, Row, Rows, captions_of, decode_row

logger = logging.getLogger(__name__)

# Shape suffixes: B batch, N rows, H/W pixels, C channel.

_MAX_REDRAWS = 200
_MAX_LOGGED = 5


@dataclass(frozen=True)
class ImageBatch:
    """B pictures, uint8 RGB, and one caption of each."""

    images_BHWC: NDArray[np.uint8]
    captions: tuple[str, ...]

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.captions)


class Source(Protocol):
    """Where samples come from.

    Attributes:
        fingerprint: differs where the rows differ.
        weights_N: how often each row is drawn, in proportion; None for once per epoch.
    """

    fingerprint: str
    weights_N: NDArray[np.float64] | None

    def __len__(self) -> int:
        """Number of rows, readable or not."""
        ...

    def sample(self, positions: Sequence[int]) -> ImageBatch:
        """What the stream shows at these positions."""
        ...

    def row(self, index: int) -> Row | None:
        """One row in the order of the rows, or None where it is damaged."""
        ...

    def captions(self, num: int) -> list[str]:
        """About `num` captions spread over the rows, all where there are fewer."""
        ...


class PictureSource:
    """Pictures in memory."""

    def __init__(self, pictures: Pictures, seed: int) -> None:
        """Weigh the pictures as they ask, or show each once per epoch."""
        self.pictures = pictures
        self.weights_N = pictures.weights_N
        self._seed = seed
        if self.weights_N is not None and np.ptp(self.weights_N) == 0:
            self.weights_N = None
        self._order: Order = (
            ShuffledOrder([len(pictures)], seed, 1)
            if self.weights_N is None
            else WeightedOrder(self.weights_N, seed)
        )
        known = sha256(pictures.images_NHWC.tobytes())
        known.update(json.dumps(pictures.captions).encode())
        if self.weights_N is not None:
            known.update(self.weights_N.tobytes())
        self.fingerprint = known.hexdigest()

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.pictures)

    def sample(self, positions: Sequence[int]) -> ImageBatch:
        """What the stream shows at these positions."""
        pictures = self.pictures
        rows = [self._order.row_at(position) for position in positions]
        captions = tuple(
            chosen_caption(pictures.captions[row], self._seed, position)
            for row, position in zip(rows, positions, strict=True)
        )
        return ImageBatch(pictures.images_NHWC[rows], captions)

    def row(self, index: int) -> Row:
        """One picture."""
        return self.pictures.row(index)

    def captions(self, num: int) -> list[str]:
        """About `num` captions spread over the pictures."""
        stride = max(1, len(self) // num)
        return [text for texts in self.pictures.captions[::stride] for text in texts]


class StreamSource:
    """Pictures decoded from their files as they are asked for.

    A row that cannot be read gives way to another one drawn at random, so that one damaged row
    moves no other from its position.
    """

    def __init__(self, rows: Rows, config: DataConfig, seed: int) -> None:
        """Describe the stream.

        Raises:
            ConfigError: there is no row, or the config asks for what needs all rows at once.
        """
        if config.styles or config.concepts:
            raise ConfigError(
                'data.styles and data.concepts choose among pictures in memory: set data.access="'
                'memory", or write a set of the chosen ones'
            )
        if not len(rows):
            raise ConfigError(f"{rows.label}: no row in any file that can be read")
        self.fingerprint = sha256(f"{rows.fingerprint} {config}".encode()).hexdigest()
        self.weights_N: NDArray[np.float64] | None = None
        self.num_skipped = 0
        self._rows = rows
        self._config = config
        self._seed = seed
        self._order = ShuffledOrder(rows.block_sizes, seed, config.shuffle_blocks)
        self._threads = ThreadPoolExecutor(config.num_read_threads, "read")
        self._damaged: set[int] = set()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Number of rows, readable or not."""
        return len(self._rows)

    def sample(self, positions: Sequence[int]) -> ImageBatch:
        """What the stream shows at these positions.

        Raises:
            ConfigError: hardly any row can be read.
        """
        drawn = list(self._threads.map(self._sample_at, positions))
        return ImageBatch(np.stack([image for image, _ in drawn]), tuple(text for _, text in drawn))

    def row(self, index: int) -> Row | None:
        """One row in the order of the files, or None where it is damaged."""
        try:
            return decode_row(self._rows.read(index), self._config)
        except DamagedRow as error:
            self._report(index, error)
            return None

    def captions(self, num: int) -> list[str]:
        """About `num` captions spread over the rows."""
        stride = max(1, len(self) // num)
        found: list[str] = []
        for index in range(0, len(self), stride):
            try:
                found += captions_of(self._rows.read(index, with_image=False), self._config)
            except DamagedRow as error:
                self._report(index, error)
        return found

    def _sample_at(self, position: int) -> tuple[NDArray[np.uint8], str]:
        index = self._order.row_at(position)
        for attempt in range(_MAX_REDRAWS):
            row = self.row(index)
            if row is not None and self._is_kept(row, position, attempt):
                return self._shown(row, position)
            redraw = generator_at(self._seed, "instead", position, attempt)
            index = int(redraw.integers(len(self)))
        raise ConfigError(
            f"{self._rows.label}: {_MAX_REDRAWS} rows drawn in turn, none of which can be used"
        )

    def _is_kept(self, row: Row, position: int, attempt: int) -> bool:
        """A row of a rare group gives way as often as its weight is smaller than the others'."""
        weight = self._config.rare_group_weight
        is_rare = row.group in self._config.rare_groups
        share = (weight if is_rare else 1.0) / max(1.0, weight)
        return share >= 1 or generator_at(self._seed, "kept", position, attempt).random() < share

    def _shown(self, row: Row, position: int) -> tuple[NDArray[np.uint8], str]:
        config = self._config
        if config.recoloured_share and row.name and row.group not in config.rare_groups:
            is_due = generator_at(self._seed, "recoloured", position).random()
            other = recoloured(row.image_HWC, row.name, row.style, salt=0)
            if is_due < config.recoloured_share and other is not None:
                return other[0], chosen_caption(other[1], self._seed, position)
        return row.image_HWC, chosen_caption(row.captions, self._seed, position)

    def _report(self, index: int, error: DamagedRow) -> None:
        with self._lock:
            is_new = index not in self._damaged
            self._damaged.add(index)
            self.num_skipped = len(self._damaged)
        if is_new and self.num_skipped <= _MAX_LOGGED:
            logger.warning("%s: replacing %s: %s", self._rows.label, self._rows.where(index), error)


class Prefetched:
    """A source whose next batches are made ready while the present one is trained on."""

    def __init__(self, source: Source, slices: Slices, num_ahead: int = 2) -> None:
        """Read ahead.

        Args:
            source: where samples come from.
            slices: tells which positions this process asks for next.
            num_ahead: batches kept ready.
        """
        self.fingerprint, self.weights_N = source.fingerprint, source.weights_N
        self._source = source
        self._slices = slices
        self._num_ahead = num_ahead
        self._pending: dict[range, Future[ImageBatch]] = {}
        self._thread = ThreadPoolExecutor(1, "prefetch")

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._source)

    def sample(self, positions: Sequence[int]) -> ImageBatch:
        """What the stream shows at these positions; those of `slices` are ready beforehand."""
        if not isinstance(positions, range):
            return self._source.sample(positions)
        wanted = [positions]
        while len(wanted) <= self._num_ahead:
            wanted.append(self._slices.following(wanted[-1]))
        for stale in self._pending.keys() - set(wanted):
            self._pending.pop(stale).cancel()
        for part in wanted:
            if part not in self._pending:
                self._pending[part] = self._thread.submit(self._source.sample, part)
        return self._pending.pop(positions).result()

    def row(self, index: int) -> Row | None:
        """One row in the order of the rows."""
        return self._source.row(index)

    def captions(self, num: int) -> list[str]:
        """About `num` captions spread over the rows."""
        return self._source.captions(num)

    def close(self) -> None:
        """Drop what was read ahead."""
        self._thread.shutdown(cancel_futures=True)


def chosen_caption(captions: Sequence[str], seed: int, position: int) -> str:
    """The caption that the sample at a position carries."""
    return captions[int(generator_at(seed, "caption", position).integers(len(captions)))]
