"""A folder of diffusers, or one with model.json, as a `ModelSpec`.

Owns which pipelines are known and how their parts must fit. Reads settings alone, so that a model
is refused before its gigabytes are.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from engines.adopt.schedule import read_schedule, student_timesteps
from engines.adopt.settings import read_settings
from engines.adopt.tokens import read_text_spec
from engines.errors import ExportError
from engines.spec import SPEC_FILE, LatentSpec, ModelSpec, ScheduleSpec

INDEX_FILE = "model_index.json"
TINY_VAE_FOLDER = "vae_tiny"
# Pipelines by whether they have two text encoders. Each draws from text; that some also start from
# a picture changes nothing in the folder.
_PIPELINES = {
    "StableDiffusionPipeline": False,
    "StableDiffusionImg2ImgPipeline": False,
    "StableDiffusionXLPipeline": True,
    "StableDiffusionXLImg2ImgPipeline": True,
}


@dataclass(frozen=True)
class Overrides:
    """What the user says of a model; what is left out is read from its folder.

    Attributes:
        name: of the model.
        sizes_px: width and height of pictures; the first is the usual one.
        timesteps: that the student was trained for, descending.
        vae: an autoencoder's folder in place of the model's own.
    """

    name: str | None = None
    sizes_px: tuple[tuple[int, int], ...] = ()
    timesteps: tuple[int, ...] = ()
    vae: Path | None = None


def adopt(folder: Path, overrides: Overrides | None = None) -> ModelSpec:
    """What a torch folder holds; nothing is written.

    Args:
        folder: with model.json, or as `save_pretrained` of a Stable Diffusion pipeline writes it.
        overrides: of the user.

    Raises:
        BundleError: model.json is damaged.
        ExportError: it is no such folder, of an unknown kind, or its parts do not fit.
    """
    folder, overrides = Path(folder), overrides or Overrides()
    if (folder / SPEC_FILE).is_file():
        spec = ModelSpec.load(folder)
        latent = spec.latent if overrides.vae is None else read_latent(overrides.vae)
        _refuse_other_channels(folder, latent, overrides)
        fields = spec.model_dump() | {"latent": latent.model_dump()}
    else:
        fields = _read_fields(folder, overrides)
    fields |= _said(overrides, fields)
    try:
        return ModelSpec.model_validate(fields)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ExportError(f"{folder}: {reason}: give other --size or --timesteps") from error


def autoencoder_folder(folder: Path, choice: str) -> Path | None:
    """The folder that `--vae` means, None for the model's own.

    Args:
        folder: of the model.
        choice: "full", "tiny" (the model's vae_tiny/), or a folder.

    Raises:
        ExportError: there is no such autoencoder.
    """
    if choice == "full":
        return None
    if choice == "tiny":
        tiny = folder / TINY_VAE_FOLDER
        if not tiny.is_dir():
            raise ExportError(
                f"--vae tiny: {tiny} is missing: fetch it with `onestep-engines pull --tiny-vae`, "
                "or give the folder of an AutoencoderTiny"
            )
        return tiny
    path = Path(choice)
    for candidate in (path, path / "vae"):
        if (candidate / "config.json").is_file():
            return candidate
    raise ExportError(f"--vae {choice}: no config.json there: give full, tiny or a folder")


def read_latent(folder: Path) -> LatentSpec:
    """Channels, downscale, scale and shift of an autoencoder.

    Raises:
        ExportError: its settings cannot be read, or scale each channel by itself.
    """
    path = folder / "config.json"
    settings = read_settings(path)
    if settings.get("latents_mean") is not None or settings.get("latents_std") is not None:
        raise ExportError(f"{path}: latents_mean, latents_std: one scale serves all channels here")
    widths = settings.get("block_out_channels") or settings.get("encoder_block_out_channels")
    if not isinstance(widths, list):
        raise ExportError(f"{path}: no block_out_channels: no autoencoder that is known here")
    is_tiny = settings.get("_class_name") == "AutoencoderTiny"
    scale = settings.get("scaling_factor") or (1.0 if is_tiny else 0.18215)
    return LatentSpec(
        channels=settings.get("latent_channels", 4),
        downscale=2 ** (len(widths) - 1),
        scale=scale,
        shift=settings.get("shift_factor") or 0.0,
    )


def _read_fields(folder: Path, overrides: Overrides) -> dict[str, Any]:
    index = read_settings(folder / INDEX_FILE)
    pipeline = str(index.get("_class_name"))
    if pipeline not in _PIPELINES:
        raise ExportError(
            f"{folder / INDEX_FILE}: a {pipeline} is not known here, only {', '.join(_PIPELINES)}"
        )
    schedule, prediction_type = read_schedule(folder)
    latent = read_latent(overrides.vae or folder / "vae")
    _refuse_other_channels(folder, latent, overrides)
    text = read_text_spec(folder, is_dual=_PIPELINES[pipeline])
    unet = read_settings(folder / "unet" / "config.json")
    _refuse_other_unet(unet, folder / "unet" / "config.json", text.width, text.pooled_width)
    side = unet.get("sample_size")
    sizes = [side, side] if isinstance(side, int) else list(side or (64, 64))[::-1]
    return {
        "name": folder.resolve().name,
        "description": f"{pipeline}, {prediction_type}",
        "license": _card_license(folder),
        "prediction_type": prediction_type,
        "schedule": schedule.model_dump(),
        "student_timesteps": student_timesteps(schedule),
        "sizes_px": [[cells * latent.downscale for cells in sizes]],
        "latent": latent.model_dump(),
        "text": text.model_dump(),
    }


def _said(overrides: Overrides, fields: dict[str, Any]) -> dict[str, Any]:
    said: dict[str, Any] = {}
    if overrides.name is not None:
        said["name"] = overrides.name
    if overrides.sizes_px:
        said["sizes_px"] = overrides.sizes_px
    if overrides.timesteps:
        schedule = ScheduleSpec.model_validate(fields["schedule"])
        said["student_timesteps"] = student_timesteps(schedule, overrides.timesteps)
    return said


def _refuse_other_channels(folder: Path, latent: LatentSpec, overrides: Overrides) -> None:
    path = folder / "unet" / "config.json"
    if not path.is_file():
        return  # named when it is loaded
    unet = read_settings(path)
    taken, given = unet.get("in_channels", 4), unet.get("out_channels", 4)
    if taken != given:
        raise ExportError(
            f"{path}: takes {taken} channels and gives {given}: models for inpainting, depth or "
            "edits take more than latents and are not supported"
        )
    if taken != latent.channels:
        source = overrides.vae or folder / "vae"
        raise ExportError(
            f"{source} gives {latent.channels} channels and the UNet takes {taken}: give the "
            "autoencoder that belongs to this model"
        )


def _refuse_other_unet(
    unet: dict[str, Any], path: Path, width: int, pooled_width: int | None
) -> None:
    name = unet.get("_class_name")
    if name != "UNet2DConditionModel":
        raise ExportError(f"{path}: a {name} is not known here, only UNet2DConditionModel")
    if unet.get("time_cond_proj_dim") is not None:
        raise ExportError(f"{path}: time_cond_proj_dim: a UNet that is told its guidance scale")
    if unet.get("class_embed_type") is not None or unet.get("num_class_embeds") is not None:
        raise ExportError(f"{path}: class_embed_type: a UNet that is told a class or noise level")
    added = "text_time" if pooled_width is not None else None
    if unet.get("addition_embed_type") != added:
        raise ExportError(f"{path}: addition_embed_type must be {added} with these text encoders")
    if unet.get("cross_attention_dim") != width:
        raise ExportError(
            f"{path}: cross_attention_dim is {unet.get('cross_attention_dim')} and the text "
            f"encoders give {width}: parts of different models"
        )


def _card_license(folder: Path) -> str:
    """What the model card's front matter names as its licence; empty where there is none."""
    path = folder / "README.md"
    if not path.is_file():
        return ""
    text = path.read_text(encoding="utf-8", errors="replace")
    front = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    found = re.search(r"^license(?:_name)?: *(\S+)", front[1], re.MULTILINE) if front else None
    return found[1] if found else ""
