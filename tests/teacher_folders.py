"""Tiny Stable Diffusion pipelines in folders: the real classes, random weights, a small vocabulary.

Owns what the tests of real teachers load. Nothing here is trained; every folder is a few hundred
kilobytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from distill.networks.encoders import train_tokenizer

KINDS = ("sd15", "sd21", "sdxl")
WORDS = ("a red circle", "blue square above green ring", "yellow triangle inside a purple ring")
MAX_TOKENS = 12
_BETAS: dict[str, Any] = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "steps_offset": 1,
}


def tiny_tokenizer(pad_token: str = "<|endoftext|>") -> CLIPTokenizer:
    """CLIP's own tokenizer class over a vocabulary of a few words."""
    model = json.loads(train_tokenizer(WORDS, 560).to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    return CLIPTokenizer(
        vocab=model["vocab"], merges=merges, pad_token=pad_token, model_max_length=MAX_TOKENS
    )


def _text_config(tokenizer: CLIPTokenizer, **changes: Any) -> CLIPTextConfig:
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": MAX_TOKENS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "projection_dim": 32,
    }
    return CLIPTextConfig(**{**settings, **changes})


def _vae(**changes: Any) -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=32,
        **changes,
    )


def _unet(**changes: Any) -> UNet2DConditionModel:
    settings: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "attention_head_dim": 2,
        "cross_attention_dim": 32,
    }
    return UNet2DConditionModel(**{**settings, **changes})


def save_tiny_pipeline(kind: str, folder: Path) -> Path:
    """Write the pipeline called "sd15", "sd21", "sdxl" or "flow" to a folder.

    The differences are those of the models they are named after: PNDM, epsilon and one CLIP model;
    v prediction, linear projections, GELU and "!" as padding; two text models, time ids and Euler.
    """
    torch.manual_seed(len(kind) + ord(kind[-1]))
    makers = {"sd15": _sd15, "sd21": _sd21, "sdxl": _sdxl, "flow": _flow}
    makers[kind]().save_pretrained(folder)
    return folder


def _sd15() -> StableDiffusionPipeline:
    scheduler = PNDMScheduler(**_BETAS, skip_prk_steps=True, set_alpha_to_one=False)
    return _single(scheduler, tiny_tokenizer(), _unet(), scaling_factor=0.18215)


def _sd21() -> StableDiffusionPipeline:
    scheduler = DDIMScheduler(
        **_BETAS, prediction_type="v_prediction", set_alpha_to_one=False, clip_sample=False
    )
    unet = _unet(use_linear_projection=True, attention_head_dim=(2, 4))
    return _single(scheduler, tiny_tokenizer("!"), unet, scaling_factor=0.18215, hidden_act="gelu")


def _flow() -> StableDiffusionPipeline:
    scheduler = FlowMatchEulerDiscreteScheduler()
    return _single(scheduler, tiny_tokenizer(), _unet(), scaling_factor=0.18215)


def _single(
    scheduler: Any,
    tokenizer: CLIPTokenizer,
    unet: UNet2DConditionModel,
    scaling_factor: float,
    hidden_act: str = "quick_gelu",
) -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        vae=_vae(scaling_factor=scaling_factor),
        text_encoder=CLIPTextModel(_text_config(tokenizer, hidden_act=hidden_act)),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sdxl() -> StableDiffusionXLPipeline:
    tokenizers = (tiny_tokenizer(), tiny_tokenizer("!"))
    second = _text_config(
        tokenizers[1], hidden_act="gelu", hidden_size=48, num_hidden_layers=3, projection_dim=40
    )
    return StableDiffusionXLPipeline(
        vae=_vae(scaling_factor=0.13025, force_upcast=True),
        text_encoder=CLIPTextModel(_text_config(tokenizers[0])),
        text_encoder_2=CLIPTextModelWithProjection(second),
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        unet=_unet(
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            use_linear_projection=True,
            attention_head_dim=(2, 4),
            transformer_layers_per_block=(1, 2),
            cross_attention_dim=80,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=40 + 6 * 8,
        ),
        scheduler=EulerDiscreteScheduler(**_BETAS, timestep_spacing="leading"),
        add_watermarker=False,
    )
