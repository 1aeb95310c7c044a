"""Cards: how much memory and what bf16 rate their makers state.

Owns the table and what of a card's memory a training can have. Knows nothing of trainings.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from distill.config import ConfigError

GIB = 2**30

# Of a card's memory: the CUDA context and the libraries' workspaces, then what the caching
# allocator loses between blocks. Assumed, not measured.
_CONTEXT_GIB = 1.0
_LOST_SHARE = 0.05


@dataclass(frozen=True)
class Card:
    """One accelerator.

    Attributes:
        name: as it is asked for.
        memory_gib: as stated by its maker.
        bf16_tflops: dense matrix products with float32 sums; None where it is not known.
    """

    name: str
    memory_gib: float
    bf16_tflops: float | None

    @property
    def usable_bytes(self) -> int:
        """What tensors can have of it."""
        if self.name == "cpu":
            return int(self.memory_gib * GIB)
        return int((self.memory_gib - _CONTEXT_GIB) * (1 - _LOST_SHARE) * GIB)


# Dense bf16 rates; where a data sheet states the rate "with sparsity", half of it.
CARDS = {
    card.name: card
    for card in (
        # NVIDIA A100 Tensor Core GPU data sheet.
        Card("a100", 80, 312),
        Card("a100-40", 40, 312),
        # NVIDIA A10 data sheet.
        Card("a10", 24, 125),
        # NVIDIA L4 data sheet: 242 with sparsity.
        Card("l4", 24, 121),
        # NVIDIA L40S data sheet: 733 with sparsity.
        Card("l40s", 48, 366),
        # NVIDIA H100 data sheet: SXM 1979 and PCIe 1513 with sparsity.
        Card("h100", 80, 989),
        Card("h100-pcie", 80, 756),
        # NVIDIA H200 data sheet: SXM 1979 with sparsity.
        Card("h200", 141, 989),
        # NVIDIA Ampere GA102 whitepaper, appendix A, and Ada whitepaper, appendix A: bf16 with
        # float32 accumulation.
        Card("rtx-3090", 24, 71),
        Card("rtx-4090", 24, 165.2),
    )
}


def card_of(name: str, memory_gib: float | None = None) -> Card:
    """A card by name, if asked for with another memory; "cpu" is this machine.

    Raises:
        ConfigError: no card has that name.
    """
    if name == "cpu":
        return Card("cpu", _available_ram_gib() if memory_gib is None else memory_gib, None)
    if name not in CARDS:
        raise ConfigError(
            f"--gpu {name}: not one of {', '.join(sorted(CARDS))}, cpu; for another card give "
            "--gpu-memory-gib alone"
        )
    known = CARDS[name]
    return known if memory_gib is None else Card(name, memory_gib, known.bf16_tflops)


def card_called(device_name: str, memory_gib: float) -> Card:
    """The card that a driver calls so, with the memory that it says is free."""
    words = device_name.lower().replace("-", " ").split()
    fitting = [card for card in CARDS.values() if set(card.name.split("-")) <= set(words)]
    best = max(fitting, key=lambda card: len(card.name), default=None)
    return Card(device_name, memory_gib, None if best is None else best.bf16_tflops)


def _available_ram_gib() -> float:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB
