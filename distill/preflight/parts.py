"""The trainers of a run, built without its files.

Owns what stands in for a folder that is not there yet: pictures without pixels, networks without
weights. The trainers themselves are the real ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch

from distill.autoencoder import AutoencoderTrainer, build_autoencoder
from distill.config import DataConfig, RunConfig, TextConfig
from distill.dataset import (
    ImageBatch,
    Pictures,
    Source,
    filter_pictures,
    open_rows,
    probe_prompts,
)
from distill.dataset.rows import captions_of
from distill.dataset.shapes import draw_shapes
from distill.networks.codec import Codec
from distill.networks.diffusion import Diffusion
from distill.networks.encoders import TextEncoder, build_text_model, text_spec, train_tokenizer
from distill.networks.unet import build_unet, freeze, to_device
from distill.preflight.rehearsal import Rehearsed
from distill.preflight.weightless import known_teacher, write_teacher, write_vision_model
from distill.samples.source import StreamedSamples
from distill.student import Samples, StudentTrainer
from distill.teacher import CaptionedLatents, TeacherTrainer
from distill.teachers.base import Teacher
from distill.teachers.load import load_teacher, settled

# Shape suffixes: N pictures, H/W pixels, C channel.

_NO_WORDS = Pictures(np.zeros((1, 1, 1, 1), dtype=np.uint8), (("a",),), ("",), ("",), ("",))


def words_of(config: DataConfig) -> Pictures | None:
    """A set's captions with pictures of no pixels; None where its path holds nothing."""
    if config.path == "shapes":
        found = [dict(row) for row in draw_shapes(config.num_shapes, config.image_size_px)]
    elif not Path(config.path).exists():
        return None
    else:
        rows = open_rows(config.path, config, "data.path")
        found = [dict(rows.read(i, with_image=False)) for i in range(len(rows))]
    kept = [(row, captions_of(row, config)) for row in found]
    kept = [(row, captions) for row, captions in kept if captions]
    names, styles, groups = (
        tuple(str(row.get(key) or "") for row, _ in kept) for key in ("name", "style", "group")
    )
    captions_of_all = tuple(captions for _, captions in kept)
    no_pixels_NHWC = np.zeros((len(kept), 1, 1, 1), dtype=np.uint8)
    return Pictures(no_pixels_NHWC, captions_of_all, names, styles, groups)


def without_pixels(words: Pictures, config: DataConfig, *, is_chosen: bool) -> Pictures:
    """Give pictures their size, of which not a byte is held.

    Args:
        words: captions.
        config: of the set.
        is_chosen: leave out what the config does, and allow for every picture in another colour.
    """
    if is_chosen:
        words = filter_pictures(words, config)
        if config.recoloured_share:
            words = words.select([*range(len(words)), *range(len(words))])
    side = config.image_size_px
    empty_NHWC = np.broadcast_to(np.uint8(0), (len(words), side, side, 3))
    return replace(words, images_NHWC=empty_NHWC)


def text_encoder(config: TextConfig) -> TextEncoder:
    """A text encoder whose vocabulary is as large as the config allows."""
    raw = train_tokenizer(["a"], config.vocab_size)
    spec = text_spec(raw, config)
    model = build_text_model(config, config.vocab_size, spec.bos_token_id, spec.eos_token_id)
    return TextEncoder(raw, model, spec)


def own_teacher(config: RunConfig) -> Teacher:
    """The teacher that the run itself trains."""
    device = torch.device(config.device)
    codec = Codec(build_autoencoder(config.autoencoder).to(device))
    text = text_encoder(config.text).to(device)
    freeze(text)
    unet = build_unet(config.unet, config.autoencoder.latent_channels, config.text)
    diffusion = Diffusion.create(config.teacher.schedule, config.teacher.prediction_type, device)
    return Teacher(to_device(unet, codec.device), text, codec, diffusion, text.spec.width)


def teacher_of(config: RunConfig) -> Teacher:
    """The teacher that the run trains or names, without its weights."""
    if config.student.teacher_source is None:
        return own_teacher(config)
    return load_teacher(config, Path(), torch.device(config.device))


@dataclass(frozen=True)
class BlankSource:
    """A stream of pictures without pixels, all with one caption."""

    side_px: int

    def sample(self, positions: Sequence[int]) -> ImageBatch:
        """What the stream shows at these positions."""
        shape = (len(positions), self.side_px, self.side_px, 3)
        return ImageBatch(np.broadcast_to(np.uint8(0), shape), ("a",) * len(positions))


def samples_of(config: RunConfig, teacher: Teacher, words: Pictures | None) -> Samples:
    """The real samples over pictures without pixels: held, or drawn as they are needed."""
    if words is None or config.data.access != "memory":
        size = config.student.optimizer.batch_size
        return StreamedSamples(cast(Source, BlankSource(config.data.image_size_px)), teacher, size)
    pictures = without_pixels(words, config.data, is_chosen=True)
    samples = CaptionedLatents(teacher.codec, teacher.text, pictures)
    samples.embed_captions(teacher.text)
    return samples


def builder(
    stage: str, config: RunConfig, words: Pictures | None, folder: Path, device: str = "cpu"
) -> Callable[[], Rehearsed]:
    """What makes the trainer of a stage, not compiled.

    Args:
        stage: "autoencoder", "teacher" or "student".
        config: of the run.
        words: its captions; None where there is no set yet.
        folder: an empty one, for the configs of models that are known by name.
        device: where it trains; a rehearsal's is the CPU.
    """
    config = with_known_models(replace(config, device=device, compile=False), folder)

    def build() -> Rehearsed:
        if stage == "student":
            teacher = teacher_of(config)
            samples = samples_of(config, teacher, words)
            prompts = ["a"] * 36 if words is None else probe_prompts(words, 36)
            return StudentTrainer(config, teacher, samples, prompts)
        known = words if words is not None else _NO_WORDS
        pictures = without_pixels(known, config.data, is_chosen=stage == "teacher")
        if stage == "autoencoder":
            return AutoencoderTrainer(config, pictures)
        codec = Codec(build_autoencoder(config.autoencoder).to(config.device))
        return TeacherTrainer(config, codec, pictures)

    return build


def with_known_models(config: RunConfig, folder: Path) -> RunConfig:
    """The run with folders of configs in the place of models that are known by name."""
    student, disc = config.student, config.student.discriminator
    if disc.features == "vision":
        disc = replace(disc, vision_model=write_vision_model(disc.vision_model, folder))
    if disc.image_model is not None:
        disc = replace(disc, image_model=write_vision_model(disc.image_model, folder))
    source, known = student.teacher_source, known_teacher(student.teacher_source)
    if known is not None:
        source = str(write_teacher(known, folder / known))
    config = replace(config, student=replace(student, discriminator=disc, teacher_source=source))
    return settled(config)
