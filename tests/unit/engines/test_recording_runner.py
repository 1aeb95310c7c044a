"""The recording runner on the CPU: padding, slots, threads, keys, and errors."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from engines.errors import BackendError, OutOfMemoryError
from engines.runtime.devices import CpuDevice, CudaDevice, Wait, open_device, translated
from engines.runtime.recording import RecordingRunner

WAIT_S = 30


class CountingDevice(CpuDevice):
    """Counts what it records and what it is asked to give back."""

    def __init__(self) -> None:
        self.num_records = 0
        self.num_releases = 0

    def record(self, call: Any) -> Any:
        self.num_records += 1
        return super().record(call)

    def release_memory(self) -> None:
        self.num_releases += 1


class LateDevice(CpuDevice):
    """Copies to the host as late as a GPU may: when the result is waited for, and not before.

    The first two waits meet each other, so that each batch is copied after both were computed.
    """

    def __init__(self) -> None:
        self._both = threading.Barrier(2, timeout=WAIT_S)

    def fetch(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> Wait:
        listed = list(pairs)

        def wait() -> None:
            self._both.wait()
            for source, target in listed:
                target.copy_(source)
            self._both.wait()

        return wait


def _rows(*values: float) -> NDArray[np.float32]:
    return np.array(values, dtype=np.float32)[:, None]


def _double(x_BN: Tensor) -> tuple[Tensor, Tensor]:
    return 2 * x_BN, x_BN.sum(dim=1)


def _in_threads(*calls: Callable[[], None]) -> None:
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=WAIT_S)
    assert not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize(
    ("num", "padded"), [(1, [1]), (2, [2]), (3, [4]), (4, [4]), (5, [4, 1]), (11, [4, 4, 4])]
)
def test_a_batch_is_padded_to_the_next_size_and_cut(num: int, padded: list[int]) -> None:
    sizes: list[int] = []

    def body(x_BN: Tensor) -> tuple[Tensor, Tensor]:
        sizes.append(len(x_BN))
        return _double(x_BN)

    runner = RecordingRunner(CpuDevice(), (4, 1, 2))
    inputs = _rows(*range(num))
    doubled, sums = runner("k", body, (inputs,))
    np.testing.assert_array_equal(doubled, 2 * inputs)
    np.testing.assert_array_equal(sums, inputs[:, 0])
    # The first of its size is recorded and played.
    expected = [size for n, size in enumerate(padded) for _ in range(1 + (size not in padded[:n]))]
    assert sizes == expected


def test_rows_to_spare_are_valid_ones() -> None:
    """A timestep is an index: a zeroed or left-over row could lie outside its table."""
    seen: list[Tensor] = []

    def body(x_B: Tensor) -> tuple[Tensor]:
        seen.append(x_B.clone())
        return (x_B,)

    runner = RecordingRunner(CpuDevice(), (4,))
    runner("k", body, (np.array([7, 7, 7, 9]),))
    runner("k", body, (np.array([5, 6]),))
    assert [set(rows.tolist()) for rows in seen] == [{7}, {7, 9}, {5, 6}]
    assert seen[-1].tolist() == [5, 6, 5, 5]


def test_without_sizes_nothing_is_padded() -> None:
    device = CountingDevice()
    runner = RecordingRunner(device, ())
    for num in (3, 5, 3):
        (doubled, _) = runner("k", _double, (_rows(*range(num)),))
        assert doubled.shape == (num, 1)
    assert device.num_records == 2


def test_each_key_shape_and_type_has_its_own_record() -> None:
    device = CountingDevice()
    runner = RecordingRunner(device, (2,))

    def times(factor: int) -> Callable[[Tensor], tuple[Tensor]]:
        return lambda x_BN: (factor * x_BN,)

    for _ in range(2):
        for factor in (3, 5):
            (result,) = runner(factor, times(factor), (_rows(1, 2),))
            np.testing.assert_array_equal(result, factor * _rows(1, 2))
    assert device.num_records == 2
    (wide,) = runner(3, times(3), (np.ones((2, 4), dtype=np.float32),))
    assert wide.shape == (2, 4)
    (whole,) = runner(3, times(3), (np.ones((2, 1), dtype=np.int64),))
    assert whole.dtype == np.int64
    assert device.num_records == 4


def test_the_least_recently_used_record_is_dropped() -> None:
    device = CountingDevice()
    runner = RecordingRunner(device, (1,), max_records=2)
    for key in ("a", "b", "a", "c", "a"):
        runner(key, _double, (_rows(1),))
    assert device.num_records == 3
    runner("b", _double, (_rows(1),))
    assert device.num_records == 4


def test_each_recording_is_told_once() -> None:
    told: list[int] = []
    runner = RecordingRunner(CpuDevice(), (1, 2), after_recording=lambda: told.append(1))
    for num in (1, 1, 2, 2, 1):
        runner("k", _double, (_rows(*range(num)),))
    assert len(told) == 2


def test_results_are_the_callers_own() -> None:
    runner = RecordingRunner(CpuDevice(), (1,))
    first = [runner("k", _double, (_rows(value),))[0] for value in (1, 2, 3, 4)]
    np.testing.assert_array_equal(np.concatenate(first), _rows(2, 4, 6, 8))


def test_read_only_inputs_are_taken() -> None:
    inputs = np.broadcast_to(np.float32(3), (2, 1))
    (doubled, _) = RecordingRunner(CpuDevice(), (2,))("k", _double, (inputs,))
    np.testing.assert_array_equal(doubled, _rows(6, 6))


def test_one_batch_computes_while_another_is_copied() -> None:
    """Both are queued before either is copied, and neither overwrites the other."""
    runner = RecordingRunner(LateDevice(), (1,))
    drawn: dict[float, float] = {}

    def draw(value: float) -> None:
        (doubled, _) = runner("k", _double, (_rows(value),))
        drawn[value] = float(doubled[0, 0])

    _in_threads(lambda: draw(1), lambda: draw(2))
    assert drawn == {1: 2, 2: 4}


def test_many_threads_and_keys_do_not_mix() -> None:
    runner = RecordingRunner(CpuDevice(), (1, 2, 4), max_records=3)
    wrong: list[Any] = []

    def draw(thread: int) -> None:
        random = np.random.default_rng(thread)
        for _ in range(50):
            num, factor = int(random.integers(1, 8)), int(random.integers(1, 4))
            inputs = random.standard_normal((num, 3)).astype(np.float32)
            (result,) = runner(factor, lambda x, f=factor: (f * x,), (inputs,))
            if not np.array_equal(result, factor * inputs):
                wrong.append((thread, num, factor))

    _in_threads(*(lambda t=t: draw(t) for t in range(4)))
    assert not wrong


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_body_that_does_not_fit_says_so_and_the_cache_is_emptied(error: Exception) -> None:
    device = CountingDevice()
    runner = RecordingRunner(device, (4,))

    def body(x_BN: Tensor) -> tuple[Tensor]:
        raise error

    with pytest.raises(OutOfMemoryError, match=r"a batch of 3 does not fit .* of cpu"):
        runner("k", body, (_rows(1, 2, 3),))
    assert device.num_releases == 1
    # Nothing half-made stays behind, and the lock is free.
    runner("k", _double, (_rows(1, 2, 3),))


def test_memory_that_ran_out_is_found_behind_the_error_of_an_ended_capture() -> None:
    def capture() -> None:
        try:
            raise torch.OutOfMemoryError("CUDA out of memory")
        finally:
            raise RuntimeError("CUDA error: operation failed due to a previous error")

    with pytest.raises(OutOfMemoryError):
        translated(CpuDevice(), "a batch", capture)


def test_a_huge_batch_on_the_cpu_does_not_fit() -> None:
    def body(x_BN: Tensor) -> tuple[Tensor]:
        return (torch.zeros(2**50),)

    with pytest.raises(OutOfMemoryError):
        RecordingRunner(CpuDevice(), (1,))("k", body, (_rows(1),))


def test_any_other_failure_is_a_backend_error_of_one_line() -> None:
    def body(x_BN: Tensor) -> tuple[Tensor]:
        return (x_BN @ torch.zeros(9, 9),)

    runner = RecordingRunner(CpuDevice(), (1,))
    with pytest.raises(BackendError, match="torch failed in a batch of 1 on cpu: ") as caught:
        runner("k", body, (_rows(1),))
    assert not isinstance(caught.value, OutOfMemoryError)
    assert "\n" not in str(caught.value)


def test_a_failed_play_gives_its_slot_back() -> None:
    is_failing = False

    def body(x_BN: Tensor) -> tuple[Tensor]:
        if is_failing:
            raise RuntimeError("no")
        return (x_BN,)

    runner = RecordingRunner(CpuDevice(), (1,))
    runner("k", body, (_rows(1),))
    is_failing = True
    for _ in range(5):
        with pytest.raises(BackendError):
            runner("k", body, (_rows(1),))
    is_failing = False
    _in_threads(lambda: runner("k", body, (_rows(1),)) and None)


@pytest.mark.parametrize(
    ("name", "words"),
    [("abacus", "unknown device 'abacus': give cpu, cuda"), ("meta", "'meta' is not supported")],
)
def test_a_device_that_is_none_is_named(name: str, words: str) -> None:
    with pytest.raises(BackendError, match=words):
        open_device(name)


def test_a_gpu_that_is_not_here_is_said_with_the_remedy() -> None:
    if torch.cuda.is_available():
        words = f"no GPU {torch.cuda.device_count()} here, torch finds"
    elif torch.backends.cuda.is_built():
        words = "torch finds 0: check the driver"
    else:
        words = "was built without CUDA: install one with it from https://pytorch.org"
    with pytest.raises(BackendError, match=words):
        open_device(f"cuda:{torch.cuda.device_count()}")


def test_torch_has_what_the_gpu_device_calls() -> None:
    """The GPU's half cannot run here; its calls are at least those of this torch."""
    assert {"pool", "stream", "capture_error_mode"} <= set(
        inspect.signature(torch.cuda.graph.__init__).parameters
    )
    assert "blocking" in inspect.signature(torch.cuda.Event.__new__).parameters
    for owner, names in {
        torch.cuda.CUDAGraph: {"replay"},
        torch.cuda.Stream: {"wait_event"},
        torch.cuda.Event: {"record", "synchronize"},
        torch.cuda: {"graph_pool_handle", "synchronize", "empty_cache", "stream", "current_stream"},
    }.items():
        assert names <= set(dir(owner))
    members = {name for name, _ in inspect.getmembers(CpuDevice) if not name.startswith("_")}
    assert members <= set(dir(CudaDevice))


def test_rows_that_only_fill_a_batch_up_are_counted() -> None:
    runner = RecordingRunner(CpuDevice(), (1, 4))
    counts = []
    for num in (1, 3, 4, 9, 6):
        runner("double", _double, (_rows(*range(num)),))
        counts.append(runner.row_counts())
    assert counts == [(1, 0), (4, 1), (8, 1), (17, 1), (23, 3)]
    # A stage by itself is not the drawing of pictures: prompts may be fewer.
    runner.stage("text", _double)(_rows(1, 2, 3))
    assert runner.row_counts() == (23, 3)


def test_where_any_size_runs_nothing_is_filled_up() -> None:
    runner = RecordingRunner(CpuDevice(), ())
    runner("double", _double, (_rows(1, 2, 3),))
    assert runner.row_counts() == (3, 0)
