"""Snapshots: whole or not at all, and damage is named."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from distill.training.checkpoint import (
    CheckpointError,
    Ema,
    averaged,
    load_snapshot,
    load_trained_state,
    save_snapshot,
    snapshot_path,
    snapshot_paths,
    trained_state,
)


def _state(value: float, iteration: int = 7) -> dict[str, object]:
    weights = torch.full((64,), value)
    return {"name": "student", "iteration": iteration, "trainer": {"weights": weights}}


def test_a_snapshot_comes_back(tmp_path: Path) -> None:
    path = save_snapshot(tmp_path, _state(1.5))
    state = load_snapshot(tmp_path)
    assert state["iteration"] == 7
    assert torch.equal(state["trainer"]["weights"], torch.full((64,), 1.5))
    assert list(path.parent.iterdir()) == [path] == [snapshot_path(tmp_path, 7)]


def test_the_last_snapshots_are_kept(tmp_path: Path) -> None:
    for iteration in (9, 10, 100):
        save_snapshot(tmp_path, _state(1.0, iteration), num_kept=2)
    assert snapshot_paths(tmp_path) == [snapshot_path(tmp_path, i) for i in (100, 10)]
    # Going back gives up what came later.
    save_snapshot(tmp_path, _state(1.0, 50), num_kept=2)
    assert snapshot_paths(tmp_path) == [snapshot_path(tmp_path, i) for i in (50, 10)]


def test_the_snapshot_of_an_older_version_is_read_until_newer_ones_are_there(
    tmp_path: Path,
) -> None:
    torch.save(_state(1.0, 5), tmp_path / "snapshot.pt")
    assert load_snapshot(tmp_path)["iteration"] == 5
    save_snapshot(tmp_path, _state(2.0, 6), num_kept=2)
    assert load_snapshot(tmp_path)["iteration"] == 6
    assert (tmp_path / "snapshot.pt").exists()
    save_snapshot(tmp_path, _state(2.0, 7), num_kept=2)
    assert snapshot_paths(tmp_path) == [snapshot_path(tmp_path, i) for i in (7, 6)]


def test_what_a_killed_process_left_half_written_is_cleared_away(tmp_path: Path) -> None:
    save_snapshot(tmp_path, _state(1.0, 5))
    leftover = tmp_path / "snapshots" / "00000006.pt.partial"
    leftover.write_bytes(b"half")
    assert load_snapshot(tmp_path)["iteration"] == 5
    save_snapshot(tmp_path, _state(1.0, 7))
    assert not leftover.exists()


def test_a_write_that_fails_keeps_the_former_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_snapshot(tmp_path, _state(1.0))
    before = path.read_bytes()

    def full_disk(state: object, stream: object) -> None:
        stream.write(b"the first half")  # type: ignore[attr-defined]  # an open file
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(CheckpointError, match=r"no room for a snapshot in .*snapshots: 0\.1 MiB"):
        save_snapshot(tmp_path, _state(2.0))
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_room_is_looked_for_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2**20))
    monkeypatch.setattr(torch, "save", lambda *_: pytest.fail("nothing may be written"))
    state = {"iteration": 1, "adam": [{"step": torch.zeros(2**18), "moment": torch.zeros(2**19)}]}
    needed = r"3\.1 MiB are needed, 1\.0 MiB are free"
    with pytest.raises(CheckpointError, match=needed):
        save_snapshot(tmp_path, state)
    assert not snapshot_paths(tmp_path)


def test_a_missing_snapshot_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=re.escape(f"no snapshot in {tmp_path}")):
        load_snapshot(tmp_path)


def _damage(content: bytes, how: str) -> bytes:
    if how == "empty":
        return b""
    if how == "cut":
        return content[: len(content) // 2]
    if how == "other":
        return b"no snapshot at all"
    # One bit of one weight: the archive reads well, but its checksum does not fit.
    at = content.index(torch.full((4,), 1.0).numpy().tobytes())
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize("how", ["empty", "cut", "other", "bit"])
def test_a_damaged_snapshot_is_passed_over_and_named(
    tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = save_snapshot(tmp_path, _state(1.0, 8))
    path.write_bytes(_damage(path.read_bytes(), how))
    with pytest.raises(CheckpointError, match=re.escape(f"is damaged ({path}): remove them")):
        load_snapshot(tmp_path)
    save_snapshot(tmp_path, _state(1.0, 5), num_kept=3)
    path.write_bytes(b"")
    caplog.clear()
    assert load_snapshot(tmp_path)["iteration"] == 5
    assert f"{path} is damaged; trying the one before" in caplog.text


class _Harmful:
    """Unpickling this would run code."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("harm"),))


def test_a_snapshot_never_runs_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_snapshot(tmp_path, {"iteration": 1, "trainer": _Harmful()})
    with pytest.raises(CheckpointError, match="is damaged"):
        load_snapshot(tmp_path)
    assert not (tmp_path / "harm").exists()


def _model(value: float) -> nn.Module:
    model = nn.BatchNorm1d(2)
    with torch.no_grad():
        model.weight.fill_(value)
        model.running_mean.fill_(value)
        model.num_batches_tracked.fill_(int(value))
    return model


def test_the_average_ramps_up_and_follows() -> None:
    ema = Ema(_model(0.0), decay=0.5)
    ema.update(_model(1.0))
    # First decay (1 + 1) / (10 + 1): the average takes 9/11 of the new weights.
    assert ema.weights["weight"].tolist() == pytest.approx([9 / 11] * 2)
    assert ema.weights["num_batches_tracked"].item() == 1
    ema.num_updates = 1000
    before = ema.weights["weight"].clone()
    ema.update(_model(3.0))
    torch.testing.assert_close(ema.weights["weight"], (before + 3.0) / 2)


def test_the_average_continues_from_its_state() -> None:
    ema = Ema(_model(0.0), decay=0.9)
    ema.update(_model(1.0))
    again = Ema(_model(5.0), decay=0.9)
    again.load_state_dict(ema.state_dict())
    for average in (ema, again):
        average.update(_model(2.0))
    assert again.num_updates == 2
    assert all(torch.equal(ema.weights[key], again.weights[key]) for key in ema.weights)


def test_the_average_is_lent_and_taken_back() -> None:
    model = _model(1.0).train()
    ema = Ema(_model(4.0), decay=0.9)
    with pytest.raises(RuntimeError, match="inside"), averaged(model, ema):
        assert model.weight.tolist() == [4.0, 4.0]
        assert not model.training
        raise RuntimeError("inside")
    assert model.weight.tolist() == [1.0, 1.0]
    assert model.training
    assert ema.weights["weight"].tolist() == [4.0, 4.0]


def _partly_frozen(value: float) -> nn.Module:
    model = _model(value)
    model.bias.requires_grad_(False).fill_(value)
    return model


def test_frozen_parameters_are_neither_kept_nor_averaged() -> None:
    names = {"weight", "running_mean", "running_var", "num_batches_tracked"}
    model, other = _partly_frozen(1.0), _partly_frozen(5.0)
    assert trained_state(_model(1.0)).keys() == names | {"bias"}
    assert trained_state(model).keys() == names
    load_trained_state(other, trained_state(model))
    assert (other.weight.tolist(), other.bias.tolist()) == ([1.0, 1.0], [5.0, 5.0])
    ema = Ema(model, decay=0.5)
    assert ema.weights.keys() == names
    ema.update(other)
    with averaged(other, ema):
        assert other.bias.tolist() == [5.0, 5.0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bias": torch.zeros(2)}, "does not fit the model: bias"),
        ({"weight": None}, "does not fit the model: weight"),
        ({"other": torch.zeros(2)}, "does not fit the model: other"),
        ({"weight": torch.zeros(3)}, "size mismatch for weight"),
    ],
)
def test_the_state_of_another_form_is_refused(change: dict[str, Any], words: str) -> None:
    state = {**trained_state(_partly_frozen(1.0)), **change}
    state = {name: value for name, value in state.items() if value is not None}
    model = _partly_frozen(2.0)
    with pytest.raises(RuntimeError, match=words):
        load_trained_state(model, state)
    assert model.bias.tolist() == [2.0, 2.0]
