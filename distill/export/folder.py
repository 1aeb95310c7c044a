"""What goes into an exported folder, and in which form diffusers expects it.

Owns the list of parts for each kind of student. Knows nothing of ONNX.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import tokenizers
from safetensors import safe_open
from tokenizers import processors

from distill.config import ConfigError, RunConfig
from distill.export.card import model_card
from distill.export.files import write_json, write_text
from distill.export.provenance import PROVENANCE_FILE, provenance
from distill.export.schedulers import student_scheduler
from distill.model_spec import student_spec
from distill.networks.codec import Codec
from distill.networks.encoders import BOS, EOS, TextEncoder
from distill.networks.lora import LORA_FOLDER
from distill.teachers.folder import INDEX_FILE, TeacherFolder
from distill.teachers.load import foreign_teacher
from distill.teachers.text import ClipPrompts
from engines.spec import SPEC_FILE, TextSpec

_RECORDS = ("README.md", "grid.webp", "evaluation.json")
_CARD_FILE = "README.md"


@dataclass(frozen=True)
class _Parts:
    """What surrounds the student's UNet.

    Attributes:
        codec: the autoencoder.
        text: what serving must know of the text stage; None where it cannot serve the model.
        pipeline: class of diffusers that loads the folder; None where none can.
        options: of that class.
        teacher: its name, for the card.
    """

    codec: Codec
    text: TextSpec | None
    pipeline: str | None
    options: dict[str, Any]
    teacher: str


def export_student(config: RunConfig, run: Path, out: Path) -> None:
    """Gather a run's autoencoder, text encoder and student under `out`, whole or not at all.

    A student of a Stable Diffusion teacher becomes a pipeline that `from_pretrained` loads. A
    student of the run's own teacher does not: StableDiffusionPipeline reads `block_out_channels`
    of its autoencoder and hands it a generator, and AutoencoderDC has neither. Its parts are
    classes of diffusers and transformers all the same; the model card holds the lines that draw
    with them.

    Args:
        config: of the run, settled on its teacher.
        run: its folder.
        out: folder to write.

    Raises:
        ConfigError: a stage of the run has not finished, or `out` holds something else.
    """
    student = run / "student" / "model"
    if not (student / "unet" / "config.json").is_file():
        raise ConfigError(f"no student in {run}: run `onestep-distill train` first")
    parts = _foreign_parts(config) or _own_parts(run)
    is_ours = (out / SPEC_FILE).is_file() or (out / PROVENANCE_FILE).is_file()
    if out.exists() and not is_ours:
        raise ConfigError(f"--to {out}: exists and is no exported model; name another folder")
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _write_unet(config, student, partial, parts.codec)
    for path in sorted(student.glob("text_encoder*")) + sorted(student.glob("tokenizer*")):
        shutil.copytree(path, partial / path.name)
    parts.codec.model.save_pretrained(partial / "vae")
    scheduler = student_scheduler(
        config.teacher.schedule, config.teacher.prediction_type, config.student.timesteps
    )
    scheduler.save_pretrained(partial / "scheduler")
    if config.student.teacher_source is None:
        _add_special_tokens(partial / "tokenizer" / "tokenizer.json")
    if parts.pipeline is not None:
        write_json(partial / INDEX_FILE, _index(partial, parts))
    if (student / LORA_FOLDER).is_dir():  # no part of the pipeline, so not in its index
        shutil.copytree(student / LORA_FOLDER, partial / LORA_FOLDER)
    _write_records(config, run, partial, parts)
    if parts.text is not None:
        student_spec(config, parts.codec, parts.text).save(partial)
    shutil.rmtree(out, ignore_errors=True)
    partial.replace(out)


def _own_parts(run: Path) -> _Parts:
    codec = Codec.load(run / "autoencoder" / "model")
    text = TextEncoder.load(run / "student" / "model")
    return _Parts(codec, text.spec, None, {}, "trained in the same run")


def _foreign_parts(config: RunConfig) -> _Parts | None:
    folder: TeacherFolder | None = foreign_teacher(config)
    if folder is None:
        return None
    # Not the folder's checker: it belongs to the teacher, and is not distributed with it here.
    options: dict[str, Any] = {"requires_safety_checker": False}
    if folder.pipeline == "StableDiffusionXLPipeline":
        key = "force_zeros_for_empty_prompt"
        options = {key: bool(folder.index.get(key, True)), "add_watermarker": None}
    text = folder.prompts(config.data.image_size_px)
    spec = text.spec if isinstance(text, ClipPrompts) else None
    # StableDiffusionPipeline cannot drive a flow's scheduler; serving can.
    pipeline = None if folder.prediction_type == "flow" else folder.pipeline
    return _Parts(folder.codec(), spec, pipeline, options, folder.name)


def _write_unet(config: RunConfig, student: Path, partial: Path, codec: Codec) -> None:
    """The student's UNet, its config naming the size that it draws when not told another."""
    shutil.copytree(student / "unet", partial / "unet")
    path = partial / "unet" / "config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["sample_size"] = config.data.image_size_px // codec.downscale
    write_json(path, settings)


def _index(partial: Path, parts: _Parts) -> dict[str, Any]:
    """model_index.json: the pipeline's class and, for each part, its library and class."""
    index: dict[str, Any] = {
        "_class_name": parts.pipeline,
        "_diffusers_version": diffusers.__version__,
    }
    for path in sorted(path for path in partial.iterdir() if path.is_dir()):
        name = path.name
        if name == "scheduler":
            settings = json.loads((path / "scheduler_config.json").read_text(encoding="utf-8"))
            index[name] = ["diffusers", settings["_class_name"]]
        elif name.startswith("tokenizer"):
            index[name] = ["transformers", "CLIPTokenizer"]
        else:
            settings = json.loads((path / "config.json").read_text(encoding="utf-8"))
            is_text = name.startswith("text_encoder")
            index[name] = (
                ["transformers", settings["architectures"][0]]
                if is_text
                else ["diffusers", settings["_class_name"]]
            )
    absent = ["feature_extractor", "image_encoder"]
    if parts.pipeline == "StableDiffusionPipeline":
        absent.append("safety_checker")
    return index | {name: [None, None] for name in absent} | parts.options


def _add_special_tokens(path: Path) -> None:
    """Have the tokenizer's file add begin and end itself, as transformers expects of one.

    Serving adds them from model.json, and asks the file not to.
    """
    raw = tokenizers.Tokenizer.from_file(str(path))
    bos, eos = raw.token_to_id(BOS), raw.token_to_id(EOS)
    assert bos is not None and eos is not None
    raw.post_processor = processors.RobertaProcessing(
        (EOS, eos), (BOS, bos), trim_offsets=False, add_prefix_space=False
    )
    raw.save(str(path))


def _write_records(config: RunConfig, run: Path, partial: Path, parts: _Parts) -> None:
    """Card, grid, evaluation, the whole configuration, provenance."""
    for name in _RECORDS:
        if (run / name).is_file():
            shutil.copy(run / name, partial / name)
    (partial / "training.json").write_text(config.to_json())
    write_json(partial / PROVENANCE_FILE, provenance(config, partial, parts.teacher))
    if not (partial / _CARD_FILE).is_file():
        write_text(partial / _CARD_FILE, model_card(config, partial, parts.pipeline))


def parameter_counts(folder: Path) -> dict[str, int]:
    """Parameters of each part of an exported folder, from the headers of its files."""
    names = ["unet", *sorted(path.name for path in folder.glob("text_encoder*")), "vae"]
    return {name: _num_stored(folder / name) for name in names}


def _num_stored(folder: Path) -> int:
    total = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as stored:
            names = list(stored.keys())
            total += sum(math.prod(stored.get_slice(name).get_shape()) for name in names)
    return total
