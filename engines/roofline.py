"""How fast could a machine do a given work at best?

Owns the rates that a machine reaches, the work of single operators, and the floor that the rates
put under the work's time. What an operator's work is, others count; nothing here is measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Peaks:
    """What a machine reaches at best.

    Attributes:
        flops_per_s: of a large matrix product.
        bytes_per_s: of a large copy, read and written bytes together.
        float_bytes: size of a number in that product; the traffic of a graph is counted in it.
        how: the measurement in words.
    """

    flops_per_s: float
    bytes_per_s: float
    float_bytes: int
    how: str


@dataclass(frozen=True)
class Op:
    """The work of one node."""

    name: str
    kind: str
    flops: int
    num_bytes: int


@dataclass(frozen=True)
class Work:
    """The counted nodes of a graph, in its order."""

    ops: tuple[Op, ...]

    @property
    def flops(self) -> int:
        """Floating-point operations, 2 per multiply-add."""
        return sum(op.flops for op in self.ops)

    @property
    def num_bytes(self) -> int:
        """Bytes read and written."""
        return sum(op.num_bytes for op in self.ops)

    def floor_s(self, peaks: Peaks) -> float:
        """Seconds that a machine needs at least: each node waits for its slower resource.

        Source: Williams, Waterman and Patterson, Roofline, CACM 52(4), 2009, per node.
        """
        return math.fsum(
            max(op.flops / peaks.flops_per_s, op.num_bytes / peaks.bytes_per_s) for op in self.ops
        )
