"""What the trackers write: read back from TensorBoard, and asked of a stand-in for W&B."""

from __future__ import annotations

import builtins
import importlib
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from distill_fixtures import tiny_config
from PIL import Image
from tensorboard.summary.writer import event_file_writer

from distill.config import ConfigError
from distill.training.tracking import tracking


def _events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"tensors": 0})
    events.Reload()
    return events


def _steps(folder: Path, name: str) -> list[int]:
    return [event.step for event in _events(folder).Scalars(name)]


def test_curves_sheets_and_the_config_can_be_read_back(tmp_path: Path) -> None:
    with tracking(tmp_path, tiny_config("seed=7"), 0) as trackers:
        for tracker in trackers:
            tracker.scalars(5, {"loss": 0.5, "num_skipped": 0.0})
            tracker.sheet(5, Image.new("L", (3, 2)))
    events = _events(tmp_path)
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(5, 0.5)]
    (sheet,) = events.Images("samples")
    assert (sheet.step, sheet.width, sheet.height) == (5, 3, 2)
    (text,) = events.Tensors("config/text_summary")
    words = text.tensor_proto.string_val[0].decode()
    assert json.loads(words)["seed"] == 7


def test_a_resumed_run_shows_each_iteration_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Files of one second are told apart by their number in the process, which is read as a text: a
    # tenth one would come before a ninth. Trainings that follow one another are further apart.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
    with tracking(tmp_path, tiny_config(), 0) as trackers:
        for iteration in (1, 2, 3, 4):
            trackers[0].scalars(iteration, {"loss": 1.0})
    # The last snapshot was of iteration 2; 3 and 4 come again.
    with tracking(tmp_path, tiny_config(), 2) as trackers:
        for iteration in (3, 4, 5):
            trackers[0].scalars(iteration, {"loss": 2.0})
    assert _steps(tmp_path, "loss") == [1, 2, 3, 4, 5]
    assert [e.value for e in _events(tmp_path).Scalars("loss")] == [1.0, 1.0, 2.0, 2.0, 2.0]


def test_what_is_flushed_survives_a_kill(tmp_path: Path) -> None:
    with tracking(tmp_path, tiny_config(), 0) as trackers:
        trackers[0].scalars(1, {"loss": 1.0})
        trackers[0].flush()
        assert _steps(tmp_path, "loss") == [1]


def test_without_the_package_there_is_a_warning_and_no_curve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    imported = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "torch.utils.tensorboard":
            raise ImportError("no tensorboard")
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with tracking(tmp_path, tiny_config(), 0) as trackers:
        assert not trackers
    assert "pip install tensorboard" in caplog.text


def test_it_can_be_switched_off(tmp_path: Path) -> None:
    with tracking(tmp_path, tiny_config("track.tensorboard=false"), 0) as trackers:
        assert not trackers
    assert not list(tmp_path.iterdir())


def test_weights_and_biases_that_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = tiny_config("track.wandb_project=emoji", "track.tensorboard=false")
    with (
        pytest.raises(ConfigError, match=r"track\.wandb_project needs .* 'onestep\[wandb\]'"),
        tracking(tmp_path, config, 0),
    ):
        pass


class _Recorder(types.ModuleType):
    """The three calls that the adapter makes, written down."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.started: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, Any]]] = []
        self.num_finished = 0

    def init(self, **settings: Any) -> _Recorder:
        self.started.append(settings)
        return self

    def Image(self, picture: Image.Image) -> tuple[int, int]:
        return picture.size

    def log(self, values: dict[str, Any], step: int) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.num_finished += 1


def test_a_resumed_training_continues_its_run_at_weights_and_biases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = _Recorder()
    monkeypatch.setitem(sys.modules, "wandb", recorder)
    assert importlib.import_module("wandb") is recorder
    config = tiny_config("track.wandb_project=emoji", "track.tensorboard=false")
    folder = tmp_path / "teacher"
    folder.mkdir()
    for start in (0, 2):
        with tracking(folder, config, start) as trackers:
            trackers[0].scalars(start + 1, {"loss": 1.0})
            trackers[0].sheet(start + 1, Image.new("RGB", (3, 2)))
    first, second = recorder.started
    assert first == second
    assert (first["project"], first["name"], first["resume"]) == (
        "emoji",
        "shapes-teacher",
        "allow",
    )
    assert first["config"]["teacher"]["optimizer"]["batch_size"] == 4
    assert first["id"] == (folder / "wandb_id").read_text()
    assert recorder.logged == [
        (1, {"loss": 1.0}),
        (1, {"samples": (3, 2)}),
        (3, {"loss": 1.0}),
        (3, {"samples": (3, 2)}),
    ]
    assert recorder.num_finished == 2
