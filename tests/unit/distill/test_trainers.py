"""The three trainings on a batch that is broken, and the student's offers to the loop."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from distill_fixtures import tiny_codec, tiny_config, tiny_pictures, tiny_trainer

from distill.autoencoder import AutoencoderTrainer
from distill.teacher import TeacherTrainer
from distill.training.trainer import Adversarial, Scored, Trainer, Varied


def _autoencoder() -> AutoencoderTrainer:
    return AutoencoderTrainer(tiny_config(), tiny_pictures())


def _teacher() -> TeacherTrainer:
    return TeacherTrainer(tiny_config(), tiny_codec(), tiny_pictures())


def _broken(trainer: Any) -> Any:
    """The trainer with pictures that are not numbers."""
    if isinstance(trainer, AutoencoderTrainer):
        trainer._images = torch.full(trainer._images.shape, math.nan)
    elif isinstance(trainer, TeacherTrainer):
        trainer.latents.latents_NChw.fill_(math.nan)
    else:
        trainer.samples.latents_NChw.fill_(math.nan)
    return trainer


def _tensors(state: Any) -> list[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        return [state]
    if isinstance(state, dict):
        return [tensor for value in state.values() for tensor in _tensors(value)]
    return []


@pytest.mark.parametrize("build", [_autoencoder, _teacher, tiny_trainer])
def test_a_broken_batch_is_skipped_and_leaves_every_weight(build: Any) -> None:
    trainer: Trainer = build()
    assert not trainer.iterate(1.0)["skipped"]
    before = copy.deepcopy(trainer.state_dict())
    assert _broken(trainer).iterate(1.0)["skipped"]
    after = trainer.state_dict()
    for name in before.keys() - {"modules", "ema", "iteration"}:
        pairs = zip(_tensors(before[name]), _tensors(after[name]), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs), name
    assert all(torch.isfinite(tensor).all() for tensor in _tensors(after))


def test_the_adversary_can_be_slowed_down() -> None:
    trainer = tiny_trainer("student.discriminator.lr=0.1")
    assert isinstance(trainer, Adversarial)
    trainer.lr_d_scale = 0.25
    trainer.iterate(0.5)
    adversary = trainer._trained.modules_optimizer
    assert adversary is not None
    assert [group["lr"] for group in adversary.param_groups] == [0.025]


def test_the_student_is_scored_and_varied_without_a_trace() -> None:
    trainer = tiny_trainer()
    assert isinstance(trainer, Scored)
    assert isinstance(trainer, Varied)
    trainer.iterate(1.0)
    state, generator = copy.deepcopy(trainer.state_dict()), torch.get_rng_state()
    score, diversity = trainer.score(), trainer.diversity()
    assert (trainer.score(), trainer.diversity()) == (score, diversity)
    assert score > 0
    assert diversity > 0
    assert torch.equal(torch.get_rng_state(), generator)
    for a, b in zip(_tensors(state), _tensors(trainer.state_dict()), strict=True):
        assert torch.equal(a, b)
