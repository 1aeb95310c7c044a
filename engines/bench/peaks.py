"""What this machine reaches at best, measured beside the pipelines.

Owns two measurements per device: a large matrix product and a large copy. The fastest of several
repeats counts, since whatever disturbs them only makes them slower.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from engines.bench.machine import num_cores
from engines.bench.measure import Device
from engines.errors import BackendError
from engines.roofline import Peaks

_NUM_REPEATS = 8
_OPSET = 20
_IR_VERSION = 10  # of opset 20's time, so that an older runtime reads the graph too


@dataclass(frozen=True)
class Sizes:
    """How large the measured product and copy are.

    Attributes:
        product: rows and columns of the square matrices.
        copy_bytes: must be far larger than the last cache.
    """

    product: int
    copy_bytes: int


CPU_SIZES = Sizes(product=2048, copy_bytes=2**28)
CUDA_SIZES = Sizes(product=8192, copy_bytes=2**31)


def measure_peaks(device: Device, num_threads: int | None = None) -> Peaks:
    """Measure the device.

    Raises:
        BackendError: "cuda" without torch or without a GPU.
    """
    if device == "cuda":
        return cuda_peaks()
    return cpu_peaks(num_threads)


def better_of(first: Peaks, second: Peaks) -> Peaks:
    """The higher of each rate: two measurements of one device, before and after other work."""
    return Peaks(
        max(first.flops_per_s, second.flops_per_s),
        max(first.bytes_per_s, second.bytes_per_s),
        first.float_bytes,
        first.how,
    )


def drift(first: Peaks, second: Peaks) -> float:
    """How far two measurements lie apart: the larger relative change of the two rates."""
    return max(
        abs(first.flops_per_s / second.flops_per_s - 1),
        abs(first.bytes_per_s / second.bytes_per_s - 1),
    )


def cpu_peaks(num_threads: int | None, sizes: Sizes = CPU_SIZES) -> Peaks:
    """A float32 product through ONNX Runtime, and a copy by as many threads through numpy."""
    num = sizes.product
    session = _product_session(num, num_threads)
    feed = {"left": np.ones((num, num), np.float32)}
    product_s = _fastest(lambda: session.run(None, feed))
    threads = num_threads or num_cores()
    source = np.ones(sizes.copy_bytes, np.uint8)
    target = np.zeros_like(source)
    parts = list(zip(np.array_split(target, threads), np.array_split(source, threads), strict=True))
    with ThreadPoolExecutor(threads) as pool:
        copy_s = _fastest(lambda: list(pool.map(lambda part: np.copyto(*part), parts)))
    return Peaks(
        flops_per_s=2 * num**3 / product_s,
        bytes_per_s=2 * sizes.copy_bytes / copy_s,
        float_bytes=4,
        how=f"float32 product of {num} x {num} matrices by ONNX Runtime, "
        f"copy of {sizes.copy_bytes / 2**20:.0f} MiB by {threads} threads",
    )


def cuda_peaks(sizes: Sizes = CUDA_SIZES) -> Peaks:
    """A bfloat16 product and a copy within the GPU's memory, through torch.

    Raises:
        BackendError: torch is missing or sees no GPU.
    """
    try:
        import torch
    except ImportError as error:
        raise BackendError(
            "a GPU's peaks are measured with torch: pip install 'onestep[distill]'"
        ) from error
    if not torch.cuda.is_available():
        raise BackendError("torch sees no GPU: install a torch build for CUDA, or bench on the CPU")

    def timed(run: Callable[[], Any]) -> Callable[[], None]:
        def run_and_wait() -> None:
            run()
            torch.cuda.synchronize()

        return run_and_wait

    num = sizes.product
    left = torch.randn(num, num, device="cuda", dtype=torch.bfloat16)
    out = torch.empty_like(left)
    product_s = _fastest(timed(lambda: torch.mm(left, left, out=out)))
    source = torch.zeros(sizes.copy_bytes, device="cuda", dtype=torch.uint8)
    target = torch.empty_like(source)
    copy_s = _fastest(timed(lambda: target.copy_(source)))
    return Peaks(
        flops_per_s=2 * num**3 / product_s,
        bytes_per_s=2 * sizes.copy_bytes / copy_s,
        float_bytes=2,
        how=f"bfloat16 product of {num} x {num} matrices and copy of "
        f"{sizes.copy_bytes / 2**20:.0f} MiB by torch on {torch.cuda.get_device_name()}",
    )


def _product_session(num: int, num_threads: int | None) -> onnxruntime.InferenceSession:
    """left @ right, with the right matrix constant as a weight is."""
    shape = [num, num]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["left", "right"], ["product"])],
        "product",
        [helper.make_tensor_value_info("left", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("product", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.ones(shape, np.float32), "right")],
    )
    model: onnx.ModelProto = helper.make_model(
        graph, ir_version=_IR_VERSION, opset_imports=[helper.make_opsetid("", _OPSET)]
    )
    options = onnxruntime.SessionOptions()
    if num_threads is not None:
        options.intra_op_num_threads = num_threads
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _fastest(run: Callable[[], object]) -> float:
    """Seconds of the fastest repeat; the first one, which allocates, is dropped."""
    spans_s = []
    for _ in range(_NUM_REPEATS + 1):
        start_s = time.perf_counter()
        run()
        spans_s.append(time.perf_counter() - start_s)
    return min(spans_s[1:])
