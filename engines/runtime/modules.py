"""The three stages as torch modules, built from a torch folder in the diffusers layout.

Owns what each stage computes: the graphs are traced from these modules and the torch backend
runs them, so that parity compares one definition under two runtimes. Knows nothing of ONNX.

Shape suffixes: B batch, L tokens, D width, C channel, H/W pixels, h/w latent, T timestep index.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import diffusers
import numpy as np
import torch
import transformers
from torch import Tensor, nn

from engines.errors import ExportError
from engines.schedule import Schedule
from engines.spec import LatentSpec, ModelSpec, PredictionType

_AUTOENCODERS = ("AutoencoderDC", "AutoencoderTiny", "AutoencoderKL")


class TextStage(nn.Module):
    """input_ids_BL int64 -> text_embeds_BLD float32, after the final layer norm."""

    def __init__(self, encoder: nn.Module) -> None:
        """Wrap a CLIP text encoder."""
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids_BL: Tensor) -> Tensor:
        """Encode tokens; padding is seen by no token before it, the attention being causal."""
        return cast(Tensor, self.encoder(input_ids=input_ids_BL).last_hidden_state)


class DenoiseStage(nn.Module):
    """Noisy latents, timestep and text to the estimate of the clean latents, in float32."""

    from_latents_T: Tensor
    from_output_T: Tensor

    def __init__(self, unet: nn.Module, schedule: Schedule, prediction: PredictionType) -> None:
        """Wrap a UNet with the tables that turn its output into clean latents.

        Raises:
            ValueError: the schedule cannot be inverted for this prediction type.
        """
        super().__init__()
        self.unet = unet
        self.is_sample = prediction == "sample"
        from_latents_T, from_output_T = schedule.denoised_scales(prediction)
        self.register_buffer("from_latents_T", torch.from_numpy(np.float32(from_latents_T)))
        self.register_buffer("from_output_T", torch.from_numpy(np.float32(from_output_T)))

    def forward(self, latents_BChw: Tensor, timestep_B: Tensor, text_embeds_BLD: Tensor) -> Tensor:
        """Return denoised_BChw."""
        output_BChw = cast(
            Tensor,
            self.unet(
                latents_BChw, timestep_B, encoder_hidden_states=text_embeds_BLD, return_dict=False
            )[0],
        )
        if self.is_sample:
            return output_BChw
        from_latents_B = self.from_latents_T[timestep_B].view(-1, 1, 1, 1)
        from_output_B = self.from_output_T[timestep_B].view(-1, 1, 1, 1)
        return from_latents_B * latents_BChw + from_output_B * output_BChw


class DecodeStage(nn.Module):
    """latents_BChw float32 -> images_BHWC uint8."""

    def __init__(self, autoencoder: nn.Module, latent: LatentSpec) -> None:
        """Wrap an autoencoder's decoder, whose pixels lie in [-1, 1]."""
        super().__init__()
        self.autoencoder = autoencoder
        self.latent = latent

    def forward(self, latents_BChw: Tensor) -> Tensor:
        """Unscale, decode, clamp, round; the cast comes last, as TensorRT asks of uint8."""
        raw_BChw = latents_BChw / self.latent.scale + self.latent.shift
        pixels_BCHW = cast(Any, self.autoencoder).decode(raw_BChw, return_dict=False)[0]
        levels_BHWC = (pixels_BCHW * 127.5 + 127.5).clamp(0.0, 255.0).permute(0, 2, 3, 1)
        return cast(Tensor, levels_BHWC.round().to(torch.uint8))


@dataclass(frozen=True)
class TorchStages:
    """The three modules of one model, in evaluation mode."""

    text: TextStage
    denoise: DenoiseStage
    decode: DecodeStage


def load_modules(folder: Path, spec: ModelSpec) -> TorchStages:
    """Read text_encoder, unet and vae of a torch folder.

    Raises:
        ExportError: a part is missing, damaged or of a class that has no decode stage, or the
            schedule does not fit the prediction type.
    """
    try:
        denoise = DenoiseStage(
            _load(diffusers.UNet2DConditionModel, folder / "unet"),
            Schedule.from_spec(spec.schedule),
            spec.prediction_type,
        )
    except ValueError as error:
        raise ExportError(f"{folder}/model.json: {error}") from error
    return TorchStages(
        text=TextStage(_load(transformers.CLIPTextModel, folder / "text_encoder")).eval(),
        denoise=denoise.eval(),
        decode=DecodeStage(
            _load(_autoencoder_class(folder / "vae"), folder / "vae"), spec.latent
        ).eval(),
    )


def _autoencoder_class(folder: Path) -> Any:
    path = folder / "config.json"
    try:
        name = json.loads(path.read_bytes())["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportError(f"cannot read _class_name of {path}: export the model again") from error
    if name not in _AUTOENCODERS:
        raise ExportError(f"{path}: {name} has no decode stage; use {', '.join(_AUTOENCODERS)}")
    return getattr(diffusers, name)


def _load(model_class: Any, folder: Path) -> nn.Module:
    if not folder.is_dir():
        raise ExportError(f"{folder} is missing: give a folder that `onestep-distill export` wrote")
    try:
        model = model_class.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    except Exception as error:  # two libraries, no common base class
        reason = str(error).strip().partition("\n")[0]
        raise ExportError(f"cannot load {folder} ({reason}): export the model again") from error
    return cast(nn.Module, model.eval().requires_grad_(False))
