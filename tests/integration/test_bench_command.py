"""onestep-engines bench on a real bundle: numbers, ratios against torch, a plot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engines.__main__ import main
from engines.bench import peaks


@pytest.fixture(autouse=True)
def small_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrices and copies that take milliseconds."""
    small = peaks.Sizes(product=128, copy_bytes=2**20)
    monkeypatch.setattr(peaks.cpu_peaks, "__defaults__", (small,))


def test_the_command_writes_numbers_and_a_plot(
    bundle: Path, torch_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, plot = tmp_path / "bench.json", tmp_path / "bench.svg"
    arguments = ["bench", str(bundle), "--threads", "1", "--batch", "1", "2", "--runs", "3"]
    arguments += ["--compare", "torch", "--torch", str(torch_folder)]
    assert main([*arguments, "--json", str(out), "--plot", str(plot)]) == 0
    captured = capsys.readouterr()
    assert "images/s" in captured.out
    assert "24/24" in captured.err  # two configurations, two sizes, three runs after three
    result = json.loads(out.read_text())
    assert [entry["name"] for entry in result["configurations"]] == ["onnx", "torch"]
    for entry in result["configurations"]:
        for row in entry["batches"]:
            assert row["roofline_share"] > 0
            assert set(row["stages"]) == {"text", "denoise", "decode"}
            parts = [row["stages"][stage]["gflop"] for stage in ("text", "denoise", "decode")]
            assert row["gflop"] == pytest.approx(sum(parts), abs=1e-3)
    assert [(row["name"], row["batch_size"]) for row in result["ratios"]] == [
        ("torch", 1),
        ("torch", 2),
    ]
    assert result["machine"]["num_threads"] == 1
    assert ">roofline<" in plot.read_text()


def test_the_json_can_go_to_the_output(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", str(bundle), "--threads", "1", "--batch", "1", "--runs", "1"]
    assert main([*arguments, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["num_runs"] == 1


def test_a_torch_folder_alone_is_measured_without_a_roofline(
    torch_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["bench", str(torch_folder), "--backend", "torch", "--threads", "1"]
    assert main([*arguments, "--batch", "1", "--runs", "2"]) == 0
    assert "no roofline: " in capsys.readouterr().out
