"""A finished teacher, wherever it came from."""

from __future__ import annotations

from dataclasses import dataclass

from diffusers import UNet2DConditionModel

from distill.networks.codec import Codec
from distill.networks.conditioning import PromptEncoder
from distill.networks.diffusion import Diffusion


@dataclass(frozen=True)
class Teacher:
    """Everything frozen that a distillation needs of its teacher.

    Attributes:
        unet: predicts as `diffusion.prediction_type` says.
        text: prompts to conditioning.
        codec: pixels to scaled latents and back.
        diffusion: the schedule it was trained on.
        pooled_width: of `Conditioning.pooled_BD`.
    """

    unet: UNet2DConditionModel
    text: PromptEncoder
    codec: Codec
    diffusion: Diffusion
    pooled_width: int
