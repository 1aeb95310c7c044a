"""The torch modules on a GPU: recorded as CUDA graphs, and compiled first where asked for.

Owns which numbers the networks compute in. What surrounds them (scales, the estimate of the clean
latents, levels) stays in float32. Runs on the CPU as well, which is how it is tested without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from engines.errors import BackendError
from engines.runtime.base import Arrays, RuntimeOptions, Stages
from engines.runtime.devices import CudaDevice, Device, open_device, translated
from engines.runtime.modules import load_modules
from engines.runtime.packages import (
    PACKAGES_FOLDER,
    load_package,
    package_key,
    write_package,
)
from engines.runtime.recording import BATCH_SIZES, RecordingRunner
from engines.spec import ALL_STAGES, STAGES, ModelSpec, Precision, StageName

DTYPES: dict[Precision, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


class InPrecision(nn.Module):
    """A network that computes in `dtype` between float32 inputs and outputs."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        """Convert the network's weights."""
        super().__init__()
        self.network = network.to(dtype)
        self.dtype = dtype

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the network."""
        return self._call(self.network, args, kwargs)

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        """Call an autoencoder's decoder."""
        return self._call(cast(Any, self.network).decode, args, kwargs)

    def encode(self, *args: Any, **kwargs: Any) -> Any:
        """Call an autoencoder's encoder."""
        return self._call(cast(Any, self.network).encode, args, kwargs)

    def _call(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return _cast(function(*_cast(args, self.dtype), **_cast(kwargs, self.dtype)), torch.float32)


class TensorStage:
    """A function of tensors on the device as a stage."""

    def __init__(self, function: Callable[..., Any]) -> None:
        """Wrap a module in evaluation mode, or what was compiled from one."""
        self._function = function

    def __call__(self, *inputs: Tensor) -> Arrays:
        """Call it on tensors in the order of `stage_inputs`."""
        output = self._function(*inputs)
        return output if isinstance(output, tuple) else (output,)


def load_stages(folder: Path, spec: ModelSpec, options: RuntimeOptions) -> Stages:
    """Load a torch folder onto the device; float32 where `options` names no precision.

    Raises:
        BackendError: there is no such device or package, or no such precision.
        BundleError: a package of compiled code is damaged.
        OutOfMemoryError: the weights do not fit.
    """
    device = open_device(options.device)
    if options.num_threads is not None:
        torch.set_num_threads(options.num_threads)
    if isinstance(device, CudaDevice):
        _settle_arithmetic()
    functions = translated(
        device, "the model", lambda: _functions(device, Path(folder), spec, options)
    )
    calls = {stage: TensorStage(function) for stage, function in functions.items()}
    sizes = BATCH_SIZES if options.batch_sizes is None else options.batch_sizes
    runner = RecordingRunner(device, sizes)
    return Stages(
        text=runner.stage("text", calls["text"]),
        denoise=calls["denoise"],
        decode=calls["decode"],
        encode=runner.stage("encode", calls["encode"]) if "encode" in calls else None,
        run=runner,
        batch_sizes=tuple(sorted(sizes)),
        memory_bytes=device.memory_bytes,
        row_counts=runner.row_counts,
    )


def compile_packages(
    folder: Path,
    options: RuntimeOptions,
    *,
    stages: Sequence[StageName] = STAGES,
    report: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Compile a torch folder's stages for this device, once for all starts; takes minutes.

    Args:
        folder: the torch folder; the packages lie in its `packages`.
        options: precision and device are obeyed.
        stages: which.
        report: called with a line of progress before each stage.

    Returns:
        The packages' paths.

    Raises:
        BackendError: there is no such device or precision, or torch cannot compile a stage.
    """
    folder = Path(folder)
    spec = ModelSpec.load(folder)
    precision = _precision(spec, options)
    device = open_device(options.device)
    modules = load_on(device, folder, spec, precision)
    paths = []
    for stage in stages:
        report(f"{stage}: compiling in {precision}")
        key = package_key(folder, spec, stage, precision, device.name)
        record = write_package(folder, spec, key, modules[stage], device.name)
        paths.append(folder / PACKAGES_FOLDER / record.file)
    return paths


def _precision(spec: ModelSpec, options: RuntimeOptions) -> Precision:
    precision = options.precision or spec.base_precision
    if precision not in DTYPES:
        raise BackendError(
            f"the torch_cuda backend computes in {', '.join(DTYPES)}, not {precision}"
        )
    return precision


def _functions(
    device: Device, folder: Path, spec: ModelSpec, options: RuntimeOptions
) -> dict[StageName, Callable[..., Any]]:
    precision = _precision(spec, options)
    if options.compiler == "package":
        return {
            stage: load_package(
                folder, package_key(folder, spec, stage, precision, device.name), device.name
            )
            for stage in STAGES
        }
    modules = load_on(device, folder, spec, precision)
    if options.compiler == "compile":
        for module in modules.values():
            # One variant per batch size: a CUDA graph is of one size anyway.
            module.compile(dynamic=False)
    return dict(modules)


def load_on(
    device: Device, folder: Path, spec: ModelSpec, precision: Precision
) -> dict[StageName, nn.Module]:
    """The stages' modules on the device, their networks in `precision`."""
    modules = load_modules(folder, spec)
    stages: dict[StageName, nn.Module] = {}
    for name in ALL_STAGES:
        stage: nn.Module | None = getattr(modules, name)
        if stage is None:  # an autoencoder without an encoder
            continue
        if precision != "float32":
            for child_name, network in list(stage.named_children()):
                setattr(stage, child_name, InPrecision(network, DTYPES[precision]))
        stages[name] = stage.to(device.name).eval()
        if isinstance(device, CudaDevice):
            in_channels_last(stage)
    return stages


def in_channels_last(stage: nn.Module) -> None:
    """Order the kernels with four axes as convolutions on tensor cores want them."""
    cast(Any, stage).to(memory_format=torch.channels_last)


def _settle_arithmetic() -> None:
    """float32 means float32, and convolutions are chosen by timing; both are the process's own."""
    cudnn: Any = torch.backends.cudnn
    cudnn.conv.fp32_precision = "ieee"
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    cudnn.benchmark = True


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """`value` with every floating tensor in it, however deep, as `dtype`."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, tuple | list):
        return type(value)(_cast(item, dtype) for item in value)
    if isinstance(value, dict):
        for key, item in list(value.items()):
            value[key] = _cast(item, dtype)
    return value
