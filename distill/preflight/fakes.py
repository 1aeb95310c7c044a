"""A world in which networks have shapes and no numbers.

Owns what must be arranged so that a real training runs on fake tensors, on a machine without a
card: models built from their configs where weights would be read, arrays that become tensors
without content, and a card's choice of precision. Knows nothing of what is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from diffusers import ModelMixin
from numpy.typing import NDArray
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from transformers import PreTrainedModel

from distill.training import device

# What autocast on a card computes in float32 and autocast on a CPU leaves in half precision.
# Source: torch 2.13, aten/src/ATen/autocast_mode.h, AT_FORALL_FP32, _SET_OPT_DTYPE.
_FLOAT32_ON_A_CARD = (
    "acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan "
    "pow.Tensor_Scalar pow.Tensor_Tensor pow.Scalar softplus layer_norm native_layer_norm "
    "rms_norm group_norm frobenius_norm.dim nuclear_norm nuclear_norm.dim cosine_similarity "
    "dist pdist renorm logsumexp upsample_nearest1d upsample_nearest2d upsample_nearest3d "
    "_upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d "
    "upsample_linear1d upsample_bilinear2d _upsample_bilinear2d_aa upsample_trilinear3d "
    "upsample_bicubic2d _upsample_bicubic2d_aa softmax.int log_softmax.int cumprod cumsum "
    "linalg_vector_norm linalg_matrix_norm linalg_matrix_norm.str_ord sum sum.dim_IntList"
).split()
_INITIALISERS = (
    "constant_ kaiming_normal_ kaiming_uniform_ normal_ ones_ trunc_normal_ uniform_ "
    "xavier_normal_ xavier_uniform_ zeros_"
).split()


@contextmanager
def without_numbers(*, as_card: bool) -> Iterator[None]:
    """Make every tensor fake, and every model that is loaded one of its config alone.

    Fake tensors lie on the CPU: a build of torch without CUDA cannot run a backward pass on fake
    tensors of a card.

    Args:
        as_card: choose precisions under autocast as a card does.
    """
    with ExitStack() as stack:
        stack.enter_context(patch.object(torch, "from_numpy", _empty_like_array))
        stack.enter_context(patch.object(FakeTensor, "numpy", _zeros_like_tensor))
        stack.enter_context(patch.object(FakeTensor, "__deepcopy__", _copied))
        stack.enter_context(patch.object(nn.Module, "_apply", _apply_by_replacing))
        stack.enter_context(without_weights())
        # First weights cost more to draw, operation by operation, than an iteration to rehearse.
        stack.enter_context(patch.object(PreTrainedModel, "initialize_weights", _leave))
        for name in _INITIALISERS:
            stack.enter_context(patch.object(nn.init, name, _leave))
        if as_card:
            stack.enter_context(_autocast_as_card())
            stack.enter_context(patch.object(device, "has_half_units", lambda _: True))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        yield


@contextmanager
def without_weights(device: str = "cpu") -> Iterator[None]:
    """Make every model that is loaded one of its config alone, its random weights on `device`."""

    def diffusers_model(cls: Any, path: Any, /, **options: Any) -> Any:
        with torch.device(device):
            return _from_config(cls, path, **options)

    def transformers_model(cls: Any, path: Any, /, *args: Any, **options: Any) -> Any:
        with torch.device(device):
            return _from_transformers_config(cls, path, *args, **options)

    with (
        patch.object(ModelMixin, "from_pretrained", classmethod(diffusers_model)),
        patch.object(PreTrainedModel, "from_pretrained", classmethod(transformers_model)),
    ):
        yield


def any_number(tensor: torch.Tensor) -> bool | int | float:
    """What code that reads a number out of a fake tensor is told: true, the index 0, or one."""
    if tensor.dtype is torch.bool:
        return True
    return 1.0 if tensor.is_floating_point() else 0


def _copied(tensor: FakeTensor, memo: dict[int, Any]) -> torch.Tensor:
    """A deep copy; torch's own copies bytes that are not there, and breaks the heap."""
    if id(tensor) not in memo:
        with torch.no_grad():
            copy: torch.Tensor = tensor.detach().clone()
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(copy, tensor.requires_grad) if is_parameter else copy
    made: torch.Tensor = memo[id(tensor)]
    return made


def _leave(what: Any, *_: Any, **__: Any) -> Any:
    return what


def _empty_like_array(array: NDArray[Any]) -> torch.Tensor:
    # Through a real tensor of no content, which knows how numpy's types are called.
    dtype = torch.as_tensor(np.empty(0, dtype=array.dtype)).dtype
    return torch.empty(array.shape, dtype=dtype)


def _zeros_like_tensor(tensor: FakeTensor) -> NDArray[Any]:
    kind = torch.empty(0, dtype=tensor.dtype)
    name = str(kind.dtype).removeprefix("torch.")
    return np.zeros(tuple(tensor.shape), dtype=name)


def _apply_by_replacing(
    module: nn.Module, change: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True
) -> nn.Module:
    """`Module._apply`, whose swap of fake tensors in place fails; a shared one stays shared."""
    changed: dict[int, nn.Parameter] = {}
    for part in module.modules() if recurse else [module]:
        for name, parameter in part._parameters.items():
            if parameter is None:
                continue
            if id(parameter) not in changed:
                with torch.no_grad():
                    new = change(parameter)
                is_same = new is parameter
                changed[id(parameter)] = (
                    parameter if is_same else nn.Parameter(new, parameter.requires_grad)
                )
            part._parameters[name] = changed[id(parameter)]
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = change(buffer)
    return module


def _from_config(cls: Any, path: Any, /, **options: Any) -> Any:
    """A diffusers model of a folder's config, in the precision asked for."""
    settings = cls.load_config(path, subfolder=options.get("subfolder"), local_files_only=True)
    model = cls.from_config(settings).eval()
    dtype = options.get("torch_dtype")
    return model if dtype is None else model.to(dtype)


def _from_transformers_config(cls: Any, path: Any, /, *_: Any, **options: Any) -> Any:
    """A transformers model of a folder's config, in the precision asked for."""
    settings = options.get("config") or cls.config_class.from_pretrained(
        path, subfolder=options.get("subfolder") or "", local_files_only=True
    )
    model = cls(settings).eval()
    dtype = options.get("dtype") or options.get("torch_dtype")
    return model if dtype is None else model.to(dtype)


@contextmanager
def _autocast_as_card() -> Iterator[None]:
    """Give the CPU's autocast the card's list of operations in float32.

    Normalisation is on that list, and with it what it saves for the backward pass: without this,
    the saved activations of a decoder under autocast come out a third too small.
    """
    library = torch.library.Library("aten", "IMPL")
    try:
        for name in _FLOAT32_ON_A_CARD:
            packet, _, overload = name.partition(".")
            operation = getattr(getattr(torch.ops.aten, packet), overload or "default")
            library.impl(name, _in_float32(operation), "AutocastCPU")
        yield
    finally:
        library._destroy()


def _in_float32(operation: Any) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast("cpu", enabled=False):
            return operation(*map(_up, args), **{k: _up(v) for k, v in kwargs.items()})

    return run


def _up(value: Any) -> Any:
    is_half = isinstance(value, torch.Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if is_half else value
