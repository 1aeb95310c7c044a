"""Random numbers with an address: the same wherever and whenever they are drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distill.draws import Draws


def test_a_part_of_the_batch_draws_what_the_whole_drew() -> None:
    whole = Draws(7, 3, range(6))
    part = Draws(7, 3, [4, 5])
    torch.testing.assert_close(whole.normal("noise", (2, 3))[4:], part.normal("noise", (2, 3)))
    torch.testing.assert_close(whole.uniform("u")[4:], part.uniform("u"))
    assert whole.at(slice(4, 6)).integers("i", 0, 99).tolist() == part.integers("i", 0, 99).tolist()
    assert whole.choice("c", [1, 2, 3])[4:].tolist() == part.choice("c", [1, 2, 3]).tolist()


@pytest.mark.parametrize(
    "other",
    [
        Draws(8, 3, range(4)).normal("noise", (5,)),
        Draws(7, 4, range(4)).normal("noise", (5,)),
        Draws(7, 3, range(4, 8)).normal("noise", (5,)),
        Draws(7, 3, range(4)).normal("other", (5,)),
    ],
)
def test_every_part_of_the_address_counts(other: torch.Tensor) -> None:
    drawn = Draws(7, 3, range(4)).normal("noise", (5,))
    assert (drawn != other).all()
    assert len(torch.unique(drawn)) == 20


def test_the_distributions_are_what_they_say() -> None:
    many = Draws(0, 0, range(4000))
    normal = many.normal("n")
    assert abs(normal.mean().item()) < 0.05 and abs(normal.std().item() - 1) < 0.05
    uniform = many.uniform("u")
    assert 0 <= uniform.min() and uniform.max() < 1 and abs(uniform.mean().item() - 0.5) < 0.03
    integers = many.integers("i", 3, 5)
    assert integers.dtype == torch.int64
    assert np.unique(integers.numpy()).tolist() == [3, 4, 5]
    counts = torch.bincount(many.choice("c", [0.0, 3.0, 1.0, 0.0]), minlength=4)
    assert counts[0] == counts[3] == 0
    assert counts[1].item() / 4000 == pytest.approx(0.75, abs=0.03)


def test_a_seed_of_any_size_is_taken() -> None:
    assert Draws(2**40 + 1, 2**20, range(2)).normal("n").isfinite().all()
