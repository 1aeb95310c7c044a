"""Folders of well-known models with their configs and no weights.

Owns the public configurations of the teachers and vision models that the paper uses, so that their
trainings can be planned on a machine that holds none of them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import CLIPTokenizer

from distill.networks.encoders import train_tokenizer

_CONFIGS = Path(__file__).parent / "configs"
_HUB_PREFIX = "facebook/"

TEACHERS = ("sd-1.5", "sd-2.1", "sdxl")
_HUB_TEACHERS = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "sd-1.5",
    "stabilityai/stable-diffusion-2-1": "sd-2.1",
    "stabilityai/stable-diffusion-xl-base-1.0": "sdxl",
}


def known_teacher(source: str | None) -> str | None:
    """The short name of a teacher whose configuration is here, also by its hub name."""
    name = _HUB_TEACHERS.get(source or "", source)
    return name if name in TEACHERS else None


def public_config(name: str) -> dict[str, Any]:
    """The configuration of a well-known model by its short name."""
    config: dict[str, Any] = json.loads((_CONFIGS / f"{name}.json").read_text(encoding="utf-8"))
    return config


def write_teacher(name: str, folder: Path) -> Path:
    """Write the folder of a pipeline that holds configs only.

    Args:
        name: one of `TEACHERS`.
        folder: where.
    """
    public = public_config(name)
    encoders = public["text_encoders"]
    is_dual = len(encoders) > 1
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionXLPipeline" if is_dual else "StableDiffusionPipeline",
        "force_zeros_for_empty_prompt": is_dual,
    }
    _write(folder / "unet" / "config.json", public["unet"])
    _write(folder / "vae" / "config.json", public["vae"])
    _write(folder / "scheduler" / "scheduler_config.json", public["scheduler"])
    for number, encoder in enumerate(encoders, start=1):
        suffix = "" if number == 1 else f"_{number}"
        _write(folder / f"text_encoder{suffix}" / "config.json", encoder)
        index[f"text_encoder{suffix}"] = ["transformers", encoder["architectures"][0]]
        _tokenizer(encoder["max_position_embeddings"]).save_pretrained(
            folder / f"tokenizer{suffix}"
        )
        index[f"tokenizer{suffix}"] = ["transformers", "CLIPTokenizer"]
    _write(folder / "model_index.json", index)
    return folder


def write_vision_model(source: str, folder: Path) -> str:
    """The folder of a vision model without weights, where `source` is a name known here.

    Returns:
        The folder written, or `source` itself where it is something else.
    """
    name = source.removeprefix(_HUB_PREFIX)
    if not (_CONFIGS / f"{name}.json").is_file():
        return source
    _write(folder / name / "config.json", public_config(name))
    return str(folder / name)


def _tokenizer(max_tokens: int) -> CLIPTokenizer:
    """CLIP's tokenizer over a few words: how many ids it gives matters here, not which."""
    model = json.loads(train_tokenizer(["a"], 560).to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    return CLIPTokenizer(vocab=model["vocab"], merges=merges, model_max_length=max_tokens)


def _write(path: Path, settings: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
