"""Distribution Matching Distillation 2: two scores pull the student's pictures to the teacher's.

Owns the matching loss and the training of the second network, the fake score, which learns what
the student draws. No pairs of noise and picture are needed. Source: arXiv:2405.14867.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from distill.config import StudentConfig
from distill.draws import Draws
from distill.methods.adversary import Adversary, held
from distill.methods.base import Fake, Frozen, Metrics, Sample
from distill.methods.losses import distribution_matching, matching_direction
from distill.methods.teaching import taught
from distill.networks.conditioning import predict

# Shape suffixes: B batch, C channel, h/w latent cells.

FAKE_SCORE = "fake_score"


class DistributionMatchingDistillation:
    """L = lambda_distill * L_matching + lambda_adversarial * L_adv.

    The heads of the optional adversary look where `discriminator.features` says, not at the fake
    score as the paper's does, and play the hinge game of the other methods: frozen features keep
    the two critics apart, and the one that follows the student's pictures stays a denoiser.
    """

    is_in_pixels = False

    def __init__(self, config: StudentConfig, frozen: Frozen, adversary: Adversary | None) -> None:
        """Copy the teacher into the fake score; it takes as much memory as the student."""
        self._config = config
        self._frozen = frozen
        self._adversary = adversary
        self.critic_steps = config.critic_steps or 5
        fake_score = copy.deepcopy(frozen.teacher).train().requires_grad_(True)
        self.modules = nn.ModuleDict({FAKE_SCORE: fake_score})
        if adversary is not None:
            self.modules["heads"] = adversary.heads

    def critic_loss(
        self, modules: nn.ModuleDict, sample: Sample, fake: Fake, draws: Draws
    ) -> tuple[torch.Tensor, Metrics]:
        """Denoising loss of the fake score on the student's pictures, and that of the heads.

        The two train different weights, so their sum needs no weighting.
        """
        loss = self._denoising(modules[FAKE_SCORE], sample, fake, draws)
        metrics: Metrics = {"loss_fake_score": loss.item()}
        if self._adversary is not None:
            hinge, found = self._adversary.critic_loss(modules["heads"], sample, fake, draws)
            loss, metrics = loss + hinge, metrics | found
        return loss, metrics

    def student_losses(self, sample: Sample, fake: Fake, draws: Draws) -> dict[str, torch.Tensor]:
        """The weighted losses by name: "matching", and "adversarial" where it has a weight."""
        config = self._config
        losses = {"matching": config.lambda_distill * self._matching(sample, fake, draws)}
        if self._adversary is not None:
            loss = self._adversary.student_loss(sample, fake, draws)
            losses["adversarial"] = config.lambda_adversarial * loss
        return losses

    def combine(self, gradients: dict[str, torch.Tensor]) -> torch.Tensor:
        """One gradient on the latents; the adversary's may be held at a share of the matching."""
        return held(gradients, self._config.adversarial_share)

    def _denoising(
        self, fake_score: nn.Module, sample: Sample, fake: Fake, draws: Draws
    ) -> torch.Tensor:
        """What the teacher was trained with, on the student's pictures (eq. 2 there)."""
        diffusion, made_BChw = self._frozen.diffusion, fake.latents_BChw.detach()
        timestep_B = draws.integers("fake_score_timestep", 0, diffusion.num_timesteps - 1)
        noise_BChw = draws.normal("fake_score_noise", made_BChw.shape[1:])
        noisy_BChw = diffusion.add_noise(made_BChw, noise_BChw, timestep_B)
        prediction_BChw = predict(fake_score, noisy_BChw, timestep_B, sample.conditioning)
        target_BChw = diffusion.target(made_BChw, noise_BChw, timestep_B)
        loss: torch.Tensor = (prediction_BChw.float() - target_BChw).pow(2).mean()
        return loss

    def _matching(self, sample: Sample, fake: Fake, draws: Draws) -> torch.Tensor:
        """Along the difference of the two scores at a drawn noise level (eq. 1 there)."""
        config, frozen, diffusion = self._config, self._frozen, self._frozen.diffusion
        with torch.no_grad():
            made_BChw = fake.latents_BChw.detach()
            timestep_B = draws.integers("teacher_timestep", *config.teacher_timesteps)
            noise_BChw = draws.normal("teacher_noise", made_BChw.shape[1:])
            noisy_BChw = diffusion.add_noise(made_BChw, noise_BChw, timestep_B)
            real_BChw = taught(
                frozen, sample, noisy_BChw, timestep_B, guidance=config.teacher_guidance
            )
            # Guidance belongs to what is aimed at; the student is followed as it is.
            said_BChw = predict(
                self.modules[FAKE_SCORE], noisy_BChw, timestep_B, sample.conditioning
            )
            fake_BChw = diffusion.denoised(said_BChw, noisy_BChw, timestep_B)
            direction_BChw = matching_direction(made_BChw, fake_BChw, real_BChw)
        return distribution_matching(fake.latents_BChw, direction_BChw)
