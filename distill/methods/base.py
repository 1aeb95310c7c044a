"""What every distillation method is given and must do.

A method computes gradients. Who steps the optimizers, splits batches, talks to other processes or
touches the disk is not its business.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from distill.draws import Draws
from distill.networks.codec import Codec
from distill.networks.conditioning import Conditioning
from distill.networks.diffusion import Diffusion

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

    @torch.no_grad()
    def real_images(self, codec: Codec) -> torch.Tensor:
        """The pictures, decoded from their latents where the source keeps no others."""
        if self.images_BCHW is not None:
            return self.images_BCHW
        return codec.decode(self.latents_BChw).float()

    def at(self, part: slice) -> Sample:
        """Some of the rows."""
        return Sample(
            self.latents_BChw[part],
            self.conditioning[part],
            self.empty[part],
            None if self.images_BCHW is None else self.images_BCHW[part],
        )


class Fake:
    """What the student made of noised real latents.

    The decoded picture is kept once asked for: the decoder costs more than the student, and both
    phases look at the same one.
    """

    def __init__(
        self, latents_BChw: torch.Tensor, timestep_B: torch.Tensor, noise_BChw: torch.Tensor
    ) -> None:
        """Hold the student's x0, the timestep it came from and the noise that went in."""
        self.latents_BChw = latents_BChw
        self.timestep_B = timestep_B
        self.noise_BChw = noise_BChw
        self._images_BCHW: torch.Tensor | None = None

    def images(self, codec: Codec) -> torch.Tensor:
        """The decoded picture, gradients kept, about in [-1, 1]."""
        if self._images_BCHW is None:
            self._images_BCHW = codec.decode(self.latents_BChw)
        return self._images_BCHW

    def detached(self) -> Fake:
        """The same without gradients."""
        fake = Fake(self.latents_BChw.detach(), self.timestep_B, self.noise_BChw)
        if self._images_BCHW is not None:
            fake._images_BCHW = self._images_BCHW.detach()
        return fake


@dataclass(frozen=True)
class Frozen:
    """The networks that no method trains.

    Attributes:
        teacher: the UNet.
        codec: pixels to scaled latents and back.
        diffusion: the teacher's schedule, and the student's.
        pooled_width: of the prompts' vectors.
        negative: the negative prompt, one row, where a loss uses it.
    """

    teacher: UNet2DConditionModel
    codec: Codec
    diffusion: Diffusion
    pooled_width: int
    negative: Conditioning | None = None


class Method(Protocol):
    """One way to distil.

    Attributes:
        modules: what is trained beside the student, such as the discriminator's heads; may be
            empty, and then `critic_loss` is never called.
        critic_steps: updates of `modules` per update of the student.
        is_in_pixels: every loss is a function of `fake.images`, else of `fake.latents_BChw`.
    """

    modules: nn.ModuleDict
    critic_steps: int
    is_in_pixels: bool

    def critic_loss(
        self, modules: nn.ModuleDict, sample: Sample, fake: Fake, draws: Draws
    ) -> tuple[torch.Tensor, Metrics]:
        """Loss of `modules` on a batch; it must send no gradient into the fake.

        Args:
            modules: the trained modules, as the driver wraps them for several processes.
            sample: real pictures.
            fake: the student's.
            draws: random numbers of this batch.
        """
        ...

    def student_losses(self, sample: Sample, fake: Fake, draws: Draws) -> dict[str, torch.Tensor]:
        """Weighted losses of the student by name, differentiable with respect to the fake."""
        ...

    def combine(self, gradients: dict[str, torch.Tensor]) -> torch.Tensor:
        """One gradient on the fake from those of the losses; a plain sum in most methods."""
        ...
