"""Which samplers are compared, what each costs, and how the teacher's guidance is chosen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distill_fixtures import tiny_pictures, tiny_teacher, tiny_unet

from distill.config import ConfigError
from distill.dataset import to_uint8
from distill.evaluation import samplers
from distill.evaluation.intervals import Estimate
from distill.evaluation.networks import NetworkCard
from distill.evaluation.options import EvaluateOptions
from distill.evaluation.prompts import Size, prompt_sets
from distill.evaluation.results import Score
from distill.evaluation.samplers import (
    Models,
    student_samplers,
    teacher_samplers,
    tuned_guidance,
)
from distill.sampling import sample_student, sample_teacher

SHAPE = (4, 8, 8)


@pytest.fixture(scope="module")
def models() -> Models:
    return Models(tiny_teacher(), tiny_unet().eval(), SHAPE, {1: (999,), 2: (999, 499)}, False)


@pytest.fixture
def options(tmp_path: Path) -> EvaluateOptions:
    (tmp_path / "a.npz").write_bytes(b"x")
    return EvaluateOptions(features=tmp_path / "a.npz", teacher_steps=(1, 4, 25))


def test_the_student_is_drawn_at_the_steps_it_knows(models: Models) -> None:
    known = student_samplers(models)
    assert [s.facts.name for s in known] == ["student, 1 step", "student, 2 steps"]
    assert [s.facts.num_calls for s in known] == [1, 2]
    assert [s.facts.num_steps for s in student_samplers(models, (2, 7))] == [2]
    with pytest.raises(ConfigError, match="--student-steps: the student knows 1, 2"):
        student_samplers(models, (3,))


def test_the_pictures_are_the_students_own(models: Models) -> None:
    prompts, seeds = ["a red circle", "a blue ring"], [3, 8]
    teacher = models.teacher
    latents = sample_student(
        models.student, teacher.text, teacher.diffusion, prompts, seeds, SHAPE, (999, 499)
    )
    expected = to_uint8(teacher.codec.decode(latents))
    drawn = student_samplers(models, (2,))[0].draw(prompts, seeds)
    assert np.array_equal(drawn, expected)
    assert not np.array_equal(student_samplers(models, (1,))[0].draw(prompts, seeds), expected)


def test_the_teacher_is_drawn_by_every_solver_and_told_what_it_costs(
    models: Models, options: EvaluateOptions
) -> None:
    facts = [s.facts for s in teacher_samplers(models, options, 3.0)]
    assert [(f.name, f.solver, f.num_calls) for f in facts] == [
        ("teacher, 1 step, guidance 3", "ddim", 2),
        ("teacher, 4 steps ddim, guidance 3", "ddim", 8),
        ("teacher, 25 steps ddim, guidance 3", "ddim", 50),
        ("teacher, 4 steps dpm++, guidance 3", "dpm++", 8),
        ("teacher, 25 steps dpm++, guidance 3", "dpm++", 50),
        ("teacher, 25 steps dpm++", "dpm++", 25),
    ]
    plain = [s.facts for s in teacher_samplers(models, options, 1.0)]
    assert [f.name for f in plain][:2] == ["teacher, 1 step", "teacher, 4 steps ddim"]
    assert [f.num_calls for f in plain] == [1, 4, 25, 4, 25]


def test_solver_and_guidance_reach_the_teacher(models: Models, options: EvaluateOptions) -> None:
    prompts, seeds = ["a red circle"], [5]
    teacher = models.teacher
    few = replace(options, teacher_steps=(4,))
    for guidance in (1.0, 2.5):
        for sampler in teacher_samplers(models, few, guidance):
            solver = sampler.facts.solver
            assert solver == "ddim" or solver == "dpm++"
            latents = sample_teacher(
                teacher.unet,
                teacher.text,
                teacher.diffusion,
                prompts,
                seeds,
                SHAPE,
                4,
                guidance,
                solver,
            )
            expected = to_uint8(teacher.codec.decode(latents))
            assert np.array_equal(sampler.draw(prompts, seeds), expected)
    ddim, dpm = (s.draw(prompts, seeds) for s in teacher_samplers(models, few, 1.0))
    assert not np.array_equal(ddim, dpm)


def test_real_pictures_come_back_through_the_autoencoder(models: Models) -> None:
    images = tiny_pictures(3).images_NHWC
    codec = models.teacher.codec
    with torch.no_grad():
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
        expected = to_uint8(codec.decode(codec.encode(pixels)))
    assert np.array_equal(models.through_codec(images), expected)


class _Judge:
    """Prefers the scale 2, and remembers what it was shown."""

    def __init__(self, *, is_neutral: bool = True) -> None:
        self.card = NetworkCard("squeezenet", "", "", "", is_neutral=is_neutral)
        self.kinds: list[str] = []

    def score(self, sampler: str, asked: Any, images_NHWC: Any) -> Score:
        self.kinds.append(asked.kind)
        scale = float(sampler.rpartition("guidance ")[2]) if "guidance" in sampler else 1.0
        distance = Estimate(0.1 + abs(scale - 2))
        return Score(sampler, asked.kind, "squeezenet", {"frechet_distance": distance})


def test_the_guidance_with_the_least_distance_at_25_steps_is_taken(
    models: Models, options: EvaluateOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samplers, "TUNING_STEPS", 2)  # the choice is the same, and sooner
    asked = prompt_sets(tiny_pictures(6), None, Size(6, 1))[0]
    sweep = replace(options, guidance_sweep=(1.0, 2.0, 4.0))
    judge = _Judge()
    best, found = tuned_guidance(models, sweep, asked, judge)
    assert best == 2.0
    assert found == {"1": 1.1, "2": 0.1, "4": 2.1}
    # Tuned pictures have a set of their own, so that no reference of another number is taken.
    assert all(kind != asked.kind for kind in judge.kinds)
    with pytest.raises(AssertionError):
        tuned_guidance(models, sweep, asked, _Judge(is_neutral=False))
