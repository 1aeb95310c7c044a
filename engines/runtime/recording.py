"""The runner of torch devices: record the sampling loop once per shape, then play it.

Owns static buffers, padding to the next batch size, and how two threads keep a GPU busy: one
batch computes while the one before it is copied to the host. What a device does to record and
copy is in `engines.runtime.devices`.

Shape suffix: B batch.
"""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engines.runtime.base import Arrays, Stage
from engines.runtime.devices import Device, Tensors, Wait, translated

Body = Callable[..., Arrays]
HostArrays = tuple[NDArray[Any], ...]

BATCH_SIZES = (1, 2, 4, 8, 16)
_NUM_SLOTS = 2
# A model draws in a handful of sizes and steps; beyond these the least recently used is dropped.
_MAX_RECORDS = 64


class _Slot:
    """What one batch in flight owns, so that the next one cannot overwrite it."""

    def __init__(self, device: Device, inputs: Tensors, outputs: Tensors) -> None:
        self._device = device
        self._host_inputs = [device.host_buffer(tuple(i.shape), i.dtype) for i in inputs]
        # A record's own outputs are overwritten by the next play, while these are still copied.
        # Contiguous, whatever order the record's are in: then the copy to the host is one piece.
        self._outputs = [torch.empty(o.shape, dtype=o.dtype, device=o.device) for o in outputs]
        self._host_outputs = [device.host_buffer(tuple(o.shape), o.dtype) for o in outputs]

    def fill(self, inputs: HostArrays) -> None:
        """Put a batch into host memory; rows to spare repeat the first one, which is valid."""
        for buffer, array in zip(self._host_inputs, inputs, strict=True):
            rows = buffer.numpy()
            rows[: len(array)] = array
            rows[len(array) :] = array[:1]

    def send(self, inputs: Tensors) -> None:
        """Queue the copies to a record's inputs."""
        for static, buffer in zip(inputs, self._host_inputs, strict=True):
            static.copy_(buffer, non_blocking=True)

    def take(self, outputs: Tensors) -> Wait:
        """Queue the copies of a record's outputs to the host."""
        for mine, static in zip(self._outputs, outputs, strict=True):
            mine.copy_(static, non_blocking=True)
        return self._device.fetch(zip(self._outputs, self._host_outputs, strict=True))

    def rows(self, num: int) -> HostArrays:
        """A copy of the first rows, for the slot will be used again."""
        return tuple(buffer.numpy()[:num].copy() for buffer in self._host_outputs)


class _Recorded:
    """One body at one batch size: its inputs' places, its record, and two slots."""

    def __init__(self, device: Device, body: Body, inputs: HostArrays, size: int) -> None:
        with device.queue():
            self.inputs = tuple(_static(device, array, size) for array in inputs)
            self.record = device.record(lambda: tuple(body(*self.inputs)))
            self.slots: SimpleQueue[_Slot] = SimpleQueue()
            for _ in range(_NUM_SLOTS):
                self.slots.put(_Slot(device, self.inputs, self.record.outputs))


class RecordingRunner:
    """A `Runner` for stages that take and give torch tensors. Threads may share it.

    Per key and batch size the body is recorded at its first call, and played ever after. A lock is
    held only while work is queued (and while recording), never while waiting for results.
    """

    def __init__(
        self,
        device: Device,
        batch_sizes: tuple[int, ...] = BATCH_SIZES,
        *,
        max_records: int = _MAX_RECORDS,
        after_recording: Callable[[], None] = lambda: None,
    ) -> None:
        """Run on `device`, padding to the next of `batch_sizes`; empty pads nothing.

        `after_recording` is called once a body was recorded, outside the lock: a runtime may have
        compiled something worth keeping.
        """
        self._device = device
        self._batch_sizes = tuple(sorted(batch_sizes))
        self._max_records = max_records
        self._after_recording = after_recording
        self._recorded: OrderedDict[Hashable, _Recorded] = OrderedDict()
        self._lock = threading.Lock()
        self._num_asked = self._num_padding = 0

    def row_counts(self) -> tuple[int, int]:
        """Rows that calls asked for, and rows of padding; stages by themselves are not counted."""
        return self._num_asked, self._num_padding

    def __call__(self, key: Hashable, body: Body, inputs: HostArrays) -> HostArrays:
        """Return what `body` makes of the inputs; more rows than the largest size go in parts.

        Raises:
            BackendError: the device failed.
            OutOfMemoryError: the batch does not fit.
        """
        outputs = self._in_parts(key, body, inputs)
        num = len(inputs[0])
        # All parts but the last are whole.
        rest = num % self._most(num)
        with self._lock:
            self._num_asked += num
            self._num_padding += self._size_of(rest) - rest if rest else 0
        return outputs

    def _most(self, num: int) -> int:
        return self._batch_sizes[-1] if self._batch_sizes else num

    def _size_of(self, num: int) -> int:
        """The size that runs this many rows, at most as many as the largest has."""
        return next((size for size in self._batch_sizes if size >= num), num)

    def _in_parts(self, key: Hashable, body: Body, inputs: HostArrays) -> HostArrays:
        num = len(inputs[0])
        most = self._most(num)
        parts = [
            translated(
                self._device,
                f"a batch of {min(most, num - begin)}",
                functools.partial(
                    self._run, key, body, tuple(array[begin : begin + most] for array in inputs)
                ),
            )
            for begin in range(0, num, most)
        ]
        return tuple(np.concatenate(column) for column in zip(*parts, strict=True))

    def stage(self, name: str, stage: Stage) -> Stage:
        """`stage`, which takes tensors, as one that takes and gives numpy arrays."""

        def run(*inputs: Any) -> Arrays:
            return self._in_parts(name, stage, inputs)

        return run

    def _run(self, key: Hashable, body: Body, inputs: HostArrays) -> HostArrays:
        num = len(inputs[0])
        size = self._size_of(num)
        # Inference mode is a thread's own.
        with torch.inference_mode():
            recorded = self._find(key, body, inputs, size)
            slot = recorded.slots.get()
            try:
                slot.fill(inputs)
                with self._lock, self._device.queue():
                    slot.send(recorded.inputs)
                    recorded.record.play()
                    wait = slot.take(recorded.record.outputs)
                wait()
                return slot.rows(num)
            finally:
                recorded.slots.put(slot)

    def _find(self, key: Hashable, body: Body, inputs: HostArrays, size: int) -> _Recorded:
        shapes = tuple((array.shape[1:], array.dtype.str) for array in inputs)
        full_key = (key, size, shapes)
        with self._lock:
            recorded = self._recorded.get(full_key)
            is_new = recorded is None
            if recorded is None:
                recorded = _Recorded(self._device, body, inputs, size)
                self._recorded[full_key] = recorded
                # A batch in flight keeps what it plays alive.
                while len(self._recorded) > self._max_records:
                    self._recorded.popitem(last=False)
            self._recorded.move_to_end(full_key)
        if is_new:
            self._after_recording()
        return recorded


def _static(device: Device, array: NDArray[Any], size: int) -> Tensor:
    """A place for `size` rows like those of `array`, filled with its first one.

    Recording runs the body on it, so what it holds must be valid: a timestep is an index.
    """
    row = torch.from_numpy(array[:1].copy())
    return row.expand(size, *row.shape[1:]).contiguous().to(device.name)
