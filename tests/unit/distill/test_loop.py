"""The loop on a training of one number: resume, reports, refusals."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from distill_fixtures import tiny_config
from PIL import Image

from distill.checkpoint import CheckpointError, load_snapshot, snapshot_path, snapshot_paths
from distill.config import ConfigError, OptimizerConfig, RunConfig
from distill.loop import lr_scale_at, run_training
from distill.run_folder import Resume, prepare_folder
from distill.trainer import Interrupted


class _Walk:
    """A random walk: its number depends on every draw before it."""

    name = "teacher"
    device = torch.device("cpu")

    def __init__(self, iterations: int, stop_at: int = 0, crash_at: int = 0) -> None:
        self.optimizer = OptimizerConfig(iterations=iterations, warmup_iterations=1)
        self.position = torch.zeros(())
        self._num_done = 0
        self._stop_at, self._crash_at = stop_at, crash_at

    def iterate(self, lr_scale: float) -> dict[str, float]:
        self._num_done += 1
        if self._num_done == self._crash_at:
            raise RuntimeError("the power went out")
        if self._num_done == self._stop_at:
            signal.raise_signal(signal.SIGTERM)
        self.position = self.position + lr_scale * torch.randn(())
        return {"position": self.position.item()}

    def sample_grid(self) -> Image.Image:
        return Image.new("RGB", (1, 1))

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]

    def save_model(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "position").write_text(repr(self.position.item()))


def _train(run: Path, walk: _Walk, *, resume: Resume | None = None, **settings: object) -> Path:
    quiet = {"track.tensorboard": "false", **settings}
    config = tiny_config(*(f"{name}={value}" for name, value in quiet.items()))
    torch.manual_seed(0)
    folder = prepare_folder(run, walk.name, config, resume)
    run_training(walk, folder, config, resume=resume)
    return folder


def _lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_rate_warms_up_then_decays() -> None:
    config = OptimizerConfig(warmup_iterations=4, final_lr_fraction=0.1, iterations=1000)
    assert lr_scale_at(0, config) == pytest.approx(0.25, rel=1e-4)
    assert lr_scale_at(3, config) == pytest.approx(1.0, rel=1e-4)
    assert lr_scale_at(500, config) == pytest.approx(0.1 + 0.9 / 2)
    assert lr_scale_at(1000, config) == pytest.approx(0.1)
    scales = [lr_scale_at(i, config) for i in range(4, 1000)]
    assert scales == sorted(scales, reverse=True)


def test_a_run_leaves_its_config_metrics_samples_snapshot_and_model(tmp_path: Path) -> None:
    folder = _train(tmp_path, _Walk(5), report_every=2, sample_every=2)
    assert RunConfig.from_json((folder / "config.json").read_text()).report_every == 2
    assert [line["iteration"] for line in _lines(folder)] == [2, 4, 5]
    names = sorted(path.name for path in (folder / "samples").iterdir())
    assert names == ["0000002.png", "0000004.png", "0000005.png"]
    assert load_snapshot(folder)["iteration"] == 5
    assert (folder / "model" / "position").is_file()


def test_a_line_is_the_mean_since_the_line_before(tmp_path: Path) -> None:
    every = _lines(_train(tmp_path / "a", _Walk(4), report_every=1))
    halves = _lines(_train(tmp_path / "b", _Walk(4), report_every=2))
    for line, pair in zip(halves, ((0, 1), (2, 3)), strict=True):
        assert line["position"] == pytest.approx(sum(every[i]["position"] for i in pair) / 2)


def test_an_interrupted_run_continues_as_if_nothing_had_been(tmp_path: Path) -> None:
    whole = _train(tmp_path / "whole", _Walk(6))
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match=r"stopped after 2 of 6; continue with --resume"):
        _train(tmp_path / "parts", _Walk(6, stop_at=2))
    assert signal.getsignal(signal.SIGTERM) is handler
    assert not (tmp_path / "parts" / "teacher" / "model").exists()
    parts = _train(tmp_path / "parts", _Walk(6), resume="last")
    assert (parts / "model" / "position").read_text() == (whole / "model" / "position").read_text()
    positions = [[line["position"] for line in _lines(folder)] for folder in (whole, parts)]
    assert positions[0] == positions[1]


def test_lines_after_the_snapshot_are_written_once(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        _train(tmp_path, _Walk(6, stop_at=2))
    # A crash before the next snapshot: two more lines, the second of them cut short.
    metrics = tmp_path / "teacher" / "metrics.jsonl"
    with metrics.open("a") as stream:
        stream.write('{"iteration": 3, "position": 0.0}\n{"iteration": 4, "pos')
    folder = _train(tmp_path, _Walk(6), resume="last")
    assert [line["iteration"] for line in _lines(folder)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("resume", ["last", None])
def test_a_run_that_crashed_before_its_first_snapshot_starts_anew(
    tmp_path: Path, resume: Resume | None
) -> None:
    with pytest.raises(RuntimeError, match="power"):
        _train(tmp_path, _Walk(4, crash_at=3))
    assert not snapshot_paths(tmp_path / "teacher")
    folder = _train(tmp_path, _Walk(4), resume=resume)
    assert [line["iteration"] for line in _lines(folder)] == [1, 2, 3, 4]


def test_a_snapshot_is_written_when_it_is_due(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="power"):
        _train(tmp_path, _Walk(4, crash_at=3), snapshot_every_s=0)
    assert load_snapshot(tmp_path / "teacher")["iteration"] == 2


def test_a_finished_run_resumes_to_the_same_model(tmp_path: Path) -> None:
    folder = _train(tmp_path, _Walk(3))
    before = (folder / "model" / "position").read_text()
    (folder / "model" / "position").unlink()
    _train(tmp_path, _Walk(3), resume="last")
    assert (folder / "model" / "position").read_text() == before
    assert len(_lines(folder)) == 3


def test_a_run_is_not_overwritten(tmp_path: Path) -> None:
    folder = _train(tmp_path, _Walk(2))
    before = snapshot_path(folder, 2).read_bytes()
    with pytest.raises(ConfigError, match=r"teacher holds a training: add --resume"):
        _train(tmp_path, _Walk(2))
    assert snapshot_path(folder, 2).read_bytes() == before


def test_another_config_is_not_resumed(tmp_path: Path) -> None:
    folder = _train(tmp_path, _Walk(2))
    before = (folder / "config.json").read_text()
    settings = {"seed": 3, "unet.norm_num_groups": 4}
    message = r"config\.json differs in seed \(was 0\), unet\.norm_num_groups \(was 8\): resume with"
    with pytest.raises(ConfigError, match=message):
        _train(tmp_path, _Walk(2), resume="last", **settings)
    assert (folder / "config.json").read_text() == before


def test_what_shapes_later_stages_only_may_change(tmp_path: Path) -> None:
    _train(tmp_path, _Walk(2))
    _train(tmp_path, _Walk(2), resume="last", **{"student.lambda_distill": 9.0})


def test_a_damaged_config_is_named(tmp_path: Path) -> None:
    folder = _train(tmp_path, _Walk(2))
    (folder / "config.json").write_text('{"name": "sha')
    message = re.escape(f"{folder / 'config.json'} is damaged")
    with pytest.raises(ConfigError, match=message):
        _train(tmp_path, _Walk(2), resume="last")


def test_the_snapshot_of_another_stage_is_refused(tmp_path: Path) -> None:
    _train(tmp_path, _Walk(2))
    other = _Walk(2)
    other.name = "student"
    (tmp_path / "teacher").rename(tmp_path / "student")
    with pytest.raises(CheckpointError, match=r"student belongs to 'teacher'"):
        _train(tmp_path, other, resume="last")
