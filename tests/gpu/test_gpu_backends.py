"""Every GPU backend against the float32 reference, and what only a GPU can show.

`pytest -m gpu tests/gpu` on a machine with a GPU and a torch built with CUDA. A backend whose
package is missing there is skipped, and named by `-ra`.
"""

from __future__ import annotations

import importlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from engines.errors import BackendError, OutOfMemoryError
from engines.parity import TOLERANCES
from engines.pipeline import Pipeline
from engines.runtime.base import Compiler, RuntimeOptions
from engines.runtime.devices import CudaDevice, open_device
from engines.runtime.recording import RecordingRunner
from engines.runtime.torch_cuda import compile_packages, load_on
from engines.spec import ModelSpec, Precision

DEVICE = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here"),
]

PROMPTS = ["a red circle", "b", "", "c c c", "a" * 50]
SEEDS = [7, 1, 2, 3, 4]
EXACT_MEAN = TOLERANCES["float32"].mean_difference
EXACT_MOST = TOLERANCES["float32"].max_difference or 0
# Half precision rounds the networks' inside; these bounds are of the tiny model, whose weights are
# random and whose pictures hence have more contrast than any trained one's.
HALF_MEAN_DIFFERENCE = 3.0


@pytest.fixture(scope="module")
def reference(torch_folder: Path) -> Pipeline:
    return Pipeline.load(torch_folder, backend="torch")


@pytest.fixture
def little_memory() -> Iterator[None]:
    """A few hundred megabytes of the GPU: what does not fit is refused by the real allocator."""
    torch.cuda.empty_cache()
    _, total_bytes = torch.cuda.mem_get_info()
    used_bytes = torch.cuda.memory_reserved()
    torch.cuda.set_per_process_memory_fraction((used_bytes + 400e6) / total_bytes)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def _draw(pipeline: Pipeline, num: int = len(PROMPTS), steps: int = 1) -> NDArray[np.uint8]:
    prompts, seeds = PROMPTS[:num], SEEDS[:num]
    return pipeline.generate(prompts, seeds, width=64, height=64, steps=steps).images_BHWC


def _differences(drawn: NDArray[np.uint8], expected: NDArray[np.uint8]) -> tuple[float, int]:
    levels = np.abs(drawn.astype(int) - expected)
    return float(levels.mean()), int(levels.max())


def _require_near(tested: Pipeline, reference: Pipeline, mean: float, most: int) -> None:
    """Every number of steps, alone, full, padded and twice: the second time is a replay."""
    for steps in (1, 4):
        for num in (1, 2, 5):
            expected = _draw(reference, num, steps)
            for _ in range(2):
                difference = _differences(_draw(tested, num, steps), expected)
                assert difference[0] <= mean, (steps, num, difference)
                assert difference[1] <= most, (steps, num, difference)


@pytest.mark.parametrize("compiler", ["none", "compile", "package"])
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_torch_cuda_in_float32_draws_the_reference(
    torch_folder: Path, reference: Pipeline, compiler: Compiler
) -> None:
    options = RuntimeOptions(device=DEVICE, batch_sizes=(1, 2, 8), compiler=compiler)
    if compiler == "package":
        compile_packages(torch_folder, options)
    tested = Pipeline.load(torch_folder, backend="torch_cuda", options=options)
    _require_near(tested, reference, EXACT_MEAN, EXACT_MOST)


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_torch_cuda_in_half_precision_is_near(
    torch_folder: Path, reference: Pipeline, precision: Precision
) -> None:
    options = RuntimeOptions(precision, device=DEVICE)
    tested = Pipeline.load(torch_folder, backend="torch_cuda", options=options)
    _require_near(tested, reference, HALF_MEAN_DIFFERENCE, 255)


def test_onnx_cuda_draws_the_reference(bundle: Path, reference: Pipeline) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime-gpu is not installed")
    tested = Pipeline.load(bundle, backend="onnx_cuda")
    _require_near(tested, reference, EXACT_MEAN, EXACT_MOST)


@pytest.mark.parametrize("package", ["tensorrt", "tensorrt_rtx"])
def test_tensorrt_draws_the_reference_twice(
    bundle: Path, reference: Pipeline, package: str, tmp_path: Path
) -> None:
    """Plans built here for the GPU here; the second load takes up what the first compiled."""
    from engines.build import Target, build_engines
    from engines.profiles import BatchRange

    try:
        importlib.import_module(package)
    except (ImportError, OSError):
        pytest.skip(f"{package} is not installed")
    folder = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    target = Target(package, None, tuple(map(BatchRange.of, (1, 2, 8))))
    try:
        build_engines(folder, folder / "engines", target)
    except BackendError as error:
        if "does not run on" not in str(error):
            raise
        pytest.skip(str(error))  # TensorRT for RTX on a GPU of a data centre
    for _ in range(2):
        tested = Pipeline.load(folder, backend="tensorrt")
        _require_near(tested, reference, EXACT_MEAN, EXACT_MOST)
    assert bool(list((folder / "engines").glob("*.cache"))) == (package == "tensorrt_rtx")


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_a_replay_is_the_eager_result_to_the_bit(torch_folder: Path, size: int) -> None:
    """Other numbers each time: a graph that kept a value instead of a place would repeat itself."""
    device = open_device(DEVICE)
    modules = load_on(device, torch_folder, ModelSpec.load(torch_folder), "float16")

    def body(latents: Any, timestep: Any, embeds: Any) -> tuple[Any, Any]:
        clean = modules["denoise"](latents, timestep, embeds)
        return modules["decode"](clean), clean

    runner = RecordingRunner(device, (size,))
    random = np.random.default_rng(size)
    for _ in range(10):
        inputs = (
            random.standard_normal((size, 8, 8, 8)).astype(np.float32),
            random.integers(0, 1000, size),
            random.standard_normal((size, 12, 32)).astype(np.float32),
        )
        images, clean = runner("key", body, inputs)
        with torch.inference_mode(), device.queue():
            eager = body(*(torch.from_numpy(array).to(device.name) for array in inputs))
            torch.cuda.synchronize()
        np.testing.assert_array_equal(images, eager[0].cpu().numpy())
        np.testing.assert_array_equal(clean, eager[1].cpu().numpy())


def test_graphs_that_share_a_pool_and_are_dropped_stay_apart() -> None:
    runner = RecordingRunner(open_device(DEVICE), (1, 4), max_records=2)
    wrong: list[int] = []

    def draw(thread: int) -> None:
        random = np.random.default_rng(thread)
        for _ in range(40):
            num, factor = int(random.integers(1, 5)), int(random.integers(1, 4))
            inputs = random.standard_normal((num, 4096)).astype(np.float32)

            def body(x: Any, factor: int = factor) -> tuple[Any, ...]:
                return (x * factor, (x * factor).cumsum(dim=1))

            scaled, _ = runner(factor, body, (inputs,))
            if not np.array_equal(scaled, inputs * np.float32(factor)):
                wrong.append(thread)

    threads = [threading.Thread(target=draw, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_two_threads_hide_the_copy_behind_the_computing(
    record_property: Callable[[str, object], None],
) -> None:
    """One thread alternates between computing and copying; two do both at once."""
    weights = torch.randn(4096, 4096, device=DEVICE, dtype=torch.float16)

    def body(x_BN: Any) -> tuple[Any, ...]:
        kept = x_BN.half()
        for _ in range(60):
            kept = torch.tanh(kept @ weights)
        return (kept.float().repeat(1, 4),)  # 64 MB to copy

    runner = RecordingRunner(open_device(DEVICE), (1024,))
    inputs = (np.random.default_rng(0).standard_normal((1024, 4096)).astype(np.float32),)
    runner("key", body, inputs)

    def run(num_batches: int) -> None:
        for _ in range(num_batches):
            runner("key", body, inputs)

    def seconds(num_threads: int) -> float:
        threads = [
            threading.Thread(target=run, args=(40 // num_threads,)) for _ in range(num_threads)
        ]
        start_s = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - start_s

    alone_s = min(seconds(1) for _ in range(3))
    both_s = min(seconds(2) for _ in range(3))
    record_property("seconds_one_thread", round(alone_s, 3))
    record_property("seconds_two_threads", round(both_s, 3))
    assert both_s < 0.9 * alone_s, (alone_s, both_s)


def test_a_batch_beyond_the_gpu_is_halved_until_it_fits(
    torch_folder: Path, reference: Pipeline, little_memory: None
) -> None:
    options = RuntimeOptions(device=DEVICE, batch_sizes=(1, 8, 4096))
    pipeline = Pipeline.load(torch_folder, backend="torch_cuda", options=options)
    num = 2048
    drawn = pipeline.generate(
        ["a red circle"] * num, range(num), width=64, height=64, steps=1
    ).images_BHWC
    assert len(drawn) == num
    expected = reference.generate(["a red circle"] * 2, [0, num - 1], width=64, height=64, steps=1)
    mean, most = _differences(drawn[[0, -1]], expected.images_BHWC)
    assert mean <= EXACT_MEAN and most <= EXACT_MOST


def test_memory_that_runs_out_while_recording_leaves_the_gpu_usable(little_memory: None) -> None:
    runner = RecordingRunner(open_device(DEVICE), (1,))
    row = (np.ones((1, 8), dtype=np.float32),)

    def huge(x_BN: Any) -> tuple[Any, ...]:
        return (torch.zeros(2**30, device=DEVICE) + x_BN.sum(),)

    for _ in range(3):
        with pytest.raises(OutOfMemoryError, match="does not fit into the memory of cuda:0"):
            runner("huge", huge, row)
    (doubled,) = runner("small", lambda x: (2 * x,), row)
    np.testing.assert_array_equal(doubled, 2 * row[0])


def test_a_picture_that_overflows_in_half_is_drawn_again(
    torch_folder: Path, tmp_path: Path
) -> None:
    from diffusers import UNet2DConditionModel

    folder = Path(shutil.copytree(torch_folder, tmp_path / "torch"))
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    with torch.no_grad():
        unet.conv_in.weight.mul_(1e6)  # the norm after it makes this harmless in float32
        unet.conv_in.bias.mul_(1e6)
    unet.save_pretrained(folder / "unet")
    expected = _draw(Pipeline.load(folder, backend="torch"))
    options = RuntimeOptions("float16", device=DEVICE)
    drawn = _draw(Pipeline.load(folder, backend="torch_cuda", options=options))
    assert _differences(drawn, expected)[0] < 1


def test_the_device_is_a_gpu() -> None:
    """Guards the rest: on a device that runs without graphs they would prove nothing."""
    assert isinstance(open_device(DEVICE), CudaDevice)
