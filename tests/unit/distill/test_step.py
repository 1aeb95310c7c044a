"""One iteration: who learns in which phase, and from which losses."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from distill_fixtures import tiny_config, tiny_networks, tiny_sample
from torch import nn

from distill.config import StudentConfig
from distill.losses import distillation, hinge_generator
from distill.step import (
    Networks,
    Optimizers,
    denoise_with_student,
    discriminator_phase,
    distill_step,
    generator_phase,
    teacher_target,
)


@pytest.fixture(scope="module")
def built() -> Networks:
    return tiny_networks()


@pytest.fixture
def networks(built: Networks) -> Networks:
    """Networks of a test's own; the features belong to the teacher, so they are copied with it."""
    torch.manual_seed(0)
    return copy.deepcopy(built)


def _optimizers(networks: Networks, grad_clip: float = 1.0) -> Optimizers:
    return Optimizers(
        torch.optim.SGD(networks.student.parameters(), lr=0.1),
        torch.optim.SGD(networks.discriminator.parameters(), lr=0.1),
        grad_clip,
    )


def _weights(module: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters, without the buffers in which spectral norm keeps its singular vectors."""
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def _is_same(before: dict[str, torch.Tensor], module: nn.Module) -> bool:
    return all(torch.equal(before[name], value) for name, value in module.named_parameters())


def _has_gradients(module: nn.Module) -> bool:
    return any(parameter.grad is not None for parameter in module.parameters())


def test_only_student_and_heads_learn(networks: Networks) -> None:
    parts = {
        "student": networks.student,
        "heads": networks.discriminator,
        "teacher": networks.teacher,
        "codec": networks.codec.model,
    }
    before = {name: _weights(module) for name, module in parts.items()}
    metrics = distill_step(
        networks, tiny_config().student, tiny_sample(), _optimizers(networks), bf16=False
    )
    changed = {name for name, module in parts.items() if not _is_same(before[name], module)}
    assert changed == {"student", "heads"}
    assert not _has_gradients(networks.teacher)
    assert not _has_gradients(networks.codec.model)
    assert not any(p.requires_grad for p in networks.teacher.parameters())
    assert metrics["skipped"] == 0.0
    assert all(value == value for value in metrics.values())


def test_the_discriminator_phase_changes_the_heads_only(networks: Networks) -> None:
    config, sample, optimizers = tiny_config().student, tiny_sample(), _optimizers(networks)
    student, heads = _weights(networks.student), _weights(networks.discriminator)
    fake_BChw = denoise_with_student(networks, config, sample)
    level_B, text = torch.tensor([100, 200]), sample.text_embeds_BLD
    real = networks.features(sample.latents_BChw, text, level_B)
    fake = networks.features(fake_BChw, text, level_B)
    discriminator_phase(networks, config, (real, fake), text[:, -1], optimizers.discriminator)
    assert _is_same(student, networks.student)
    assert not _has_gradients(networks.student)
    assert not _is_same(heads, networks.discriminator)


def test_the_generator_phase_leaves_the_heads(networks: Networks) -> None:
    config, sample = tiny_config().student, tiny_sample()
    heads = _weights(networks.discriminator)
    fake_BChw = denoise_with_student(networks, config, sample)
    features = networks.features(fake_BChw, sample.text_embeds_BLD, torch.tensor([100, 200]))
    generator_phase(networks, config, sample, fake_BChw, features)
    assert _has_gradients(networks.student)
    assert not _has_gradients(networks.discriminator)
    assert _is_same(heads, networks.discriminator)
    assert all(p.requires_grad for p in networks.discriminator.parameters())


@pytest.mark.parametrize("space", ["pixel", "latent"])
def test_the_gradient_is_that_of_the_summed_losses(networks: Networks, space: str) -> None:
    config = tiny_config(
        f"student.distill_space={space}",
        "student.lambda_reconstruct=0.5",
        "student.lambda_adversarial=0.7",
        "student.teacher_guidance=2.0",
    ).student
    sample, level_B = tiny_sample(), torch.tensor([100, 200])
    # Heads and random draws stand still, so that both ways compute one function.
    networks.discriminator.eval()

    def forward() -> tuple[torch.Tensor, list[torch.Tensor]]:
        torch.manual_seed(5)
        fake_BChw = denoise_with_student(networks, config, sample)
        return fake_BChw, networks.features(fake_BChw, sample.text_embeds_BLD, level_B)

    fake_BChw, features = forward()
    torch.manual_seed(6)
    generator_phase(networks, config, sample, fake_BChw, features)
    parameters = [p for p in networks.student.parameters() if p.grad is not None]
    shares = [p.grad.clone() for p in parameters if p.grad is not None]

    fake_BChw, features = forward()
    torch.manual_seed(6)
    logits = networks.discriminator(features, sample.text_embeds_BLD[:, -1])
    target_BChw, weight_B = teacher_target(networks, config, sample, fake_BChw.detach())
    student, teacher = fake_BChw, target_BChw
    if space == "pixel":
        student, teacher = networks.codec.decode(student), networks.codec.decode(teacher)
    total = (
        0.7 * hinge_generator(logits)
        + config.lambda_distill * distillation(student, teacher, weight_B)
        + 0.5 * (fake_BChw - sample.latents_BChw).pow(2).mean()
    )
    for mine, whole in zip(shares, torch.autograd.grad(total, parameters), strict=True):
        torch.testing.assert_close(mine, whole, atol=1e-5, rtol=1e-3)


def test_the_adversarial_gradient_is_held_at_its_share(networks: Networks) -> None:
    config = tiny_config(
        "student.adversarial_share=0.25", "student.lambda_adversarial=1000.0"
    ).student
    metrics = distill_step(networks, config, tiny_sample(), _optimizers(networks), bf16=False)
    assert metrics["grad_adversarial"] == pytest.approx(0.25 * metrics["grad_distill"], rel=1e-4)
    assert metrics["grad_distill"] > 0


def test_a_loss_of_weight_zero_is_not_reported(networks: Networks) -> None:
    sample, optimizers = tiny_sample(), _optimizers(networks)
    metrics = distill_step(networks, tiny_config().student, sample, optimizers, bf16=False)
    assert "loss_reconstruct" not in metrics
    assert {"loss_adversarial", "loss_distill", "grad_adversarial", "grad_distill"} <= set(metrics)


def test_the_gradient_is_clipped(networks: Networks) -> None:
    before = _weights(networks.student)
    optimizers = _optimizers(networks, grad_clip=1e-3)
    metrics = distill_step(networks, tiny_config().student, tiny_sample(), optimizers, bf16=False)
    assert metrics["grad_norm"] > 1e-3
    moved = [(p - before[name]).pow(2).sum() for name, p in networks.student.named_parameters()]
    assert torch.stack(moved).sum().sqrt().item() == pytest.approx(0.1 * 1e-3, rel=0.01)


class _Spoiled(nn.Module):
    """A student whose output is not a number."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student

    def forward(self, *inputs: torch.Tensor) -> object:
        output = self.student(*inputs)
        output.sample = output.sample * torch.nan
        return output


def test_a_gradient_that_is_not_finite_skips_the_step(networks: Networks) -> None:
    spoiled = replace(networks, student=_Spoiled(networks.student))
    student, heads = _weights(networks.student), _weights(networks.discriminator)
    optimizers = _optimizers(networks)
    metrics = distill_step(spoiled, tiny_config().student, tiny_sample(), optimizers, bf16=False)
    assert metrics["skipped"] == 1.0
    assert metrics["grad_norm"] == 0.0
    assert _is_same(student, networks.student)
    assert _is_same(heads, networks.discriminator)
    # The next batch finds everything as it was, and learns.
    metrics = distill_step(networks, tiny_config().student, tiny_sample(), optimizers, bf16=False)
    assert metrics["skipped"] == 0.0
    assert not _is_same(student, networks.student)


def test_the_student_sees_its_own_timesteps_only(networks: Networks) -> None:
    seen: list[int] = []

    def note(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.extend(inputs[1].tolist())

    networks.student.register_forward_pre_hook(note)
    config = tiny_config("student.timestep_weights=[1,0,3,0]").student
    for _ in range(10):
        denoise_with_student(networks, config, tiny_sample(4))
    assert set(seen) == {999, 499}


@pytest.mark.parametrize("weight", ["exponential", "none"])
def test_the_target_is_weighed_by_its_signal(networks: Networks, weight: str) -> None:
    config: StudentConfig = tiny_config(
        f"student.distill_weight={weight}", "student.teacher_timesteps=[400,400]"
    ).student
    sample = tiny_sample()
    target_BChw, weight_B = teacher_target(networks, config, sample, sample.latents_BChw)
    expected = networks.diffusion.alphas_T[400].item() if weight == "exponential" else 1.0
    assert weight_B.tolist() == pytest.approx([expected] * 2)
    assert not target_BChw.requires_grad


def test_guidance_moves_the_target_away_from_the_empty_caption(networks: Networks) -> None:
    sample = tiny_sample()

    def target(guidance: float) -> torch.Tensor:
        torch.manual_seed(7)
        config = tiny_config(f"student.teacher_guidance={guidance}").student
        return teacher_target(networks, config, sample, sample.latents_BChw)[0]

    plain, free = target(1.0), target(0.0)
    torch.testing.assert_close(target(3.0), free + 3 * (plain - free), atol=1e-4, rtol=1e-4)
    assert (plain - free).abs().max() > 1e-4


def test_bf16_trains_as_well(networks: Networks) -> None:
    optimizers = _optimizers(networks)
    metrics = distill_step(networks, tiny_config().student, tiny_sample(), optimizers, bf16=True)
    assert metrics["skipped"] == 0.0
    assert all(p.dtype == torch.float32 for p in networks.student.parameters())
