"""Tiny parts of a training: real classes, random weights, drawn shapes.

Owns what several tests of the distillation build. Nothing here is trained.
"""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import Dinov2Config, Dinov2Model

from distill.autoencoder import build_autoencoder
from distill.config import DiscriminatorConfig, RunConfig, override
from distill.dataset import Pictures, load_pictures
from distill.draws import Draws
from distill.methods.base import Frozen, Sample
from distill.networks.codec import Codec
from distill.networks.conditioning import Conditioning
from distill.networks.diffusion import Diffusion
from distill.networks.encoders import TextEncoder
from distill.networks.unet import build_unet, freeze
from distill.presets import shapes_tiny
from distill.student import StudentTrainer
from distill.teacher import CaptionedLatents
from distill.teachers.base import Teacher


def tiny_config(*assignments: str) -> RunConfig:
    """The preset of the tests with some fields set."""
    return override(shapes_tiny(), assignments)


def tiny_pictures(num: int = 8) -> Pictures:
    """Drawn shapes at the tiny preset's size."""
    return load_pictures(tiny_config(f"data.num_shapes={num}").data)


def tiny_codec() -> Codec:
    """An untrained autoencoder with four pixels per latent cell."""
    torch.manual_seed(0)
    return Codec(build_autoencoder(tiny_config().autoencoder))


def tiny_text() -> TextEncoder:
    """An untrained text encoder over the shapes' captions."""
    torch.manual_seed(0)
    captions = [caption for texts in tiny_pictures(48).captions for caption in texts]
    return TextEncoder.create(captions, tiny_config().text).eval()


def tiny_unet(seed: int = 0) -> nn.Module:
    """An untrained UNet of the tiny preset."""
    config = tiny_config()
    torch.manual_seed(seed)
    return build_unet(config.unet, config.autoencoder.latent_channels, config.text)


def tiny_diffusion() -> Diffusion:
    """The tiny preset's schedule and prediction."""
    config = tiny_config()
    return Diffusion.create(config.teacher.schedule, config.teacher.prediction_type)


def tiny_teacher() -> Teacher:
    """All that a distillation needs of a teacher, untrained."""
    text = tiny_text()
    unet = freeze(tiny_unet(seed=1))
    return Teacher(unet, text, tiny_codec(), tiny_diffusion(), text.spec.width)


def tiny_frozen() -> Frozen:
    """The same as a method is given it."""
    teacher = tiny_teacher()
    return Frozen(teacher.unet, teacher.codec, teacher.diffusion, teacher.pooled_width)


def tiny_draws(num: int = 2, iteration: int = 0) -> Draws:
    """Random numbers of a whole batch."""
    return Draws(4, iteration, range(num))


def tiny_conditioning(num: int = 2, name: str = "text") -> Conditioning:
    """Embeddings drawn at random."""
    text = tiny_config().text
    embeds_BLD = tiny_draws(num).normal(name, (text.max_tokens, text.width))
    return Conditioning(embeds_BLD, embeds_BLD[:, -1])


def tiny_sample(num: int = 2) -> Sample:
    """Latents and conditioning of a batch, drawn at random."""
    latents_BChw = tiny_draws(num).normal("latents", (4, 8, 8))
    return Sample(latents_BChw, tiny_conditioning(num), tiny_conditioning(num, "empty"))


def tiny_trainer(*assignments: str) -> StudentTrainer:
    """A distillation of eight drawn shapes from an untrained teacher."""
    teacher = tiny_teacher()
    samples = CaptionedLatents(teacher.codec, teacher.text, tiny_pictures())
    samples.embed_captions(teacher.text)
    torch.manual_seed(0)
    return StudentTrainer(tiny_config(*assignments), teacher, samples, ["a red circle"])


def resumed(*assignments: str, num_before: int = 2, num_after: int = 2) -> tuple[Any, Any]:
    """The states of a training taken straight through and of one stopped and continued."""
    straight, stopped = tiny_trainer(*assignments), tiny_trainer(*assignments)
    for _ in range(num_before + num_after):
        straight.iterate(1.0)
    for _ in range(num_before):
        stopped.iterate(1.0)
    kept = io.BytesIO()
    torch.save(stopped.state_dict(), kept)
    continued = tiny_trainer(*assignments)
    continued.load_state_dict(torch.load(io.BytesIO(kept.getvalue()), weights_only=True))
    for _ in range(num_after):
        continued.iterate(1.0)
    return straight.state_dict(), continued.state_dict()


def squeezenet_arrays() -> dict[str, NDArray[np.float32]]:
    """Random weights in the shapes of SqueezeNet 1.0. Source: arXiv:1602.07360, table 1."""
    rng = np.random.default_rng(0)
    arrays: dict[str, NDArray[np.float32]] = {}

    def layer(name: str, num_out: int, num_in: int, side: int) -> None:
        scale = (2 / (num_in * side * side)) ** 0.5
        shape = (num_out, num_in, side, side)
        arrays[f"{name}_w"] = (scale * rng.standard_normal(shape)).astype(np.float32)
        arrays[f"{name}_b"] = rng.standard_normal((1, num_out, 1, 1)).astype(np.float32) * 0.1

    layer("conv1", 96, 3, 7)
    num_in = 96
    for index, squeeze in enumerate((16, 16, 32, 32, 48, 48, 64, 64), start=2):
        layer(f"fire{index}_conv1x1_1", squeeze, num_in, 1)
        layer(f"fire{index}_conv1x1_2", squeeze * 4, squeeze, 1)
        layer(f"fire{index}_conv3x3_2", squeeze * 4, squeeze, 3)
        num_in = squeeze * 8
    return arrays


def tiny_vision_transformer(folder: Path) -> Path:
    """A random DINOv2 of three blocks, in a folder as the hub has them."""
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        mlp_ratio=2,
        image_size=28,
        patch_size=14,
    )
    Dinov2Model(config).save_pretrained(folder)
    return folder


def vision_config(folder: Path, hooks: tuple[int, ...] = (0, 2)) -> DiscriminatorConfig:
    """Heads that look through a vision model."""
    return replace(
        tiny_config().student.discriminator,
        features="vision",
        vision_model=str(folder),
        hooks=hooks,
        input_size_px=45,
        augment=(),
    )
