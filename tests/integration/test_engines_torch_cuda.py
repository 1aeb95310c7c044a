"""The torch_cuda backend on the CPU: the same loop, recorded, in three precisions."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from engines_fixtures import tiny_spec

from engines.errors import BackendError, EnginesError, OutOfMemoryError
from engines.pipeline import Pipeline
from engines.runtime.base import RuntimeOptions
from engines.runtime.devices import CpuDevice
from engines.runtime.registry import load_stages
from engines.runtime.torch_cuda import in_channels_last, load_on
from engines.spec import ModelSpec, Precision

PROMPTS = ["a red circle", "b", "", "c c c"]
SEEDS = [7, 1, 2, 3]


def _options(precision: Precision | None = None, **changes: object) -> RuntimeOptions:
    return RuntimeOptions(precision, num_threads=1, device="cpu", **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def reference(torch_folder: Path) -> Pipeline:
    return Pipeline.load(torch_folder, backend="torch", num_threads=1)


@pytest.mark.parametrize("steps", [1, 4])
def test_recorded_pictures_are_those_of_the_plain_torch_backend_to_the_bit(
    torch_folder: Path, reference: Pipeline, steps: int
) -> None:
    recorded = Pipeline.load(
        torch_folder, backend="torch_cuda", options=_options(batch_sizes=(1, 4))
    )
    expected = reference.generate(PROMPTS, SEEDS, width=64, height=64, steps=steps)
    for _ in range(2):  # recorded, then played
        drawn = recorded.generate(PROMPTS, SEEDS, width=64, height=64, steps=steps)
        np.testing.assert_array_equal(drawn.images_BHWC, expected.images_BHWC)
    assert set(drawn.stage_ms) == {"text", "draw"}
    # Three rows are padded to four; the rows that are cut off change nothing.
    three = recorded.generate(PROMPTS[:3], SEEDS[:3], width=64, height=64, steps=steps)
    np.testing.assert_array_equal(three.images_BHWC, expected.images_BHWC[:3])
    assert recorded.row_counts() == (2 * len(PROMPTS) + 3, 1)


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_precision_is_near_and_is_half(
    torch_folder: Path, reference: Pipeline, precision: Precision
) -> None:
    half = Pipeline.load(torch_folder, backend="torch_cuda", options=_options(precision))
    drawn = half.generate(PROMPTS, SEEDS, width=64, height=64, steps=1).images_BHWC
    expected = reference.generate(PROMPTS, SEEDS, width=64, height=64, steps=1).images_BHWC
    difference = np.abs(drawn.astype(int) - expected).mean()
    assert 0 < difference < 3

    modules = load_on(CpuDevice(), torch_folder, ModelSpec.load(torch_folder), precision)
    dtype = getattr(torch, precision)
    for module in modules.values():
        assert {weight.dtype for weight in module.parameters()} == {dtype}
    # The arithmetic around the network stays exact: alpha and sigma of 1000 steps in half are not.
    tables = dict(modules["denoise"].named_buffers())
    assert tables["from_latents_T"].dtype == tables["from_output_T"].dtype == torch.float32


def test_the_estimate_of_the_clean_latents_is_float32(torch_folder: Path) -> None:
    spec = ModelSpec.load(torch_folder)
    denoise = load_on(CpuDevice(), torch_folder, spec, "bfloat16")["denoise"]
    latents_BChw = torch.randn(1, 8, 8, 8)
    with torch.inference_mode():
        denoised = denoise(latents_BChw, torch.tensor([10]), torch.zeros(1, 12, 32))
    assert denoised.dtype == torch.float32
    # At a low noise level the estimate is nearly the input; bfloat16 would round it to 8 bits.
    assert not torch.equal(denoised, denoised.bfloat16().float())


def test_channels_last_changes_the_order_of_kernels_and_not_what_is_drawn(
    torch_folder: Path,
) -> None:
    """A CPU adds in another order then, so this is not done there; on a GPU it always is."""
    denoise = load_on(CpuDevice(), torch_folder, ModelSpec.load(torch_folder), "float32")["denoise"]
    inputs = (torch.randn(2, 8, 8, 8), torch.tensor([999, 10]), torch.randn(2, 12, 32))
    with torch.inference_mode():
        expected = denoise(*inputs)
        in_channels_last(denoise)
        torch.testing.assert_close(denoise(*inputs), expected, atol=1e-5, rtol=1e-4)
    kernels = [
        module.weight
        for module in denoise.modules()
        if isinstance(module, torch.nn.Conv2d) and module.kernel_size != (1, 1)
    ]
    assert kernels
    assert all(k.is_contiguous(memory_format=torch.channels_last) for k in kernels)


def test_a_picture_that_overflows_in_half_is_drawn_again_in_float32(
    torch_folder: Path, tmp_path: Path
) -> None:
    """Real weights that exceed half's range, and a retry by a torch folder's own exact backend."""
    from diffusers import UNet2DConditionModel

    folder = Path(shutil.copytree(torch_folder, tmp_path / "torch"))
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    with torch.no_grad():
        unet.conv_in.weight.mul_(1e6)  # the norm after it makes this harmless in float32
        unet.conv_in.bias.mul_(1e6)
    unet.save_pretrained(folder / "unet")

    def draw(backend: str, options: RuntimeOptions) -> np.ndarray:
        pipeline = Pipeline.load(folder, backend=backend, options=options)
        return pipeline.generate(PROMPTS, SEEDS, width=64, height=64, steps=1).images_BHWC

    expected = draw("torch", RuntimeOptions(num_threads=1))
    drawn = draw("torch_cuda", _options("float16"))
    # The text came from the half-precision encoder.
    assert np.abs(drawn.astype(int) - expected).mean() < 1


def test_a_batch_that_does_not_fit_is_halved(
    torch_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = Pipeline.load(
        torch_folder, backend="torch_cuda", options=_options(batch_sizes=(1, 2, 4))
    )
    expected = pipeline.generate(PROMPTS, SEEDS, width=64, height=64, steps=1).images_BHWC
    whole = Pipeline.load(
        torch_folder, backend="torch_cuda", options=_options(batch_sizes=(1, 2, 4))
    )
    sizes: list[int] = []
    record = CpuDevice.record

    def small(self: CpuDevice, call: object) -> object:
        recorded = record(self, call)  # type: ignore[arg-type]
        sizes.append(len(recorded.outputs[0]))
        if sizes[-1] > 2 and recorded.outputs[0].dtype == torch.uint8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return recorded

    monkeypatch.setattr(CpuDevice, "record", small)
    drawn = whole.generate(PROMPTS, SEEDS, width=64, height=64, steps=1).images_BHWC
    assert sizes == [4, 4, 2]  # the text, the batch, its half
    # Sums are ordered by the batch's size.
    assert np.abs(drawn.astype(int) - expected).max() <= 1


def test_a_precision_that_torch_has_not_is_refused(torch_folder: Path) -> None:
    with pytest.raises(BackendError, match="computes in float32, float16, bfloat16, not int8"):
        load_stages("torch_cuda", torch_folder, ModelSpec.load(torch_folder), _options("int8"))


def test_weights_that_do_not_fit_are_said_to(
    torch_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.nn.Module, "to", full)
    with pytest.raises(OutOfMemoryError, match="the model does not fit"):
        load_stages("torch_cuda", torch_folder, ModelSpec.load(torch_folder), _options())


def test_a_folder_without_networks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EnginesError, match="unet is missing"):
        load_stages("torch_cuda", tmp_path, tiny_spec(), _options())
