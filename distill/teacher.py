"""The training of a diffusion teacher.

Owns the teacher's data, captioned latents, too. Knows nothing of adversaries.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from distill.config import RunConfig, TeacherConfig
from distill.dataset import Pictures, probe_prompts, to_uint8
from distill.draws import Draws
from distill.grid import grid_image
from distill.methods.base import Sample
from distill.networks.codec import Codec, encode_all
from distill.networks.conditioning import Conditioning, PromptEncoder
from distill.networks.diffusion import Diffusion
from distill.networks.encoders import TextEncoder
from distill.networks.unet import build_unet, to_device
from distill.sampling import sample_teacher
from distill.training.checkpoint import Ema, averaged
from distill.training.clipping import clipped_step
from distill.training.device import half_precision
from distill.training.optimizers import adamw

# Shape suffixes: B batch, C channel, h/w latent cells, L tokens, D width.


class CaptionedLatents:
    """Precomputed latents and token ids; draws batches of (latents, one random caption)."""

    def __init__(self, codec: Codec, text: PromptEncoder, pictures: Pictures) -> None:
        """Encode every picture and every caption once."""
        self.latents_NChw = encode_all(codec, pictures)
        self._ids_ML = text.tokens([c for captions in pictures.captions for c in captions])
        counts = torch.tensor([len(captions) for captions in pictures.captions])
        self._first_N = counts.cumsum(0) - counts
        self._counts_N = counts
        weights_N = np.ones(len(counts)) if pictures.weights_N is None else pictures.weights_N
        self._weights_N = torch.from_numpy(weights_N).float()
        self._empty_L = text.tokens([""])[0]
        self._embeds: Conditioning | None = None
        self._empty: Conditioning | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one picture's latents."""
        _, channels, height, width = self.latents_NChw.shape
        return channels, height, width

    def draw(self, num: int, dropout: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
        """latents_BChw and input_ids_BL; a caption is emptied with probability `dropout`."""
        where = self.latents_NChw.device
        which_B = torch.multinomial(self._weights_N, num, replacement=True)
        offset_B = (torch.rand(num) * self._counts_N[which_B]).long()
        ids_BL = self._ids_ML[(self._first_N[which_B] + offset_B).to(where)].clone()
        ids_BL[(torch.rand(num) < dropout).to(where)] = self._empty_L
        return self.latents_NChw[which_B.to(where)], ids_BL

    @torch.no_grad()
    def embed_captions(self, text: PromptEncoder) -> None:
        """Encode every caption once with a frozen text encoder, for `sample`."""
        self._embeds = Conditioning.cat([text.encode(ids) for ids in self._ids_ML.split(256)])
        self._empty = text.encode(self._empty_L[None])

    def sample(self, draws: Draws) -> Sample:
        """Pictures with their conditioning, for a distillation."""
        assert self._embeds is not None and self._empty is not None
        where = self.latents_NChw.device
        which_B = draws.choice("picture", self._weights_N.tolist()).cpu()
        offset_B = (draws.uniform("caption").cpu() * self._counts_N[which_B]).long()
        caption_B = (self._first_N[which_B] + offset_B).to(where)
        return Sample(
            self.latents_NChw[which_B.to(where)],
            self._embeds[caption_B],
            self._empty.expand(len(draws)),
        )


class TeacherTrainer:
    """Trains text encoder and UNet together to predict noise removal."""

    name = "teacher"

    def __init__(self, config: RunConfig, codec: Codec, pictures: Pictures) -> None:
        """Learn the vocabulary, build both models, precompute latents and tokens."""
        self.config: TeacherConfig = config.teacher
        self.optimizer = config.teacher.optimizer
        self.codec = codec
        captions = [c for texts in pictures.captions for c in texts]
        self.text = TextEncoder.create(captions, config.text)
        latent_channels = config.autoencoder.latent_channels
        self.device = codec.device
        self.text.to(self.device)
        unet = build_unet(config.unet, latent_channels, config.text)
        self.unet = to_device(unet, self.device)
        self._unet = torch.compile(self.unet) if config.compile else self.unet
        self.models = nn.ModuleDict({"unet": self.unet, "text": self.text})
        self.diffusion = Diffusion.create(
            config.teacher.schedule, config.teacher.prediction_type, self.device
        )
        self.latents = CaptionedLatents(codec, self.text, pictures)
        self._prompts = probe_prompts(pictures, 12)
        self._bf16 = config.bf16
        self.ema = Ema(self.models, config.teacher.ema_decay)
        self._adam = adamw(self.models.parameters(), self.optimizer)

    def iterate(self, lr_scale: float) -> dict[str, float]:
        """One step; reports the loss and the gradient's norm before clipping."""
        latents_BChw, ids_BL = self.latents.draw(
            self.optimizer.batch_size, self.config.caption_dropout
        )
        num = len(latents_BChw)
        noise_BChw = torch.randn_like(latents_BChw)
        timestep_B = self.diffusion.draw_timesteps(num, self.config.timestep_shift)
        noisy_BChw = self.diffusion.add_noise(latents_BChw, noise_BChw, timestep_B)
        for group in self._adam.param_groups:
            group["lr"] = self.optimizer.lr * lr_scale
        with half_precision(self.device, enabled=self._bf16):
            prediction_BChw = self._unet(noisy_BChw, timestep_B, self.text(ids_BL)).sample
        target_BChw = self.diffusion.target(latents_BChw, noise_BChw, timestep_B)
        loss = (prediction_BChw.float() - target_BChw).pow(2).mean()
        self._adam.zero_grad(set_to_none=True)
        loss.backward()
        taken = clipped_step(self._adam, self.models.parameters(), self.optimizer.grad_clip)
        if not taken["skipped"]:
            self.ema.update(self.models)
        return {"loss": loss.item(), **taken}

    @torch.no_grad()
    def sample_grid(self) -> Any:
        """Twelve prompts at 1 step above the same at 25 steps, from the averaged weights."""
        prompts = self._prompts
        with averaged(self.models, self.ema):
            rows = [
                sample_teacher(
                    self.unet,
                    self.text,
                    self.diffusion,
                    prompts,
                    seeds=range(len(prompts)),
                    shape=self.latents.shape,
                    num_steps=num_steps,
                )
                for num_steps in (1, 25)
            ]
        return grid_image(to_uint8(self.codec.decode(torch.cat(rows))), num_columns=12)

    def state_dict(self) -> dict[str, Any]:
        """Models, optimizer and average."""
        return {
            "models": self.models.state_dict(),
            "adam": self._adam.state_dict(),
            "ema": self.ema.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.models.load_state_dict(state["models"])
        self._adam.load_state_dict(state["adam"])
        self.ema.load_state_dict(state["ema"])

    def save_model(self, folder: Path) -> None:
        """Write the averaged weights: unet/, text_encoder/, tokenizer/."""
        with averaged(self.models, self.ema):
            self.unet.save_pretrained(folder / "unet")
            self.text.save(folder)
