"""Memory and time of a training, told before it starts.

Owns the command, and the same question asked by a training that is about to start on a card.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from distill.config import ConfigError, RunConfig
from distill.preflight.cards import GIB, Card, card_called, card_of
from distill.preflight.estimate import Estimate, lines
from distill.preflight.options import PreflightOptions, Stage
from distill.preflight.parts import builder, words_of
from distill.preflight.rehearsal import rehearse
from distill.training.device import undisturbed


def run_preflight(config: RunConfig, options: PreflightOptions) -> int:
    """Print the table or JSON; 2 where the training does not fit.

    Raises:
        ConfigError: no such card.
    """
    estimate = estimate_elsewhere(config, options, _card(options))
    if options.as_json:
        print(json.dumps(estimate.as_plain(config), indent=2))
    else:
        for line in lines(estimate, config):
            print(line)
    return 0 if estimate.fits else 2


def refuse_what_cannot_fit(
    stage: Stage, config: RunConfig, device: torch.device, num_processes: int = 1
) -> None:
    """Print the table of a training about to start on a card.

    Raises:
        ConfigError: the card's free memory does not hold it.
    """
    if device.type != "cuda":
        return
    num_free_bytes, _ = torch.cuda.mem_get_info(device)
    card = card_called(torch.cuda.get_device_name(device), num_free_bytes / GIB)
    estimate = estimate_elsewhere(
        config, PreflightOptions(stage=stage, num_gpus=num_processes), card
    )
    for line in lines(estimate, config):
        print(line, file=sys.stderr)
    if not estimate.fits:
        first = estimate.remedies(config)[0]
        raise ConfigError(
            f"this training needs {estimate.peak_bytes / GIB:.1f} GiB and the card has "
            f"{card.usable_bytes / GIB:.1f} for it: {first}; --no-preflight starts it all the same"
        )


def estimate_elsewhere(config: RunConfig, options: PreflightOptions, card: Card) -> Estimate:
    """`estimate_run` in a process of its own.

    A training, and the command's exit code, are kept apart from what torch is made to do there.

    Raises:
        ConfigError: the config cannot be built, or the process ended without an answer.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as elsewhere:
        try:
            return elsewhere.submit(estimate_run, config, options, card).result()
        except BrokenProcessPool as error:
            raise ConfigError(
                "preflight's rehearsal ended without an answer: try again, or start the training "
                "with --no-preflight"
            ) from error


def estimate_run(config: RunConfig, options: PreflightOptions, card: Card) -> Estimate:
    """Rehearse one process's part of a training."""
    optimizer = getattr(config, options.stage).optimizer
    size = -(-optimizer.batch_size // options.num_gpus)
    rehearsed = _rehearsed_size(config, options.stage, size)
    part = _one_process(config, options.stage, rehearsed)
    words = words_of(config.data) if config.data.access == "memory" else None
    cpu = torch.device("cpu")
    with TemporaryDirectory() as folder, undisturbed(cpu):
        footprint = rehearse(
            builder(options.stage, part, words, Path(folder)),
            as_card=card.name != "cpu",
            with_sheet=options.has_sheet,
        )
    left_out_bytes = (size - rehearsed) * 3 * 4 * config.data.image_size_px**2
    return Estimate(
        options.stage,
        footprint.scaled(size / rehearsed, left_out_bytes),
        card,
        options.num_gpus,
        options.peak_share,
        optimizer,
        config.bf16,
        config.scale.strategy == "fsdp",
    )


def _rehearsed_size(config: RunConfig, stage: Stage, size: int) -> int:
    """A batch in many passes peaks as one in two does, but for its pictures."""
    passed = config.scale.micro_batch_size if stage == "student" else None
    return size if passed is None else min(size, 2 * passed)


def _one_process(config: RunConfig, stage: Stage, batch_size: int) -> RunConfig:
    section = getattr(config, stage)
    # Moments of 8 bits are reckoned from those of 32: bitsandbytes knows no fake tensors.
    optimizer = replace(section.optimizer, batch_size=batch_size, bits=32)
    if stage == "autoencoder":
        return replace(config, autoencoder=replace(section, optimizer=optimizer))
    if stage == "teacher":
        return replace(config, teacher=replace(section, optimizer=optimizer))
    return replace(config, student=replace(section, optimizer=optimizer))


def _card(options: PreflightOptions) -> Card:
    if options.gpu is None and options.gpu_memory_gib is not None:
        return Card(f"card of {options.gpu_memory_gib:g} GiB", options.gpu_memory_gib, None)
    return card_of(options.gpu or "h100", options.gpu_memory_gib)
