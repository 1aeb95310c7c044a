"""Networks in half precision, with float32 where sums of many terms need it.

Owns which layers stay in float32: the norms, whose means and variances run over thousands of
values. What a stage does around its network (the arithmetic on latents, pixels) is float32 too.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

from engines.spec import Precision

DTYPES: dict[Precision, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
Network = TypeVar("Network", bound=nn.Module)


class _GroupNorm(nn.GroupNorm):
    """Statistics and weights in float32, whatever comes in and goes out."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.float()).to(input.dtype)


class _LayerNorm(nn.LayerNorm):
    """Statistics and weights in float32, whatever comes in and goes out."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.float()).to(input.dtype)


def in_dtype(network: Network, dtype: torch.dtype) -> Network:
    """Cast a network's weights in place, its norms' excepted, and have those compute in float32."""
    if dtype == torch.float32:
        return network.float()
    for name, layer in list(network.named_modules()):
        if isinstance(layer, nn.GroupNorm | nn.LayerNorm):
            network.set_submodule(name, _exact(layer).float())
    for layer in network.modules():
        if isinstance(layer, _GroupNorm | _LayerNorm):
            continue
        for tensor in (*layer.parameters(recurse=False), *layer.buffers(recurse=False)):
            if tensor.is_floating_point():
                tensor.data = tensor.data.to(dtype)
    return network


def _exact(layer: nn.GroupNorm | nn.LayerNorm) -> nn.Module:
    exact: _GroupNorm | _LayerNorm
    if isinstance(layer, nn.GroupNorm):
        exact = _GroupNorm(layer.num_groups, layer.num_channels, layer.eps, layer.affine)
    else:
        exact = _LayerNorm(layer.normalized_shape, layer.eps, layer.elementwise_affine)
    exact.weight, exact.bias = layer.weight, layer.bias
    return exact.eval()
