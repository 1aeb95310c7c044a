"""The commands of onestep-distill, each from a config and a run folder to files and words."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path

from distill.ablation.command import run_ablation
from distill.ablation.options import AblationOptions
from distill.autoencoder import AutoencoderTrainer
from distill.config import ConfigError, RunConfig
from distill.dataset import (
    Pictures,
    Slices,
    filter_pictures,
    for_training,
    load_pictures,
    write_example,
)
from distill.evaluation.command import evaluate_run, print_outcome
from distill.evaluation.options import EvaluateOptions
from distill.export import export_student, parameter_counts
from distill.networks.codec import Codec
from distill.preflight.command import refuse_what_cannot_fit, run_preflight
from distill.preflight.options import PreflightOptions, Stage
from distill.samples.sets import describe, open_samples, precompute_set
from distill.samples.synthetic import Drawing
from distill.student import StudentTrainer
from distill.teacher import TeacherTrainer
from distill.teachers.load import load_teacher, settled
from distill.training.checkpoint import CheckpointError, snapshot_paths
from distill.training.device import pick_device
from distill.training.loop import run_training, set_up_torch
from distill.training.processes import Processes
from distill.training.run_folder import prepare_folder, refuse_two_runs
from distill.training.trainer import Aborted, Interrupted, Trainer


def run(command: str, config: RunConfig, run_folder: Path, args: argparse.Namespace) -> int:
    """Carry out one command; errors that a user can mend are printed as one line."""
    commands: dict[str, Callable[[RunConfig, Path, argparse.Namespace], int]] = {
        "ablation": _ablation,
        "data": _data,
        "evaluate": _evaluate,
        "export": _export,
        "precompute": _precompute,
        "preflight": _preflight,
    }
    try:
        set_up_torch(config)
        if command not in ("autoencoder", "teacher", "data", "preflight"):
            config = settled(config)
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


def _autoencoder_trainer(config: RunConfig, run_folder: Path, processes: Processes) -> Trainer:
    return AutoencoderTrainer(config, load_pictures(config.data))


def _teacher_trainer(config: RunConfig, run_folder: Path, processes: Processes) -> Trainer:
    codec = Codec.load(run_folder / "autoencoder" / "model", pick_device(config.device))
    return TeacherTrainer(config, codec, for_training(_selected(config), config.data))


def _student_trainer(config: RunConfig, run_folder: Path, processes: Processes) -> Trainer:
    with processes.main_first():  # which may download a teacher, or index a set
        teacher = load_teacher(config, run_folder, pick_device(config.device))
        size = config.student.optimizer.batch_size
        slices = Slices(size, processes.rank, processes.num)
        samples, prompts = open_samples(config, run_folder, teacher, slices)
    return StudentTrainer(config, teacher, samples, prompts, processes)


TRAININGS: dict[str, Callable[[RunConfig, Path, Processes], Trainer]] = {
    "autoencoder": _autoencoder_trainer,
    "teacher": _teacher_trainer,
    "train": _student_trainer,
}
STAGE_OF: dict[str, Stage] = {
    "autoencoder": "autoencoder",
    "teacher": "teacher",
    "train": "student",
}


def _train(command: str, config: RunConfig, run_folder: Path, args: argparse.Namespace) -> int:
    processes = Processes.start(config)
    if not processes.is_main:
        logging.getLogger().setLevel(logging.ERROR)  # the first process has said it
    if processes.num > 1 and command != "train":
        raise ConfigError(
            f"`onestep-distill {command}` trains in one process: start it without torchrun; "
            "`train` takes several"
        )
    try:
        if processes.is_main and not getattr(args, "no_preflight", False):
            stage: Stage = STAGE_OF[command]
            refuse_what_cannot_fit(stage, config, pick_device(config.device), processes.num)
        if not args.dry_run:  # before the pictures are read, which takes minutes for large sets
            refuse_two_runs(run_folder, STAGE_OF[command], config, args.resume)
        processes.wait()
        trainer = TRAININGS[command](config, run_folder, processes)
        if args.dry_run:
            metrics = trainer.iterate(1.0)
            words = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
            _say(processes, f"{command}: one iteration works: {words}")
            return 0
        with processes.main_first():
            folder = prepare_folder(run_folder, trainer.name, config, args.resume)
        run_training(trainer, folder, config, resume=args.resume, processes=processes)
        _say(processes, f"{command}: finished, model in {folder / 'model'}")
        return 0
    finally:
        processes.end()


def _say(processes: Processes, words: str) -> None:
    if processes.is_main:
        print(words)


def _data(config: RunConfig, run_folder: Path, args: argparse.Namespace) -> int:
    if args.example is not None:
        num = write_example(args.example)
        print(f"{num} captioned pictures written; next: --preset own_cpu --data {args.example}")
        return 0
    for line in describe(config, run_folder):
        print(line)
    return 0


def _precompute(config: RunConfig, run_folder: Path, args: argparse.Namespace) -> int:
    teacher = load_teacher(config, run_folder, pick_device(config.device))
    drawing = _drawing(config, args)
    print(precompute_set(config, run_folder, teacher, args.dtype, args.rows_per_shard, drawing))
    return 0


def _drawing(config: RunConfig, args: argparse.Namespace) -> Drawing | None:
    steps, guidance, solver = (
        args.synthetic_steps,
        args.synthetic_guidance,
        args.synthetic_solver,
    )
    if steps is None:
        if guidance is not None or solver is not None:
            raise ConfigError(
                "--synthetic-guidance and --synthetic-solver need --synthetic-steps: without it "
                "the set's own pictures are encoded"
            )
        return None
    scale = 1.0 if guidance is None else guidance
    return Drawing(steps, scale, solver or "dpm++", config.seed, config.bf16)


def _preflight(config: RunConfig, run_folder: Path, args: argparse.Namespace) -> int:
    return run_preflight(config, PreflightOptions.read(args))


def _evaluate(config: RunConfig, run_folder: Path, args: argparse.Namespace) -> int:
    options = EvaluateOptions.read(args)
    teacher = load_teacher(config, run_folder, pick_device(config.device))
    outcome = evaluate_run(config, run_folder, teacher, options)
    print_outcome(outcome, run_folder)
    return 0


def _ablation(config: RunConfig, run_folder: Path, args: argparse.Namespace) -> int:
    options = AblationOptions.read(args)
    own = ("autoencoder", "teacher") if config.student.teacher_source is None else ()
    for command in own:
        if not (run_folder / command / "model").is_dir():
            resume = "last" if args.resume and snapshot_paths(run_folder / command) else None
            training = argparse.Namespace(resume=resume, dry_run=False)
            _train(command, config, run_folder, training)
    print(f"ablation: {run_ablation(config, run_folder, options)}")
    return 0


def _export(config: RunConfig, run_folder: Path, args: argparse.Namespace) -> int:
    out = args.to or run_folder / "export"
    export_student(config, run_folder, out)
    counts = ", ".join(f"{k} {v / 1e6:.2f} M" for k, v in parameter_counts(out).items())
    print(f"export: {out} ({counts}); next: onestep-engines export {out} --out BUNDLE")
    return 0
