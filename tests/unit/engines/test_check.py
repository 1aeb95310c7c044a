"""Parity's tolerances, over pipelines that the test controls."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from engines_fixtures import tiny_spec, write_tokenizer
from numpy.typing import NDArray

from engines.parity import (
    TOLERANCES,
    Reference,
    Tolerance,
    compare,
    compare_stages,
    excesses,
)
from engines.pipeline import Generated, Pipeline
from engines.recording import Call
from engines.runtime.base import Stages
from engines.tokenizer import Tokenizer


class PaintedPipeline(Pipeline):
    """Draws grey pictures; `levels` is added to pixels of every picture after the first."""

    def __init__(self, folder: Path, levels: Sequence[int] = (0,)) -> None:
        write_tokenizer(folder / "tokenizer.json")

        def never(*inputs: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
            raise AssertionError("generate is replaced below")

        spec = tiny_spec()
        super().__init__(spec, Tokenizer.load(folder, spec), Stages(never, never, never))
        self._levels = levels

    def generate(
        self, prompts: Sequence[str], seeds: Sequence[int], *, width: int, height: int, steps: int
    ) -> Generated:
        images = np.full((len(seeds), height, width, 3), 100, dtype=np.uint8)
        images.reshape(len(seeds), -1)[:, : len(self._levels)] += np.uint8(self._levels)
        return Generated(images, {"denoise": 2.0, "decode": 1.0})


def _failures(tmp_path: Path, levels: Sequence[int], tolerance: Tolerance) -> list[str]:
    painted = PaintedPipeline(tmp_path)
    drawn = [np.full((num, 64, 64, 3), 100, dtype=np.uint8) for num in (8, 1, 1)]
    reference = Reference("grey", dict.fromkeys(range(1, painted.spec.max_steps + 1), drawn), {})
    figures = list(compare(PaintedPipeline(tmp_path, levels), reference, "onnx"))
    assert {entry.steps for entry in figures} == {1, 2, 3, 4}
    assert [entry.batch_size for entry in figures if entry.steps == 1] == [8, 1, 1, 1, 1]
    return [failure for entry in figures for failure in excesses(entry, tolerance)]


def test_equal_pictures_are_within(tmp_path: Path) -> None:
    assert _failures(tmp_path, [0], Tolerance(0, 0, max_difference=0, psnr_db=99)) == []


def test_one_pixel_may_differ_by_8_levels_and_no_more(tmp_path: Path) -> None:
    tolerance = TOLERANCES["float32"]
    assert _failures(tmp_path, [8], tolerance) == []
    assert "max 9, allowed 8" in _failures(tmp_path, [9], tolerance)[0]


def test_the_mean_may_differ_by_1_level_and_no_more(tmp_path: Path) -> None:
    tolerance, num_values = TOLERANCES["float32"], 64 * 64 * 3
    assert _failures(tmp_path, [1] * num_values, tolerance) == []
    more = [2] + [1] * (num_values - 1)
    assert "mean 1.000, allowed 1" in _failures(tmp_path, more, tolerance)[0]


def test_noise_lowers_the_ratio_until_it_is_too_far(tmp_path: Path) -> None:
    # A difference of 2 levels everywhere: 10 log10(255^2 / 4) = 42.1 dB.
    levels = [2] * (64 * 64 * 3)
    assert _failures(tmp_path, levels, Tolerance(0, 9, psnr_db=42.1)) == []
    assert "PSNR 42.1 dB, at least 42.2" in _failures(tmp_path, levels, Tolerance(0, 9, 9, 42.2))[0]


@pytest.mark.parametrize(("added", "is_within"), [(0.009, True), (0.011, False), (np.nan, False)])
def test_a_stage_is_held_against_the_same_inputs(added: float, is_within: bool) -> None:
    def decode(*inputs: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        return (inputs[0] + np.float32(added),)

    call = Call((np.ones((2, 3), np.float32),), (np.ones((2, 3), np.float32),))
    stages = Stages(decode, decode, decode)
    tolerance = Tolerance(0.01, 1.0)
    figures, failures = compare_stages(tiny_spec(), stages, {"decode": [call]}, tolerance)
    assert figures["decode"].mean_error == pytest.approx(added, rel=1e-3, nan_ok=True)
    assert (failures == []) == is_within
