"""The part of TensorRT that runs plans, over ONNX Runtime and the CPU's memory.

A plan here is a line "MIN:MAX" and an ONNX graph. What is real: memory is read and written at the
addresses that were set, in the types and shapes that were said, and nothing else is known of it.
test_tensorrt_runtime_api.py sees to it that the package itself has every name used here.
"""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime

_TYPES = {
    "tensor(float)": ("FLOAT", np.float32),
    "tensor(int64)": ("INT64", np.int64),
    "tensor(uint8)": ("UINT8", np.uint8),
}
SCRATCH_BYTES = 4096

ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="USER_MANAGED")
DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="EAGER")


class ILogger:
    """Base of the caller's logger."""

    INTERNAL_ERROR, ERROR, WARNING, INFO = range(4)

    def log(self, severity: int, msg: str) -> None:
        raise NotImplementedError


class IRuntimeCache:
    """Holds the names of the plans that ran."""

    def __init__(self) -> None:
        self._content = b""

    def serialize(self) -> bytes:
        return self._content

    def deserialize(self, blob: bytes) -> bool:
        if not blob.startswith(b"compiled"):
            return False
        self._content = blob
        return True


class IRuntimeConfig:
    """TensorRT for RTX's; the other package's has no cache."""

    def __init__(self) -> None:
        self._cache: IRuntimeCache | None = None
        self._strategy = ""
        self.dynamic_shapes_kernel_specialization_strategy = ""

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self._strategy = strategy

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache()

    def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
        self._cache = cache
        return True


class ICudaEngine:
    """A plan that was read."""

    device_memory_size_v2 = SCRATCH_BYTES

    def __init__(self, sizes: tuple[int, int], graph: bytes, logger: ILogger) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        self._session = onnxruntime.InferenceSession(graph, options)
        self._sizes = sizes
        self._logger = logger

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=_TYPES[self._entry(name).type][0])

    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()

    def create_execution_context(self, runtime_config: IRuntimeConfig) -> IExecutionContext:
        return IExecutionContext(self, runtime_config)

    def _entry(self, name: str) -> Any:
        entries = (*self._session.get_inputs(), *self._session.get_outputs())
        return next(entry for entry in entries if entry.name == name)


class IExecutionContext:
    """Runs a plan when told to, at the addresses that it was told."""

    def __init__(self, engine: ICudaEngine, config: IRuntimeConfig) -> None:
        self._engine = engine
        self._config = config
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._scratch = (0, 0)

    def set_device_memory(self, memory: int, size: int) -> None:
        self._scratch = (memory, size)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, high = self._engine._sizes
        axes = self._engine._entry(name).shape
        fits = len(axes) == len(shape) and all(
            low <= size <= high if isinstance(axis, str) else axis == size
            for axis, size in zip(axes, shape, strict=True)
        )
        if fits:
            self._shapes[name] = shape
        return fits

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        batch = next(iter(self._shapes.values()))[0]
        return (batch, *self._engine._entry(name).shape[1:])

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        engine, address = self._engine, self._addresses
        if self._config._strategy == "USER_MANAGED" and self._scratch < (1, SCRATCH_BYTES):
            engine._logger.log(ILogger.ERROR, "no device memory was set")
            return False
        feed = {}
        for entry in engine._session.get_inputs():
            shape, dtype = self._shapes[entry.name], _TYPES[entry.type][1]
            feed[entry.name] = _at(address[entry.name], shape, dtype).copy()
        for entry, result in zip(
            engine._session.get_outputs(), engine._session.run(None, feed), strict=True
        ):
            shape = self.get_tensor_shape(entry.name)
            _at(address[entry.name], shape, _TYPES[entry.type][1])[...] = result
        if self._config._cache is not None:
            self._config._cache._content = b"compiled"
        return True


class Runtime:
    """Reads plans."""

    def __init__(self, logger: ILogger) -> None:
        self._logger = logger

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        sizes, _, graph = serialized_engine.partition(b"\n")
        try:
            low, high = map(int, sizes.split(b":"))
            return ICudaEngine((low, high), graph, self._logger)
        except Exception as error:
            self._logger.log(ILogger.ERROR, f"cannot read the plan ({type(error).__name__})")
            self._logger.log(ILogger.ERROR, "a second complaint")
            return None


def _at(address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
    num_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = (ctypes.c_uint8 * num_bytes).from_address(address)
    return np.frombuffer(raw, dtype=dtype).reshape(shape)
