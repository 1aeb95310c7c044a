"""Stages of well-known architectures with random weights, made in half without a float32 copy.

Owns weights that keep activations of a sensible size. Knows no file of weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import nn

from engines.runtime.modules import (
    DecodeStage,
    DenoiseStage,
    DualTextStage,
    EncodeStage,
    TextStage,
)
from engines.runtime.modules.precision import in_dtype
from engines.schedule import Schedule
from engines.spec import ModelSpec

_BLOCK = 2**20
_STRIDE = 7919


def random_stage(
    folder: Path, spec: ModelSpec, stage: str, vae: str, dtype: torch.dtype
) -> nn.Module:
    """A stage as `load_stage` gives it, from configurations alone."""
    if stage == "text":
        first = _text_encoder(folder / "text_encoder", transformers.CLIPTextModel, dtype)
        if spec.text.pooled_width is None:
            return TextStage(first).eval()
        kind = transformers.CLIPTextModelWithProjection
        second = _text_encoder(folder / "text_encoder_2", kind, dtype)
        return DualTextStage(first, second, spec.text).eval()
    if stage == "denoise":
        unet = _diffusers_model(diffusers.UNet2DConditionModel, folder / "unet", dtype)
        schedule = Schedule.from_spec(spec.schedule)
        return DenoiseStage(unet, schedule, spec.prediction_type, dtype=dtype).eval()
    if vae == "tiny":
        autoencoder = _made(diffusers.AutoencoderTiny, dtype)
    else:
        autoencoder = _diffusers_model(diffusers.AutoencoderKL, folder / "vae", dtype)
    kind = DecodeStage if stage == "decode" else EncodeStage
    return kind(autoencoder, spec.latent, dtype).eval()


def inputs_at(spec: ModelSpec, stage: str, size_px: tuple[int, int]) -> tuple[torch.Tensor, ...]:
    """One row of random inputs for a size in pixels."""
    random = torch.Generator().manual_seed(0)
    latents = torch.randn(1, *spec.latent_shape(*size_px), generator=random)
    if stage == "text":
        ids = torch.full((1, spec.text.max_tokens), spec.text.eos_token_id)
        ids[0, :5] = torch.tensor([spec.text.bos_token_id, 40, 41, 42, 43])
        return (ids,)
    if stage == "encode":
        width, height = size_px
        shape = (1, height, width, 3)
        return (torch.randint(0, 256, shape, generator=random, dtype=torch.uint8),)
    if stage == "decode":
        return (latents,)
    text = spec.text
    embeds = torch.randn(1, text.max_tokens, text.width, generator=random)
    pooled = () if text.pooled_width is None else (torch.randn(1, text.pooled_width),)
    return (latents, torch.tensor([999]), embeds, *pooled)


def _text_encoder(folder: Path, kind: Any, dtype: torch.dtype) -> nn.Module:
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return _made(lambda: kind(transformers.CLIPTextConfig(**settings)), dtype)


def _diffusers_model(kind: Any, folder: Path, dtype: torch.dtype) -> nn.Module:
    settings = kind.load_config(folder)
    return _made(lambda: kind.from_config(settings), dtype)


def _made(make: Any, dtype: torch.dtype) -> nn.Module:
    """Build on the meta device in `dtype`, then fill: no weight is ever there twice."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            model = make()
    finally:
        torch.set_default_dtype(before)
    model.to_empty(device="cpu").requires_grad_(False)
    block = torch.randn(2 * _BLOCK, generator=torch.Generator().manual_seed(0)).to(dtype)
    for index, (name, parameter) in enumerate(model.named_parameters()):
        if parameter.ndim < 2:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
            continue
        scale = 0.02 if "embedding.weight" in name else parameter[0].numel() ** -0.5
        flat = parameter.view(-1)
        # Each layer starts elsewhere in the block: equal weights would be stored once in a plan.
        start = index * _STRIDE % _BLOCK
        for begin in range(0, flat.numel(), _BLOCK):
            part = flat[begin : begin + _BLOCK]
            torch.mul(block[start : start + part.numel()], scale, out=part)
    for name, buffer in model.named_buffers():
        assert name.endswith("position_ids"), name
        buffer.copy_(torch.arange(buffer.shape[-1]).expand_as(buffer))
    return in_dtype(model.eval(), dtype)
