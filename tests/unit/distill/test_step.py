"""One iteration: who learns in which phase, from which losses, and how a batch is split."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from distill_fixtures import (
    tiny_conditioning,
    tiny_config,
    tiny_draws,
    tiny_frozen,
    tiny_sample,
    tiny_unet,
)
from torch import nn

from distill.config import StudentConfig
from distill.methods.base import Fake, Frozen
from distill.methods.losses import distillation, hinge_generator
from distill.methods.registry import build_method
from distill.networks.conditioning import guided, predict
from distill.step import Batch, DistillStep, Trained, run_student


@pytest.fixture(scope="module")
def frozen() -> Frozen:
    return tiny_frozen()


def _step(frozen: Frozen, config: StudentConfig, micro: int | None = None) -> DistillStep:
    torch.manual_seed(0)
    return DistillStep(config, build_method(config, frozen), frozen, micro, bf16=False)


def _trained(step: DistillStep, *, lr: float = 0.1) -> Trained:
    student = tiny_unet(seed=3).train()
    modules = step.method.modules
    others = torch.optim.SGD(modules.parameters(), lr=lr) if len(modules) else None
    optimizer = torch.optim.SGD(student.parameters(), lr=lr)
    return Trained(student, modules, optimizer, others)


def _batch(num: int = 2, iteration: int = 0) -> Batch:
    return Batch(tiny_sample(num), tiny_draws(num, iteration))


def _weights(module: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters, without the buffers in which spectral norm keeps its singular vectors."""
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def _is_same(before: dict[str, torch.Tensor], module: nn.Module) -> bool:
    return all(torch.equal(before[name], value) for name, value in module.named_parameters())


def _has_gradients(module: nn.Module) -> bool:
    return any(parameter.grad is not None for parameter in module.parameters())


def test_only_student_and_heads_learn(frozen: Frozen) -> None:
    step = _step(frozen, tiny_config().student)
    trained = _trained(step)
    parts = {
        "student": trained.student,
        "heads": trained.modules,
        "teacher": frozen.teacher,
        "codec": frozen.codec.model,
    }
    before = {name: _weights(module) for name, module in parts.items()}
    metrics = step(trained, [_batch()])
    changed = {name for name, module in parts.items() if not _is_same(before[name], module)}
    assert changed == {"student", "heads"}
    assert not _has_gradients(frozen.teacher)
    assert not _has_gradients(frozen.codec.model)
    assert metrics["skipped"] == 0.0
    assert all(value == value for value in metrics.values())


def test_the_critic_sends_nothing_into_the_student(frozen: Frozen) -> None:
    step = _step(frozen, tiny_config().student)
    trained, batch = _trained(step), _batch()
    fake = run_student(trained.student, frozen, step.config, batch)
    loss, _ = step.method.critic_loss(trained.modules, batch.sample, fake, batch.draws)
    loss.backward()
    assert _has_gradients(trained.modules)
    assert not _has_gradients(trained.student)


def test_the_students_losses_leave_the_heads(frozen: Frozen) -> None:
    step = _step(frozen, tiny_config().student)
    trained, batch = _trained(step), _batch()
    fake = run_student(trained.student, frozen, step.config, batch)
    losses = step.method.student_losses(batch.sample, fake, batch.draws)
    torch.stack(list(losses.values())).sum().backward()
    assert _has_gradients(trained.student)
    assert not _has_gradients(trained.modules)
    assert all(p.requires_grad for p in trained.modules.parameters())


@pytest.mark.parametrize("space", ["pixel", "latent"])
def test_the_gradient_is_that_of_the_summed_losses(frozen: Frozen, space: str) -> None:
    """Against the whole sum written out and differentiated in one piece."""
    config = tiny_config(
        f"student.distill_space={space}",
        "student.lambda_reconstruct=0.5",
        "student.lambda_adversarial=0.7",
        "student.teacher_guidance=2.0",
        "student.discriminator.condition=text",
        "student.optimizer.grad_clip=1e9",
    ).student
    step, batch = _step(frozen, config), _batch()
    # Heads stand still, so that both ways compute one function.
    step.method.modules.eval()
    trained = _trained(step)
    student = copy.deepcopy(trained.student)
    step(replace(trained, modules_optimizer=None), [batch])
    shares = [p.grad for p in trained.student.parameters() if p.grad is not None]

    sample, draws, diffusion = batch.sample, batch.draws, frozen.diffusion
    fake = run_student(student, frozen, config, batch)
    noisy = diffusion.add_noise(
        fake.latents_BChw,
        draws.normal("feature_noise_fake", (4, 8, 8)),
        draws.integers("feature_timestep", *config.discriminator.noise_timesteps),
    )
    caught: list[torch.Tensor] = []
    unet = frozen.teacher
    hooks = [unet.mid_block.register_forward_hook(lambda m, i, output: caught.append(output))]
    level_B = draws.integers("feature_timestep", *config.discriminator.noise_timesteps)
    for block in unet.down_blocks:
        last = block.downsamplers[0] if block.downsamplers else None
        if last is not None:
            hooks.append(last.register_forward_pre_hook(lambda m, i: caught.append(i[0])))
        else:
            hooks.append(block.register_forward_hook(lambda m, i, output: caught.append(output[0])))
    unet(noisy, level_B, sample.conditioning.text_embeds_BLD)
    for hook in hooks:
        hook.remove()
    logits = step.method.modules["heads"](caught, sample.conditioning.pooled_BD)
    timestep_B = draws.integers("teacher_timestep", *config.teacher_timesteps)
    with torch.no_grad():
        noise = draws.normal("teacher_noise", (4, 8, 8))
        again = diffusion.add_noise(fake.latents_BChw, noise, timestep_B)
        said = guided(
            unet, again, timestep_B, sample.conditioning, empty=sample.empty, guidance=2.0
        )
        target = diffusion.denoised(said, again, timestep_B)
    made = fake.latents_BChw
    if space == "pixel":
        made, target = frozen.codec.decode(made), frozen.codec.decode(target)
    total = (
        0.7 * hinge_generator(logits)
        + config.lambda_distill * distillation(made, target, diffusion.alphas_T[timestep_B])
        + 0.5 * (fake.latents_BChw - sample.latents_BChw).pow(2).mean()
    )
    used = [
        p
        for p, q in zip(student.parameters(), trained.student.parameters(), strict=True)
        if q.grad is not None
    ]
    for mine, whole in zip(shares, torch.autograd.grad(total, used), strict=True):
        torch.testing.assert_close(mine, whole, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("method", ["add"])
def test_micro_batches_change_nothing(frozen: Frozen, method: str) -> None:
    config = tiny_config(
        f"student.method={method}",
        "student.adversarial_share=0.5",
        "student.optimizer.grad_clip=1e9",
    ).student
    found = []
    for micro in (None, 3, 1):
        step = _step(frozen, config, micro)
        # Spectral norm takes a power iteration per pass, which is not to be counted here.
        step.method.modules.eval()
        trained = _trained(step)
        metrics = step(trained, [_batch(4)])
        gradients = [p.grad.clone() for p in trained.student.parameters() if p.grad is not None]
        others = [p.grad.clone() for p in trained.modules.parameters() if p.grad is not None]
        found.append((metrics["loss_d"], gradients, others))
    for loss_d, gradients, others in found[1:]:
        assert loss_d == pytest.approx(found[0][0], rel=1e-4)
        for a, b in zip(gradients + others, found[0][1] + found[0][2], strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("weight", ["none", "exponential", "sds", "nfsd"])
def test_every_weight_of_the_distillation_trains(frozen: Frozen, weight: str) -> None:
    config = tiny_config(f"student.distill_weight={weight}", "student.lambda_adversarial=0").student
    told = replace(frozen, negative=tiny_conditioning(1, "negative"))
    step = _step(told, config)
    trained = _trained(step)
    metrics = step(trained, [_batch()])
    assert metrics["skipped"] == 0.0 and metrics["grad_distill"] > 0


def test_the_noise_free_target_moves_the_picture_by_its_residual(frozen: Frozen) -> None:
    """The gradient on the picture is w(t) times the residual of the three predictions."""
    config = tiny_config(
        "student.distill_weight=nfsd",
        "student.distill_space=latent",
        "student.lambda_adversarial=0",
        "student.lambda_distill=1",
        "student.teacher_timesteps=[500,500]",
    ).student
    told = replace(frozen, negative=tiny_conditioning(1, "negative"))
    batch, diffusion = _batch(), frozen.diffusion
    fake = Fake(
        tiny_draws().normal("made", (4, 8, 8)).requires_grad_(),
        torch.tensor([999, 999]),
        torch.zeros(1),
    )
    losses = build_method(config, told).student_losses(batch.sample, fake, batch.draws)
    (gradient,) = torch.autograd.grad(losses["distill"], fake.latents_BChw)

    timestep_B = torch.tensor([500, 500])
    alpha, sigma = diffusion.scales(timestep_B)
    noise = batch.draws.normal("teacher_noise", (4, 8, 8))
    noisy = diffusion.add_noise(fake.latents_BChw.detach(), noise, timestep_B)
    eps = []
    for said in (batch.sample.conditioning, batch.sample.empty, told.negative.expand(2)):
        with torch.no_grad():
            v = predict(frozen.teacher, noisy, timestep_B, said)
        eps.append(alpha * v + sigma * noisy)
    residual = eps[1] - eps[2] + config.nfsd_scale * (eps[0] - eps[1])
    expected = sigma**2 * residual / (2 * 4 * 8 * 8)
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-6)


def test_the_adversarial_gradient_is_held_at_its_share(frozen: Frozen) -> None:
    config = tiny_config("student.adversarial_share=0.25").student
    method = build_method(config, frozen)
    push, pull = torch.randn(3, 4, 8, 8) * 1000, torch.randn(3, 4, 8, 8)
    pull[1] *= 10
    total = method.combine({"adversarial": push.clone(), "distill": pull})
    held = (total - pull).flatten(1).norm(dim=1)
    torch.testing.assert_close(held, 0.25 * pull.flatten(1).norm(dim=1), rtol=1e-4, atol=1e-4)
    free = build_method(tiny_config().student, frozen)
    torch.testing.assert_close(free.combine({"adversarial": push, "distill": pull}), push + pull)


def test_a_loss_of_weight_zero_is_neither_computed_nor_reported(frozen: Frozen) -> None:
    both = _step(frozen, tiny_config().student)
    metrics = both(_trained(both), [_batch()])
    assert {"loss_adversarial", "loss_distill", "grad_adversarial", "grad_distill"} <= set(metrics)
    assert "loss_reconstruct" not in metrics

    alone = _step(frozen, tiny_config("student.lambda_distill=0").student)
    assert "loss_distill" not in alone(_trained(alone), [_batch()])

    teacher_only = _step(frozen, tiny_config("student.lambda_adversarial=0").student)
    assert len(teacher_only.method.modules) == 0
    metrics = teacher_only(_trained(teacher_only), [_batch()])
    assert "loss_d" not in metrics and "loss_adversarial" not in metrics


def test_the_gradient_is_clipped(frozen: Frozen) -> None:
    step = _step(frozen, tiny_config("student.optimizer.grad_clip=0.001").student)
    trained = _trained(step)
    before = _weights(trained.student)
    metrics = step(trained, [_batch()])
    assert metrics["grad_norm"] > 1e-3
    moved = [(p - before[name]).pow(2).sum() for name, p in trained.student.named_parameters()]
    assert torch.stack(moved).sum().sqrt().item() == pytest.approx(0.1 * 1e-3, rel=0.01)


class _Spoiled(nn.Module):
    """A student whose output is not a number."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student

    def forward(self, *inputs: torch.Tensor, **named: torch.Tensor) -> object:
        output = self.student(*inputs, **named)
        output.sample = output.sample * torch.nan
        return output


def test_a_gradient_that_is_not_finite_skips_the_step(frozen: Frozen) -> None:
    step = _step(frozen, tiny_config().student)
    trained = _trained(step)
    student, heads = _weights(trained.student), _weights(trained.modules)
    metrics = step(replace(trained, student=_Spoiled(trained.student)), [_batch()])
    assert metrics["skipped"] == 2.0
    assert metrics["grad_norm"] == 0.0
    assert _is_same(student, trained.student)
    assert _is_same(heads, trained.modules)
    # The next batch finds everything as it was, and learns.
    assert step(trained, [_batch(iteration=1)])["skipped"] == 0.0
    assert not _is_same(student, trained.student)


def test_the_critic_may_step_more_often_than_the_student(frozen: Frozen) -> None:
    step = _step(frozen, tiny_config().student)
    trained = _trained(step)
    calls = {"critic": 0, "student": 0}
    assert trained.modules_optimizer is not None
    trained.modules_optimizer.register_step_post_hook(
        lambda *_: calls.__setitem__("critic", calls["critic"] + 1)
    )
    trained.student_optimizer.register_step_post_hook(
        lambda *_: calls.__setitem__("student", calls["student"] + 1)
    )
    step(trained, [_batch(iteration=k) for k in range(3)])
    assert calls == {"critic": 3, "student": 1}


def test_the_student_sees_its_own_timesteps_only(frozen: Frozen) -> None:
    config = tiny_config("student.timestep_weights=[1,0,3,0]").student
    student = tiny_unet(seed=3)
    seen = set()
    for iteration in range(10):
        fake = run_student(student, frozen, config, _batch(4, iteration))
        seen |= set(fake.timestep_B.tolist())
    assert seen == {999, 499}


def test_bf16_trains_as_well(frozen: Frozen) -> None:
    step = replace(_step(frozen, tiny_config().student), bf16=True)
    trained = _trained(step)
    assert step(trained, [_batch()])["skipped"] == 0.0
    assert all(p.dtype == torch.float32 for p in trained.student.parameters())


def test_a_fakes_picture_is_decoded_once(frozen: Frozen) -> None:
    fake = Fake(torch.randn(1, 4, 8, 8, requires_grad=True), torch.tensor([999]), torch.zeros(1))
    picture = fake.images(frozen.codec)
    assert fake.images(frozen.codec) is picture
    assert picture.requires_grad
    assert not fake.detached().images(frozen.codec).requires_grad
