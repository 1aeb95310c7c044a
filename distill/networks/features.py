"""Frozen networks whose features the discriminator's heads look at.

Owns two sources: the teacher's own UNet at a drawn noise level (Source: arXiv:2403.12015,
section 3), and a vision transformer from a local folder, such as DINOv2 (Source:
arXiv:2311.17042, section 3.2). Gradients flow to the picture; no weight is ever trained.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from diffusers import UNet2DConditionModel
from torch import nn
from torch.nn import functional
from transformers import AutoModel

from distill.config import ConfigError, DiscriminatorConfig
from distill.draws import Draws
from distill.networks.codec import Codec
from distill.networks.conditioning import Conditioning
from distill.networks.diffaug import augmented
from distill.networks.diffusion import Diffusion
from distill.networks.levels import Levels
from distill.networks.unet import to_device

# Shape suffixes: B batch, C channel, h/w cells, L tokens, D width, N patches.

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


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


def load_vision_model(source: str, field: str) -> Any:
    """A vision transformer from a local folder, or from the hub by its name.

    Raises:
        ConfigError: the folder holds no model, or the hub gives none.
    """
    is_local = Path(source).exists() or not _HUB_NAME.fullmatch(source)
    if is_local and not (Path(source) / "config.json").is_file():
        raise ConfigError(f"{field}: no model at {source}: give a transformers folder")
    try:
        return AutoModel.from_pretrained(source, local_files_only=is_local)
    except OSError as error:
        raise ConfigError(
            f"{field}: {source} cannot be loaded ({error}); download it and give its folder"
        ) from error


class VisionModel:
    """A frozen vision transformer, and how pictures are given to it."""

    def __init__(self, source: str, field: str, side_px: int, device: torch.device) -> None:
        """Load the model.

        Args:
            source: a transformers folder or a hub name, such as a DINOv2's.
            field: the config's field, for the error.
            side_px: of the picture it is given, rounded down to whole patches.
            device: where it runs.

        Raises:
            ConfigError: there is no such model.
        """
        self.model = load_vision_model(source, field).to(device)
        freeze(self.model)
        patch = int(self.model.config.patch_size)
        self.side_px = max(patch, side_px // patch * patch)
        self.cells = self.side_px // patch
        self.width = int(self.model.config.hidden_size)
        self._mean = torch.tensor(_IMAGENET_MEAN, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(_IMAGENET_STD, device=device).view(1, 3, 1, 1)

    def normalised(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Pixels in [-1, 1] to the model's input; no clamp, which would stop gradients."""
        scaled_BCHW = ((images_BCHW.float() + 1) / 2 - self._mean) / self._std
        side = (self.side_px, self.side_px)
        return functional.interpolate(scaled_BCHW, size=side, mode="bilinear", antialias=True)


class VisionFeatures:
    """Patch embedding and hidden states of a vision transformer; takes no noise, no text."""

    space: Literal["latent", "pixel"] = "pixel"

    def __init__(self, config: DiscriminatorConfig, device: torch.device) -> None:
        """Load the frozen model that the config names.

        Raises:
            ConfigError: there is no such model, or it lacks the hooks.
        """
        self._vision = VisionModel(
            config.vision_model, "student.discriminator.vision_model", config.input_size_px, device
        )
        num_layers = self._vision.model.config.num_hidden_layers
        if not config.hooks or not all(0 <= hook < num_layers for hook in config.hooks):
            raise ConfigError(f"student.discriminator.hooks must lie in 0..{num_layers - 1}")
        self._hooks = config.hooks
        self._augment = config.augment
        self.channels = (self._vision.width,) * (len(config.hooks) + 1)

    def __call__(
        self, look: Look, conditioning: Conditioning, draws: Draws, name: str = "fake"
    ) -> list[torch.Tensor]:
        """Run the model; take the patch embedding and the hooked blocks as maps."""
        assert look.images_BCHW is not None
        seen = augmented(look.images_BCHW.float(), self._augment, draws, name)
        inputs = self._vision.normalised(seen)
        states = self._vision.model(pixel_values=inputs, output_hidden_states=True).hidden_states
        cells = self._vision.cells
        chosen = [states[0], *(states[hook + 1] for hook in self._hooks)]
        return [
            state[:, -(cells**2) :].transpose(1, 2).unflatten(2, (cells, cells)) for state in chosen
        ]


class VisionEmbedder:
    """The class token of a vision transformer for the real pictures."""

    def __init__(self, config: DiscriminatorConfig, device: torch.device) -> None:
        """Load the frozen model that the config names."""
        source = config.image_model or ""
        self._vision = VisionModel(
            source, "student.discriminator.image_model", config.input_size_px, device
        )
        self.width = self._vision.width

    def __call__(self, sample: RealPictures, codec: Codec) -> torch.Tensor:
        """image_BD."""
        inputs = self._vision.normalised(sample.real_images(codec))
        token_BD: torch.Tensor = self._vision.model(pixel_values=inputs).last_hidden_state[:, 0]
        return token_BD


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


def freeze(module: nn.Module) -> nn.Module:
    """Stop training a module; gradients still flow through it to its inputs."""
    return module.eval().requires_grad_(False)
