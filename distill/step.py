"""One iteration of a distillation, whatever the method: critic phases, then the student.

Owns the order of the phases, how a batch is split, and which gradients flow where. Touches no
disk. Source: arXiv:2311.17042, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from distill.config import StudentConfig
from distill.draws import Draws
from distill.methods.base import Fake, Frozen, Method, Metrics, Sample
from distill.networks.conditioning import predict
from distill.networks.discriminator import renew_norms
from distill.training.device import half_precision
from distill.training.processes import ALONE, Processes, held_back, whole

# Shape suffixes: B batch, C channel, H/W pixels, h/w latent cells.


@dataclass(frozen=True)
class Trained:
    """What the step runs and trains; networks as wrapped for several processes."""

    student: nn.Module
    modules: nn.ModuleDict
    student_optimizer: torch.optim.Optimizer
    modules_optimizer: torch.optim.Optimizer | None


@dataclass(frozen=True)
class Batch:
    """A real sample with the random numbers of its place in the whole batch."""

    sample: Sample
    draws: Draws

    def passes(self, size: int | None) -> Iterator[tuple[float, Batch, bool]]:
        """Micro-batches, each with its share of the batch and whether it is the last."""
        num = len(self.sample)
        size = num if size is None else size
        for start in range(0, num, size):
            part = slice(start, min(start + size, num))
            batch = Batch(self.sample.at(part), self.draws.at(part))
            yield (part.stop - start) / num, batch, part.stop == num


def run_student(student: nn.Module, frozen: Frozen, config: StudentConfig, batch: Batch) -> Fake:
    """The student's x0 for real latents noised to one of its timesteps, with gradients."""
    diffusion, draws = frozen.diffusion, batch.draws
    chosen_B = draws.choice("student_timestep", config.timestep_weights)
    timestep_B = torch.tensor(config.timesteps, device=diffusion.device)[chosen_B]
    real_BChw = batch.sample.latents_BChw
    noise_BChw = draws.normal("student_noise", real_BChw.shape[1:])
    noisy_BChw = diffusion.add_noise(real_BChw, noise_BChw, timestep_B)
    prediction_BChw = predict(student, noisy_BChw, timestep_B, batch.sample.conditioning)
    denoised_BChw = diffusion.denoised(prediction_BChw, noisy_BChw, timestep_B)
    return Fake(denoised_BChw, timestep_B, noise_BChw)


@dataclass
class DistillStep:
    """Carries out iterations.

    Attributes:
        config: of the student.
        method: computes the losses.
        frozen: teacher, autoencoder, schedule.
        micro_batch_size: pictures per pass; None takes the batch whole, and then one pass of the
            student serves both phases.
        bf16: half precision in the networks.
        processes: that share the batch; all leave an iteration out, or none.
    """

    config: StudentConfig
    method: Method
    frozen: Frozen
    micro_batch_size: int | None
    bf16: bool
    processes: Processes = ALONE

    def __call__(self, trained: Trained, batches: Sequence[Batch]) -> Mapping[str, float]:
        """Update the critic once per batch, and the student on the last.

        Returns:
            Losses, gradient norms on the student's picture by loss, the critic's metrics. A
            gradient that is not finite leaves its network as it was and counts as `skipped`.
        """
        metrics: Metrics = {"skipped": 0.0}
        last = batches[-1]
        kept: list[Fake] = []
        if trained.modules_optimizer is not None:
            for batch in batches:
                found, fakes = self._critic_phase(trained, batch, keep=batch is last)
                metrics |= {**found, "skipped": metrics["skipped"] + found["skipped"]}
                kept = fakes
        found = self._student_phase(trained, last, kept)
        metrics |= {**found, "skipped": metrics["skipped"] + found["skipped"]}
        return metrics

    def _critic_phase(
        self, trained: Trained, batch: Batch, *, keep: bool
    ) -> tuple[Metrics, list[Fake]]:
        optimizer = trained.modules_optimizer
        assert optimizer is not None
        optimizer.zero_grad(set_to_none=True)
        renew_norms(trained.modules)
        metrics: Metrics = {}
        fakes: list[Fake] = []
        modules = trained.modules.values()
        for share, part, is_last in batch.passes(self.micro_batch_size):
            # With one pass per batch the student's graph is kept for its own phase.
            is_kept = keep and share == 1.0
            with held_back(*modules, is_last=is_last):
                with half_precision(self.frozen.diffusion.device, enabled=self.bf16):
                    with torch.set_grad_enabled(is_kept):
                        fake = run_student(trained.student, self.frozen, self.config, part)
                    loss, found = self.method.critic_loss(
                        trained.modules, part.sample, fake, part.draws
                    )
                (share * loss).backward()
            _add(metrics, found, share)
            fakes = [fake] if is_kept else []
        gradients = [p.grad for p in trained.modules.parameters() if p.grad is not None]
        is_finite = self.processes.are_finite(gradients)
        if is_finite:
            optimizer.step()
        return metrics | {"skipped": float(not is_finite)}, fakes

    def _student_phase(self, trained: Trained, batch: Batch, kept: list[Fake]) -> Metrics:
        trained.student_optimizer.zero_grad(set_to_none=True)
        metrics: Metrics = {}
        for share, part, is_last in batch.passes(self.micro_batch_size):
            with held_back(trained.student, is_last=is_last):
                found = self._student_pass(trained.student, part, share, kept)
            _add(metrics, found, share)
        parameters = trained.student.parameters()
        norm = whole(nn.utils.clip_grad_norm_(parameters, self.config.optimizer.grad_clip)).item()
        is_finite = math.isfinite(norm)
        if is_finite:
            trained.student_optimizer.step()
        grad_norm = norm if is_finite else 0.0
        return metrics | {"grad_norm": grad_norm, "skipped": float(not is_finite)}

    def _student_pass(
        self, student: nn.Module, part: Batch, share: float, kept: list[Fake]
    ) -> Metrics:
        """Losses of one pass; their gradients go into the student's weights."""
        with half_precision(self.frozen.diffusion.device, enabled=self.bf16):
            fake = kept[0] if kept else run_student(student, self.frozen, self.config, part)
            is_in_pixels = self.method.is_in_pixels
            root = fake.images(self.frozen.codec) if is_in_pixels else fake.latents_BChw
            losses = self.method.student_losses(part.sample, fake, part.draws)
        # Each loss is differentiated with respect to the picture first, so that their sizes are
        # known and one pass through decoder and student serves all.
        gradients = {
            name: torch.autograd.grad(loss, root, retain_graph=True)[0]
            for name, loss in losses.items()
        }
        root.backward(share * self.method.combine(gradients))
        found = {f"loss_{name}": loss.item() for name, loss in losses.items()}
        return found | {f"grad_{name}": g.norm().item() for name, g in gradients.items()}


def _add(total: Metrics, found: Mapping[str, float], share: float) -> None:
    for name, value in found.items():
        total[name] = total.get(name, 0.0) + share * value
