"""DMD2: the matching gradient, the second network, learning, resuming, refusals."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from distill_fixtures import (
    resumed,
    tiny_conditioning,
    tiny_config,
    tiny_draws,
    tiny_frozen,
    tiny_sample,
    tiny_trainer,
    tiny_unet,
)
from torch import nn

from distill.config import ConfigError, StudentConfig
from distill.draws import Draws
from distill.methods.base import Fake, Frozen, Sample
from distill.methods.dmd2 import DistributionMatchingDistillation
from distill.methods.losses import distribution_matching, matching_direction
from distill.methods.registry import build_method
from distill.networks.diffusion import Diffusion
from distill.step import Batch, DistillStep, Trained, run_student
from engines.spec import ScheduleSpec

# Shape suffixes: B batch, C channel, h/w latent cells.

DMD2 = ("student.method=dmd2", "student.distill_space=latent", "student.distill_weight=none")
ALONE = "student.lambda_adversarial=0"


@pytest.fixture(scope="module")
def frozen() -> Frozen:
    return tiny_frozen()


def _config(*assignments: str) -> StudentConfig:
    return tiny_config(*DMD2, *assignments).student


def _method(frozen: Frozen, *assignments: str) -> DistributionMatchingDistillation:
    torch.manual_seed(0)
    method = build_method(_config(*assignments), frozen)
    assert isinstance(method, DistributionMatchingDistillation)
    with torch.no_grad():  # a student that has moved: else both scores are one network
        for parameter in method.modules["fake_score"].parameters():
            parameter.mul_(1.1)
    return method


def _fake(num: int = 2) -> Fake:
    latents_BChw = tiny_draws(num).normal("made", (4, 8, 8)).requires_grad_()
    return Fake(latents_BChw, torch.full((num,), 999), torch.zeros(1))


def test_the_direction_by_hand() -> None:
    made = torch.tensor([1.0, 3.0, 0.0, 0.0], dtype=torch.float64).view(2, 2, 1, 1)
    fake = torch.tensor([2.0, 0.0, 1.0, 1.0], dtype=torch.float64).view(2, 2, 1, 1)
    real = torch.tensor([0.0, 1.0, 4.0, -4.0], dtype=torch.float64).view(2, 2, 1, 1)
    # Sizes (1 + 2) / 2 and (4 + 4) / 2, picture by picture.
    expected = torch.tensor([2 / 1.5, -1 / 1.5, -3 / 4, 5 / 4], dtype=torch.float64)
    direction = matching_direction(made, fake, real)
    torch.testing.assert_close(direction.flatten(), expected)
    squares = (4 + 1) / 2.25 + (9 + 25) / 16
    loss = distribution_matching(made.requires_grad_(), direction)
    assert loss.item() == pytest.approx(0.5 * squares / 4)
    (gradient,) = torch.autograd.grad(loss, made)
    torch.testing.assert_close(gradient.flatten(), expected / 4)


def test_equal_scores_leave_the_picture_alone() -> None:
    made = torch.ones(1, 1, 2, 2)
    direction = matching_direction(made, made, made)
    assert torch.equal(direction, torch.zeros_like(made))


def test_the_matching_gradient_is_the_formula(frozen: Frozen) -> None:
    """Both networks, guidance of the real one alone, and the schedule, in float64."""
    method = _method(frozen, ALONE, "student.teacher_guidance=3", "student.lambda_distill=2")
    sample, fake, draws = tiny_sample(), _fake(), tiny_draws()
    losses = method.student_losses(sample, fake, draws)
    (gradient,) = torch.autograd.grad(losses["matching"], fake.latents_BChw)

    timestep_B = draws.integers("teacher_timestep", 20, 980)
    alpha, sigma = (
        table.double()[timestep_B].view(-1, 1, 1, 1)
        for table in (frozen.diffusion.alphas_T, frozen.diffusion.sigmas_T)
    )
    made = fake.latents_BChw.detach().double()
    noisy = alpha * made + sigma * draws.normal("teacher_noise", (4, 8, 8)).double()

    def clean(unet: nn.Module, text: Any) -> torch.Tensor:
        unet = copy.deepcopy(unet).double()
        with torch.no_grad():
            v = unet(noisy, timestep_B, text.text_embeds_BLD.double()).sample
        return alpha * noisy - sigma * v

    without = clean(frozen.teacher, sample.empty)
    real = without + 3 * (clean(frozen.teacher, sample.conditioning) - without)
    follows = clean(method.modules["fake_score"], sample.conditioning)
    size = (made - real).abs().mean((1, 2, 3), keepdim=True)
    expected = 2 * (follows - real) / size / made.numel()
    assert set(losses) == {"matching"}
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-3, atol=1e-7)
    assert all(p.grad is None for p in method.modules.parameters())


def test_the_fake_score_learns_to_denoise_the_students_pictures(frozen: Frozen) -> None:
    """The loss by hand: for a network that says 0, the mean square of the v it should say."""
    method, fake, draws = _method(frozen, ALONE), _fake(), tiny_draws()
    timestep_B = draws.integers("fake_score_timestep", 0, 999)
    noise = draws.normal("fake_score_noise", (4, 8, 8)).double()
    alpha, sigma = (
        table.double()[timestep_B].view(-1, 1, 1, 1)
        for table in (frozen.diffusion.alphas_T, frozen.diffusion.sigmas_T)
    )
    made = fake.latents_BChw.detach().double()
    target = alpha * noise - sigma * made
    fake_score = copy.deepcopy(method.modules["fake_score"]).double()
    text = tiny_sample().conditioning.text_embeds_BLD.double()
    with torch.no_grad():
        said = fake_score(alpha * made + sigma * noise, timestep_B, text).sample
    loss, metrics = method.critic_loss(method.modules, tiny_sample(), fake, draws)
    assert loss.item() == pytest.approx((said - target).pow(2).mean().item(), rel=1e-4)
    assert metrics == {"loss_fake_score": loss.item()}

    nn.init.zeros_(method.modules["fake_score"].conv_out.weight)
    nn.init.zeros_(method.modules["fake_score"].conv_out.bias)
    silent, _ = method.critic_loss(method.modules, tiny_sample(), fake, draws)
    assert silent.item() == pytest.approx(target.pow(2).mean().item(), rel=1e-5)


@pytest.mark.parametrize("weight", [0, 1])
def test_the_critic_sends_nothing_into_the_fake(frozen: Frozen, weight: int) -> None:
    method, fake = _method(frozen, f"student.lambda_adversarial={weight}"), _fake()
    loss, _ = method.critic_loss(method.modules, tiny_sample(), fake, tiny_draws())
    loss.backward()
    assert fake.latents_BChw.grad is None
    assert all(p.grad is None for p in frozen.teacher.parameters())
    assert any(p.grad is not None for p in method.modules["fake_score"].parameters())
    assert ("heads" in method.modules) == bool(weight)


def test_the_adversary_is_held_at_its_share(frozen: Frozen) -> None:
    method = _method(frozen, "student.adversarial_share=0.25")
    sample, fake = tiny_sample(), _fake()
    losses = method.student_losses(sample, fake, tiny_draws())
    assert set(losses) == {"matching", "adversarial"}
    gradients = {
        name: torch.autograd.grad(loss, fake.latents_BChw, retain_graph=True)[0]
        for name, loss in losses.items()
    }
    extra = method.combine(gradients) - gradients["matching"]
    lengths = gradients["matching"].flatten(1).norm(dim=1)
    torch.testing.assert_close(extra.flatten(1).norm(dim=1), 0.25 * lengths, rtol=1e-4, atol=1e-7)
    free = _method(frozen).combine(gradients)
    torch.testing.assert_close(free, gradients["matching"] + gradients["adversarial"])


class _Gaussian(nn.Module):
    """The best denoiser of latents that are Gaussian with deviation 0.5 around `mean`."""

    def __init__(self, diffusion: Diffusion, mean: float) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.full((1, 1, 1, 1), mean))
        self.diffusion = diffusion

    def forward(self, noisy: torch.Tensor, timestep_B: torch.Tensor, **_: Any) -> Any:
        alpha, sigma = self.diffusion.scales(timestep_B)
        gain = alpha * 0.25 / (alpha**2 * 0.25 + sigma**2)
        return SimpleNamespace(sample=self.mean + gain * (noisy - alpha * self.mean))


def test_gaussians_are_brought_together(frozen: Frozen) -> None:
    """A student that can only shift its pictures shifts them to where the teacher's are.

    Both scores are known in closed form, so nothing but the method decides the outcome.
    """
    diffusion = Diffusion.create(ScheduleSpec(zero_terminal_snr="rescale"), "sample")
    teacher = _Gaussian(diffusion, 2.0).requires_grad_(False)
    toy = replace(frozen, teacher=teacher, diffusion=diffusion)
    method = build_method(_config(ALONE, "student.lambda_distill=1"), toy)
    student_mean = nn.Parameter(torch.full((1, 1, 1, 1), -1.0))
    with torch.no_grad():
        method.modules["fake_score"].mean.fill_(-1.0)
    critic = torch.optim.SGD(method.modules.parameters(), lr=0.5)
    student = torch.optim.SGD([student_mean], lr=0.2)
    words = tiny_conditioning(64)
    apart = []
    for iteration in range(60):
        for k in range(method.critic_steps + 1):
            draws = Draws(0, iteration * (method.critic_steps + 1) + k, range(64))
            spread = 0.5 * draws.normal("student", (1, 2, 2))
            fake = Fake(student_mean + spread, torch.full((64,), 999), spread)
            sample = Sample(spread, words, words)
            if k < method.critic_steps:
                critic.zero_grad()
                method.critic_loss(method.modules, sample, fake, draws)[0].backward()
                critic.step()
            else:
                losses = method.student_losses(sample, fake, draws)
                student.zero_grad()
                losses["matching"].backward()
                student.step()
        apart.append(abs(student_mean.item() - 2.0))
    assert method.critic_steps == 5
    assert abs(method.modules["fake_score"].mean.item() - student_mean.item()) < 0.2
    assert apart[-1] < 0.1
    assert apart[9] < apart[0] < 3.0


def test_on_the_tiny_preset_the_fake_score_follows() -> None:
    """It denoises the pictures of a student that moves on better than the teacher it was."""
    trainer = tiny_trainer(*DMD2, ALONE, "student.fake_score_lr=2e-3", "student.optimizer.lr=1e-4")
    before = copy.deepcopy(trainer.student.state_dict())
    as_teacher = copy.deepcopy(trainer.method.modules)
    for _ in range(6):
        metrics = trainer.iterate(1.0)
        assert metrics["skipped"] == 0.0
    assert any(not torch.equal(v, before[k]) for k, v in trainer.student.state_dict().items())
    draws = tiny_draws(32, 99)
    batch = Batch(trainer.samples.sample(draws), draws)
    with torch.no_grad():
        fake = run_student(trainer.student, trainer._step.frozen, trainer.config, batch)
        follows, stood = (
            trainer.method.critic_loss(modules, batch.sample, fake, draws)[0].item()
            for modules in (trainer.method.modules, as_teacher)
        )
    assert follows < 0.9 * stood


@pytest.mark.parametrize(("assignment", "num"), [("null", 5), ("2", 2)])
def test_two_time_scales(assignment: str, num: int) -> None:
    trainer = tiny_trainer(*DMD2, ALONE, f"student.critic_steps={assignment}")
    taken = {"critic": 0, "student": 0}
    critic, student = trainer._trained.modules_optimizer, trainer._trained.student_optimizer
    assert critic is not None
    critic.register_step_post_hook(lambda *_: taken.__setitem__("critic", taken["critic"] + 1))
    student.register_step_post_hook(lambda *_: taken.__setitem__("student", taken["student"] + 1))
    trainer.iterate(1.0)
    assert taken == {"critic": num, "student": 1}


@pytest.mark.parametrize(("assignment", "lr"), [("null", 2e-4), ("5e-4", 5e-4)])
def test_each_module_has_its_learning_rate(assignment: str, lr: float) -> None:
    trainer = tiny_trainer(
        *DMD2,
        "student.critic_steps=1",
        "student.optimizer.lr=2e-4",
        "student.discriminator.lr=8e-3",
        f"student.fake_score_lr={assignment}",
    )
    trainer.lr_d_scale = 0.25
    trainer.iterate(0.5)
    critic = trainer._trained.modules_optimizer
    assert critic is not None
    # Heads that win are slowed down; the score that has to follow the student is not.
    assert [group["lr"] for group in critic.param_groups] == [lr, 2e-3]
    counts = [sum(p.numel() for p in group["params"]) for group in critic.param_groups]
    assert counts[0] == sum(p.numel() for p in tiny_unet().parameters())


def test_micro_batches_and_half_precision(frozen: Frozen) -> None:
    found = []
    for micro, bf16 in ((None, False), (1, False), (None, True)):
        method, student = _method(frozen), tiny_unet(seed=3).train()
        method.modules["heads"].eval()
        trained = Trained(
            student,
            method.modules,
            torch.optim.SGD(student.parameters(), lr=0.0),
            torch.optim.SGD(method.modules.parameters(), lr=0.0),
        )
        step = DistillStep(_config("student.optimizer.grad_clip=1e9"), method, frozen, micro, bf16)
        metrics = step(trained, [Batch(tiny_sample(2), tiny_draws(2))])
        assert metrics["skipped"] == 0.0
        parts = (student, method.modules["fake_score"])
        found.append([[p.grad for p in part.parameters() if p.grad is not None] for part in parts])
    whole, split, half = found
    for ours, other in zip(whole[0] + whole[1], split[0] + split[1], strict=True):
        torch.testing.assert_close(ours, other, atol=1e-5, rtol=1e-3)
    for ours, other in zip(whole, half, strict=True):
        lengths = [math.sqrt(sum(g.pow(2).sum().item() for g in grads)) for grads in (ours, other)]
        assert len(ours) == len(other)
        assert lengths[1] == pytest.approx(lengths[0], rel=0.1)


def test_a_training_resumes_to_the_bit() -> None:
    straight, continued = resumed(*DMD2, "student.critic_steps=2")
    assert straight["iteration"] == continued["iteration"] == 4
    names = {name.split(".")[0] for name in straight["modules"]}
    assert names == {"fake_score", "heads"}
    for part in ("student", "modules"):
        assert straight[part].keys() == continued[part].keys()
        assert all(torch.equal(v, continued[part][k]) for k, v in straight[part].items()), part
    moments, again = (state["adam_modules"]["state"] for state in (straight, continued))
    assert moments.keys() == again.keys()
    for index, state in moments.items():
        assert all(torch.equal(v, again[index][k]) for k, v in state.items())


@pytest.mark.parametrize(
    ("assignments", "words"),
    [
        (
            ("student.method=dmd2",),
            r'set student\.distill_space="latent", student\.distill_weight="none"$',
        ),
        ((*DMD2, "student.lambda_reconstruct=1"), r"set student\.lambda_reconstruct=0\.0$"),
        ((*DMD2, "student.teacher_steps=4"), r"set student\.teacher_steps=1$"),
        (
            (*DMD2, "student.discriminator.noise_scale=2"),
            r"set student\.discriminator\.noise_scale=1\.0$",
        ),
        ((*DMD2, "student.lambda_distill=0"), r"nothing without its loss: set student\.lambda_dis"),
        ((*DMD2, "student.fake_score_lr=0"), r"student\.fake_score_lr must be above 0"),
        (("student.fake_score_lr=1e-4",), r'"add" has no part .* student\.fake_score_lr=null$'),
        (
            ("student.method=regression", "student.critic_steps=2"),
            r'"regression" has no part .* student\.critic_steps=null$',
        ),
    ],
)
def test_what_would_be_ignored_is_refused(assignments: tuple[str, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        tiny_config(*assignments)
