"""The measurement of what heads can see: chance on equals, certainty on different pictures."""

from __future__ import annotations

import torch

from tests.bench.what_heads_see import pooled, told_apart


def test_equals_are_a_guess_and_differences_are_found() -> None:
    generator = torch.Generator().manual_seed(0)
    real, same = (torch.randn(400, 6, generator=generator) for _ in range(2))
    shifted = torch.randn(400, 6, generator=generator)
    shifted[:, 2] += 4
    assert abs(told_apart(real, same).mean().item() - 0.5) < 0.06
    assert told_apart(real, shifted).mean().item() > 0.95


def test_pooling_keeps_mean_and_deviation_of_each_channel() -> None:
    feature = torch.tensor([[[[1.0, 3.0]], [[2.0, 2.0]]]])
    torch.testing.assert_close(pooled(feature), torch.tensor([[2.0, 2.0, 2.0**0.5, 0.0]]))
