"""Live bytes and floating-point operations of whatever runs inside it.

Owns the count: every storage from the operation that makes it to the moment that nothing refers to
it, by kind, and the kinds at the highest moment. It counts real and fake tensors alike, and knows
nothing of trainings.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

_ATEN = torch.ops.aten
_COPY = _ATEN._to_copy.default
_READ = _ATEN._local_scalar_dense.default
# The fused attention of a CPU, which torch's table leaves out, costs what a card's does.
_FLOPS = flop_registry | {
    _ATEN._scaled_dot_product_flash_attention_for_cpu: flop_registry[
        _ATEN._scaled_dot_product_flash_attention
    ],
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        _ATEN._scaled_dot_product_flash_attention_backward
    ],
}


class Kind(StrEnum):
    """What a storage is for."""

    WEIGHTS = "weights"
    GRADIENTS = "gradients"
    OPTIMIZER = "optimizer state"
    EMA = "EMA"
    FROZEN = "frozen networks"
    DATASET = "dataset"
    CASTS = "half-precision copies of weights"
    SAVED = "saved activations"
    TEMPORARY = "temporary"


_OF_WEIGHTS = (Kind.WEIGHTS, Kind.FROZEN)


def _kind_of_result() -> Kind:
    """Saved where a forward pass keeps gradients: what of it still lives later, autograd holds.

    Autograd's own hooks on what it saves would say it exactly, but under them the graph of a
    double backward pass is never freed. What a checkpoint computes again is temporary.
    """
    is_in_backward = torch._C._current_graph_task_id() != -1
    return Kind.SAVED if torch.is_grad_enabled() and not is_in_backward else Kind.TEMPORARY


class _Handle(weakref.ref[torch.UntypedStorage]):
    """A weak reference that knows its storage's address."""

    __slots__ = ("key",)
    key: int


@dataclass
class _Storage:
    """One allocation; `handle` keeps the callback that counts its end."""

    num_bytes: int
    kind: Kind
    handle: _Handle


@dataclass
class Peak:
    """The highest moment since `reset`: bytes by kind."""

    by_kind: Counter[Kind] = field(default_factory=Counter)

    @property
    def num_bytes(self) -> int:
        """Bytes of all kinds together."""
        return sum(self.by_kind.values())


class MemoryTracker(TorchDispatchMode):
    """Counts storages and operations while it is active; also between, for what then ends.

    Sizes are rounded up to `block_bytes`, as the card's allocator rounds them. What an operation
    takes and gives back inside itself, such as a convolution's workspace, is not seen.

    Args:
        block_bytes: 512 for CUDA's caching allocator, 64 for the CPU's alignment.
        answer: what reading a number out of a tensor gives; None reads it, which fake tensors
            cannot do.
    """

    def __init__(
        self, block_bytes: int = 1, answer: Callable[[torch.Tensor], Any] | None = None
    ) -> None:
        """Start with nothing counted."""
        super().__init__()  # type: ignore[no-untyped-call]  # torch gives it no annotations
        self.num_flops = 0
        self.peak = Peak()
        self.live: Counter[Kind] = Counter()
        self._num_live_bytes = 0
        self._block_bytes = block_bytes
        self._answer = answer
        self._storages: dict[int, _Storage] = {}
        self._ended: list[_Handle] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run one operation and count what it made."""
        kwargs = dict(kwargs or {})
        if func is _READ and self._answer is not None:
            return self._answer(args[0])
        result = func(*args, **kwargs)
        formula = _FLOPS.get(func._overloadpacket)
        if formula is not None:
            self.num_flops += formula(*args, **kwargs, out_val=result)
        kind = _kind_of_result()
        if func is _COPY and self.kind_of(args[0]) in _OF_WEIGHTS:
            kind = Kind.CASTS
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor):
                self._see(value, kind)
        return result

    def kind_of(self, tensor: torch.Tensor) -> Kind | None:
        """The kind of a tensor's storage; None where it was never seen."""
        self._count_ended()
        found = self._storages.get(tensor.untyped_storage()._cdata)
        return None if found is None else found.kind

    def label(self, tensors: Iterable[torch.Tensor], kind: Kind) -> None:
        """Count these tensors' storages as of one kind from now on."""
        for tensor in tensors:
            self._see(tensor, kind)
            found = self._storages.get(tensor.untyped_storage()._cdata)
            if found is not None and found.kind is not kind:
                self.live[found.kind] -= found.num_bytes
                self.live[kind] += found.num_bytes
                found.kind = kind

    def relabel(self, kinds: Iterable[Kind], new: Kind) -> None:
        """Count everything of some kinds that lives now as of another."""
        self._count_ended()
        for storage in self._storages.values():
            if storage.kind in kinds:
                self.live[storage.kind] -= storage.num_bytes
                self.live[new] += storage.num_bytes
                storage.kind = new

    def reset(self) -> None:
        """Forget the peak and the operations counted; what lives stays counted."""
        self._count_ended()
        self.num_flops = 0
        self.peak = Peak(Counter(self.live))

    def _see(self, tensor: torch.Tensor, kind: Kind) -> None:
        self._count_ended()
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._storages:
            return
        blocks = -(-storage.nbytes() // self._block_bytes)
        num_bytes = blocks * self._block_bytes
        # A callback of our own would run Python in the middle of the storage's end, which torch
        # does not survive when it starts a garbage collection. This one runs none.
        handle = _Handle(storage, self._ended.append)
        handle.key = key
        self._storages[key] = _Storage(num_bytes, kind, handle)
        self.live[kind] += num_bytes
        self._num_live_bytes += num_bytes
        if self._num_live_bytes > self.peak.num_bytes:
            self.peak = Peak(Counter(self.live))

    def _count_ended(self) -> None:
        while self._ended:
            storage = self._storages.pop(self._ended.pop().key)
            self.live[storage.kind] -= storage.num_bytes
            self._num_live_bytes -= storage.num_bytes
