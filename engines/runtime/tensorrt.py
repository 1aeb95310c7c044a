"""A bundle's TensorRT plans on the GPU, by either package.

Owns which package, GPU and plans come together. The whole sampling loop is recorded by the same
runner that the torch_cuda backend uses. Which plans fit is in `engines.runtime.plans`, how one runs
in `engines.runtime.execution`, how they are made in `engines.build`.
"""

from __future__ import annotations

import functools
import importlib
from pathlib import Path
from typing import Any

import torch

from engines.errors import BackendError
from engines.runtime.base import RuntimeOptions, Stages, stage_inputs, stage_outputs
from engines.runtime.devices import CudaDevice, Device, open_device
from engines.runtime.execution import OpenPlans, PlanContext, PlanStage
from engines.runtime.graphs import RecordingRunner
from engines.runtime.plans import (
    ENGINES_FOLDER,
    Machine,
    batch_sizes,
    listed_packages,
    load_plan,
    plan_stages,
    usable_plans,
)
from engines.spec import ModelSpec, StageName

PACKAGES = ("tensorrt", "tensorrt_rtx")


def load_stages(folder: Path, spec: ModelSpec, options: RuntimeOptions) -> Stages:
    """Load the plans of `folder`/engines that were built for this very machine.

    Raises:
        BackendError: no plans, no package, no GPU, or the plans are for another machine.
        BundleError: the list or a plan is damaged.
        OutOfMemoryError: the plans do not fit.
    """
    trt = import_package(listed_packages(Path(folder) / ENGINES_FOLDER))
    device = open_device(options.device)
    if not isinstance(device, CudaDevice):
        raise BackendError(f"{trt.__name__} needs a GPU: leave the device out, or use onnx")
    major, minor = torch.cuda.get_device_capability(device.name)
    machine = Machine(trt.__name__, trt.__version__, f"SM{major}{minor}")
    with torch.cuda.device(device.name):
        return load_plans(trt, device, machine, (Path(folder), spec, options))


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
    trt: Any, device: Device, machine: Machine, model: tuple[Path, ModelSpec, RuntimeOptions]
) -> Stages:
    """Load every fitting plan with `trt`, and a context for each stage and batch size.

    Raises:
        BackendError: no plan fits the machine, or the package refuses one.
        BundleError: a plan is damaged.
        OutOfMemoryError: the plans do not fit.
    """
    folder, spec, options = model
    plans = Path(folder) / ENGINES_FOLDER
    usable = usable_plans(plans, spec, options.precision, machine)
    sizes = batch_sizes(usable, options.batch_sizes)
    opened = OpenPlans(trt, device)
    contexts: dict[StageName, dict[int, PlanContext]] = {}
    for stage in plan_stages(spec, options.precision):
        names = stage_inputs(spec, stage), stage_outputs(spec, stage)
        contexts[stage] = {}
        for size, batch in sizes.items():
            record = usable[batch][stage]
            read = functools.partial(load_plan, plans, record)
            contexts[stage][size] = opened.context(plans / record.file, read, names)
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
    )
