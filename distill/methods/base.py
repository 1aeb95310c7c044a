"""What every distillation method is given and must do.

A method computes gradients. Who steps the optimizers, splits batches, talks to other processes or
touches the disk is not its business.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from distill.autoencoder import Codec
from distill.conditioning import Conditioning
from distill.diffusion import Diffusion
from distill.draws import Draws

# Shape suffixes: B batch, C channel, H/W pixels, h/w latent cells.

Metrics = dict[str, float]


@dataclass(frozen=True)
class Sample:
    """Some real pictures and their prompts.

    Attributes:
        latents_BChw: scaled latents.
        conditioning: the prompts.
        empty: the empty prompt, as many rows.
        images_BCHW: the pictures themselves in [-1, 1], where the source keeps them.
    """

    latents_BChw: torch.Tensor
    conditioning: Conditioning
    empty: Conditioning
    images_BCHW: torch.Tensor | None = None

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.latents_BChw)

    def at(self, part: slice) -> Sample:
        """Some of the rows."""
        return Sample(
            self.latents_BChw[part],
            self.conditioning[part],
            self.empty[part],
            None if self.images_BCHW is None else self.images_BCHW[part],
        )


@dataclass(frozen=True)
class Fake:
    """What the student made of noised real latents.

    Attributes:
        latents_BChw: its x0.
        timestep_B: the student's timestep of each.
        noise_BChw: the noise that went in.
    """

    latents_BChw: torch.Tensor
    timestep_B: torch.Tensor
    noise_BChw: torch.Tensor

    def detached(self) -> Fake:
        """The same without gradients."""
        return Fake(self.latents_BChw.detach(), self.timestep_B, self.noise_BChw)


@dataclass(frozen=True)
class Frozen:
    """The networks that no method trains."""

    teacher: nn.Module
    codec: Codec
    diffusion: Diffusion


class Method(Protocol):
    """One way to distil.

    Attributes:
        modules: what is trained beside the student, such as the discriminator's heads; may be
            empty, and then `critic_loss` is never called.
        critic_steps: updates of `modules` per update of the student.
    """

    modules: nn.ModuleDict
    critic_steps: int

    def critic_loss(
        self, modules: nn.ModuleDict, sample: Sample, fake: Fake, draws: Draws
    ) -> tuple[torch.Tensor, Metrics]:
        """Loss of `modules` on a batch; the fake carries no gradients.

        Args:
            modules: the trained modules, as the driver wraps them for several processes.
            sample: real pictures.
            fake: the student's.
            draws: random numbers of this batch.
        """
        ...

    def student_losses(
        self, sample: Sample, fake: Fake, draws: Draws
    ) -> tuple[dict[str, torch.Tensor], Metrics]:
        """Weighted losses of the student by name, differentiable with respect to the fake."""
        ...
