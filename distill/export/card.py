"""The model card of a student whose run has none of its own: README.md in the hub's form.

Owns the words. The figures are those of evaluation.json, the settings those of the run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from distill.config import RunConfig
from distill.export.schedulers import is_evenly_spread
from distill.networks.lora import LORA_FILE, LORA_FOLDER

# Licences under which the teachers' weights are given; a student of theirs is bound by them.
_TEACHER_LICENSES = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "creativeml-openrail-m",
    "stabilityai/stable-diffusion-2-1": "openrail++",
    "stabilityai/stable-diffusion-2-1-base": "openrail++",
    "stabilityai/stable-diffusion-xl-base-1.0": "openrail++",
}
_PIPELINE_LINES = """\
from diffusers import {pipeline}

pipe = {pipeline}.from_pretrained(folder)
image = pipe(prompt, num_inference_steps=1, guidance_scale=0.0).images[0]
"""
_ADAPTER_LINES = """\
from diffusers import LCMScheduler, {pipeline}

pipe = {pipeline}.from_pretrained(teacher)
pipe.load_lora_weights(f"{{folder}}/lora")
pipe.scheduler = LCMScheduler.from_pretrained(f"{{folder}}/scheduler")
image = pipe(prompt, num_inference_steps=1, guidance_scale=0.0).images[0]
"""
_PARTS_LINES = """\
import torch
from diffusers import AutoencoderDC, LCMScheduler, UNet2DConditionModel
from diffusers.image_processor import VaeImageProcessor
from transformers import AutoTokenizer, CLIPTextModel

tokenizer = AutoTokenizer.from_pretrained(f"{folder}/tokenizer")
text_encoder = CLIPTextModel.from_pretrained(f"{folder}/text_encoder")
unet = UNet2DConditionModel.from_pretrained(f"{folder}/unet")
vae = AutoencoderDC.from_pretrained(f"{folder}/vae")
scheduler = LCMScheduler.from_pretrained(f"{folder}/scheduler")
with torch.no_grad():
    ids = tokenizer([prompt], padding="max_length", truncation=True, return_tensors="pt").input_ids
    embeds = text_encoder(ids).last_hidden_state
    side = unet.config.sample_size
    latents = torch.randn(1, unet.config.in_channels, side, side)
    scheduler.set_timesteps(1)
    for t in scheduler.timesteps:
        latents = scheduler.step(unet(latents, t, embeds).sample, t, latents).prev_sample
    pixels = vae.decode(latents / vae.config.scaling_factor).sample
image = VaeImageProcessor().postprocess(pixels)[0]
"""


def model_card(config: RunConfig, folder: Path, pipeline: str | None) -> str:
    """The text of README.md.

    Args:
        config: of the run.
        folder: the exported folder, its evaluation.json already there if the run has one.
        pipeline: class of diffusers that loads the folder, or None.
    """
    parts = [_front_matter(config), f"# {config.name}", _intended(config)]
    if (folder / "grid.webp").is_file():
        parts.append("![One picture per concept, in one step](grid.webp)")
    parts += ["## Use", _use(config, pipeline)]
    if (folder / LORA_FOLDER).is_dir():
        parts.append(_adapter(config, pipeline))
    figures = _figures(folder / "evaluation.json")
    if figures:
        parts += ["## Figures", figures]
    parts += ["## Training", _training(config), "## Limits", _limits(config), "## Provenance"]
    parts.append(
        "`provenance.json` has the digests of the weights, what they were trained from, and the "
        "assertions that a C2PA manifest of a picture drawn with them would carry."
    )
    return "\n\n".join(parts) + "\n"


def license_of(config: RunConfig) -> str:
    """The run's licence, else that of a teacher we know, else "other"."""
    name = (config.student.teacher_source or "").partition("@")[0]
    return config.license.lower() or _TEACHER_LICENSES.get(name, "other")


def _front_matter(config: RunConfig) -> str:
    fields = {
        "license": license_of(config),
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
    }
    source = config.student.teacher_source
    if source is not None and not Path(source).is_dir():
        fields["base_model"] = source.partition("@")[0]
    # JSON strings are YAML strings, whatever they hold.
    lines = [f"{name}: {json.dumps(value)}" for name, value in fields.items()]
    tags = ["text-to-image", "distillation", "one-step"]
    return "\n".join(["---", *lines, f"tags: {json.dumps(tags)}", "---"])


def _intended(config: RunConfig) -> str:
    what = config.description.rstrip(".") or "A text-to-image model"
    size = config.data.image_size_px
    steps = len(config.student.timesteps)
    return (
        f"{what}. A student distilled to draw {size} x {size} pixels in one step, and in up to "
        f"{steps}. Meant for drawing from short prompts of the kind it was trained on; classifier-"
        "free guidance is not needed and must be off."
    )


def _use(config: RunConfig, pipeline: str | None) -> str:
    if config.teacher.prediction_type == "flow":
        return "Make a bundle with `onestep-engines export` and serve it with `onestep serve`."
    lines = _PARTS_LINES if pipeline is None else _PIPELINE_LINES.format(pipeline=pipeline)
    text = f"```python\n{lines}```"
    timesteps = list(config.student.timesteps)
    if not is_evenly_spread(config.teacher.schedule.num_train_timesteps, timesteps):
        text += (
            f"\n\nMore steps need the student's own timesteps in the call, `timesteps={timesteps}`"
            " or the first few of them, instead of `num_inference_steps`."
        )
    return text


def _adapter(config: RunConfig, pipeline: str | None) -> str:
    """How to use the student as what it adds to its teacher."""
    what = (
        f"`{LORA_FOLDER}/` holds the same student as an adapter, a LoRA of rank "
        f"{config.student.lora.rank}, to put on its teacher"
    )
    if pipeline is None:
        return (
            f'{what}\'s UNet: `unet.load_lora_adapter(f"{{folder}}/{LORA_FOLDER}", '
            f'prefix="unet", weight_name="{LORA_FILE}")`.'
        )
    return f"{what}:\n\n```python\n{_ADAPTER_LINES.format(pipeline=pipeline)}```"


def _training(config: RunConfig) -> str:
    student = config.student
    optimizer = student.optimizer
    rows = {
        "teacher": student.teacher_source or "trained in the same run",
        "method": student.method,
        "iterations x batch": f"{optimizer.iterations} x {optimizer.batch_size}",
        "learning rate": f"{optimizer.lr:g}",
        "timesteps": ", ".join(map(str, student.timesteps)),
        "prediction": config.teacher.prediction_type,
        "distillation weight": f"{student.distill_weight}, times {student.lambda_distill:g}",
        "data": Path(config.data.path).name,
    }
    if student.lora.rank:
        rows["trained"] = (
            f"factors of rank {student.lora.rank} on {', '.join(student.lora.target_modules)}"
        )
    if config.attribution:
        rows["attribution"] = config.attribution
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return f"| | |\n|---|---|\n{table}\n\nEvery field is in `training.json`."


def _limits(config: RunConfig) -> str:
    lines = [
        "- Trained at one size; other sizes are untested.",
        "- A distilled student draws less varied pictures of one prompt than its teacher.",
        "- It repeats the biases of its training pictures, and of its teacher's.",
        "- No filter looks at prompts or pictures.",
    ]
    if license_of(config) == "other":
        lines.append("- Whoever distilled it has not named a licence yet; the teacher's binds it.")
    return "\n".join(lines)


def _figures(path: Path) -> str:
    """A table per judge and kind of prompts; empty where nothing was evaluated."""
    if not path.is_file():
        return ""
    scores = json.loads(path.read_text(encoding="utf-8")).get("scores", [])
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for score in scores:
        groups.setdefault((score["judge"], score["kind"]), []).append(score)
    return "\n\n".join(
        f"{kind}, judged by {judge}:\n\n{_table(rows)}" for (judge, kind), rows in groups.items()
    )


def _table(scores: list[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(name for score in scores for name in score["metrics"]))
    lines = ["| sampler | " + " | ".join(name.replace("_", " ") for name in names) + " |"]
    lines.append("|---" * (len(names) + 1) + "|")
    for score in scores:
        values = [score["metrics"].get(name) for name in names]
        cells = " | ".join("" if value is None else f"{value['value']:.3f}" for value in values)
        lines.append(f"| {score['sampler']} | {cells} |")
    return "\n".join(lines)
