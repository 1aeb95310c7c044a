"""What every run of an ablation shares, loaded once, and how one run is carried out.

Owns the training of one row and the drawing before the judges. Touches no disk but to read the
teacher and the pictures.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from distill.ablation.results import Drawn
from distill.config import RunConfig
from distill.evaluation.command import Asked, load_judges
from distill.evaluation.feature_judge import FeatureJudge
from distill.evaluation.judges import Judge
from distill.evaluation.options import EvaluateOptions
from distill.evaluation.prompts import (
    ALL_PROMPTS,
    WITH_STYLE,
    WITHOUT_STYLE,
    PromptSet,
    Size,
    together,
)
from distill.evaluation.running import NUM_SHOWN, Sampler, draw_all, score_pictures
from distill.evaluation.samplers import (
    Models,
    student_samplers,
    teacher_samplers,
    tuned_guidance,
)
from distill.model_spec import timesteps_by_steps
from distill.samples.sets import open_samples
from distill.student import Samples, StudentTrainer
from distill.teachers.base import Teacher
from distill.teachers.load import load_teacher
from distill.training.checkpoint import averaged
from distill.training.device import pick_device
from distill.training.loop import lr_scale_at
from distill.training.tally import Tally

# Shape suffixes: N pictures, H/W pixels, C channel.

_SEED_STRIDE = 1_000_000  # keeps the noise of two seeds apart
Sheets = dict[tuple[str, str], NDArray[np.uint8]]


@dataclass(frozen=True)
class Trained:
    """A finished student and how its training went."""

    trainer: StudentTrainer
    train_s: float
    last_metrics: Mapping[str, float]


class Workshop:
    """Teacher, encoded pictures, prompts and judges, kept in memory over all runs."""

    def __init__(self, config: RunConfig, run_folder: Path, options: EvaluateOptions) -> None:
        """Load everything.

        Raises:
            ConfigError: the teacher, the pictures or the judging network cannot be read.
        """
        self.config = config
        self._options = options
        device = pick_device(config.device)
        self.teacher: Teacher = load_teacher(config, run_folder, device)
        self._samples: Samples
        self._samples, self._prompts = open_samples(config, run_folder, self.teacher)
        asked = Asked.of(config, Size(options.max_pictures, options.seeds_per_prompt))
        self._drawn_sets = asked.sets
        parts = [one for one in asked.sets if one.kind in (WITH_STYLE, WITHOUT_STYLE)]
        self._parts = parts if len(parts) > 1 else []
        # As the paper has one set of prompts: what is said of both kinds at once comes first.
        both = [together(ALL_PROMPTS, self._parts)] if self._parts else []
        self.sets: list[PromptSet] = [*both, *asked.sets]
        self._chooser: FeatureJudge
        self._judges: list[Judge]
        self._chooser, self._judges = load_judges(options, asked.gallery, device)

    def made_of(self, config: RunConfig) -> dict[str, object]:
        """What decides a run's figures beside its seed: settings, budget, prompts and judges."""
        student = config.student.optimizer.iterations
        fields = config.that_shapes("student") | {"student.optimizer.iterations": student}
        del fields["seed"]
        fields |= {f"prompts.{asked.kind}": asked.fingerprint for asked in self.sets}
        return fields | {
            f"judge.{judge.card.name}": judge.card.weights_sha256 for judge in self._judges
        }

    def train(self, config: RunConfig, seed: int, on_iteration: Callable[[], object]) -> Trained:
        """Distil one student; every number that is drawn follows from the seed."""
        torch.manual_seed(seed)  # of the untrained heads and networks
        config = replace(config, seed=seed)
        trainer = StudentTrainer(config, self.teacher, self._samples, self._prompts)
        total = trainer.optimizer.iterations
        start_s = time.perf_counter()
        tally = Tally()
        for iteration in range(total):
            if iteration == total - max(1, total // 10):
                tally.report()  # what came before is not the end of the training
            tally.add(trainer.iterate(lr_scale_at(iteration, trainer.optimizer)))
            on_iteration()
        return Trained(trainer, time.perf_counter() - start_s, tally.report())

    def judge_student(
        self, trained: Trained, seed: int, num_steps: Sequence[int]
    ) -> tuple[list[Drawn], Sheets]:
        """Draw with the averaged weights and score."""
        trainer = trained.trainer
        models = self._models(trainer)
        with averaged(trainer.student, trainer.ema):
            trainer.student.eval()
            return self._judge(student_samplers(models, num_steps), seed)

    def tune(self, sweep: Sequence[float]) -> tuple[float, dict[str, float]]:
        """The teacher's guidance with the least distance at 25 steps, and every scale's."""
        options = replace(self._options, guidance_sweep=tuple(sweep))
        return tuned_guidance(self._models(None), options, self._drawn_sets[0], self._chooser)

    def judge_teacher(self, guidance: float, seed: int) -> tuple[list[Drawn], Sheets]:
        """Every solver and number of steps with guidance, and the best known without it."""
        samplers = teacher_samplers(self._models(None), self._options, guidance)
        return self._judge(samplers, seed)

    def _models(self, trainer: StudentTrainer | None) -> Models:
        config, codec = self.config, self.teacher.codec
        student = self.teacher.unet if trainer is None else trainer.student
        timesteps = timesteps_by_steps(config.student.timesteps)
        cells = config.data.image_size_px // codec.downscale
        shape = (codec.latent_channels, cells, cells)
        return Models(self.teacher, student, shape, timesteps, config.bf16)

    def _judge(self, samplers: Sequence[Sampler], seed: int) -> tuple[list[Drawn], Sheets]:
        drawn, sheets = [], {}
        for sampler in samplers:
            facts, scores = sampler.facts, {}
            drawing_s, num = 0.0, 0
            images: dict[str, NDArray[np.uint8]] = {}
            for asked in self._drawn_sets:
                seeds = [_SEED_STRIDE * seed + own for own in asked.seeds]
                start_s = time.perf_counter()
                images[asked.kind] = draw_all(sampler.draw, asked.prompts, seeds)
                drawing_s += time.perf_counter() - start_s
                num += len(images[asked.kind])
            if self._parts:
                images[ALL_PROMPTS] = np.concatenate([images[part.kind] for part in self._parts])
            for asked in self.sets:
                images_NHWC = images[asked.kind]
                found = score_pictures(facts.name, asked, images_NHWC, self._judges)
                scores[asked.kind] = {
                    name: estimate.value
                    for score in found
                    for name, estimate in score.metrics.items()
                }
                sheets[facts.name, asked.kind] = images_NHWC[:: _every(len(images_NHWC))][
                    :NUM_SHOWN
                ]
            ms = round(1000 * drawing_s / num, 3)
            drawn.append(Drawn(facts.name, facts.num_steps, facts.num_calls, ms, scores))
        return drawn, sheets


def shown_prompts(asked: PromptSet) -> list[str]:
    """The prompts of the pictures on a sheet."""
    return list(asked.prompts[:: _every(len(asked.prompts))][:NUM_SHOWN])


def _every(num: int) -> int:
    return max(1, num // NUM_SHOWN)
