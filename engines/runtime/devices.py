"""Where torch keeps a batch and queues its work: the CPU, or one CUDA GPU.

Owns streams, pinned memory, the capture of a graph, and what torch's errors mean. Knows nothing of
models: what it records is a function of no arguments.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from engines.errors import BackendError, EnginesError, OutOfMemoryError

# A first call loads kernels and a second one settles what a library chooses by timing; a capture
# may do neither.
_NUM_WARM_UP = 2
# torch allows one capture in a process at a time, whichever runner asks for it.
_CAPTURING = threading.Lock()
# What allocators say that raise no error of their own class: cuBLAS, cuDNN, the CPU's.
_NO_MEMORY = ("out of memory", "alloc_failed", "can't allocate memory")

Tensors = tuple[Tensor, ...]
Wait = Callable[[], None]
T = TypeVar("T")


@dataclass(frozen=True)
class Record:
    """A function made ready to be played.

    Attributes:
        outputs: where every play leaves its results; the next play overwrites them.
        play: queues the work and returns at once on a GPU.
    """

    outputs: Tensors
    play: Callable[[], None]


class Device(Protocol):
    """The few things that a runner asks of a device."""

    @property
    def name(self) -> torch.device:
        """Where tensors are made."""

    def host_buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Uninitialised host memory that copies to and from the device need not stage again."""

    def queue(self) -> AbstractContextManager[object]:
        """Inside, torch's work is queued in the order of the calls."""

    def queue_handle(self) -> int:
        """The address of the queue that work is put into now, for libraries beside torch."""

    def record(self, call: Callable[[], Tensors]) -> Record:
        """Make `call` playable; its tensors must stay where they are. Runs it some times."""

    def fetch(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> Wait:
        """Queue copies (device tensor, host tensor) behind the work queued so far.

        They hold up nothing that is queued later. The function returned waits for them.
        """

    def memory_bytes(self) -> tuple[int, int] | None:
        """Used and total memory; None where it is the machine's own."""

    def release_memory(self) -> None:
        """Give cached memory that nothing uses back to the device."""


class CpuDevice:
    """torch on the CPU, with a GPU's manners: a record's outputs are overwritten by each play."""

    name = torch.device("cpu")

    def host_buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Ordinary memory."""
        return torch.empty(shape, dtype=dtype)

    def queue(self) -> AbstractContextManager[object]:
        """Work is done when a call returns."""
        return nullcontext()

    def queue_handle(self) -> int:
        """There is none."""
        return 0

    def record(self, call: Callable[[], Tensors]) -> Record:
        """Keep the first results' memory; a play calls again."""
        outputs = call()

        def play() -> None:
            for kept, fresh in zip(outputs, call(), strict=True):
                kept.copy_(fresh)

        return Record(outputs, play)

    def fetch(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> Wait:
        """Copy now; there is nothing to wait for."""
        for source, target in pairs:
            target.copy_(source)
        return lambda: None

    def memory_bytes(self) -> tuple[int, int] | None:
        """The CPU has none of its own."""
        return None

    def release_memory(self) -> None:
        """The CPU's allocator keeps nothing back."""


class CudaDevice:
    """One GPU: a stream that computes, another that copies results to the host."""

    def __init__(self, name: torch.device) -> None:
        """Make the streams, and one pool that all graphs share.

        Sharing is sound because plays are queued one after another on one stream, each with its
        inputs outside the pool and its outputs copied out of it before the next.
        """
        self._name = name
        self._compute = torch.cuda.Stream(name)
        self._copy = torch.cuda.Stream(name)
        self._pool = torch.cuda.graph_pool_handle()

    @property
    def name(self) -> torch.device:
        """The GPU."""
        return self._name

    def host_buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Pinned memory."""
        return torch.empty(shape, dtype=dtype, pin_memory=True)

    def queue(self) -> AbstractContextManager[object]:
        """The computing stream."""
        return torch.cuda.stream(self._compute)

    def queue_handle(self) -> int:
        """The current stream's."""
        return int(torch.cuda.current_stream(self._name).cuda_stream)

    def record(self, call: Callable[[], Tensors]) -> Record:
        """Warm up, then capture one CUDA graph."""
        with _CAPTURING, self.queue():
            torch.cuda.synchronize(self._name)  # weights came over another stream
            for _ in range(_NUM_WARM_UP):
                call()
            graph = torch.cuda.CUDAGraph()
            # Other threads may allocate or wait meanwhile; only this one's calls are judged.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._compute, capture_error_mode="thread_local"
            ):
                outputs = call()
        return Record(outputs, graph.replay)

    def fetch(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> Wait:
        """Copy on a stream of their own; the waiting thread sleeps and does not spin."""
        ready = torch.cuda.Event()
        ready.record(self._compute)
        self._copy.wait_event(ready)
        with torch.cuda.stream(self._copy):
            for source, target in pairs:
                target.copy_(source, non_blocking=True)
            done = torch.cuda.Event(blocking=True)
            done.record(self._copy)
        wait: Wait = done.synchronize
        return wait

    def memory_bytes(self) -> tuple[int, int] | None:
        """As the driver tells, other processes' share included."""
        free, total = torch.cuda.mem_get_info(self._name)
        return total - free, total

    def release_memory(self) -> None:
        """Empty torch's cache of freed blocks."""
        torch.cuda.empty_cache()


def open_device(name: str | None) -> Device:
    """The named device; None is the first GPU.

    Raises:
        BackendError: there is no such device, or this torch cannot use it.
    """
    try:
        device = torch.device(name or "cuda")
    except RuntimeError as error:
        raise BackendError(f"unknown device {name!r}: give cpu, cuda or cuda:N") from error
    if device.type == "cpu":
        return CpuDevice()
    if device.type != "cuda":
        raise BackendError(f"device {name!r} is not supported: give cpu, cuda or cuda:N")
    if not torch.backends.cuda.is_built():
        raise BackendError(
            f"torch {torch.__version__} was built without CUDA: install one with it from "
            "https://pytorch.org, or use the onnx backend"
        )
    num_devices = torch.cuda.device_count()
    index = device.index or 0
    if index >= num_devices:
        raise BackendError(
            f"no GPU {index} here, torch finds {num_devices}: check the driver with nvidia-smi, or "
            "use the onnx backend"
        )
    return CudaDevice(torch.device("cuda", index))


def translated(device: Device, what: str, call: Callable[[], T]) -> T:
    """Return `call()`; what it raises becomes an error of this package.

    Raises:
        OutOfMemoryError: the device has no room; its cache was emptied.
        BackendError: anything else, with the first line of the reason.
    """
    try:
        return call()
    except EnginesError:
        raise
    except Exception as error:  # torch raises whatever the failing operator raises
        reason = str(error).strip().partition("\n")[0]
        if not _is_out_of_memory(error):
            raise BackendError(f"torch failed in {what} on {device.name}: {reason}") from error
    # Out of the handler, whose traceback kept the batch's tensors alive.
    device.release_memory()
    raise OutOfMemoryError(f"{what} does not fit into the memory of {device.name}: {reason}")


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether this error, or one that it arose from, says so: ending a capture raises anew."""
    causes: BaseException | None = error
    while causes is not None:
        if isinstance(causes, torch.OutOfMemoryError | MemoryError):
            return True
        text = str(causes).lower()
        if isinstance(causes, RuntimeError) and any(words in text for words in _NO_MEMORY):
            return True
        causes = causes.__cause__ or causes.__context__
    return False
