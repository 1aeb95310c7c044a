"""Parity's tolerances, over pipelines that the test controls."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from engines_fixtures import tiny_spec, write_tokenizer
from numpy.typing import NDArray

from engines.check import Comparison, ParityReport, compare
from engines.errors import ParityError
from engines.pipeline import Generated, Pipeline
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


def _report(tmp_path: Path, levels: Sequence[int]) -> ParityReport:
    tested = PaintedPipeline(tmp_path, levels)
    return ParityReport(tuple(compare(tested, PaintedPipeline(tmp_path), "onnx")))


def test_equal_pictures_are_within(tmp_path: Path) -> None:
    report = _report(tmp_path, [0])
    report.require()
    assert {comparison.steps for comparison in report.comparisons} == {1, 2, 3, 4}
    assert {comparison.batch_size for comparison in report.comparisons} == {1, 8}


def test_one_pixel_may_differ_by_8_levels_and_no_more(tmp_path: Path) -> None:
    _report(tmp_path, [8]).require()
    with pytest.raises(ParityError, match="max 9"):
        _report(tmp_path, [9]).require()


def test_the_mean_may_differ_by_1_level_and_no_more(tmp_path: Path) -> None:
    num_values = 64 * 64 * 3
    _report(tmp_path, [1] * num_values).require()
    with pytest.raises(ParityError, match=r"mean 1\.000"):
        _report(tmp_path, [2] + [1] * (num_values - 1)).require()


def test_a_comparison_prints_its_verdict() -> None:
    assert str(Comparison("onnx / torch", 1, 8, 0.2, 3)).endswith("ok")
    assert str(Comparison("onnx / torch", 1, 8, 0.2, 30)).endswith("TOO FAR")
