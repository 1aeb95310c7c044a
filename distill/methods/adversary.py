"""The adversary: frozen features, trained heads, and what conditions them.

Owns what the discriminator sees: which features of real and fake, augmented how, with which text
and picture beside them. Source: arXiv:2311.17042, section 3.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from distill.config import DiscriminatorConfig
from distill.draws import Draws
from distill.methods.base import Fake, Frozen, Metrics, Sample
from distill.methods.losses import hinge_discriminator, hinge_generator, r1_penalty
from distill.networks.discriminator import Discriminator
from distill.networks.features import Features, ImageEmbedder, Look
from distill.networks.levels import LEVEL_WIDTH, Levels
from distill.training.device import full_precision

# Shape suffixes: B batch, C channel, H/W pixels, h/w cells, D width of the condition.


@dataclass(frozen=True)
class Condition:
    """Which vectors the heads are given; a width is 0 where one is left out.

    Attributes:
        text_width: of the pooled prompt.
        image: describes the real picture.
        levels: of the features' noise, where the heads are told it (arXiv:2403.12015, section 3).
    """

    text_width: int
    image: ImageEmbedder | None
    levels: Levels | None = None

    @property
    def width(self) -> int:
        """Of the vectors together; at least 1, so that a head without condition has a bias."""
        image_width = self.image.width if self.image else 0
        return max(1, self.text_width + image_width + (LEVEL_WIDTH if self.levels else 0))


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
        """condition_BD: the pooled text, the real picture's embedding and the noise level.

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
        if self._condition.levels is not None:
            parts.append(self._condition.levels.embedded(draws))
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


def held(gradients: Mapping[str, torch.Tensor], share: float | None) -> torch.Tensor:
    """The sum of gradients, the adversary's held at a share of the others' together.

    Held picture by picture, so that the result does not depend on how a batch is split.

    Args:
        gradients: on the pictures by loss, each (B, C, ...).
        share: length of the adversary's in those of the others; None takes it as it is.
    """
    if share is not None and "adversarial" in gradients and len(gradients) > 1:
        pull = torch.stack([g for k, g in gradients.items() if k != "adversarial"]).sum(0)
        push = gradients["adversarial"]
        scale_B = share * _norms(pull) / _norms(push).clamp_min(1e-12)
        gradients = {**gradients, "adversarial": push * scale_B.view(-1, 1, 1, 1)}
    return torch.stack(list(gradients.values())).sum(0)


def _norms(gradient_BCxx: torch.Tensor) -> torch.Tensor:
    norms_B: torch.Tensor = gradient_BCxx.flatten(1).norm(dim=1)
    return norms_B


def accuracy(real_logits: Sequence[torch.Tensor], fake_logits: Sequence[torch.Tensor]) -> float:
    """Share of logits with the right sign: 0.5 is a guess, 1 a lost game for the student."""
    right = [(real > 0).float().mean() for real in real_logits]
    right += [(fake < 0).float().mean() for fake in fake_logits]
    return torch.stack(right).mean().item()
