"""The commands of onestep-distill, each from a config and a run folder to files and words."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from distill.autoencoder import AutoencoderTrainer, Codec
from distill.checkpoint import CheckpointError
from distill.config import RunConfig
from distill.dataset import (
    Pictures,
    filter_pictures,
    for_training,
    load_heldout,
    load_pictures,
    to_uint8,
    write_example,
)
from distill.device import pick_device
from distill.diffusion import Diffusion
from distill.encoders import TextEncoder
from distill.evaluate import (
    Draw,
    Judge,
    as_json,
    draw_all,
    evaluate,
    in_bf16,
    markdown_table,
    one_prompt_per_concept,
    prompt_sets,
)
from distill.export import export_student, parameter_counts, write_json
from distill.features import freeze
from distill.grid import grid_image
from distill.loop import run_training, set_up_torch
from distill.metrics import SqueezeNet
from distill.run_folder import prepare_folder
from distill.sampling import sample_student, sample_teacher
from distill.sets import describe, open_samples, precompute_set
from distill.student import StudentTrainer, timesteps_by_steps
from distill.teacher import TeacherTrainer, load_unet
from distill.teachers.base import Teacher
from distill.trainer import Aborted, Interrupted, Trainer

TEACHER_STEPS = (1, 2, 4, 25, 50)


def run(command: str, config: RunConfig, run_folder: Path, args: argparse.Namespace) -> int:
    """Carry out one command; errors that a user can mend are printed as one line."""
    commands: dict[str, Callable[[RunConfig, Path, argparse.Namespace], int]] = {
        "data": _data,
        "evaluate": _evaluate,
        "export": _export,
        "precompute": _precompute,
    }
    try:
        set_up_torch(config)
        if command in commands:
            return commands[command](config, run_folder, args)
        return _train(command, config, run_folder, args)
    except CheckpointError as error:
        print(f"onestep-distill: {error}", file=sys.stderr)
        return 2
    except Aborted as notice:
        print(f"onestep-distill: {notice}", file=sys.stderr)
        return 3
    except Interrupted as notice:
        print(f"onestep-distill: {notice}", file=sys.stderr)
        return 130


def _selected(config: RunConfig) -> Pictures:
    return filter_pictures(load_pictures(config.data), config.data)


def _autoencoder_trainer(config: RunConfig, run_folder: Path) -> Trainer:
    return AutoencoderTrainer(config, load_pictures(config.data))


def _teacher_trainer(config: RunConfig, run_folder: Path) -> Trainer:
    codec = Codec.load(run_folder / "autoencoder" / "model", pick_device(config.device))
    return TeacherTrainer(config, codec, for_training(_selected(config), config.data))


def _own_teacher(config: RunConfig, run_folder: Path) -> Teacher:
    device = pick_device(config.device)
    folder = run_folder / "teacher" / "model"
    text = TextEncoder.load(folder).to(device)
    freeze(text)
    diffusion = Diffusion.create(config.teacher.schedule, config.teacher.prediction_type, device)
    codec = Codec.load(run_folder / "autoencoder" / "model", device)
    return Teacher(load_unet(folder, device), text, codec, diffusion, text.spec.width)


def _student_trainer(config: RunConfig, run_folder: Path) -> Trainer:
    teacher = _own_teacher(config, run_folder)
    samples, prompts = open_samples(config, run_folder, teacher)
    return StudentTrainer(config, teacher, samples, prompts)


TRAININGS: dict[str, Callable[[RunConfig, Path], Trainer]] = {
    "autoencoder": _autoencoder_trainer,
    "teacher": _teacher_trainer,
    "train": _student_trainer,
}


def _train(command: str, config: RunConfig, run_folder: Path, args: argparse.Namespace) -> int:
    trainer = TRAININGS[command](config, run_folder)
    if args.dry_run:
        metrics = trainer.iterate(1.0)
        words = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        print(f"{command}: one iteration works: {words}")
        return 0
    folder = prepare_folder(run_folder, trainer.name, config, args.resume)
    run_training(trainer, folder, config, resume=args.resume)
    print(f"{command}: finished, model in {folder / 'model'}")
    return 0


def _data(config: RunConfig, run_folder: Path, args: argparse.Namespace) -> int:
    if args.example is not None:
        num = write_example(args.example)
        print(f"{num} captioned pictures written; next: --preset own_cpu --data {args.example}")
        return 0
    for line in describe(config, run_folder):
        print(line)
    return 0


def _precompute(config: RunConfig, run_folder: Path, args: argparse.Namespace) -> int:
    teacher = _own_teacher(config, run_folder)
    print(precompute_set(config, run_folder, teacher, args.dtype, args.rows_per_shard))
    return 0


def _samplers(
    config: RunConfig, run_folder: Path, codec: Codec, shape: tuple[int, int, int]
) -> dict[str, Draw]:
    """Student at each of its numbers of steps, teacher at the steps that the report compares."""
    diffusion = Diffusion.create(
        config.teacher.schedule, config.teacher.prediction_type, codec.device
    )

    def pictures_of(
        sampler: Callable[..., torch.Tensor], prompts: Sequence[str], seeds: Sequence[int]
    ) -> NDArray[np.uint8]:
        with torch.no_grad():
            return to_uint8(codec.decode(sampler(prompts=prompts, seeds=seeds)))

    student_folder = run_folder / "student" / "model"
    student = load_unet(student_folder, codec.device).eval()
    student_text = TextEncoder.load(student_folder).to(codec.device).eval()
    teacher_folder = run_folder / "teacher" / "model"
    teacher = load_unet(teacher_folder, codec.device).eval()
    teacher_text = TextEncoder.load(teacher_folder).to(codec.device).eval()
    samplers: dict[str, Draw] = {}
    for num_steps, timesteps in timesteps_by_steps(config.student.timesteps).items():
        drawn = partial(
            sample_student, student, student_text, diffusion, shape=shape, timesteps=timesteps
        )
        samplers[f"student, {num_steps} step{'s' * (num_steps > 1)}"] = partial(pictures_of, drawn)
    for num_steps in TEACHER_STEPS:
        drawn = partial(
            sample_teacher, teacher, teacher_text, diffusion, shape=shape, num_steps=num_steps
        )
        samplers[f"teacher, {num_steps} step{'s' * (num_steps > 1)}"] = partial(pictures_of, drawn)
    return samplers


def _evaluate(config: RunConfig, run_folder: Path, args: argparse.Namespace) -> int:
    network = SqueezeNet(args.features)
    codec = Codec.load(run_folder / "autoencoder" / "model", pick_device(config.device))
    pictures, heldout = _selected(config), load_heldout(config.data)
    cells = config.data.image_size_px // config.autoencoder.downscale
    shape = (config.autoencoder.latent_channels, cells, cells)
    samplers = {
        name: in_bf16(draw, codec.device, enabled=config.bf16)
        for name, draw in _samplers(config, run_folder, codec, shape).items()
    }
    scores = evaluate(samplers, prompt_sets(pictures, heldout), Judge(network, pictures, heldout))
    write_json(run_folder / "evaluation.json", as_json(scores))
    print(markdown_table(scores))
    prompts = one_prompt_per_concept(pictures)
    images = draw_all(next(iter(samplers.values())), prompts)
    grid_image(images, num_columns=12).save(run_folder / "grid.webp", quality=90)
    print(f"{len(prompts)} concepts in one step, seeds 0, 1, 2, ...: {run_folder / 'grid.webp'}")
    return 0


def _export(config: RunConfig, run_folder: Path, args: argparse.Namespace) -> int:
    out = args.to or run_folder / "export"
    export_student(config, run_folder, out)
    counts = ", ".join(f"{k} {v / 1e6:.2f} M" for k, v in parameter_counts(out).items())
    print(f"export: {out} ({counts}); next: onestep-engines export {out} --out BUNDLE")
    return 0
