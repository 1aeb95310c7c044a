"""A step on a clipped gradient, and none on a broken one."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from distill.training.clipping import clipped_step


def _model() -> tuple[nn.Parameter, torch.optim.Optimizer]:
    weight = nn.Parameter(torch.tensor([1.0, 1.0]))
    return weight, torch.optim.SGD([weight], lr=1.0)


def test_a_long_gradient_is_shortened() -> None:
    weight, optimizer = _model()
    weight.grad = torch.tensor([3.0, 4.0])
    assert clipped_step(optimizer, [weight], 1.0) == {"grad_norm": 5.0, "skipped": 0.0}
    assert weight.tolist() == pytest.approx([1 - 0.6, 1 - 0.8], rel=1e-4)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_broken_gradient_is_skipped(broken: float) -> None:
    weight, optimizer = _model()
    weight.grad = torch.tensor([1.0, broken])
    assert clipped_step(optimizer, [weight], 1.0) == {"grad_norm": 0.0, "skipped": 1.0}
    assert weight.tolist() == [1.0, 1.0]
