"""SD-Turbo- and SDXL-Turbo-shaped networks with random weights, built where they run.

Owns the shapes, as the public configurations of the two models have them, and the whole from
tokens to pixels as one module. Random weights do the same work as trained ones: valid for speed,
and for nothing else.

Shape suffixes: B batch, L tokens, D width, C channel, H/W pixels, h/w latent, S steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import diffusers
import torch
import transformers
from torch import Tensor, nn

NUM_TOKENS = 77
NUM_TOKENS_TINY = 8
_LATENT_CHANNELS = 4
_DOWNSCALE = 8


@dataclass(frozen=True)
class Shapes:
    """One model family.

    Attributes:
        name: shown in the rows.
        size_px: height and width of the pictures.
        num_tokens: per prompt.
        unet: arguments of UNet2DConditionModel.
        text_encoders: arguments of CLIPTextConfig; with two, the second one also gives the pooled
            text that the UNet takes.
        vaes: arguments of the autoencoder's class, by "kl" and "tiny".
    """

    name: str
    size_px: int
    num_tokens: int
    unet: Mapping[str, Any]
    text_encoders: tuple[Mapping[str, Any], ...]
    vaes: Mapping[str, Mapping[str, Any]]

    def __hash__(self) -> int:
        """By name and size: the rest follows from them, and mappings have no hash."""
        return hash((self.name, self.size_px))


def _clip(width: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": NUM_TOKENS,
        "vocab_size": 49408,
        **more,
    }


_KL = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": _LATENT_CHANNELS,
    "sample_size": 512,
}
_VAES: dict[str, dict[str, Any]] = {"kl": _KL, "tiny": {"latent_channels": _LATENT_CHANNELS}}

SD_TURBO = Shapes(
    name="sd-turbo",
    size_px=512,
    num_tokens=NUM_TOKENS,
    unet={
        "sample_size": 64,
        "block_out_channels": (320, 640, 1280, 1280),
        "attention_head_dim": (5, 10, 20, 20),
        "cross_attention_dim": 1024,
        "use_linear_projection": True,
    },
    # The last of OpenCLIP-H's 24 layers is left out, as Stable Diffusion 2 does.
    text_encoders=(_clip(1024, 23, 16, hidden_act="gelu"),),
    vaes=_VAES,
)
SDXL_TURBO = Shapes(
    name="sdxl-turbo",
    size_px=512,
    num_tokens=NUM_TOKENS,
    unet={
        "sample_size": 64,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    text_encoders=(
        _clip(768, 12, 12),
        _clip(1280, 32, 20, hidden_act="gelu", projection_dim=1280),
    ),
    vaes=_VAES,
)
MODELS = {shapes.name: shapes for shapes in (SD_TURBO, SDXL_TURBO)}


def shrunk(shapes: Shapes) -> Shapes:
    """The same structure at a few channels and 64 px, for a machine without a GPU."""
    num_levels = len(shapes.unet["block_out_channels"])
    channels = (16, 32, 32, 32)[:num_levels]
    texts = tuple(
        {**text, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
        | {"num_attention_heads": 2, "vocab_size": 64, "projection_dim": 16}
        | {"bos_token_id": 2, "eos_token_id": 3}
        for text in shapes.text_encoders
    )
    unet = {
        **shapes.unet,
        "sample_size": 8,
        "block_out_channels": channels,
        "attention_head_dim": 2,
        "cross_attention_dim": 16 * len(texts),
        "norm_num_groups": 8,
    }
    if "addition_time_embed_dim" in unet:
        unet |= {"transformer_layers_per_block": 1, "addition_time_embed_dim": 8}
        unet |= {"projection_class_embeddings_input_dim": 16 + 6 * 8}
    kl = {**shapes.vaes["kl"], "block_out_channels": (8, 8, 8, 8), "norm_num_groups": 8}
    tiny = {
        **shapes.vaes["tiny"],
        "encoder_block_out_channels": (8,) * 4,
        "decoder_block_out_channels": (8,) * 4,
    }
    return replace(
        shapes,
        size_px=64,
        num_tokens=NUM_TOKENS_TINY,
        unet=unet,
        text_encoders=texts,
        vaes={"kl": kl, "tiny": tiny},
    )


class TextToPicture(nn.Module):
    """Tokens and noise to pixels, with the three stages as methods."""

    def __init__(self, shapes: Shapes, vae: str) -> None:
        """Build with random weights on torch's current default device, in its default type."""
        super().__init__()
        self.shapes = shapes
        configs = [transformers.CLIPTextConfig(**text) for text in shapes.text_encoders]
        classes = (transformers.CLIPTextModel, transformers.CLIPTextModelWithProjection)
        self.texts = nn.ModuleList(
            text_class(config) for text_class, config in zip(classes, configs, strict=False)
        )
        self.unet = diffusers.UNet2DConditionModel(**shapes.unet)
        vae_class = diffusers.AutoencoderTiny if vae == "tiny" else diffusers.AutoencoderKL
        self.vae = vae_class(**shapes.vaes[vae])
        size = float(shapes.size_px)
        self.register_buffer("size_6", torch.tensor([size, size, 0.0, 0.0, size, size]))

    def text(self, input_ids_BL: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return text_embeds_BLD and, with two encoders, the pooled text_BD."""
        if len(self.texts) == 1:
            return self.texts[0](input_ids_BL).last_hidden_state, None
        outputs = [text(input_ids_BL, output_hidden_states=True) for text in self.texts]
        text_embeds_BLD = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        return text_embeds_BLD, outputs[1].text_embeds

    def denoise(
        self, noisy_BChw: Tensor, timestep_B: Tensor, embeds_BLD: Tensor, pooled_BD: Tensor | None
    ) -> Tensor:
        """One evaluation of the UNet, and the clean latents that it implies."""
        added = None
        if pooled_BD is not None:
            sizes_B6 = self.size_6.expand(len(noisy_BChw), -1)
            added = {"text_embeds": pooled_BD, "time_ids": sizes_B6}
        output_BChw = self.unet(
            noisy_BChw,
            timestep_B,
            encoder_hidden_states=embeds_BLD,
            added_cond_kwargs=added,
            return_dict=False,
        )[0]
        return 2.0 * noisy_BChw - 1.5 * output_BChw  # what a scheduler does: two scales, one sum

    def decode(self, latents_BChw: Tensor) -> Tensor:
        """Latents to images_BHWC uint8."""
        pixels_BCHW = self.vae.decode(latents_BChw, return_dict=False)[0]
        levels_BHWC = (pixels_BCHW * 127.5 + 127.5).clamp(0.0, 255.0).permute(0, 2, 3, 1)
        return levels_BHWC.round().to(torch.uint8).contiguous()

    def forward(self, input_ids_BL: Tensor, noise_SBChw: Tensor, timestep_SB: Tensor) -> Tensor:
        """The whole, as often through the UNet as there are timesteps."""
        embeds_BLD, pooled_BD = self.text(input_ids_BL)
        denoised_BChw = torch.zeros_like(noise_SBChw[0])
        for noise_BChw, timestep_B in zip(noise_SBChw, timestep_SB, strict=True):
            noisy_BChw = 0.6 * denoised_BChw + 0.8 * noise_BChw
            denoised_BChw = self.denoise(noisy_BChw, timestep_B, embeds_BLD, pooled_BD)
        return self.decode(denoised_BChw)


@dataclass(frozen=True)
class Inputs:
    """Static buffers that every run fills anew: nothing repeats from run to run."""

    input_ids_BL: Tensor
    noise_SBChw: Tensor
    timestep_SB: Tensor
    vocabulary_size: int

    def refill(self) -> None:
        """Draw other tokens and other noise, on the device."""
        self.input_ids_BL.random_(0, self.vocabulary_size)
        self.noise_SBChw.normal_()

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """In the order of the module's arguments."""
        return self.input_ids_BL, self.noise_SBChw, self.timestep_SB


def build(shapes: Shapes, vae: str, device: str, dtype: torch.dtype) -> TextToPicture:
    """Random weights, created on the device and in the type in which they run."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = TextToPicture(shapes, vae)
    finally:
        torch.set_default_dtype(before)
    return model.to(dtype).eval().requires_grad_(False)


def make_inputs(
    shapes: Shapes, batch_size: int, steps: int, device: str, dtype: torch.dtype
) -> Inputs:
    """Buffers of the right shapes; filled by `refill`."""
    cells = shapes.size_px // _DOWNSCALE
    timesteps = torch.linspace(999, 999 / steps, steps, device=device).long()
    return Inputs(
        torch.zeros(batch_size, shapes.num_tokens, dtype=torch.int64, device=device),
        torch.zeros(steps, batch_size, _LATENT_CHANNELS, cells, cells, dtype=dtype, device=device),
        timesteps[:, None].expand(-1, batch_size).contiguous(),
        shapes.text_encoders[0]["vocab_size"],
    )
