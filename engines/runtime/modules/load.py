"""A torch folder's parts, read as stages.

Owns which class reads which part, in which precision, and what is refused: parts that are missing,
damaged, incomplete or of a class that has no such stage.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import diffusers
import torch
import transformers
from safetensors import safe_open
from torch import nn

from engines.errors import ExportError
from engines.runtime.modules.autoencoder import DecodeStage, EncodeStage
from engines.runtime.modules.denoise import DenoiseStage
from engines.runtime.modules.lora import Lora, fuse_loras
from engines.runtime.modules.precision import DTYPES, in_dtype
from engines.runtime.modules.text import DualTextStage, TextStage
from engines.schedule import Schedule
from engines.spec import ModelSpec, Precision, StageName

_AUTOENCODERS = ("AutoencoderDC", "AutoencoderTiny", "AutoencoderKL")
_ENCODER_WEIGHTS = ("encoder.", "quant_conv.")


@dataclass(frozen=True)
class ModuleOptions:
    """How a torch folder is read.

    Attributes:
        precision: float32, float16 or bfloat16.
        vae: an autoencoder's folder in place of the model's own.
        loras: adapters to add to the weights.
    """

    precision: Precision = "float32"
    vae: Path | None = None
    loras: tuple[Lora, ...] = ()


@dataclass(frozen=True)
class TorchStages:
    """The modules of one model, in evaluation mode; `encode` where its autoencoder encodes."""

    text: TextStage | DualTextStage
    denoise: DenoiseStage
    decode: DecodeStage
    encode: EncodeStage | None


def load_modules(
    folder: Path, spec: ModelSpec, options: ModuleOptions | None = None
) -> TorchStages:
    """Read text_encoder (and text_encoder_2), unet and vae of a torch folder.

    Raises:
        ExportError: a part is missing, damaged or of a class that has no decode stage, or the
            schedule does not fit the prediction type.
    """
    options = options or ModuleOptions()
    denoise = _denoise_stage(folder, spec, options)
    dtype = DTYPES[stage_precision(folder, spec, "decode", options)]
    autoencoder, has_encoder = _autoencoder(folder, options, dtype)
    decode = DecodeStage(autoencoder, spec.latent, dtype).eval()
    encode = EncodeStage(autoencoder, spec.latent, dtype).eval() if has_encoder else None
    return TorchStages(_text_stage(folder, spec, options), denoise, decode, encode)


def load_stage(
    folder: Path, spec: ModelSpec, stage: StageName, options: ModuleOptions
) -> nn.Module:
    """Read what one stage needs, and nothing else.

    Raises:
        ExportError: as `load_modules`; or the stage is "encode" and the autoencoder only decodes.
    """
    if stage == "text":
        return _text_stage(folder, spec, options)
    if stage == "denoise":
        return _denoise_stage(folder, spec, options)
    dtype = DTYPES[stage_precision(folder, spec, stage, options)]
    autoencoder, has_encoder = _autoencoder(folder, options, dtype)
    if stage == "decode":
        return DecodeStage(autoencoder, spec.latent, dtype).eval()
    if not has_encoder:
        raise ExportError(
            f"{_vae_folder(folder, options)} holds no encoder: leave --img2img out, or give "
            "another autoencoder with --vae"
        )
    return EncodeStage(autoencoder, spec.latent, dtype).eval()


def stage_precision(
    folder: Path, spec: ModelSpec, stage: StageName, options: ModuleOptions
) -> Precision:
    """What a stage computes in: the wanted precision, unless its numbers would overflow there.

    SDXL's autoencoder does in float16 and says so (`force_upcast`), as its pipeline obeys.
    """
    if stage not in ("decode", "encode") or options.precision != "float16":
        return options.precision
    is_obeyed = spec.text.pooled_width is not None
    settings = _settings(_vae_folder(folder, options))
    # What older files leave out is the default of the class.
    is_asked = settings.get("force_upcast", settings.get("_class_name") == "AutoencoderKL")
    return "float32" if is_obeyed and is_asked else "float16"


def _text_stage(folder: Path, spec: ModelSpec, options: ModuleOptions) -> TextStage | DualTextStage:
    is_dual = spec.text.pooled_width is not None
    encoders: list[nn.Module] = []
    parts = {"text_encoder": transformers.CLIPTextModel}
    if is_dual:
        parts["text_encoder_2"] = transformers.CLIPTextModelWithProjection
    for part, model_class in parts.items():
        encoders.append(_network(model_class, folder, part, is_dual, options))
    if is_dual:
        return DualTextStage(encoders[0], encoders[1], spec.text).eval()
    return TextStage(encoders[0]).eval()


def _denoise_stage(folder: Path, spec: ModelSpec, options: ModuleOptions) -> DenoiseStage:
    is_dual = spec.text.pooled_width is not None
    unet = _network(diffusers.UNet2DConditionModel, folder, "unet", is_dual, options)
    try:
        return DenoiseStage(
            unet,
            Schedule.from_spec(spec.schedule),
            spec.prediction_type,
            downscale=spec.latent.downscale,
            dtype=DTYPES[options.precision],
        ).eval()
    except ValueError as error:
        raise ExportError(f"{folder}/model.json: {error}") from error


def _network(
    model_class: Any, folder: Path, part: str, is_dual: bool, options: ModuleOptions
) -> nn.Module:
    dtype = DTYPES[options.precision]
    # Adapters are added in float32: the sum of two halves loses the smaller one's last digits.
    network, missing = _load(model_class, folder / part, torch.float32 if options.loras else dtype)
    if missing:
        raise ExportError(f"{folder / part} is incomplete, it lacks {missing[0]}: fetch it again")
    if options.loras:
        fuse_loras(network, part, options.loras, is_dual=is_dual)
    return in_dtype(network, dtype)


def _autoencoder(
    folder: Path, options: ModuleOptions, dtype: torch.dtype
) -> tuple[nn.Module, bool]:
    """The autoencoder, and whether its encoder's weights are there too."""
    folder = _vae_folder(folder, options)
    name = _settings(folder).get("_class_name")
    if name not in _AUTOENCODERS:
        raise ExportError(
            f"{folder / 'config.json'}: {name} has no decode stage; use {', '.join(_AUTOENCODERS)}"
        )
    network, missing = _load(getattr(diffusers, name), folder, dtype)
    needed = [weight for weight in missing if not weight.startswith(_ENCODER_WEIGHTS)]
    if needed:
        raise ExportError(f"{folder} is incomplete, it lacks {needed[0]}: fetch it again")
    return in_dtype(network, dtype), not missing


def _vae_folder(folder: Path, options: ModuleOptions) -> Path:
    return folder / "vae" if options.vae is None else options.vae


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        read: dict[str, Any] = json.loads(path.read_bytes())
        if not isinstance(read.get("_class_name"), str):
            raise ValueError("no text")
    except (OSError, ValueError, AttributeError) as error:
        raise ExportError(f"cannot read _class_name of {path}: export the model again") from error
    return read


def _load(model_class: Any, folder: Path, dtype: torch.dtype) -> tuple[nn.Module, list[str]]:
    """A network in evaluation mode, and the weights that its files lack.

    Only safetensors are read: the older files of weights run code when they are opened. What is
    stored in float32 is read so, for the sake of the norms, which stay in it.
    """
    if not folder.is_dir():
        raise ExportError(
            f"{folder} is missing: give a folder that `onestep-distill export` or "
            "`onestep-engines pull` wrote"
        )
    files = [path.name for path in folder.glob("*.safetensors*")]
    is_half_alone = bool(files) and all(".fp16" in name for name in files)
    try:
        network, found = model_class.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            variant="fp16" if is_half_alone else None,
            dtype=dtype if _is_stored_in_half(folder) else torch.float32,
            output_loading_info=True,
        )
    except Exception as error:  # two libraries, no common base class
        reason = str(error).strip().partition("\n")[0]
        raise ExportError(f"cannot load {folder} ({reason}): export the model again") from error
    network = cast(nn.Module, network).eval().requires_grad_(False)
    return network, sorted(found["missing_keys"])


def _is_stored_in_half(folder: Path) -> bool:
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as stored:
            return all(stored.get_slice(n).get_dtype() != "F32" for n in stored.keys())
    return False
