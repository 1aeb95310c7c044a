"""What the heads are told, and both sides of the game."""

from __future__ import annotations

import pytest
import torch
from distill_fixtures import tiny_config, tiny_draws, tiny_frozen, tiny_sample

from distill.methods.adversary import Adversary, accuracy
from distill.methods.base import Fake, Frozen
from distill.methods.registry import build_adversary


@pytest.fixture(scope="module")
def frozen() -> Frozen:
    return tiny_frozen()


def _adversary(frozen: Frozen, *assignments: str) -> Adversary:
    torch.manual_seed(0)
    adversary = build_adversary(tiny_config(*assignments).student, frozen)
    assert adversary is not None
    return adversary


def _fake(*timesteps: int) -> Fake:
    latents_BChw = tiny_draws(len(timesteps)).normal("fake", (4, 8, 8))
    return Fake(latents_BChw, torch.tensor(timesteps), torch.zeros_like(latents_BChw))


@pytest.mark.parametrize(
    ("condition", "width"), [("none", 1), ("text", 32), ("image", 64), ("both", 96)]
)
def test_the_heads_are_told_what_the_config_says(
    frozen: Frozen, condition: str, width: int
) -> None:
    adversary = _adversary(frozen, f"student.discriminator.condition={condition}")
    told_BD = adversary.condition(tiny_sample(), _fake(249, 249), tiny_draws())
    assert told_BD.shape == (2, width)
    assert bool((told_BD == 0).all()) == (condition == "none")
    loss, _ = adversary.critic_loss(adversary.heads, tiny_sample(), _fake(249, 249), tiny_draws())
    loss.backward()


def test_the_real_pictures_description_is_dropped_at_pure_noise_alone(frozen: Frozen) -> None:
    adversary = _adversary(frozen, "student.discriminator.condition=image")
    told_BD = adversary.condition(tiny_sample(), _fake(999, 749), tiny_draws())
    assert (told_BD[0] == 0).all()
    assert (told_BD[1] != 0).any()
    kept = _adversary(
        frozen,
        "student.discriminator.condition=image",
        "student.discriminator.drop_image_at_noise=0",
    )
    assert (kept.condition(tiny_sample(), _fake(999, 749), tiny_draws())[0] != 0).any()


def test_the_penalty_is_part_of_the_critics_loss(frozen: Frozen) -> None:
    losses = {}
    for gamma in (0.0, 0.01):
        adversary = _adversary(frozen, f"student.discriminator.r1_gamma={gamma}")
        adversary.heads.eval()
        loss, metrics = adversary.critic_loss(
            adversary.heads, tiny_sample(), _fake(249, 249), tiny_draws()
        )
        losses[gamma] = loss.item()
        assert ("r1" in metrics) == (gamma > 0)
    assert losses[0.01] - losses[0.0] == pytest.approx(0.01 * metrics["r1"], rel=1e-3)


def test_training_the_heads_tells_real_from_fake(frozen: Frozen) -> None:
    adversary = _adversary(frozen, "student.discriminator.noise_timesteps=[0,100]")
    optimizer = torch.optim.Adam(adversary.heads.parameters(), lr=3e-3)
    sample, fake = tiny_sample(8), _fake(*[249] * 8)
    fake.latents_BChw *= 0.3
    for iteration in range(30):
        loss, metrics = adversary.critic_loss(
            adversary.heads, sample, fake, tiny_draws(8, iteration)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert metrics["d_accuracy"] > 0.9
    # And the student's loss then points from fake to real: smaller for pictures that look real.
    real = Fake(sample.latents_BChw, fake.timestep_B, fake.noise_BChw)
    as_real = adversary.student_loss(sample, real, tiny_draws(8, 99))
    assert as_real < adversary.student_loss(sample, fake, tiny_draws(8, 99))


def test_accuracy_counts_signs() -> None:
    real, fake = [torch.tensor([1.0, -1.0])], [torch.tensor([-1.0, -2.0])]
    assert accuracy(real, fake) == 0.75
