"""Plain regression on the pictures that the teacher draws from the same noise: the baseline.

Owns its one loss. What ADD adds is judged against it: where one prompt has several right answers,
a mean squared error asks for their blend.
"""

from __future__ import annotations

import torch
from torch import nn

from distill.config import StudentConfig
from distill.draws import Draws
from distill.methods.base import Fake, Frozen, Metrics, Sample
from distill.methods.losses import distillation
from distill.methods.teaching import taught

# Shape suffixes: B batch, C channel, H/W pixels, h/w latent cells.


class Regression:
    """Mean squared distance to where the teacher arrives from the student's own noisy input.

    At the first timestep that input is pure noise, and the pairs are those of arXiv:2101.02388:
    noise and the picture that a deterministic sampler makes of it. They are drawn anew in every
    iteration instead of kept in a cache, so none is seen twice.
    """

    critic_steps = 1

    def __init__(self, config: StudentConfig, frozen: Frozen) -> None:
        """Train nothing beside the student."""
        self._config = config
        self._frozen = frozen
        self.modules = nn.ModuleDict()
        self.is_in_pixels = config.distill_space == "pixel"

    def critic_loss(
        self, modules: nn.ModuleDict, sample: Sample, fake: Fake, draws: Draws
    ) -> tuple[torch.Tensor, Metrics]:
        """Never asked for: there is no critic."""
        raise AssertionError("a regression has no critic")

    def student_losses(self, sample: Sample, fake: Fake, draws: Draws) -> dict[str, torch.Tensor]:
        """One loss, "regress", weighted by `lambda_distill`."""
        config, frozen = self._config, self._frozen
        noisy_BChw = frozen.diffusion.add_noise(
            sample.latents_BChw, fake.noise_BChw, fake.timestep_B
        )
        with torch.no_grad():
            target = taught(
                frozen,
                sample,
                noisy_BChw,
                fake.timestep_B,
                guidance=config.teacher_guidance,
                num_steps=config.teacher_steps,
            )
            if self.is_in_pixels:
                target = frozen.codec.decode(target).float()
        made = fake.images(frozen.codec) if self.is_in_pixels else fake.latents_BChw
        weight_B = torch.ones(len(sample), device=made.device)
        loss = distillation(made.float(), target, weight_B)
        return {"regress": config.lambda_distill * loss}

    def combine(self, gradients: dict[str, torch.Tensor]) -> torch.Tensor:
        """The one gradient there is."""
        return gradients["regress"]
