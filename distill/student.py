"""The one-step student: initialised from its teacher, trained by the distillation step.

Owns what the training of a student holds in memory and what a finished student says of itself in
model.json. Touches no disk but to write the finished model.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from distill.autoencoder import Codec
from distill.checkpoint import Ema, averaged
from distill.config import RunConfig, StudentConfig
from distill.dataset import Pictures, probe_prompts, to_uint8
from distill.diffusion import Diffusion
from distill.discriminator import Discriminator
from distill.encoders import TextEncoder
from distill.features import build_features, freeze
from distill.grid import grid_image
from distill.sampling import sample_student
from distill.step import Networks, Optimizers, Sample, distill_step
from distill.teacher import CaptionedLatents, load_unet
from engines.spec import LatentSpec, ModelSpec

# Shape suffixes: B batch, C channel, h/w latent cells, L tokens, M captions, D width.


def timesteps_by_steps(timesteps: tuple[int, ...]) -> dict[int, tuple[int, ...]]:
    """Which of the student's timesteps each number of steps uses, spread over all of them.

    One step uses the first; all steps use all; between, the first and evenly spaced others.
    """
    num = len(timesteps)
    chosen = {}
    for num_steps in range(1, num + 1):
        indices = [i * num // num_steps for i in range(num_steps)]
        chosen[num_steps] = tuple(timesteps[i] for i in indices)
    return chosen


class StudentTrainer:
    """Adversarial Diffusion Distillation of a finished teacher."""

    name = "student"

    def __init__(
        self, config: RunConfig, codec: Codec, teacher_folder: Path, pictures: Pictures
    ) -> None:
        """Load the teacher, copy it into the student, precompute latents and text embeddings.

        Raises:
            ConfigError: the teacher is not there.
        """
        self.run = config
        self.config: StudentConfig = config.student
        self.optimizer = config.student.optimizer
        self.device = codec.device
        self.text = TextEncoder.load(teacher_folder).to(self.device)
        freeze(self.text)
        teacher = load_unet(teacher_folder, self.device)
        self.student = copy.deepcopy(teacher).train()
        freeze(teacher)
        diffusion = Diffusion.create(
            config.teacher.schedule, config.teacher.prediction_type, self.device
        )
        disc = config.student.discriminator
        features = build_features(disc, teacher, diffusion, codec)
        heads = Discriminator(features.channels, config.text.width, disc.head_width).to(self.device)
        self.networks = Networks(self.student, teacher, heads, features, codec, diffusion)
        self.ema = Ema(self.student, config.student.ema_decay)
        self.latents = CaptionedLatents(codec, self.text, pictures)
        self.latents.embed_captions(self.text)
        self._prompts = probe_prompts(pictures, 36)
        settings = self.optimizer
        betas = (settings.beta1, settings.beta2)
        self._optimizers = Optimizers(
            torch.optim.AdamW(
                self.student.parameters(),
                lr=settings.lr,
                betas=betas,
                weight_decay=settings.weight_decay,
                fused=True,
            ),
            torch.optim.AdamW(
                heads.parameters(), lr=disc.lr, betas=betas, weight_decay=0.0, fused=True
            ),
            settings.grad_clip,
        )

    def iterate(self, lr_scale: float) -> Mapping[str, float]:
        """Both phases on one batch."""
        for group in self._optimizers.student.param_groups:
            group["lr"] = self.optimizer.lr * lr_scale
        latents_BChw, text_embeds_BLD = self.latents.draw_embedded(self.optimizer.batch_size)
        empty_BLD = self.latents.empty_embeds(len(latents_BChw))
        metrics = distill_step(
            self.networks,
            self.config,
            Sample(latents_BChw, text_embeds_BLD, empty_BLD),
            self._optimizers,
            bf16=self.run.bf16,
        )
        self.ema.update(self.student)
        return metrics

    @torch.no_grad()
    def sample_grid(self) -> Any:
        """Pictures in one step from the averaged weights."""
        with averaged(self.student, self.ema):
            latents_BChw = sample_student(
                self.student,
                self.text,
                self.networks.diffusion,
                self._prompts,
                range(len(self._prompts)),
                self.latents.shape,
                self.config.timesteps[:1],
            )
        return grid_image(to_uint8(self.networks.codec.decode(latents_BChw)), num_columns=12)

    def state_dict(self) -> dict[str, Any]:
        """Student, heads, both optimizers, average."""
        return {
            "student": self.student.state_dict(),
            "heads": self.networks.discriminator.state_dict(),
            "adam_student": self._optimizers.student.state_dict(),
            "adam_heads": self._optimizers.discriminator.state_dict(),
            "ema": self.ema.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.student.load_state_dict(state["student"])
        self.networks.discriminator.load_state_dict(state["heads"])
        self._optimizers.student.load_state_dict(state["adam_student"])
        self._optimizers.discriminator.load_state_dict(state["adam_heads"])
        self.ema.load_state_dict(state["ema"])

    def save_model(self, folder: Path) -> None:
        """Write the averaged student and the text encoder that it was trained with."""
        with averaged(self.student, self.ema):
            self.student.save_pretrained(folder / "unet")
        self.text.save(folder)


def student_spec(config: RunConfig, codec: Codec, text: TextEncoder) -> ModelSpec:
    """What serving must know of the finished student; the graphs are added at export."""
    size = config.data.image_size_px
    styles = config.data.styles
    names = config.data.concepts[:: max(1, len(config.data.concepts) // 12)][:12]
    return ModelSpec(
        name=config.name,
        description=config.description,
        license=config.license,
        prediction_type=config.teacher.prediction_type,
        schedule=config.teacher.schedule,
        student_timesteps=timesteps_by_steps(config.student.timesteps),
        sizes_px=((size, size),),
        latent=LatentSpec(
            channels=config.autoencoder.latent_channels,
            downscale=config.autoencoder.downscale,
            scale=codec.scale,
            shift=codec.shift,
        ),
        text=text.spec,
        examples=tuple(
            f"{name}, {style}" if style else name
            for name, style in zip(names, itertools.cycle(styles or ("",)))
        ),
        styles=styles,
    )
