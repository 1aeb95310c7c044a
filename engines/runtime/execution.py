"""How TensorRT plans run over torch's memory, by either package.

Owns deserialising, execution contexts and the translation of the packages' refusals. torch owns
every buffer and stream: a plan reads and writes torch tensors in place. Knows no bundle.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engines.errors import BackendError, OutOfMemoryError
from engines.plans import CACHE_SUFFIX, REMEDY
from engines.runtime.base import Arrays
from engines.runtime.caches import read_cache, write_cache
from engines.runtime.devices import Device, translated
from engines.spec import StageName

Names = tuple[tuple[str, ...], tuple[str, ...]]
_log = logging.getLogger(__name__)
# By the name of the package's own type: the two packages' enums are of different classes.
_DTYPES = {
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "BF16": torch.bfloat16,
    "INT64": torch.int64,
    "INT32": torch.int32,
    "UINT8": torch.uint8,
}


class PlanStage:
    """One stage, which has a context for every batch size."""

    def __init__(self, stage: StageName, contexts: Mapping[int, PlanContext]) -> None:
        """Join the contexts, by batch size."""
        self._stage = stage
        self._contexts = contexts

    def __call__(self, *inputs: Tensor) -> Arrays:
        """Queue the plan on tensors in the order of `stage_inputs`."""
        context = self._contexts.get(len(inputs[0]))
        if context is None:
            sizes = ", ".join(map(str, self._contexts))
            raise BackendError(
                f"the {self._stage} stage has plans for batches of {sizes}, not {len(inputs[0])}"
            )
        return context(*inputs)


class PlanContext:
    """A plan made ready for one batch size."""

    def __init__(
        self,
        engine: Any,
        context: Any,
        names: Names,
        device: Device,
        refusal: Callable[[str], BackendError],
    ) -> None:
        """Join a context with the names of its inputs and outputs, in order."""
        self.context = context
        self._inputs, self._outputs = names
        self._dtypes = {
            name: _DTYPES[engine.get_tensor_dtype(name).name] for name in (*names[0], *names[1])
        }
        self._device = device
        self._refusal = refusal

    def __call__(self, *inputs: Tensor) -> Arrays:
        """Queue the plan.

        Raises:
            BackendError: a shape is none of the plan's, or it could not be queued.
            OutOfMemoryError: there is no room for what it makes.
        """
        context = self.context
        kept = []  # until the work is queued; afterwards the stream's order protects them
        for name, given in zip(self._inputs, inputs, strict=True):
            tensor = given.to(self._dtypes[name]).contiguous()
            if not context.set_input_shape(name, tuple(tensor.shape)):
                raise self._refusal(f"takes no {name} of shape {tuple(tensor.shape)}")
            context.set_tensor_address(name, tensor.data_ptr())
            kept.append(tensor)
        outputs = []
        for name in self._outputs:
            output = torch.empty(
                tuple(context.get_tensor_shape(name)),
                dtype=self._dtypes[name],
                device=self._device.name,
            )
            context.set_tensor_address(name, output.data_ptr())
            outputs.append(output)
        if not context.execute_async_v3(self._device.queue_handle()):
            raise self._refusal("failed")
        return tuple(outputs)


class OpenPlans:
    """One runtime, and what its plans share: scratch memory and the log.

    Plans run one after another on one stream, so one piece of scratch memory, as large as the
    largest asks for, serves them all.
    """

    def __init__(self, trt: Any, device: Device) -> None:
        """Open the package's runtime."""
        self._trt = trt
        self._device = device
        self._log = _log_keeping_errors(trt)
        self._runtime = trt.Runtime(self._log)
        self._engines: dict[Path, tuple[Any, Any]] = {}
        self._caches: dict[Path, tuple[Any, bytes]] = {}
        self._contexts: list[Any] = []
        self._scratch: Tensor | None = None

    def context(self, path: Path, read: Callable[[], bytes], names: Names) -> PlanContext:
        """Make a context of the plan at `path`; `read` gives its verified bytes, once.

        Raises:
            PlanError: the plan is missing or damaged.
            BackendError: the package refuses it.
            OutOfMemoryError: it does not fit.
        """
        if path not in self._engines:
            engine = self.deserialise(path, read())
            self._engines[path] = engine, self._configure(engine, path)
        engine, config = self._engines[path]
        context = engine.create_execution_context(config)
        if context is None:
            raise self._refusal(path, "cannot be made ready")
        self._contexts.append(context)
        return PlanContext(
            engine, context, names, self._device, lambda what: self._refusal(path, what)
        )

    def deserialise(self, path: Path, plan: bytes) -> Any:
        """Turn a plan's bytes into an engine.

        Raises:
            BackendError: the package refuses it; its own first words are in the message.
            OutOfMemoryError: it does not fit.
        """
        self._log.errors.clear()
        engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise self._refusal(path, f"is refused by {self._trt.__name__}")
        return engine

    def give_memory(self) -> None:
        """Allocate the scratch memory, once every context is there."""
        size = max([1, *(engine.device_memory_size_v2 for engine, _ in self._engines.values())])
        self._scratch = translated(
            self._device,
            "the plans' scratch memory",
            lambda: torch.empty(size, dtype=torch.uint8, device=self._device.name),
        )
        for context in self._contexts:
            context.set_device_memory(self._scratch.data_ptr(), size)

    def keep_caches(self) -> None:
        """Write what the package compiled for this GPU since the last time, beside the plans."""
        for path, (cache, last) in self._caches.items():
            content = bytes(cache.serialize())
            if content != last:
                write_cache(path, content)
                self._caches[path] = cache, content

    def _configure(self, engine: Any, path: Path) -> Any:
        trt = self._trt
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(
            trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        if hasattr(config, "create_runtime_cache"):  # TensorRT for RTX compiles on the GPU
            cache = config.create_runtime_cache()
            cache_path = path.with_suffix(CACHE_SUFFIX)
            last = read_cache(cache_path) or b""
            if last and not cache.deserialize(last):
                last = b""  # of another driver or GPU: it is compiled and written anew
            config.set_runtime_cache(cache)
            self._caches[cache_path] = cache, last
            # Compiled when first needed, and not later behind the back of a captured graph.
            config.dynamic_shapes_kernel_specialization_strategy = (
                trt.DynamicShapesKernelSpecializationStrategy.EAGER
            )
        return config

    def _refusal(self, path: Path, what: str) -> BackendError:
        reasons = [*self._log.errors, "no reason given"]
        self._log.errors.clear()
        reason = reasons[0].strip().partition("\n")[0]
        if any("out of memory" in text.lower() for text in reasons):
            return OutOfMemoryError(f"{path} {what}: {reason}")
        # A build keeps a plan that is what it wrote, so the plan has to go first.
        return BackendError(f"{path} {what} ({reason}): delete it and {REMEDY}")


def _log_keeping_errors(trt: Any) -> Any:
    """A logger for the package; its base class exists only once the package is imported."""

    class Log(trt.ILogger):  # type: ignore[misc] # the base is known at run time only
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(msg)
            elif severity == trt.ILogger.WARNING:
                _log.warning("tensorrt", extra={"reason": msg})

    return Log()
