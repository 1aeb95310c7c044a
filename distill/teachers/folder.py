"""A diffusers pipeline's folder as a teacher: Stable Diffusion 1 and 2, and SDXL.

Owns where a teacher is found (a folder, or a name on the Hugging Face hub), which pipelines are
known, and how their parts are loaded. What a part computes is elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers import DiffusionPipeline

from distill.config import ConfigError, RunConfig
from distill.networks.codec import Codec
from distill.networks.diffusion import Diffusion
from distill.networks.unet import freeze, load_unet
from distill.teachers.base import Teacher
from distill.teachers.schedules import read_schedule
from distill.teachers.text import ClipPrompts, DualClipPrompts
from engines.spec import PredictionType, ScheduleSpec

INDEX_FILE = "model_index.json"


@dataclass(frozen=True)
class TeacherFolder:
    """What is known of a teacher before its weights are read.

    Attributes:
        name: as the user gave it, for the student's model card.
        path: the folder.
        pipeline: name of the diffusers class that it was saved from.
        index: its model_index.json.
        schedule: it was trained on, made to end in pure noise.
        prediction_type: of its UNet.
    """

    name: str
    path: Path
    pipeline: str
    index: dict[str, Any]
    schedule: ScheduleSpec
    prediction_type: PredictionType

    def applied(self, config: RunConfig) -> RunConfig:
        """The run with its schedule and prediction those of this teacher.

        Raises:
            ConfigError: the student's timesteps do not fit the schedule.
        """
        teacher = replace(
            config.teacher, schedule=self.schedule, prediction_type=self.prediction_type
        )
        return replace(config, teacher=teacher)

    def load(self, size_px: int, device: torch.device) -> Teacher:
        """Read the weights, in float32 whatever the files hold; pictures are `size_px` wide.

        Raises:
            ConfigError: a part is missing, or two parts do not fit.
        """
        unet, codec = load_unet(self.path, device), self.codec(device)
        if unet.config.in_channels != codec.latent_channels:
            raise ConfigError(
                f"{self.name}: its UNet takes {unet.config.in_channels} channels and its "
                f"autoencoder gives {codec.latent_channels}: inpainting and image-to-image "
                "models are no teachers"
            )
        text = self.prompts(size_px)
        text.to(device)
        diffusion = Diffusion.create(self.schedule, self.prediction_type, device)
        return Teacher(freeze(unet), text, codec, diffusion, text.pooled_width)

    def codec(self, device: torch.device | None = None) -> Codec:
        """Read its autoencoder."""
        return Codec.load(self.path / "vae", device)

    def prompts(self, size_px: int) -> ClipPrompts | DualClipPrompts:
        """Read its tokenizers and text encoders, frozen."""
        text = PIPELINES[self.pipeline](self, size_px)
        freeze(text)
        return text

    def part(self, name: str) -> Any:
        """A tokenizer or text encoder, by the class that the index names.

        Raises:
            ConfigError: it is missing, damaged or of a class that transformers has not.
        """
        _, class_name = self.index.get(name) or (None, None)
        kind = getattr(transformers, str(class_name).removesuffix("Fast"), None)
        if kind is None:
            raise ConfigError(f"{self.path / INDEX_FILE}: {name} is {class_name}, which is unknown")
        if not (self.path / name).is_dir():
            raise ConfigError(f"no {name} in {self.path}")
        options = {} if "tokenizer" in name else {"dtype": torch.float32}
        return kind.from_pretrained(self.path / name, local_files_only=True, **options)


def _clip_prompts(folder: TeacherFolder, size_px: int) -> ClipPrompts:
    return ClipPrompts(folder.part("tokenizer"), folder.part("text_encoder"))


def _dual_clip_prompts(folder: TeacherFolder, size_px: int) -> DualClipPrompts:
    return DualClipPrompts(
        [folder.part("tokenizer"), folder.part("tokenizer_2")],
        [folder.part("text_encoder"), folder.part("text_encoder_2")],
        size_px=size_px,
        is_empty_zero=bool(folder.index.get("force_zeros_for_empty_prompt", True)),
    )


PIPELINES: dict[str, Callable[[TeacherFolder, int], ClipPrompts | DualClipPrompts]] = {
    "StableDiffusionPipeline": _clip_prompts,
    "StableDiffusionXLPipeline": _dual_clip_prompts,
}


def find_teacher(source: str, zero_terminal_snr: str = "auto") -> TeacherFolder:
    """Look up a teacher; a hub name is downloaded, unless it already was.

    Args:
        source: a local folder, or `organisation/name` with `@revision` if wanted.
        zero_terminal_snr: a policy of `ScheduleSpec`, or "auto" by the kind of prediction.

    Raises:
        ConfigError: nothing is there, or it is no pipeline that a student can be distilled from.
    """
    path = Path(source)
    if not path.is_dir():
        path = _downloaded(source)
    index = _read_json(path / INDEX_FILE, source)
    pipeline = str(index.get("_class_name"))
    if pipeline not in PIPELINES:
        raise ConfigError(
            f"{source} is a {pipeline}: a student can be distilled from {', '.join(PIPELINES)}"
        )
    settings = _read_json(path / "scheduler" / "scheduler_config.json", source)
    schedule, prediction_type = read_schedule(settings, zero_terminal_snr)
    return TeacherFolder(source, path, pipeline, index, schedule, prediction_type)


def _read_json(path: Path, source: str) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"{source} is no diffusers pipeline: {path} is missing")
    try:
        read: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is damaged: {error}") from error
    return read


def _downloaded(source: str) -> Path:
    name, _, revision = source.partition("@")
    if name.count("/") != 1 or name.startswith((".", "/")):
        raise ConfigError(
            f"no folder {source}; a hub name has the form organisation/name[@revision]"
        )
    try:
        return Path(DiffusionPipeline.download(name, revision=revision or None))
    except Exception as error:  # the hub's client has no common base class for its errors
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"cannot fetch {source} from the hub ({reason}): download it where there is a network "
            f"and give the folder, or set HF_HOME to a cache that holds it"
        ) from error
