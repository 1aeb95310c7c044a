"""A training's own iterations on fake tensors, watched.

Owns which objects of a trainer are weights, averages and frozen networks, and the order of a
rehearsal: build, one iteration that makes the optimizers' state, one that is measured. The trainer
is the real one, so that what is counted is what will run.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Protocol

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import nn

from distill.preflight.fakes import any_number, without_numbers
from distill.preflight.tracker import Kind, MemoryTracker, Peak
from distill.training.checkpoint import Ema

_CARD_BLOCK_BYTES = 512  # CUDA's caching allocator rounds up to it
_CPU_BLOCK_BYTES = 64  # alignment of torch's allocator on a CPU
_MAX_DEPTH = 8


class Rehearsed(Protocol):
    """What is needed of a trainer here."""

    def iterate(self, lr_scale: float) -> Mapping[str, float]:
        """Take one batch through one optimizer step."""
        ...

    def sample_grid(self) -> Any:
        """Draw what the model can do now."""
        ...


@dataclass(frozen=True)
class Footprint:
    """What one process of a training takes.

    Attributes:
        by_kind: bytes at the highest moment of an iteration.
        sheet_bytes: bytes at the highest moment of drawing a sheet of samples; 0 where none was.
        num_flops: of one iteration.
        num_trained: weights that are trained.
    """

    by_kind: Mapping[Kind, int]
    sheet_bytes: int
    num_flops: int
    num_trained: int

    def scaled(self, factor: float, num_bytes: int) -> Footprint:
        """Of an iteration with as many times the passes, and more pictures to hold for them."""
        by_kind = dict(self.by_kind)
        by_kind[Kind.DATASET] = by_kind.get(Kind.DATASET, 0) + num_bytes
        return replace(self, by_kind=by_kind, num_flops=round(factor * self.num_flops))

    @property
    def iteration_bytes(self) -> int:
        """The peak of an iteration."""
        return sum(self.by_kind.values())

    @property
    def peak_bytes(self) -> int:
        """The highest moment of all."""
        return max(self.iteration_bytes, self.sheet_bytes)


def rehearse(
    build: Callable[[], Rehearsed], *, as_card: bool, with_sheet: bool = True
) -> Footprint:
    """Build a trainer on fake tensors and measure its second iteration.

    Args:
        build: makes the real trainer; called inside the fake world.
        as_card: count as on a card, else as on a CPU.
        with_sheet: also draw a sheet of samples.
    """
    block_bytes = _CARD_BLOCK_BYTES if as_card else _CPU_BLOCK_BYTES
    tracker = MemoryTracker(block_bytes, any_number)
    with _quiet(), without_numbers(as_card=as_card), tracker:
        trainer = build()
        parts = Parts.of(trainer)
        if as_card:
            parts.use_fused_attention()
        parts.label(tracker)
        for parameter in parts.trained:
            parameter.register_post_accumulate_grad_hook(
                lambda p: tracker.label([p.grad], Kind.GRADIENTS) if p.grad is not None else None
            )
        trainer.iterate(1.0)
        parts.label(tracker)
        tracker.relabel((Kind.TEMPORARY, Kind.SAVED), Kind.DATASET)
        tracker.reset()
        trainer.iterate(1.0)
        iteration, num_flops = tracker.peak, tracker.num_flops
        sheet = Peak()
        if with_sheet:
            tracker.reset()
            trainer.sample_grid()
            sheet = tracker.peak
    num_trained = sum(parameter.numel() for parameter in parts.trained)
    return Footprint(dict(iteration.by_kind), sheet.num_bytes, num_flops, num_trained)


@dataclass(frozen=True)
class Parts:
    """What a trainer holds, found by walking over its attributes."""

    networks: tuple[nn.Module, ...]
    optimizers: tuple[torch.optim.Optimizer, ...]
    averages: tuple[Ema, ...]

    @classmethod
    def of(cls, trainer: Any) -> Parts:
        """Walk over a trainer and everything of ours that it refers to."""
        found: list[Any] = []
        _walk(trainer, found, set(), 0)
        return cls(
            tuple(x for x in found if isinstance(x, nn.Module)),
            tuple(x for x in found if isinstance(x, torch.optim.Optimizer)),
            tuple(x for x in found if isinstance(x, Ema)),
        )

    @property
    def trained(self) -> tuple[nn.Parameter, ...]:
        """Every parameter that an optimizer steps, once."""
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        by_id = {id(p): p for group in groups for p in group["params"]}
        return tuple(by_id.values())

    def label(self, tracker: MemoryTracker) -> None:
        """Tell the tracker what the standing tensors are."""
        trained = {id(p) for p in self.trained}
        for network in self.networks:
            # Of a network some of whose weights are trained, the others are frozen all the same.
            frozen = [p for p in network.parameters() if id(p) not in trained]
            is_trained = any(id(p) in trained for p in network.parameters())
            tracker.label(frozen, Kind.FROZEN)
            tracker.label(network.buffers(), Kind.WEIGHTS if is_trained else Kind.FROZEN)
        tracker.label(self.trained, Kind.WEIGHTS)
        for average in self.averages:
            tracker.label(average.weights.values(), Kind.EMA)
        for optimizer in self.optimizers:
            values = [v for state in optimizer.state.values() for v in state.values()]
            tracker.label([v for v in values if isinstance(v, torch.Tensor)], Kind.OPTIMIZER)

    def use_fused_attention(self) -> None:
        """Undo the plain attention that our trainers choose on a CPU.

        Not by diffusers' `set_default_attn_processor`, whose default is the plain one too: its
        scores are a third of what a step at 512 px would seem to take.
        """
        for network in self.networks:
            for part in network.modules():
                if isinstance(part, UNet2DConditionModel | AutoencoderKL):
                    part.set_attn_processor(AttnProcessor2_0())


def _walk(value: Any, found: list[Any], seen: set[int], depth: int) -> None:
    if id(value) in seen or depth > _MAX_DEPTH:
        return
    seen.add(id(value))
    if isinstance(value, nn.Module | torch.optim.Optimizer | Ema):
        found.append(value)
    elif isinstance(value, Mapping):
        _walk_all(value.values(), found, seen, depth)
    elif isinstance(value, list | tuple):
        _walk_all(value, found, seen, depth)
    elif is_dataclass(value) and not isinstance(value, type):
        _walk_all([getattr(value, f.name) for f in fields(value)], found, seen, depth)
    elif type(value).__module__.startswith("distill."):
        _walk_all(vars(value).values(), found, seen, depth)


def _walk_all(values: Any, found: list[Any], seen: set[int], depth: int) -> None:
    for value in values:
        _walk(value, found, seen, depth + 1)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what libraries say of models that were not loaded, or of copying a fake tensor."""
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
