"""The losses against values worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch.nn.utils.parametrizations import spectral_norm

from distill.methods.losses import (
    distillation,
    distillation_weight,
    hinge_discriminator,
    hinge_generator,
    noise_free_residual,
    r1_penalty,
)
from distill.networks.discriminator import Head


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


def _levels(num: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    angle = torch.linspace(0.2, 1.3, num, dtype=torch.double)
    return angle.cos(), angle.sin()


def test_the_weights_by_hand() -> None:
    alpha_B, sigma_B = torch.tensor([0.8, 0.6]), torch.tensor([0.6, 0.8])
    assert distillation_weight("none", alpha_B, sigma_B).tolist() == [1.0, 1.0]
    assert distillation_weight("exponential", alpha_B, sigma_B).tolist() == alpha_B.tolist()
    for kind in ("sds", "nfsd"):
        weights = distillation_weight(kind, alpha_B, sigma_B).tolist()
        assert weights == pytest.approx([0.24, 0.24])


def test_the_sds_weight_gives_the_gradient_of_score_distillation() -> None:
    """Source: arXiv:2311.17042, appendix A: w(t) (eps_teacher - eps), here with w = sigma^2."""
    generator = torch.Generator().manual_seed(0)
    alpha_B, sigma_B = _levels()
    made, noise, eps = (
        torch.randn((4, 2, 3, 3), dtype=torch.double, generator=generator) for _ in range(3)
    )
    made.requires_grad_()
    alpha, sigma = alpha_B.view(-1, 1, 1, 1), sigma_B.view(-1, 1, 1, 1)
    noisy = (alpha * made + sigma * noise).detach()
    target = (noisy - sigma * eps) / alpha
    loss = distillation(made, target, distillation_weight("sds", alpha_B, sigma_B))
    (gradient,) = torch.autograd.grad(loss, made)
    expected = sigma**2 * (eps - noise) / (4 * 2 * 3 * 3)  # the mean's reduction
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)


def test_distillation_passes_a_check_of_its_gradient_and_spares_the_teacher() -> None:
    generator = torch.Generator().manual_seed(1)
    student = torch.randn((3, 2, 2), dtype=torch.double, generator=generator, requires_grad=True)
    teacher = torch.randn((3, 2, 2), dtype=torch.double, generator=generator)
    weight_B = torch.tensor([0.1, 1.0, 2.0], dtype=torch.double)
    assert torch.autograd.gradcheck(lambda x: distillation(x, teacher, weight_B), student)


def test_r1_passes_a_check_of_first_and_second_gradients() -> None:
    """Through the heads that are trained, in double precision."""
    torch.manual_seed(0)
    head = Head(3, 2, 8).double().eval()
    condition = torch.randn((2, 2), dtype=torch.double)
    feature = torch.randn((2, 3, 2, 2), dtype=torch.double, requires_grad=True)

    def penalty(x: torch.Tensor) -> torch.Tensor:
        return r1_penalty([head(x, condition)], [x])

    assert torch.autograd.gradcheck(penalty, feature)
    weight = head.reduce.parametrizations.weight.original
    kept = weight.detach().clone()

    def of_weight(w: torch.Tensor) -> torch.Tensor:
        return r1_penalty(
            [
                torch.func.functional_call(
                    head, {"reduce.parametrizations.weight.original": w}, (feature, condition)
                )
            ],
            [feature],
        )

    assert torch.autograd.gradcheck(of_weight, kept.requires_grad_())


def test_the_noise_free_residual_by_hand() -> None:
    cond, empty, negative = (torch.full((2, 1, 1, 1), value) for value in (3.0, 1.0, 0.25))
    residual = noise_free_residual(cond, empty, negative, torch.tensor([199, 200]), 7.5)
    # Near: 1 + 7.5 * 2; further: (1 - 0.25) + 7.5 * 2.
    assert residual.flatten().tolist() == [16.0, 15.75]
