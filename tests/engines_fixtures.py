"""A tiny model with random weights, of the same classes as the bundled one.

Owns the torch folder that the engine tests export. Nothing here is trained: the tests that use it
compare runtimes with each other, not pictures with prompts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import tokenizers
import torch
import transformers

from engines.spec import LatentSpec, ModelSpec, ScheduleSpec, TextSpec

SIZE_PX = 64
_LATENT_CHANNELS = 8
_WIDTH = 32
_MAX_TOKENS = 12
_FOUR_STEPS = (999, 749, 499, 249)


def tiny_spec(**changes: Any) -> ModelSpec:
    """The spec of the tiny model; `changes` replace its fields."""
    fields: dict[str, Any] = {
        "name": "tiny",
        "description": "random weights",
        "license": "Apache-2.0",
        "prediction_type": "v_prediction",
        "schedule": ScheduleSpec(zero_terminal_snr="rescale"),
        "student_timesteps": {
            1: (999,),
            2: (999, 499),
            3: (999, 666, 333),
            4: _FOUR_STEPS,
        },
        "sizes_px": ((SIZE_PX, SIZE_PX),),
        "latent": LatentSpec(channels=_LATENT_CHANNELS, downscale=8, scale=0.5, shift=0.1),
        "text": TextSpec(
            max_tokens=_MAX_TOKENS, width=_WIDTH, bos_token_id=1, eos_token_id=2, pad_token_id=0
        ),
        "examples": ("a red circle", "a blue square above a green triangle"),
    }
    return ModelSpec(**(fields | changes))


def write_tokenizer(path: Path) -> None:
    """A character-level tokenizer: enough to give every prompt tokens of its own."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789 "
    vocabulary = {"<pad>": 0, "<bos>": 1, "<eos>": 2, "<unk>": 3}
    vocabulary |= {letter: 4 + index for index, letter in enumerate(letters)}
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(raw.to_str(), encoding="utf-8")


def tiny_unet() -> diffusers.UNet2DConditionModel:
    """Two levels, cross-attention in the lower one."""
    return diffusers.UNet2DConditionModel(
        sample_size=SIZE_PX // 8,
        in_channels=_LATENT_CHANNELS,
        out_channels=_LATENT_CHANNELS,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=_WIDTH,
        attention_head_dim=2,
        norm_num_groups=8,
        mid_block_type=None,
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
    )


def tiny_text_encoder() -> transformers.CLIPTextModel:
    """Two layers of the CLIP text transformer."""
    return transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=64,
            hidden_size=_WIDTH,
            intermediate_size=2 * _WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=_MAX_TOKENS,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    )


def tiny_autoencoder(class_name: str = "AutoencoderDC") -> torch.nn.Module:
    """An autoencoder that shrinks by 8 along each axis."""
    channels = (16, 16, 16, 16)
    if class_name == "AutoencoderDC":
        return diffusers.AutoencoderDC(
            latent_channels=_LATENT_CHANNELS,
            attention_head_dim=8,
            encoder_block_types="ResBlock",
            decoder_block_types="ResBlock",
            encoder_block_out_channels=channels,
            decoder_block_out_channels=channels,
            encoder_layers_per_block=(1, 1, 1, 1),
            decoder_layers_per_block=(1, 1, 1, 1),
            encoder_qkv_multiscales=((), (), (), ()),
            decoder_qkv_multiscales=((), (), (), ()),
            upsample_block_type="pixel_shuffle",
            downsample_block_type="pixel_unshuffle",
        )
    if class_name == "AutoencoderTiny":
        return diffusers.AutoencoderTiny(
            latent_channels=_LATENT_CHANNELS,
            encoder_block_out_channels=channels,
            decoder_block_out_channels=channels,
            num_encoder_blocks=(1, 1, 1, 1),
            num_decoder_blocks=(1, 1, 1, 1),
        )
    return diffusers.AutoencoderKL(
        latent_channels=_LATENT_CHANNELS,
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=8,
    )


def write_tiny_torch_folder(folder: Path, spec: ModelSpec | None = None) -> ModelSpec:
    """Write the tiny model in the layout that export reads; the same weights every time."""
    spec = spec or tiny_spec()
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    tiny_unet().save_pretrained(folder / "unet")
    tiny_text_encoder().save_pretrained(folder / "text_encoder")
    tiny_autoencoder().save_pretrained(folder / "vae")
    write_tokenizer(folder / "tokenizer" / "tokenizer.json")
    (folder / "scheduler").mkdir(exist_ok=True)
    scheduler = {"_class_name": "DDPMScheduler", "prediction_type": spec.prediction_type}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    (folder / "README.md").write_text("# tiny\n", encoding="utf-8")
    spec.save(folder)
    return spec


def write_tiny_vae(folder: Path, channels: int = 4) -> Path:
    """An AutoencoderTiny that shrinks by 4, as the autoencoders of tiny pipelines do."""
    torch.manual_seed(1)
    diffusers.AutoencoderTiny(
        latent_channels=channels,
        encoder_block_out_channels=(16, 16, 16),
        decoder_block_out_channels=(16, 16, 16),
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
    ).save_pretrained(folder)
    return folder


def alter_settings(path: Path, **changes: Any) -> None:
    """Change fields of a JSON file."""
    read = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(read | changes), encoding="utf-8")
