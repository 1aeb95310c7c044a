"""Frozen networks whose features the discriminator's heads look at.

Owns what every source looks like, one of them, the teacher's own UNet at a drawn noise level
(Source: arXiv:2403.12015, section 3), and which source a config names. Gradients flow to the
picture; no weight is ever trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from diffusers import UNet2DConditionModel

from distill.config import DiscriminatorConfig
from distill.draws import Draws
from distill.networks.codec import Codec
from distill.networks.conditioning import Conditioning
from distill.networks.diffusion import Diffusion
from distill.networks.levels import Levels
from distill.networks.unet import freeze, to_device
from distill.networks.vision import VisionEmbedder, VisionFeatures

# Shape suffixes: B batch, C channel, h/w cells, L tokens, D width.


@dataclass(frozen=True)
class Look:
    """What is looked at: latents or pixels, as the features' `space` asks."""

    latents_BChw: torch.Tensor | None = None
    images_BCHW: torch.Tensor | None = None


class Features(Protocol):
    """Pictures to feature maps.

    Attributes:
        channels: of each map.
        space: which half of a `Look` it takes.
    """

    channels: tuple[int, ...]
    space: Literal["latent", "pixel"]

    def __call__(
        self, look: Look, conditioning: Conditioning, draws: Draws, name: str = "fake"
    ) -> list[torch.Tensor]:
        """Feature maps (B, C, h, w), one per head; `name` keeps real and fake draws apart."""
        ...


class ImageEmbedder(Protocol):
    """Real pictures to one vector each, image_BD."""

    width: int

    def __call__(self, sample: RealPictures, codec: Codec) -> torch.Tensor:
        """Describe the real pictures of a sample."""
        ...


class RealPictures(Protocol):
    """What an embedder needs of a sample."""

    @property
    def latents_BChw(self) -> torch.Tensor:
        """Scaled latents."""
        ...

    @property
    def conditioning(self) -> Conditioning:
        """The prompts."""
        ...

    def real_images(self, codec: Codec) -> torch.Tensor:
        """Pixels in [-1, 1]."""
        ...


def unet_encoder(
    unet: UNet2DConditionModel,
    noisy_BChw: torch.Tensor,
    timestep_B: torch.Tensor,
    conditioning: Conditioning,
) -> list[torch.Tensor]:
    """Outputs of a UNet's down and middle blocks; its up blocks are never run."""
    text_embeds_BLD = conditioning.text_embeds_BLD
    embedding = unet.time_embedding(unet.get_time_embed(noisy_BChw, timestep_B))
    added = conditioning.unet_arguments().get("added_cond_kwargs", {})
    extra = unet.get_aug_embed(embedding, text_embeds_BLD, added)
    if extra is not None:
        embedding = embedding + extra
    hidden = unet.conv_in(noisy_BChw)
    maps = []
    for block in unet.down_blocks:
        if getattr(block, "has_cross_attention", False):
            hidden, skips = block(hidden, embedding, encoder_hidden_states=text_embeds_BLD)
        else:
            hidden, skips = block(hidden, embedding)
        # The last skip before the block halves the map: its finest finished features.
        maps.append(skips[-2] if block.downsamplers is not None else skips[-1])
    maps.append(unet.mid_block(hidden, embedding, encoder_hidden_states=text_embeds_BLD))
    return maps


class TeacherFeatures:
    """A frozen UNet's down and middle blocks for latents noised to a drawn timestep."""

    space: Literal["latent", "pixel"] = "latent"

    def __init__(self, unet: UNet2DConditionModel, diffusion: Diffusion, levels: Levels) -> None:
        """Use a frozen UNet at drawn timesteps."""
        self._unet = unet
        self._diffusion = diffusion
        self._levels = levels
        widths = tuple(unet.config.block_out_channels)
        self.channels = (*widths, widths[-1])

    def __call__(
        self, look: Look, conditioning: Conditioning, draws: Draws, name: str = "fake"
    ) -> list[torch.Tensor]:
        """Noise the latents, then run the first half of the UNet; the level is shared by all."""
        latents_BChw = look.latents_BChw
        assert latents_BChw is not None
        timestep_B = self._levels.draw(draws)
        noise_BChw = draws.normal(f"feature_noise_{name}", latents_BChw.shape[1:])
        noisy_BChw = self._diffusion.add_noise(latents_BChw, noise_BChw, timestep_B)
        return unet_encoder(self._unet, noisy_BChw, timestep_B, conditioning)


class TeacherEmbedder:
    """The teacher's middle block for the clean real latents, averaged over cells."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        """Use a frozen teacher."""
        self._unet = unet
        self.width = int(unet.config.block_out_channels[-1])

    def __call__(self, sample: RealPictures, codec: Codec) -> torch.Tensor:
        """image_BD."""
        latents_BChw = sample.latents_BChw
        timestep_B = torch.zeros(len(latents_BChw), dtype=torch.long, device=latents_BChw.device)
        maps = unet_encoder(self._unet, latents_BChw, timestep_B, sample.conditioning)
        return maps[-1].mean((2, 3))


def build_features(
    config: DiscriminatorConfig,
    teacher: UNet2DConditionModel,
    diffusion: Diffusion,
    device: torch.device,
    levels: Levels | None = None,
) -> Features:
    """Return the source that the config names; without levels, they are drawn evenly."""
    levels = levels or Levels(*config.noise_timesteps)
    if config.features == "teacher":
        return TeacherFeatures(teacher, diffusion, levels)
    if config.features == "random":
        untrained = to_device(UNet2DConditionModel.from_config(teacher.config), device)
        return TeacherFeatures(freeze(untrained), diffusion, levels)
    return VisionFeatures(config, device)


def build_embedder(
    config: DiscriminatorConfig, teacher: UNet2DConditionModel, device: torch.device
) -> ImageEmbedder | None:
    """Return what describes the real picture to the heads, or None where nothing does."""
    if config.condition not in ("image", "both"):
        return None
    if config.image_model is None:
        return TeacherEmbedder(teacher)
    return VisionEmbedder(config, device)
