"""Adversarial Diffusion Distillation: an adversary, and the teacher's one-step opinion.

Owns the student's losses of the paper and the two additions that a small set needs (a regression,
and a held share for the adversary), both off by default. Source: arXiv:2311.17042, section 3.
"""

from __future__ import annotations

import torch
from torch import nn

from distill.config import StudentConfig
from distill.draws import Draws
from distill.methods.adversary import Adversary, held
from distill.methods.base import Fake, Frozen, Metrics, Sample
from distill.methods.losses import distillation, distillation_weight, noise_free_residual
from distill.methods.teaching import taught
from distill.networks.conditioning import Conditioning, predict

# Shape suffixes: B batch, C channel, H/W pixels, h/w latent cells.


class AdversarialDiffusionDistillation:
    """L = lambda_adversarial * L_adv + lambda_distill * L_distill (eq. 1)."""

    def __init__(self, config: StudentConfig, frozen: Frozen, adversary: Adversary | None) -> None:
        """Join the losses; without an adversary only the teacher speaks."""
        self._config = config
        self._frozen = frozen
        self._adversary = adversary
        self.critic_steps = config.critic_steps or 1
        heads = {} if adversary is None else {"heads": adversary.heads}
        self.modules = nn.ModuleDict(heads)
        in_pixels = adversary is None or adversary.features.space == "pixel"
        self.is_in_pixels = in_pixels and config.distill_space == "pixel"

    def critic_loss(
        self, modules: nn.ModuleDict, sample: Sample, fake: Fake, draws: Draws
    ) -> tuple[torch.Tensor, Metrics]:
        """Hinge loss of the heads."""
        assert self._adversary is not None
        return self._adversary.critic_loss(modules["heads"], sample, fake, draws)

    def student_losses(self, sample: Sample, fake: Fake, draws: Draws) -> dict[str, torch.Tensor]:
        """The weighted losses by name."""
        config, losses = self._config, {}
        if self._adversary is not None:
            loss = self._adversary.student_loss(sample, fake, draws)
            losses["adversarial"] = config.lambda_adversarial * loss
        if config.lambda_distill:
            losses["distill"] = config.lambda_distill * self._distillation(sample, fake, draws)
        if config.lambda_reconstruct:
            losses["reconstruct"] = config.lambda_reconstruct * self._reconstruction(sample, fake)
        return losses

    def combine(self, gradients: dict[str, torch.Tensor]) -> torch.Tensor:
        """One gradient on the picture; the adversary's may be held at a share of the others'."""
        return held(gradients, self._config.adversarial_share)

    def _distillation(self, sample: Sample, fake: Fake, draws: Draws) -> torch.Tensor:
        """Distance to what the teacher sees in the student's picture, noised again (eq. 4)."""
        config, diffusion, codec = self._config, self._frozen.diffusion, self._frozen.codec
        with torch.no_grad():
            timestep_B = draws.integers("teacher_timestep", *config.teacher_timesteps)
            noise_BChw = draws.normal("teacher_noise", fake.latents_BChw.shape[1:])
            target = self._opinion(sample, fake.latents_BChw.detach(), noise_BChw, timestep_B)
            if config.distill_space == "pixel":
                target = codec.decode(target).float()
            weight_B = distillation_weight(
                config.distill_weight,
                diffusion.alphas_T[timestep_B],
                diffusion.sigmas_T[timestep_B],
            )
        made = fake.images(codec) if config.distill_space == "pixel" else fake.latents_BChw
        return distillation(made.float(), target, weight_B)

    def _opinion(
        self,
        sample: Sample,
        fake_BChw: torch.Tensor,
        noise_BChw: torch.Tensor,
        timestep_B: torch.Tensor,
    ) -> torch.Tensor:
        """The teacher's x0 for the student's, noised again."""
        config, frozen, diffusion = self._config, self._frozen, self._frozen.diffusion
        noisy_BChw = diffusion.add_noise(fake_BChw, noise_BChw, timestep_B)
        if config.distill_weight != "nfsd":
            return taught(
                frozen,
                sample,
                noisy_BChw,
                timestep_B,
                guidance=config.teacher_guidance,
                num_steps=config.teacher_steps,
            )
        assert frozen.negative is not None
        asked = [sample.conditioning, sample.empty, frozen.negative.expand(len(sample))]
        repeated, timesteps = noisy_BChw.repeat(3, 1, 1, 1), timestep_B.repeat(3)
        prediction = predict(frozen.teacher, repeated, timesteps, Conditioning.cat(asked))
        alpha, sigma = diffusion.scales(timestep_B)
        alphas, sigmas = diffusion.scales(timesteps)
        denoised = diffusion.denoised(prediction, repeated, timesteps)
        cond, empty, negative = ((repeated - alphas * denoised) / sigmas).chunk(3)
        scale = config.nfsd_scale
        residual_BChw = noise_free_residual(cond, empty, negative, timestep_B, scale)
        made_BChw: torch.Tensor = fake_BChw - sigma / alpha * residual_BChw
        return made_BChw

    def _reconstruction(self, sample: Sample, fake: Fake) -> torch.Tensor:
        if self.is_in_pixels:
            codec = self._frozen.codec
            gap = fake.images(codec).float() - sample.real_images(codec)
        else:
            gap = fake.latents_BChw - sample.latents_BChw
        loss: torch.Tensor = gap.pow(2).mean()
        return loss
