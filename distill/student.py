"""The one-step student: initialised from its teacher, trained by the distillation step.

Owns what the training of a student holds in memory. Touches no disk but to write the finished
model.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers import UNet2DConditionModel
from torch import nn
from torch.distributed.fsdp import FSDPModule

from distill.config import RunConfig, StudentConfig
from distill.dataset import to_uint8
from distill.draws import Draws
from distill.grid import grid_image
from distill.methods.base import Frozen, Sample
from distill.methods.dmd2 import FAKE_SCORE
from distill.methods.registry import build_method
from distill.networks.conditioning import Conditioning, predict
from distill.networks.lora import LORA_FOLDER, fused, lora_state, save_lora, with_lora
from distill.networks.unet import freeze, to_device
from distill.probe import Probe
from distill.sampling import sample_student
from distill.step import Batch, DistillStep, Trained
from distill.teachers.base import Teacher
from distill.training.checkpoint import Ema, averaged, load_trained_state, trained_state
from distill.training.device import half_precision
from distill.training.optimizers import adamw
from distill.training.processes import ALONE, Processes, load_optimizer, whole
from engines.noise import unit_noise

# Shape suffixes: B batch, C channel, h/w latent cells, L tokens, M captions, D width.


def initial_student(teacher: UNet2DConditionModel, config: StudentConfig) -> UNet2DConditionModel:
    """The student before training: the teacher's copy, or the same network with random weights.

    With a rank, the teacher's own weights, frozen, and factors that change nothing yet.
    """
    if config.lora.rank:
        return with_lora(teacher, config.lora).train()
    if config.initialise == "teacher":
        return copy.deepcopy(teacher).train().requires_grad_(True)
    student = UNet2DConditionModel.from_config(teacher.config)
    return to_device(student, teacher.device).train()


class Samples(Protocol):
    """Real pictures addressed by draws."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one picture's latents."""
        ...

    def sample(self, draws: Draws) -> Sample:
        """Latents and conditioning for the draws' positions."""
        ...


class StudentTrainer:
    """Distils a finished teacher, by the method that the config names."""

    name = "student"
    score_name = "latent_distance"

    def __init__(
        self,
        config: RunConfig,
        teacher: Teacher,
        samples: Samples,
        prompts: Sequence[str],
        processes: Processes = ALONE,
    ) -> None:
        """Copy the teacher into the student, build the method and the optimizers.

        Args:
            config: of the run.
            teacher: is frozen here.
            samples: the real pictures.
            prompts: for the sheets that a person looks at.
            processes: that train together; each takes its part of every batch.

        Raises:
            ConfigError: the autoencoder or the optimizer cannot do what `scale` or `bits` asks.
        """
        self.processes = processes
        self.run = config
        self.config: StudentConfig = config.student
        self.optimizer = config.student.optimizer
        self.device = teacher.codec.device
        self.teacher = teacher
        self.text = teacher.text
        self.samples = samples
        self.iteration = 0
        self.lr_d_scale = 1.0
        self._prompts = list(prompts)
        self._probe = Probe(samples, config.seed, self.device)
        self.student = initial_student(teacher.unet, self.config)
        freeze(teacher.unet)
        with torch.no_grad():
            negative = teacher.text.encode(teacher.text.tokens([self.config.negative_prompt]))
        frozen = Frozen(
            teacher.unet, teacher.codec, teacher.diffusion, teacher.pooled_width, negative
        )
        if "student" in config.scale.recompute:
            self.student.enable_gradient_checkpointing()
        if "decoder" in config.scale.recompute:
            teacher.codec.recompute()
        self.method = build_method(self.config, frozen)
        self._trained = self._optimized()
        # After the student was dealt out, so that its average is, too.
        self.ema = Ema(self.student, self.config.ema_decay)
        self._step = DistillStep(
            self.config,
            self.method,
            frozen,
            config.scale.micro_batch_size,
            config.bf16,
            processes,
        )

    def _optimized(self) -> Trained:
        config, modules, share = self.run, self.method.modules, self.processes.share
        wrapped = nn.ModuleDict(
            {k: share(m, config, is_large=k == FAKE_SCORE) for k, m in modules.items()}
        )
        network = share(self.student, config, is_large=True)
        trained = [p for p in self.student.parameters() if p.requires_grad]
        student = adamw(trained, self.optimizer)
        others = None
        if len(modules):
            groups = [{"params": m.parameters(), "lr": self._lr_of(k)} for k, m in modules.items()]
            others = adamw(groups, self.optimizer, weight_decay=0.0)
        return Trained(network, wrapped, student, others)

    def _lr_of(self, name: str) -> float:
        """Of one of the method's modules; only the heads are slowed down when they win."""
        if name == FAKE_SCORE:
            lr = self.config.fake_score_lr
            return self.optimizer.lr if lr is None else lr
        return self.config.discriminator.lr * self.lr_d_scale

    def iterate(self, lr_scale: float) -> Mapping[str, float]:
        """Every phase on one batch."""
        for group in self._trained.student_optimizer.param_groups:
            group["lr"] = self.optimizer.lr * lr_scale
        if self._trained.modules_optimizer is not None:
            groups = self._trained.modules_optimizer.param_groups
            for name, group in zip(self.method.modules, groups, strict=True):
                group["lr"] = self._lr_of(name)
        steps = self.method.critic_steps if len(self.method.modules) else 1
        batches = []
        for k in range(steps):
            positions = self.processes.part(self.optimizer.batch_size)
            draws = Draws(self.run.seed, self.iteration * steps + k, positions, self.device)
            batches.append(Batch(self.samples.sample(draws), draws))
        metrics = self.processes.mean(self._step(self._trained, batches))
        self.ema.update(self.student)
        self.iteration += 1
        return metrics

    @torch.no_grad()
    def sample_grid(self) -> Any:
        """Pictures in one step from the averaged weights."""
        with averaged(self.student, self.ema):
            latents_BChw = sample_student(
                self.student,
                self.text,
                self.teacher.diffusion,
                self._prompts,
                range(len(self._prompts)),
                self.samples.shape,
                self.config.timesteps[:1],
            )
        return grid_image(to_uint8(self.teacher.codec.decode(latents_BChw)), num_columns=12)

    def _one_step(self, conditioning: Conditioning, seeds: Sequence[int]) -> torch.Tensor:
        diffusion = self.teacher.diffusion
        noise_BChw = torch.from_numpy(unit_noise(seeds, self.samples.shape)).to(self.device)
        timestep_B = torch.full((len(seeds),), self.config.timesteps[0], device=self.device)
        with half_precision(self.device, enabled=self.run.bf16):
            prediction_BChw = predict(self.student, noise_BChw, timestep_B, conditioning)
        return diffusion.denoised(prediction_BChw, noise_BChw, timestep_B)

    @torch.no_grad()
    def score(self) -> float:
        """Distance of the averaged weights' latents from real ones; lower is better."""
        with averaged(self.student, self.ema):
            return self._probe.distance(self._one_step)

    @torch.no_grad()
    def diversity(self) -> float:
        """How far apart the averaged weights' latents of one prompt are."""
        with averaged(self.student, self.ema):
            return self._probe.diversity(self._one_step)

    def state_dict(self) -> dict[str, Any]:
        """Student, the method's modules, both optimizers, average, cursor.

        The random numbers and the order of the pictures follow from the iteration.
        """
        others = self._trained.modules_optimizer
        return {
            "student": trained_state(self.student),
            "modules": self.method.modules.state_dict(),
            "adam_student": self._trained.student_optimizer.state_dict(),
            "adam_modules": None if others is None else others.state_dict(),
            "ema": self.ema.state_dict(),
            "iteration": self.iteration,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        load_trained_state(self.student, state["student"])
        load_trained_state(self.method.modules, state["modules"])
        load_optimizer(self._trained.student_optimizer, state["adam_student"])
        if self._trained.modules_optimizer is not None:
            load_optimizer(self._trained.modules_optimizer, state["adam_modules"])
        self.ema.load_state_dict(state["ema"])
        self.iteration = int(state["iteration"])

    def save_model(self, folder: Path) -> None:
        """Write the averaged student and the text encoder that it was trained with.

        Trained factors are written by themselves too, in lora/; unet/ holds them fused.
        """
        weights = whole(self.ema.weights)
        if not self.processes.is_main:
            return
        settings = self.student.config
        if isinstance(self.student, FSDPModule):  # whose files would hold its own part alone
            student = UNet2DConditionModel.from_config(settings)
            student.load_state_dict(weights)
            student.save_pretrained(folder / "unet")
        else:
            with averaged(self.student, self.ema):
                self._save_unet(folder)
        self.text.save(folder)

    def _save_unet(self, folder: Path) -> None:
        unet = self.student
        if self.config.lora.rank:
            save_lora(folder / LORA_FOLDER, lora_state(self.student))
            unet = fused(self.student)
        unet.save_pretrained(folder / "unet")
