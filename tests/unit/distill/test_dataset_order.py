"""Which row a position of the stream shows."""

from __future__ import annotations

import numpy as np
import pytest

from distill.config import ConfigError
from distill.dataset import ShuffledOrder, Slices, WeightedOrder

SIZES = [5, 7, 1, 4, 6, 2, 3]
NUM = sum(SIZES)


def _epoch(order: ShuffledOrder, epoch: int) -> list[int]:
    return [order.row_at(epoch * NUM + place) for place in range(NUM)]


@pytest.mark.parametrize("num_together", [1, 3, 100])
def test_every_row_comes_once_per_epoch(num_together: int) -> None:
    order = ShuffledOrder(SIZES, seed=3, num_together=num_together)
    first, second = _epoch(order, 0), _epoch(order, 1)
    assert sorted(first) == sorted(second) == list(range(NUM))
    assert first != second
    assert first != sorted(first)


def test_the_order_follows_from_the_seed_alone() -> None:
    order = ShuffledOrder(SIZES, seed=3, num_together=2)
    straight = [order.row_at(position) for position in range(3 * NUM)]
    anew = ShuffledOrder(SIZES, seed=3, num_together=2)
    backwards = [anew.row_at(position) for position in reversed(range(3 * NUM))]
    assert backwards == straight[::-1]
    other = ShuffledOrder(SIZES, seed=4, num_together=2)
    assert _epoch(other, 0) != straight[:NUM]


def test_few_blocks_are_open_at_a_time() -> None:
    block_of = np.repeat(np.arange(100), 10)
    rows = [ShuffledOrder([10] * 100, 0, 4).row_at(place) for place in range(1000)]
    blocks = block_of[rows]
    for start in range(0, 1000, 40):
        window = blocks[start : start + 40]
        assert len(set(window)) == 4
        assert len(set(window[:20])) > 2  # mixed, not one after the other
    starts = [int(blocks[start : start + 40].min()) for start in range(0, 1000, 40)]
    assert starts != sorted(starts)


def test_weights_are_the_frequencies() -> None:
    weights_N = np.array([0.0, 1.0, 3.0, 0.0])
    order = WeightedOrder(weights_N, seed=0)
    counts = np.bincount([order.row_at(position) for position in range(4000)], minlength=4)
    assert counts[0] == counts[3] == 0
    # Three standard deviations of a binomial of 4000 draws.
    assert abs(counts[2] / 4000 - 0.75) < 3 * (0.75 * 0.25 / 4000) ** 0.5
    assert [order.row_at(p) for p in (9, 5)] == [
        WeightedOrder(weights_N, seed=0).row_at(p) for p in (9, 5)
    ]


def test_processes_and_micro_batches_share_the_stream_without_overlap() -> None:
    for iteration in (0, 5):
        taken = [
            position
            for rank in range(3)
            for micro_batch in range(2)
            for position in Slices(24, rank, 3, 2).at(iteration, micro_batch)
        ]
        assert (
            taken
            == list(Slices(24).at(iteration))
            == list(range(iteration * 24, (iteration + 1) * 24))
        )


def test_what_follows_is_what_is_asked_for_next() -> None:
    slices = Slices(24, rank=1, num_ranks=3, num_micro_batches=2)
    asked = [slices.at(iteration, k) for iteration in (7, 8) for k in range(2)]
    assert [slices.following(part) for part in asked[:-1]] == asked[1:]


def test_a_batch_that_cannot_be_split_is_refused() -> None:
    with pytest.raises(ConfigError, match="batch_size 10 does not divide by 2 processes times 4"):
        Slices(10, num_ranks=2, num_micro_batches=4)
