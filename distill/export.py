"""The finished student as a folder: diffusers layout, model.json, model card, picture grid.

Owns the folder that `onestep-engines export` turns into graphs. Knows nothing of ONNX.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from diffusers import DDPMScheduler, UNet2DConditionModel

from distill.autoencoder import Codec
from distill.config import ConfigError, RunConfig
from distill.encoders import TextEncoder
from distill.student import student_spec
from engines.spec import SPEC_FILE, ScheduleSpec


def scheduler_for(spec: ScheduleSpec, prediction_type: str) -> DDPMScheduler:
    """The diffusers scheduler with the same table, its steps counted from the last timestep."""
    return DDPMScheduler(
        num_train_timesteps=spec.num_train_timesteps,
        beta_schedule=spec.beta_schedule,
        beta_start=spec.beta_start,
        beta_end=spec.beta_end,
        prediction_type=prediction_type,
        timestep_spacing="trailing",
        rescale_betas_zero_snr=spec.zero_terminal_snr == "rescale",
        clip_sample=False,
    )


def export_student(config: RunConfig, run: Path, out: Path) -> None:
    """Gather a run's autoencoder, text encoder and student under `out`, whole or not at all.

    Raises:
        ConfigError: a stage of the run has not finished, or `out` holds something else.
    """
    student = run / "student" / "model"
    if not (student / "unet" / "config.json").is_file():
        raise ConfigError(f"no student in {run}: run `onestep-distill train` first")
    codec = Codec.load(run / "autoencoder" / "model")
    text = TextEncoder.load(student)
    spec = student_spec(config, codec, text)
    if out.exists() and not (out / SPEC_FILE).is_file():
        raise ConfigError(f"--to {out}: exists and is no exported model; name another folder")
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name in ("unet", "text_encoder", "tokenizer"):
        shutil.copytree(student / name, partial / name)
    shutil.copytree(run / "autoencoder" / "model", partial / "vae")
    scheduler_for(config.teacher.schedule, config.teacher.prediction_type).save_pretrained(
        partial / "scheduler"
    )
    for name in ("README.md", "grid.webp", "evaluation.json"):
        if (run / name).is_file():
            shutil.copy(run / name, partial / name)
    (partial / "training.json").write_text(config.to_json())
    spec.save(partial)
    shutil.rmtree(out, ignore_errors=True)
    partial.replace(out)


def parameter_counts(folder: Path) -> dict[str, int]:
    """Parameters of each part of an exported folder, for the model card."""
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", local_files_only=True)
    text = TextEncoder.load(folder)
    codec = Codec.load(folder / "vae")
    return {
        "unet": sum(p.numel() for p in unet.parameters()),
        "text_encoder": sum(p.numel() for p in text.parameters()),
        "vae": sum(p.numel() for p in codec.model.parameters()),
    }


def write_json(path: Path, value: object) -> None:
    """Write a report file whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)
