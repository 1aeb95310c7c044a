"""Student and teacher as ways to draw: how many steps, by which solver, with which guidance.

Owns which samplers an evaluation compares and the choice of the teacher's guidance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from numpy.typing import NDArray

from distill.config import ConfigError
from distill.dataset import to_model_range, to_uint8
from distill.evaluation.feature_judge import FeatureJudge
from distill.evaluation.options import EvaluateOptions, Solver
from distill.evaluation.prompts import PromptSet
from distill.evaluation.results import SamplerFacts
from distill.evaluation.running import BATCH_SIZE, Draw, Sampler, draw_all
from distill.sampling import sample_student, sample_teacher
from distill.teachers.base import Teacher
from distill.training.device import half_precision

# Shape suffixes: B batch, C channel, H/W pixels, h/w latent cells.

TUNING_STEPS = 25
TUNING_PICTURES = 256


@dataclass(frozen=True)
class Models:
    """What is evaluated.

    Attributes:
        teacher: with the codec, text encoder and schedule that the student shares.
        student: its network.
        shape: of one picture's latents.
        student_timesteps: by number of steps.
        is_bf16: draw under autocast, as it was trained.
    """

    teacher: Teacher
    student: UNet2DConditionModel
    shape: tuple[int, int, int]
    student_timesteps: dict[int, tuple[int, ...]]
    is_bf16: bool

    def pictures(self, sample: Callable[..., torch.Tensor]) -> Draw:
        """A function from prompts and seeds to images_NHWC uint8."""
        codec = self.teacher.codec

        @torch.no_grad()
        def drawn(prompts: Sequence[str], seeds: Sequence[int]) -> NDArray[np.uint8]:
            with half_precision(codec.device, enabled=self.is_bf16):
                return to_uint8(codec.decode(sample(prompts=prompts, seeds=seeds)))

        return drawn

    @torch.no_grad()
    def through_codec(self, images_NHWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Real pictures encoded and decoded: no model that draws in its latents can be better."""
        codec = self.teacher.codec
        parts = []
        for batch_BHWC in torch.from_numpy(images_NHWC).split(BATCH_SIZE):
            images_BCHW = to_model_range(batch_BHWC).to(codec.device)
            parts.append(to_uint8(codec.decode(codec.encode(images_BCHW))))
        return np.concatenate(parts)


def steps_word(num_steps: int) -> str:
    """ "1 step", "4 steps"."""
    return f"{num_steps} step{'s' * (num_steps > 1)}"


def student_samplers(models: Models, wanted: Sequence[int] = ()) -> list[Sampler]:
    """The student at each number of steps that it knows, or at those wanted.

    Raises:
        ConfigError: none of those wanted is known.
    """
    teacher = models.teacher
    samplers = []
    for num_steps, timesteps in models.student_timesteps.items():
        if wanted and num_steps not in wanted:
            continue
        sample = partial(
            sample_student,
            models.student,
            teacher.text,
            teacher.diffusion,
            shape=models.shape,
            timesteps=timesteps,
        )
        facts = SamplerFacts(
            f"student, {steps_word(num_steps)}", "student", num_steps, num_steps, "student"
        )
        samplers.append(Sampler(facts, models.pictures(sample)))
    if not samplers:
        known = ", ".join(map(str, models.student_timesteps))
        raise ConfigError(f"--student-steps: the student knows {known}")
    return samplers


def teacher_samplers(models: Models, options: EvaluateOptions, guidance: float) -> list[Sampler]:
    """The teacher at every number of steps by every solver; at one step the solvers are one.

    Where guidance is used, its best-known number of steps is drawn without it, too.
    """
    samplers = [
        _teacher_sampler(models, num_steps, solver, guidance)
        for solver in options.solvers
        for num_steps in options.teacher_steps
        if num_steps > 1 or solver == options.solvers[0]
    ]
    if guidance != 1.0 and TUNING_STEPS in options.teacher_steps:
        samplers.append(_teacher_sampler(models, TUNING_STEPS, options.solvers[-1], 1.0))
    return samplers


def _teacher_sampler(models: Models, num_steps: int, solver: Solver, guidance: float) -> Sampler:
    teacher = models.teacher
    sample = partial(
        sample_teacher,
        teacher.unet,
        teacher.text,
        teacher.diffusion,
        shape=models.shape,
        num_steps=num_steps,
        guidance=guidance,
        solver=solver,
    )
    words = f"teacher, {steps_word(num_steps)}" + f" {solver}" * (num_steps > 1)
    facts = SamplerFacts(
        words if guidance == 1.0 else f"{words}, guidance {guidance:g}",
        "teacher",
        num_steps,
        num_steps * (1 if guidance == 1.0 else 2),
        solver,
        guidance,
    )
    return Sampler(facts, models.pictures(sample))


def tuned_guidance(
    models: Models, options: EvaluateOptions, asked: PromptSet, judge: FeatureJudge
) -> tuple[float, dict[str, float]]:
    """The scale with the least Fréchet distance at 25 steps, and every scale's distance.

    Tuned once, on the first prompts of one kind, and by a network that no discriminator looks
    through; then used at every number of steps.
    """
    assert judge.card.is_neutral
    solver = options.solvers[-1]
    few = asked.first(TUNING_PICTURES)
    found: dict[str, float] = {}
    for scale in options.guidance_sweep:
        sampler = _teacher_sampler(models, TUNING_STEPS, solver, scale)
        images_NHWC = draw_all(sampler.draw, few.prompts, few.seeds)
        score = judge.score(sampler.facts.name, few, images_NHWC)
        found[f"{scale:g}"] = score.metrics["frechet_distance"].value
    return min(options.guidance_sweep, key=lambda scale: found[f"{scale:g}"]), found
