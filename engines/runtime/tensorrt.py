"""A bundle's TensorRT plans on the GPU, by either package.

Owns which package, GPU and plans come together. The whole sampling loop is recorded by the same
runner that the torch_cuda backend uses. Which plans there are is in `engines.plans`, which of them
serve in `engines.runtime.choice`, how one runs in `engines.runtime.execution`.
"""

from __future__ import annotations

import functools
import importlib
from pathlib import Path
from typing import Any

import torch

from engines.errors import BackendError
from engines.plans import ENGINES_FOLDER, EngineList, choose_plan, load_plan
from engines.profiles import PACKAGES, Platform
from engines.runtime.base import RuntimeOptions, Stages, stage_inputs, stage_outputs
from engines.runtime.choice import batch_sizes, shared_ranges, stage_keys
from engines.runtime.devices import CudaDevice, Device, open_device
from engines.runtime.execution import OpenPlans, PlanContext, PlanStage
from engines.runtime.recording import RecordingRunner
from engines.spec import ModelSpec, StageName


def load_stages(folder: Path, spec: ModelSpec, options: RuntimeOptions) -> Stages:
    """Load the plans of `folder`/engines that were built for this very machine.

    Raises:
        PlanError: no plans, plans for something else, or the list or a plan is damaged.
        BundleError: a graph that the plans are compared with is missing or damaged.
        BackendError: no package or no GPU.
        OutOfMemoryError: the plans do not fit.
    """
    plans = Path(folder) / ENGINES_FOLDER
    trt = import_package(EngineList.load(plans).packages(plans))
    device = open_device(options.device)
    if not isinstance(device, CudaDevice):
        raise BackendError(f"{trt.__name__} needs a GPU: leave the device out, or use onnx")
    major, minor = torch.cuda.get_device_capability(device.name)
    platform = Platform(
        package=trt.__name__,
        package_version=trt.__version__,
        compute_capability=f"SM{major}{minor}",
    )
    with torch.cuda.device(device.name):
        return load_plans(trt, device, platform, (Path(folder), spec, options))


def import_package(listed: tuple[str, ...]) -> Any:
    """The installed package, one that plans are listed of where both are.

    Raises:
        BackendError: neither is installed.
    """
    installed = []
    for name in sorted(PACKAGES, key=lambda name: name not in listed):
        try:
            installed.append(importlib.import_module(name))
        except (ImportError, OSError):  # OSError: bindings without their libraries
            continue
    if not installed:
        raise BackendError(
            "backend 'tensorrt' needs TensorRT: pip install 'onestep[tensorrt]' for data-centre "
            "GPUs, or 'onestep[tensorrt-rtx]' for GeForce RTX"
        )
    return installed[0]


def load_plans(
    trt: Any, device: Device, platform: Platform, model: tuple[Path, ModelSpec, RuntimeOptions]
) -> Stages:
    """Load every fitting plan with `trt`, and a context for each stage and batch size.

    Raises:
        PlanError: no plan fits, or one is missing or damaged.
        BackendError: the package refuses one.
        OutOfMemoryError: the plans do not fit.
    """
    folder, spec, options = model
    plans = Path(folder) / ENGINES_FOLDER
    keys = stage_keys(Path(folder), spec, platform, options.precision)
    listed = EngineList.load(plans)
    sizes = batch_sizes(shared_ranges(listed, plans, keys), options.batch_sizes)
    opened = OpenPlans(trt, device)
    contexts: dict[StageName, dict[int, PlanContext]] = {}
    for stage_key in keys:
        stage = stage_key.stage
        names = stage_inputs(spec, stage), stage_outputs(spec, stage)
        contexts[stage] = {}
        for size, batch in sizes.items():
            key = stage_key.model_copy(update={"batch": batch})
            path = plans / choose_plan(listed, plans, key).file
            read = functools.partial(load_plan, plans, key)
            contexts[stage][size] = opened.context(path, read, names)
    opened.give_memory()
    runner = RecordingRunner(device, tuple(sizes), after_recording=opened.keep_caches)
    stages = {stage: PlanStage(stage, of_size) for stage, of_size in contexts.items()}
    return Stages(
        text=runner.stage("text", stages["text"]),
        denoise=stages["denoise"],
        decode=stages["decode"],
        encode=runner.stage("encode", stages["encode"]) if "encode" in stages else None,
        run=runner,
        batch_sizes=tuple(sizes),
        memory_bytes=device.memory_bytes,
        row_counts=runner.row_counts,
    )
