"""LADD: where the heads look and what they are told, both losses, learning, resuming, refusals."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from distill_fixtures import (
    resumed,
    tiny_config,
    tiny_draws,
    tiny_frozen,
    tiny_sample,
    tiny_trainer,
    tiny_unet,
)
from training_process import assert_same

from distill.config import ConfigError, StudentConfig
from distill.methods.base import Fake, Frozen
from distill.methods.ladd import LatentAdversarialDistillation
from distill.methods.registry import build_adversary, build_method
from distill.networks.levels import LEVEL_WIDTH, Levels
from distill.step import Batch, DistillStep, Trained

# Shape suffixes: B batch, C channel, h/w latent cells, D width.

LADD = ("student.method=ladd", "student.lambda_distill=0", "student.discriminator.condition=text")


@pytest.fixture(scope="module")
def frozen() -> Frozen:
    return tiny_frozen()


def _config(*assignments: str) -> StudentConfig:
    return tiny_config(*LADD, *assignments).student


def _method(frozen: Frozen, *assignments: str) -> LatentAdversarialDistillation:
    torch.manual_seed(0)
    method = build_method(_config(*assignments), frozen)
    assert isinstance(method, LatentAdversarialDistillation)
    return method


def _fake(num: int = 2) -> Fake:
    latents_BChw = tiny_draws(num).normal("made", (4, 8, 8)).requires_grad_()
    return Fake(latents_BChw, torch.full((num,), 999), torch.zeros(1))


def _share_below(levels: Levels, timestep: int) -> float:
    """Probability of a timestep that is at most this one, in closed form."""
    place = (timestep + 1 - levels.low) / (levels.high - levels.low + 1)
    if place >= 1:
        return 1.0
    assert levels.logit_normal is not None
    location, scale = levels.logit_normal
    z = (math.log(place / (1 - place)) - location) / scale
    return 0.5 * (1 + math.erf(z / math.sqrt(2)))


@pytest.mark.parametrize(("low", "high"), [(0, 999), (100, 300)])
@pytest.mark.parametrize("shape", [(1.0, 1.0), (0.0, 1.0), (-1.0, 0.5)])
def test_levels_follow_the_logit_normal(low: int, high: int, shape: tuple[float, float]) -> None:
    """Kolmogorov and Smirnov's distance; 4000 draws of the right law pass 0.0258 in 1 of 100."""
    levels, num = Levels(low, high, shape), 4000
    drawn = levels.draw(tiny_draws(num)).numpy()
    assert drawn.dtype == np.int64
    apart = max(
        abs(float((drawn <= t).mean()) - _share_below(levels, t)) for t in range(low, high + 1)
    )
    assert apart < 0.0258
    median = low + (high - low + 1) / (1 + math.exp(-shape[0]))
    assert abs(float(np.median(drawn)) - median) < 0.03 * (high - low)


def test_levels_stay_in_their_range() -> None:
    assert set(Levels(5, 9, (100.0, 1.0)).draw(tiny_draws(50)).tolist()) == {9}
    assert set(Levels(5, 9, (-100.0, 1.0)).draw(tiny_draws(50)).tolist()) == {5}
    # The sigmoid is 0.9: in the last of five equal parts.
    assert set(Levels(5, 9, (math.log(9), 1e-6)).draw(tiny_draws(50)).tolist()) == {9}
    assert set(Levels(5, 9).draw(tiny_draws(50)).tolist()) == {5, 6, 7, 8, 9}


def test_the_config_names_the_distribution(frozen: Frozen) -> None:
    """The level that the heads are told is the one at which the features look."""
    seen: list[torch.Tensor] = []
    method = _method(
        frozen,
        "student.discriminator.noise_timesteps=[0,999]",
        "student.discriminator.noise_location=-2",
        "student.discriminator.noise_scale=0.1",
    )
    hook = frozen.teacher.time_proj.register_forward_pre_hook(lambda m, i: seen.append(i[0]))
    method.student_losses(tiny_sample(4), _fake(4), tiny_draws(4))
    hook.remove()
    expected = Levels(0, 999, (-2.0, 0.1)).draw(tiny_draws(4))
    assert [t.tolist() for t in seen] == [expected.tolist()]
    # sigmoid(-2) is 0.119.
    assert all(80 < t < 170 for t in expected.tolist())


def test_the_heads_are_told_text_and_level(frozen: Frozen) -> None:
    adversary = build_adversary(_config(), frozen)
    assert adversary is not None
    sample = tiny_sample(2)
    told_BD = adversary.condition(sample, _fake(), tiny_draws())
    level_B = Levels(20, 800, (1.0, 1.0)).draw(tiny_draws()).numpy()[:, None]
    num = LEVEL_WIDTH // 2
    angles = level_B / 10000 ** (np.arange(num) / (num - 1))
    expected = np.concatenate([np.sin(angles), np.cos(angles)], 1)
    torch.testing.assert_close(told_BD[:, :32], sample.conditioning.pooled_BD)
    np.testing.assert_allclose(told_BD[:, 32:].numpy(), expected, atol=1e-4)
    assert told_BD.shape == (2, 32 + LEVEL_WIDTH)
    plain = build_adversary(tiny_config("student.discriminator.condition=text").student, frozen)
    assert plain is not None
    assert plain.condition(sample, _fake(), tiny_draws()).shape == (2, 32)


def _features64(frozen: Frozen, latents_BChw: torch.Tensor, name: str) -> list[torch.Tensor]:
    """What the blocks of the whole teacher put out in float64, caught by hooks."""
    unet, caught, draws = copy.deepcopy(frozen.teacher).double(), [], tiny_draws(2)
    level_B = Levels(20, 800, (1.0, 1.0)).draw(draws)
    alpha, sigma = (
        table.double()[level_B].view(-1, 1, 1, 1)
        for table in (frozen.diffusion.alphas_T, frozen.diffusion.sigmas_T)
    )
    noise_BChw = draws.normal(f"feature_noise_{name}", (4, 8, 8)).double()
    for block in unet.down_blocks:
        if block.downsamplers:
            block.downsamplers[0].register_forward_pre_hook(lambda m, i: caught.append(i[0]))
        else:
            block.register_forward_hook(lambda m, i, output: caught.append(output[0]))
    unet.mid_block.register_forward_hook(lambda m, i, output: caught.append(output))
    text_BLD = tiny_sample(2).conditioning.text_embeds_BLD.double()
    unet(alpha * latents_BChw.double() + sigma * noise_BChw, level_B, text_BLD)
    return caught


def _told64(draws: Any) -> torch.Tensor:
    level_BD = Levels(20, 800, (1.0, 1.0)).embedded(draws)
    return torch.cat([tiny_sample(2).conditioning.pooled_BD, level_BD], 1).double()


def test_the_critics_loss_written_out(frozen: Frozen) -> None:
    """Hinge and R1 against the whole teacher and the heads in float64."""
    method, sample, fake = (
        _method(frozen, "student.discriminator.r1_gamma=0.01"),
        tiny_sample(),
        _fake(),
    )
    method.modules.eval()  # else spectral norm takes a power iteration per pass
    loss, metrics = method.critic_loss(method.modules, sample, fake, tiny_draws())
    heads = copy.deepcopy(method.modules["heads"]).double()
    with torch.no_grad():
        real = _features64(frozen, sample.latents_BChw, "real")
        made = _features64(frozen, fake.latents_BChw, "fake")
    real = [f.requires_grad_() for f in real]
    expected = 0.0
    for head, of_real, of_made in zip(heads.heads, real, made, strict=True):
        says_real, says_made = (head(f, _told64(tiny_draws())) for f in (of_real, of_made))
        (slope,) = torch.autograd.grad(says_real.sum(), of_real)
        hinge = (1 - says_real).clamp_min(0).mean() + (1 + says_made).clamp_min(0).mean()
        expected += hinge.item() + 0.01 * (slope**2).sum().item() / 2
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert metrics["r1"] > 0
    loss.backward()
    assert fake.latents_BChw.grad is None
    assert all(p.grad is None for p in frozen.teacher.parameters())
    assert all(p.grad is not None for p in method.modules.parameters())


def test_the_students_loss_written_out(frozen: Frozen) -> None:
    """Value and gradient on the latents, through the whole teacher in float64."""
    method, fake = _method(frozen, "student.lambda_adversarial=0.7"), _fake()
    method.modules.eval()
    losses = method.student_losses(tiny_sample(), fake, tiny_draws())
    (gradient,) = torch.autograd.grad(losses["adversarial"], fake.latents_BChw)
    heads = copy.deepcopy(method.modules["heads"]).double()
    latents_BChw = fake.latents_BChw.detach().double().requires_grad_()
    logits = heads(_features64(frozen, latents_BChw, "fake"), _told64(tiny_draws()))
    expected = -0.7 * sum(one.mean() for one in logits)
    assert set(losses) == {"adversarial"}
    assert losses["adversarial"].item() == pytest.approx(expected.item(), rel=1e-4)
    (slope,) = torch.autograd.grad(expected, latents_BChw)
    torch.testing.assert_close(gradient.double(), slope, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(method.combine({"adversarial": gradient}), gradient)
    assert all(p.grad is None for p in method.modules.parameters())
    assert not method.is_in_pixels


def test_both_sides_learn(frozen: Frozen) -> None:
    """Each against the other standing still, on one batch."""
    method, student = _method(frozen), tiny_unet(seed=3).train()
    heads = torch.optim.Adam(method.modules.parameters(), lr=3e-3)
    fake, losses = _fake(4), []
    for _ in range(15):
        heads.zero_grad()
        loss, _ = method.critic_loss(method.modules, tiny_sample(4), fake, tiny_draws(4))
        loss.backward()
        heads.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]

    trained = Trained(
        student, method.modules, torch.optim.Adam(student.parameters(), lr=1e-3), None
    )
    step = DistillStep(_config(), method, frozen, None, bf16=False)
    batch = Batch(tiny_sample(4), tiny_draws(4))
    found = [step(trained, [batch])["loss_adversarial"] for _ in range(15)]
    assert found[-1] < found[0] - 0.5


def test_a_training_resumes_to_the_bit() -> None:
    straight, continued = resumed(*LADD)
    assert straight["iteration"] == continued["iteration"] == 4
    for part in ("student", "modules", "ema"):
        assert_same(straight[part], continued[part])
    assert_same(straight["adam_modules"]["state"], continued["adam_modules"]["state"])


def test_heads_may_take_several_steps_per_student() -> None:
    trainer = tiny_trainer(*LADD, "student.critic_steps=3")
    optimizer, taken = trainer._trained.modules_optimizer, []
    assert optimizer is not None
    optimizer.register_step_post_hook(lambda *_: taken.append(1))
    metrics = trainer.iterate(1.0)
    assert len(taken) == 3
    assert {"loss_adversarial", "loss_d", "d_accuracy"} <= set(metrics)
    assert not {"loss_distill", "loss_reconstruct"} & set(metrics)


@pytest.mark.parametrize(
    ("assignments", "words"),
    [
        ((), r"no part for what was set: set student\.lambda_distill=0\.0$"),
        (
            ("student.lambda_distill=0", "student.lambda_reconstruct=1"),
            r"set student\.lambda_reconstruct=0\.0$",
        ),
        (
            ("student.lambda_distill=0", "student.adversarial_share=2"),
            r"set student\.adversarial_share=null$",
        ),
        (
            ("student.lambda_distill=0", "student.teacher_guidance=7", "student.teacher_steps=2"),
            r"set student\.teacher_guidance=1\.0, student\.teacher_steps=1$",
        ),
        (
            ("student.lambda_distill=0", "student.fake_score_lr=1e-4"),
            r"set student\.fake_score_lr=null$",
        ),
        (
            ("student.lambda_distill=0", "student.discriminator.features=vision"),
            r'judges latents: set student\.discriminator\.features="teacher"',
        ),
        (
            ("student.lambda_distill=0", "student.lambda_adversarial=0"),
            "must not be negative, nor all 0",
        ),
        (
            ("student.lambda_distill=0", "student.discriminator.noise_scale=0"),
            r"student\.discriminator\.noise_scale must be above 0",
        ),
        (
            ("student.lambda_distill=0", "student.critic_steps=0"),
            r"student\.critic_steps must be at least 1",
        ),
    ],
)
def test_what_ladd_would_ignore_is_refused(assignments: tuple[str, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        tiny_config("student.method=ladd", *assignments)


@pytest.mark.parametrize("field", ["noise_location", "noise_scale"])
def test_levels_of_ladd_are_refused_elsewhere(field: str) -> None:
    assignment = f"student.discriminator.{field}=0.5"
    with pytest.raises(ConfigError, match=rf'"add" has no part.*discriminator\.{field}=1\.0'):
        tiny_config(assignment)
    assert getattr(_config(assignment).discriminator, field) == 0.5
