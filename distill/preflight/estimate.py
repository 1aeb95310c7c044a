"""From what a rehearsal counted to what a person asks: does it fit, and how long does it take.

Owns the arithmetic, the verdict and the remedies. Runs nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from distill.config import OptimizerConfig, RunConfig
from distill.preflight.cards import GIB, Card
from distill.preflight.rehearsal import Footprint
from distill.preflight.tracker import Kind

_DEALT_OUT = (Kind.WEIGHTS, Kind.GRADIENTS, Kind.OPTIMIZER, Kind.EMA)
# A byte for four, and a scale of four bytes for every block of 256. Source: arXiv:2110.02861.
_SHARE_OF_EIGHT_BITS = (1 + 4 / 256) / 4


@dataclass(frozen=True)
class Estimate:
    """Memory and time of one process of a training on one card.

    Attributes:
        stage: "autoencoder", "teacher" or "student".
        footprint: of one process with its part of the batch.
        card: it is to run on.
        num_gpus: processes, each with its part of every batch.
        peak_share: assumed share of the card's bf16 rate.
        optimizer: of the stage, with the whole batch.
        has_half: matrix products are in bf16.
        is_dealt_out: what is trained is dealt out over the processes ("fsdp"), not held by each.
    """

    stage: str
    footprint: Footprint
    card: Card
    num_gpus: int
    peak_share: float
    optimizer: OptimizerConfig
    has_half: bool
    is_dealt_out: bool = False

    @property
    def by_kind(self) -> dict[str, int]:
        """Bytes at the highest moment of an iteration."""
        counted = {kind: self.footprint.by_kind.get(kind, 0) for kind in Kind}
        if self.optimizer.bits == 8:
            counted[Kind.OPTIMIZER] = int(counted[Kind.OPTIMIZER] * _SHARE_OF_EIGHT_BITS)
        more: dict[str, int] = {}
        if self.num_gpus > 1 and self.is_dealt_out:
            weights = counted[Kind.WEIGHTS]
            for kind in _DEALT_OUT:
                counted[kind] = -(-counted[kind] // self.num_gpus)
            # Parts are gathered one after the other; all of them at once is the most it can be.
            more["gathered weights, at most"] = weights // 2 if self.has_half else weights
        elif self.num_gpus > 1:  # what is sent to the other processes is gathered in buckets
            more["buckets of gradients to send"] = counted[Kind.GRADIENTS]
        kinds = {kind.value: num_bytes for kind, num_bytes in counted.items()} | more
        return {name: num_bytes for name, num_bytes in kinds.items() if num_bytes}

    @property
    def peak_bytes(self) -> int:
        """The highest moment of an iteration or of a sheet of samples."""
        return max(sum(self.by_kind.values()), self.footprint.sheet_bytes)

    @property
    def fits(self) -> bool:
        """Whether the card's usable memory holds the peak."""
        return self.peak_bytes <= self.card.usable_bytes

    @property
    def iteration_s(self) -> float | None:
        """Seconds of one iteration; None where the card's rate is not known or not used."""
        if self.card.bf16_tflops is None or not self.has_half:
            return None
        rate = self.card.bf16_tflops * 1e12 * self.peak_share
        return self.footprint.num_flops / rate

    @property
    def total_h(self) -> float | None:
        """Hours of all iterations, sheets and snapshots left out."""
        seconds = self.iteration_s
        return None if seconds is None else seconds * self.optimizer.iterations / 3600

    def remedies(self, config: RunConfig) -> list[str]:
        """What would lower the peak, the largest saving first."""
        return [words for _, words in sorted(self._remedies(config), reverse=True)]

    def _remedies(self, config: RunConfig) -> Iterator[tuple[int, str]]:
        kinds = self.footprint.by_kind
        saved = kinds.get(Kind.SAVED, 0) + kinds.get(Kind.TEMPORARY, 0)
        field = f"{self.stage}.optimizer.batch_size"
        per_gpu = -(-self.optimizer.batch_size // self.num_gpus)
        is_in_parts = (
            self.stage == "student" and (config.scale.micro_batch_size or per_gpu) < per_gpu
        )
        if per_gpu > 1 and not is_in_parts:
            yield (
                saved // 2,
                f"halve {field} (now {self.optimizer.batch_size}), or use twice the GPUs: "
                f"about {saved / 2 / GIB:.1f} GiB less",
            )
        if self.stage == "student":
            yield from self._remedies_of_scale(config, per_gpu, saved)
        if not config.bf16:
            yield saved // 3, "bf16=true: smaller activations"
        side = config.data.image_size_px
        yield saved // 4, f"a lower data.image_size_px (now {side}): activations go with its square"
        optimizer = kinds.get(Kind.OPTIMIZER, 0)
        if optimizer > saved:
            yield (
                optimizer // 2,
                "a smaller network, or a card with more memory: weights, gradients and optimizer "
                "state do not depend on the batch",
            )
        if self.optimizer.bits == 32 and not self.is_dealt_out:
            yield (
                int(optimizer * (1 - _SHARE_OF_EIGHT_BITS)),
                f"{self.stage}.optimizer.bits=8: about "
                f"{optimizer * (1 - _SHARE_OF_EIGHT_BITS) / GIB:.1f} GiB less",
            )
        if self.footprint.sheet_bytes > sum(self.by_kind.values()):
            yield self.footprint.sheet_bytes, "the sheet of samples is the highest moment"

    def _remedies_of_scale(
        self, config: RunConfig, per_gpu: int, saved: int
    ) -> Iterator[tuple[int, str]]:
        scale, kinds = config.scale, self.footprint.by_kind
        size = min(per_gpu, scale.micro_batch_size or per_gpu)
        if size > 1:
            yield saved // 2 + 1, f"scale.micro_batch_size={size // 2}: the same batch in parts"
        student = config.student
        is_decoded = student.method == "add" and (
            student.distill_space == "pixel" or student.discriminator.features == "vision"
        )
        missing = [n for n in ("decoder", "student") if n not in scale.recompute]
        if not is_decoded and "decoder" in missing:
            missing.remove("decoder")
        if missing:
            names = json.dumps([*scale.recompute, missing[0]])
            yield 2 * saved // 3, f"scale.recompute={names}: its activations are computed twice"
        if self.num_gpus > 1 and not self.is_dealt_out:
            trained = sum(kinds.get(kind, 0) for kind in _DEALT_OUT)
            less = trained - trained // self.num_gpus
            yield less, f"scale.strategy=fsdp: about {less / GIB:.1f} GiB less"

    def as_plain(self, config: RunConfig) -> dict[str, Any]:
        """All figures for JSON."""
        return {
            "stage": self.stage,
            "card": self.card.name,
            "card_memory_gib": self.card.memory_gib,
            "usable_bytes": self.card.usable_bytes,
            "num_gpus": self.num_gpus,
            "batch_size_per_gpu": -(-self.optimizer.batch_size // self.num_gpus),
            "bytes_by_kind": self.by_kind,
            "sheet_bytes": self.footprint.sheet_bytes,
            "peak_bytes": self.peak_bytes,
            "fits": self.fits,
            "remedies": [] if self.fits else self.remedies(config),
            "num_trained": self.footprint.num_trained,
            "flops_per_iteration": self.footprint.num_flops,
            "assumed_share_of_peak": self.peak_share,
            "iteration_s": self.iteration_s,
            "total_h": self.total_h,
            "is_estimate": True,
        }


def lines(estimate: Estimate, config: RunConfig) -> Iterator[str]:
    """The table that a person reads."""
    card, flops = estimate.card, estimate.footprint.num_flops
    plural = "s" if estimate.num_gpus > 1 else ""
    per_gpu = -(-estimate.optimizer.batch_size // estimate.num_gpus)
    yield (
        f"{estimate.stage} of {config.name}: {estimate.num_gpus} x {card.name}, "
        f"{per_gpu} pictures a GPU and iteration; estimated without a GPU"
    )
    yield from _rows(estimate.by_kind)
    yield f"  {'peak of an iteration':34}{_size(sum(estimate.by_kind.values()))}"
    if estimate.footprint.sheet_bytes:
        yield f"  {'peak of a sheet of samples':34}{_size(estimate.footprint.sheet_bytes)}"
    usable = card.usable_bytes / GIB
    yield f"  {'usable of ' + format(card.memory_gib, '.1f') + ' GiB':34}{usable:9.2f} GiB"
    yield f"  {'trained weights':34}{estimate.footprint.num_trained / 1e6:9.1f} M"
    yield f"  {'one iteration on each GPU':34}{flops / 1e12:9.3f} TFLOP"
    if estimate.iteration_s is not None and estimate.total_h is not None:
        share = f"at {estimate.peak_share:.0%} of {card.bf16_tflops:g} TFLOP/s, assumed"
        yield f"  {'one iteration':34}{estimate.iteration_s:9.3f} s ({share})"
        num = estimate.optimizer.iterations
        yield f"  {f'all {num} iterations':34}{estimate.total_h:9.2f} h"
    if estimate.fits:
        yield f"fits on the card{plural}"
    else:
        yield "does not fit; what lowers it, the most first:"
        yield from (f"  - {words}" for words in estimate.remedies(config))


def _rows(by_kind: Mapping[str, int]) -> Iterator[str]:
    for name, num_bytes in by_kind.items():
        yield f"  {name:34}{_size(num_bytes)}"


def _size(num_bytes: int) -> str:
    if num_bytes < GIB:
        return f"{num_bytes / 2**20:9.2f} MiB"
    return f"{num_bytes / GIB:9.2f} GiB"
