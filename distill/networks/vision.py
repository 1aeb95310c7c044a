"""Vision models from a local folder as the discriminator's features.

Owns how one is loaded, how pictures are given to it, and which of its hidden states are maps for a
head: those of a transformer such as DINOv2 (Source: arXiv:2311.17042, section 3.2) or of a
convolutional network such as EfficientNet (Source: arXiv:2111.01007, section 3.2).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.nn import functional
from transformers import AutoModel
from transformers.image_processing_base import ImageProcessingMixin

from distill.config import ConfigError, DiscriminatorConfig
from distill.draws import Draws
from distill.networks.codec import Codec
from distill.networks.conditioning import Conditioning
from distill.networks.diffaug import augmented
from distill.networks.unet import freeze

if TYPE_CHECKING:
    from distill.networks.features import Look, RealPictures

# Shape suffixes: B batch, C channel, H/W pixels, h/w cells, D width.

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
# Of a convolutional network's strides together.
_STRIDE_PX = 32


def load_vision_model(source: str, field: str) -> Any:
    """A vision model from a local folder, or from the hub by its name.

    Raises:
        ConfigError: the folder holds no model, or the hub gives none.
    """
    is_local = _is_local(source)
    if is_local and not (Path(source) / "config.json").is_file():
        raise ConfigError(f"{field}: no model at {source}: give a transformers folder")
    try:
        return AutoModel.from_pretrained(source, local_files_only=is_local)
    except OSError as error:
        raise ConfigError(
            f"{field}: {source} cannot be loaded ({error}); download it and give its folder"
        ) from error


def _levels(source: str) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and deviation of pixels in [0, 1] that the model expects; ImageNet's by default."""
    try:
        named, _ = ImageProcessingMixin.get_image_processor_dict(
            source, local_files_only=_is_local(source)
        )
    except OSError:
        named = {}
    return named.get("image_mean", _IMAGENET_MEAN), named.get("image_std", _IMAGENET_STD)


def _is_local(source: str) -> bool:
    return Path(source).exists() or not _HUB_NAME.fullmatch(source)


class VisionModel:
    """A frozen vision model, and how pictures are given to it.

    Attributes:
        side_px: of the picture it is given.
        is_transformer: whether its states are tokens; a convolutional network's are maps.
        map_channels: of every map.
        described_width: numbers that describe a picture.
    """

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
        self._model = load_vision_model(source, field).to(device)
        freeze(self._model)
        patch_px = getattr(self._model.config, "patch_size", None)
        unit_px = patch_px if isinstance(patch_px, int) else _STRIDE_PX
        self.side_px = max(unit_px, side_px // unit_px * unit_px)
        self._cells = self.side_px // unit_px
        mean, std = _levels(source)
        self._mean = torch.tensor(mean, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(std, device=device).view(1, 3, 1, 1)
        # By a look at a grey picture: each family words its shapes in its own way.
        grey_BCHW = torch.zeros(1, 3, self.side_px, self.side_px, device=device)
        with torch.no_grad():
            seen = self._seen(grey_BCHW)
        self.is_transformer = seen.last_hidden_state.ndim == 3
        channel = -1 if self.is_transformer else 1
        self.map_channels = [int(state.shape[channel]) for state in seen.hidden_states]
        self.described_width = int(seen.last_hidden_state.shape[channel])

    def maps(self, images_BCHW: torch.Tensor) -> list[torch.Tensor]:
        """What each of its blocks gives, as (B, C, h, w).

        Args:
            images_BCHW: pixels in [-1, 1].

        Returns:
            The patch embedding's, or the first convolution's, then every block's.
        """
        states = self._seen(images_BCHW).hidden_states
        if not self.is_transformer:
            return list(states)
        cells = self._cells
        return [
            state[:, -(cells**2) :].transpose(1, 2).unflatten(2, (cells, cells)) for state in states
        ]

    def described(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """image_BD: a transformer's class token, else the mean over a picture's last cells."""
        last = self._seen(images_BCHW).last_hidden_state
        image_BD: torch.Tensor = last[:, 0] if self.is_transformer else last.mean((2, 3))
        return image_BD

    def _seen(self, images_BCHW: torch.Tensor) -> Any:
        """What the model gives: `hidden_states`, and `last_hidden_state` after its last norm."""
        return self._model(pixel_values=self._normalised(images_BCHW), output_hidden_states=True)

    def _normalised(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Pixels in [-1, 1] to the model's input; no clamp, which would stop gradients."""
        scaled_BCHW = ((images_BCHW.float() + 1) / 2 - self._mean) / self._std
        side = (self.side_px, self.side_px)
        return functional.interpolate(scaled_BCHW, size=side, mode="bilinear", antialias=True)


class VisionFeatures:
    """Maps of a vision model's chosen blocks; takes no noise, no text."""

    space: Literal["latent", "pixel"] = "pixel"

    def __init__(self, config: DiscriminatorConfig, device: torch.device) -> None:
        """Load the frozen model that the config names.

        Raises:
            ConfigError: there is no such model, or it lacks the hooks.
        """
        self._vision = VisionModel(
            config.vision_model, "student.discriminator.vision_model", config.input_size_px, device
        )
        channels = self._vision.map_channels
        num_blocks = len(channels) - 1
        if not config.hooks or not all(0 <= hook < num_blocks for hook in config.hooks):
            raise ConfigError(f"student.discriminator.hooks must lie in 0..{num_blocks - 1}")
        # A transformer's patch embedding is as wide as its blocks, and the paper gives it a head;
        # a convolutional network's first layer sees edges, in more cells than all others together.
        first = [0] if self._vision.is_transformer else []
        self._chosen = [*first, *(hook + 1 for hook in config.hooks)]
        self._augment = config.augment
        self.channels = tuple(channels[place] for place in self._chosen)

    def __call__(
        self, look: Look, conditioning: Conditioning, draws: Draws, name: str = "fake"
    ) -> list[torch.Tensor]:
        """Run the model; take what the config hooks."""
        assert look.images_BCHW is not None
        seen = augmented(look.images_BCHW.float(), self._augment, draws, name)
        maps = self._vision.maps(seen)
        return [maps[place] for place in self._chosen]


class VisionEmbedder:
    """A vision model's one vector for each of the real pictures."""

    def __init__(self, config: DiscriminatorConfig, device: torch.device) -> None:
        """Load the frozen model that the config names."""
        source = config.image_model or ""
        self._vision = VisionModel(
            source, "student.discriminator.image_model", config.input_size_px, device
        )
        self.width = self._vision.described_width

    def __call__(self, sample: RealPictures, codec: Codec) -> torch.Tensor:
        """image_BD."""
        return self._vision.described(sample.real_images(codec))
