"""Latent Adversarial Diffusion Distillation: the teacher's features are the whole opponent.

Owns one loss of the student. Nothing is decoded and the teacher is asked for no target; what real
pictures are, the set decides: the data's, or the teacher's own (`precompute --synthetic-steps`).
Source: arXiv:2403.12015, section 3.
"""

from __future__ import annotations

import torch
from torch import nn

from distill.config import StudentConfig
from distill.draws import Draws
from distill.methods.adversary import Adversary, held
from distill.methods.base import Fake, Metrics, Sample


class LatentAdversarialDistillation:
    """Real and generated latents are noised again, go through the teacher, and heads judge them."""

    is_in_pixels = False

    def __init__(self, config: StudentConfig, adversary: Adversary) -> None:
        """Train the adversary's heads, which look at latents at levels that they are told."""
        self._config = config
        self._adversary = adversary
        self.critic_steps = config.critic_steps or 1
        self.modules = nn.ModuleDict({"heads": adversary.heads})

    def critic_loss(
        self, modules: nn.ModuleDict, sample: Sample, fake: Fake, draws: Draws
    ) -> tuple[torch.Tensor, Metrics]:
        """Hinge loss of the heads."""
        return self._adversary.critic_loss(modules["heads"], sample, fake, draws)

    def student_losses(self, sample: Sample, fake: Fake, draws: Draws) -> dict[str, torch.Tensor]:
        """One loss, "adversarial", weighted by `lambda_adversarial`."""
        loss = self._adversary.student_loss(sample, fake, draws)
        return {"adversarial": self._config.lambda_adversarial * loss}

    def combine(self, gradients: dict[str, torch.Tensor]) -> torch.Tensor:
        """The one gradient there is."""
        return held(gradients, None)
