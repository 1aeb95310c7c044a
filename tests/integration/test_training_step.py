"""The measurement of a training step without a GPU: its cases, its two halves, its words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.bench import training_step
from tests.bench.training_step import CASES, Case, line, measured, predicted

TINY = Case("shapes_tiny", "student")


@pytest.mark.parametrize("stage", ["autoencoder", "teacher", "student"])
def test_a_step_is_timed_on_the_device_that_is_asked_for(stage: str) -> None:
    row = measured(Case("shapes_tiny", stage), "cpu", seconds=0.0)
    assert row["num_runs"] == 5
    assert row["num_skipped"] == 0
    assert 0 < row["median_s"] <= row["worst_s"]
    assert row["images_per_s"] == pytest.approx(4 / row["median_s"], rel=1e-2)
    assert row["measured_gib"] is None  # a CPU's memory is not counted by this program


def test_the_prediction_counts_memory_and_arithmetic() -> None:
    row = predicted(TINY)
    assert row["predicted_gib"] == pytest.approx(sum(row["by_kind_gib"].values()), abs=0.01)
    assert row["tflop"] > 0


def test_every_case_can_be_configured() -> None:
    teachers = {name: case.config.student.teacher_source for name, case in CASES.items()}
    assert "stable-diffusion-2-1" in str(teachers["sd-2.1"])
    assert "stable-diffusion-xl" in str(teachers["sdxl"])
    one_pass = CASES["sd-2.1 in one pass"].config
    assert one_pass.scale.micro_batch_size is None
    assert one_pass.student.optimizer.batch_size == 8


def test_both_halves_join_in_one_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_step, "CASES", {"tiny": TINY})
    out = tmp_path / "new" / "step.json"
    out.parent.mkdir()
    figures = {"median_s": 0.5, "images_per_s": 8.0, "measured_gib": 2.0}
    out.write_text(json.dumps({"cases": {"tiny": figures}, "bf16_flops_per_s": 1e12}))
    monkeypatch.setattr("sys.argv", ["training_step", "--part", "predicted", "--out", str(out)])
    assert training_step.main() == 0
    row: dict[str, Any] = json.loads(out.read_text())["cases"]["tiny"]
    assert row["median_s"] == 0.5
    assert row["predicted_gib"] > 0
    printed = capsys.readouterr().out
    assert "500.0 ms" in printed and "ratio" in printed and "of the rate" in printed


def test_without_a_gpu_the_remedy_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["training_step"])
    assert training_step.main() == 2
    assert "--part predicted needs none" in capsys.readouterr().err


def test_a_line_says_only_what_is_known() -> None:
    assert line("a", {"predicted_gib": 1.0, "tflop": 1.0}, None).split() == [
        "a",
        "predicted",
        "1.00",
        "GiB",
    ]
