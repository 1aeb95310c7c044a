"""How a distillation is spread over memory and processes.

None of these fields decides what is learned, but for the order in which numbers are added, so a
resumed run may change them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from distill.config.run import RunConfig

Strategy = Literal["ddp", "fsdp"]
Recomputed = Literal["decoder", "student"]


@dataclass(frozen=True)
class ScaleConfig:
    """Several processes, several passes per batch, activations computed twice.

    How many processes there are is `torchrun`'s or `accelerate launch`'s to say.

    Attributes:
        strategy: "ddp" keeps the student whole in every process; "fsdp" deals its weights,
            gradients, optimizer state and average out over them.
        micro_batch_size: pictures of one process in one pass; gradients of several passes are
            added up. None takes all of a process's part at once.
        recompute: networks whose activations are not kept for the backward pass but computed
            again. At 512 px the decoder's outweigh the student's, so it comes first.
    """

    strategy: Strategy = "ddp"
    micro_batch_size: int | None = None
    recompute: tuple[Recomputed, ...] = ()


def scale_rules(run: RunConfig) -> Iterator[tuple[bool, str]]:
    """Conditions that must not hold, each with the words that name the remedy."""
    size = run.scale.micro_batch_size
    yield size is not None and size < 1, "scale.micro_batch_size must be at least 1, or null"
    yield (
        run.scale.strategy == "fsdp" and run.student.optimizer.bits == 8,
        'student.optimizer.bits=8 does not go with scale.strategy="fsdp", which deals the '
        "optimizer's state out already: choose one of the two",
    )
    yield (
        run.scale.strategy == "fsdp" and run.student.lora.rank > 0,
        'student.lora.rank trains too few weights to deal out: set scale.strategy="ddp"',
    )
