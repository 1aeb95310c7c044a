"""The losses against values worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch.nn.utils.parametrizations import spectral_norm

from distill.losses import distillation, hinge_discriminator, hinge_generator, r1_penalty


def test_the_discriminators_hinge() -> None:
    real = [torch.tensor([[2.0, 0.5]]), torch.tensor([-1.0])]
    fake = [torch.tensor([[-3.0, 0.0]]), torch.tensor([1.0])]
    # First head: (0 + 0.5) / 2 + (0 + 1) / 2 = 0.75; second: 2 + 2 = 4.
    assert hinge_discriminator(real, fake).item() == pytest.approx(4.75)


def test_the_generators_hinge() -> None:
    fake = [torch.tensor([[2.0, 4.0]]), torch.tensor([-1.0])]
    assert hinge_generator(fake).item() == pytest.approx(-2.0)


def test_a_head_too_few_is_an_error() -> None:
    with pytest.raises(ValueError, match="shorter"):
        hinge_discriminator([torch.zeros(1)] * 2, [torch.zeros(1)])


def test_distillation_weighs_each_sample() -> None:
    student = torch.tensor([[1.0, 3.0], [2.0, 2.0]])
    teacher = torch.tensor([[0.0, 1.0], [2.0, 4.0]])
    # (1 + 4) / 2 = 2.5 and (0 + 4) / 2 = 2; weighed (0.5 * 2.5 + 2 * 2) / 2.
    weight_B = torch.tensor([0.5, 2.0])
    assert distillation(student, teacher, weight_B).item() == pytest.approx(2.625)


def test_r1_is_the_squared_gradient() -> None:
    feature = torch.tensor([[[[1.0, -2.0]]], [[[3.0, 0.5]]]], requires_grad=True)
    # d(x^3)/dx = 3 x^2: per sample 9 + 144 and 729 + 0.5625, averaged.
    penalty = r1_penalty([feature**3], [feature])
    assert penalty.item() == pytest.approx((153 + 729.5625) / 2)


def test_r1_sums_over_heads() -> None:
    first = torch.ones((2, 1, 1, 1), requires_grad=True)
    second = torch.ones((2, 3, 1, 1), requires_grad=True)
    penalty = r1_penalty([2 * first, 3 * second], [first, second])
    assert penalty.item() == pytest.approx(4 + 3 * 9)


def test_r1_trains_through_spectral_norm() -> None:
    """For a linear head the penalty is |w|^2 / s^2, whose gradient is known."""
    torch.manual_seed(0)
    head = spectral_norm(torch.nn.Conv2d(3, 1, 1, bias=False), n_power_iterations=20)
    feature = torch.randn((2, 3, 1, 1), requires_grad=True)
    penalty = r1_penalty([head(feature)], [feature])
    # One row: its norm is its only singular value, so the normalised row has length 1 ...
    assert penalty.item() == pytest.approx(1.0, abs=1e-5)
    penalty.backward()
    # ... whatever its scale: the gradient of the scale is nothing, and flows all the same.
    gradient = head.parametrizations.weight.original.grad
    assert gradient is not None
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-5, rtol=0)


def test_r1_reaches_every_weight_by_double_backward() -> None:
    torch.manual_seed(0)
    head = torch.nn.Sequential(
        spectral_norm(torch.nn.Conv2d(3, 4, 1)), torch.nn.Tanh(), torch.nn.Conv2d(4, 1, 1)
    ).double()
    feature = torch.randn((2, 3, 2, 2), dtype=torch.double, requires_grad=True)
    head.eval()  # power iteration stands still, so that the difference quotient is of one function

    def penalty() -> torch.Tensor:
        return r1_penalty([head(feature)], [feature])

    penalty().backward()
    weight = head[0].parametrizations.weight.original
    assert weight.grad is not None
    analytic = weight.grad[1, 2].item()
    with torch.no_grad():
        weight[1, 2] += 1e-6
    above = penalty().item()
    with torch.no_grad():
        weight[1, 2] -= 2e-6
    below = penalty().item()
    assert analytic == pytest.approx((above - below) / 2e-6, rel=1e-4)
    assert abs(analytic) > 1e-4
