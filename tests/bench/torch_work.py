"""The work of torch modules, counted operator by operator while they run on shapes alone.

Owns the bridge from torch's own FLOP rules to `engines.roofline.Work`. It shares no counting code
with `engines.graph_work`, so that each can be tested against the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from engines.roofline import Op, Work

_NORMS = {
    torch.ops.aten.native_batch_norm,
    torch.ops.aten.native_group_norm,
    torch.ops.aten.native_layer_norm,
}


def count_work(run: Callable[[], object]) -> Work:
    """Count what `run` does with tensors on the "meta" device, where nothing is computed."""
    ops: list[Op] = []
    with torch.inference_mode(False), torch.no_grad():
        with _Attention(ops) as attention, _Operators(ops, attention):
            run()
    return Work(tuple(ops))


class _Attention(TorchFunctionMode):
    """Takes an attention as one operator that reads q, k, v and writes its result."""

    def __init__(self, ops: list[Op]) -> None:
        super().__init__()
        self._ops = ops
        self.is_inside = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is not nn.functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        with self._inside():
            out: Tensor = func(*args, **(kwargs or {}))
        named = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
        query, key, value = (named[name] for name in ("query", "key", "value"))
        rows = math.prod(query.shape[:-1])
        macs = rows * key.shape[-2] * (query.shape[-1] + value.shape[-1])
        num_bytes = sum(tensor.nbytes for tensor in (query, key, value, out))
        self._ops.append(Op("attention", "attention", 2 * macs, num_bytes))
        return out

    @contextmanager
    def _inside(self) -> Iterator[None]:
        self.is_inside = True
        try:
            yield
        finally:
            self.is_inside = False


class _Operators(TorchDispatchMode):
    """Products and convolutions by torch's rules; norms as one read and one write."""

    def __init__(self, ops: list[Op], attention: _Attention) -> None:
        super().__init__()
        self._ops, self._attention = ops, attention

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if self._attention.is_inside:
            return out
        packet = func.overloadpacket
        name = str(packet)
        if packet in flop_registry:
            flops = flop_registry[packet](*args, **(kwargs or {}), out_val=out)
            moved = {id(leaf): leaf for leaf in tree_leaves((args, kwargs, out))}.values()
            num_bytes = sum(leaf.nbytes for leaf in moved if isinstance(leaf, Tensor))
            self._ops.append(Op(name, name, int(flops), num_bytes))
        elif packet in _NORMS:
            self._ops.append(Op(name, name, 0, 2 * args[0].nbytes))
        return out
