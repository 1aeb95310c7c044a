"""The adversary: frozen features, trained heads, and what conditions them.

Owns what the discriminator sees: which features of real and fake, augmented how, with which text
and picture beside them. Source: arXiv:2311.17042, section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from distill.config import DiscriminatorConfig
from distill.draws import Draws
from distill.methods.base import Fake, Frozen, Metrics, Sample
from distill.methods.losses import hinge_discriminator, hinge_generator, r1_penalty
from distill.networks.discriminator import Discriminator
from distill.networks.features import Features, ImageEmbedder, Look
from distill.training.device import full_precision

# Shape suffixes: B batch, C channel, H/W pixels, h/w cells, D width of the condition.


@dataclass(frozen=True)
class Condition:
    """Which vectors the heads are given; both widths are 0 where one is left out."""

    text_width: int
    image: ImageEmbedder | None

    @property
    def width(self) -> int:
        """Of the vectors together; at least 1, so that a head without condition has a bias."""
        return max(1, self.text_width + (self.image.width if self.image else 0))


class Adversary:
    """Computes logits of real and fake pictures, and the losses of both sides."""

    def __init__(
        self,
        config: DiscriminatorConfig,
        features: Features,
        condition: Condition,
        frozen: Frozen,
        last_timestep: int,
    ) -> None:
        """Build untrained heads for the features.

        Args:
            config: of the discriminator.
            features: the frozen network.
            condition: what the heads are given beside the features.
            frozen: for the decoder and the device.
            last_timestep: where the student's input is pure noise.
        """
        self.config = config
        self.features = features
        self.heads = Discriminator(features.channels, condition.width, config.head_width)
        self.heads.to(frozen.codec.device)
        self._condition = condition
        self._frozen = frozen
        self._last_timestep = last_timestep

    def condition(self, sample: Sample, fake: Fake, draws: Draws) -> torch.Tensor:
        """condition_BD: the pooled text and the real picture's embedding.

        A student that started from pure noise knows nothing of the real picture: there its
        embedding is dropped, or the heads would tell the two apart by the mismatch alone.
        """
        parts = []
        if self._condition.text_width:
            parts.append(sample.conditioning.pooled_BD.float())
        if self._condition.image is not None:
            with torch.no_grad():
                image_BD = self._condition.image(sample, self._frozen.codec).float()
            is_noise = fake.timestep_B == self._last_timestep
            chance = self.config.drop_image_at_noise
            is_dropped = is_noise & (draws.uniform("drop_image") < chance)
            parts.append(torch.where(is_dropped[:, None], 0.0, image_BD))
        if not parts:
            return torch.zeros(len(sample), 1, device=fake.latents_BChw.device)
        return torch.cat(parts, dim=1)

    def critic_loss(
        self, heads: nn.Module, sample: Sample, fake: Fake, draws: Draws
    ) -> tuple[torch.Tensor, Metrics]:
        """Hinge loss of the heads, with R1 on their inputs (eq. 3)."""
        with torch.no_grad():
            real = self.features(self._look_at_real(sample), sample.conditioning, draws, "real")
            made = self.features(self._look_at_fake(fake.detached()), sample.conditioning, draws)
        condition_BD = self.condition(sample, fake, draws)
        with full_precision(condition_BD.device):
            real = [feature.float().requires_grad_() for feature in real]
            real_logits = heads(real, condition_BD)
            fake_logits = heads([feature.float() for feature in made], condition_BD)
            loss = hinge_discriminator(real_logits, fake_logits)
            metrics = {"loss_d": loss.item(), "d_accuracy": accuracy(real_logits, fake_logits)}
            if self.config.r1_gamma:
                penalty = r1_penalty(real_logits, real)
                loss = loss + self.config.r1_gamma * penalty
                metrics["r1"] = penalty.item()
        return loss, metrics

    def student_loss(self, sample: Sample, fake: Fake, draws: Draws) -> torch.Tensor:
        """Minus the heads' logits of the fake (eq. 2), with gradients to the fake alone."""
        made = self.features(self._look_at_fake(fake), sample.conditioning, draws)
        condition_BD = self.condition(sample, fake, draws)
        self.heads.requires_grad_(False)
        with full_precision(condition_BD.device):
            loss = hinge_generator(self.heads([f.float() for f in made], condition_BD))
        self.heads.requires_grad_(True)
        return loss

    def _look_at_fake(self, fake: Fake) -> Look:
        if self.features.space == "latent":
            return Look(latents_BChw=fake.latents_BChw)
        return Look(images_BCHW=fake.images(self._frozen.codec))

    def _look_at_real(self, sample: Sample) -> Look:
        if self.features.space == "latent":
            return Look(latents_BChw=sample.latents_BChw)
        return Look(images_BCHW=sample.real_images(self._frozen.codec))


def accuracy(real_logits: Sequence[torch.Tensor], fake_logits: Sequence[torch.Tensor]) -> float:
    """Share of logits with the right sign: 0.5 is a guess, 1 a lost game for the student."""
    right = [(real > 0).float().mean() for real in real_logits]
    right += [(fake < 0).float().mean() for fake in fake_logits]
    return torch.stack(right).mean().item()
