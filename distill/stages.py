"""The commands of onestep-distill, each from a config and a run folder to files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from distill.autoencoder import AutoencoderTrainer, Codec
from distill.checkpoint import CheckpointError
from distill.config import RunConfig
from distill.dataset import filter_pictures, load_pictures
from distill.loop import Interrupted, Trainer, prepare_folder, run_training, set_up_torch
from distill.teacher import TeacherTrainer


def _autoencoder(config: RunConfig, run: Path) -> Trainer:
    return AutoencoderTrainer(config.autoencoder, load_pictures(config.data), bf16=config.bf16)


def _teacher(config: RunConfig, run: Path) -> Trainer:
    codec = Codec.load(run / "autoencoder" / "model")
    pictures = filter_pictures(load_pictures(config.data), config.data)
    return TeacherTrainer(config, codec, pictures)


TRAININGS: dict[str, Callable[[RunConfig, Path], Trainer]] = {
    "autoencoder": _autoencoder,
    "teacher": _teacher,
}


def run(command: str, config: RunConfig, run_folder: Path, args: argparse.Namespace) -> int:
    """Carry out one command; errors that a user can mend are printed as one line."""
    try:
        set_up_torch(config)
        return _train(command, config, run_folder, args)
    except CheckpointError as error:
        print(f"onestep-distill: {error}", file=sys.stderr)
        return 2
    except Interrupted as notice:
        print(f"onestep-distill: {notice}", file=sys.stderr)
        return 130


def _train(command: str, config: RunConfig, run_folder: Path, args: argparse.Namespace) -> int:
    trainer = TRAININGS[command](config, run_folder)
    if args.dry_run:
        metrics = trainer.iterate(1.0)
        print(f"{command}: one iteration works: {metrics}")
        return 0
    folder = prepare_folder(run_folder, trainer.name, config, args.resume)
    run_training(trainer, folder, config, resume=args.resume)
    print(f"{command}: finished, model in {folder / 'model'}")
    return 0
