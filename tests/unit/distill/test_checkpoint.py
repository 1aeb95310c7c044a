"""Snapshots: whole or not at all, and damage is named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from distill.checkpoint import (
    SNAPSHOT_FILE,
    CheckpointError,
    Ema,
    averaged,
    load_snapshot,
    save_snapshot,
)


def _state(value: float) -> dict[str, object]:
    return {"name": "student", "iteration": 7, "trainer": {"weights": torch.full((64,), value)}}


def test_a_snapshot_comes_back(tmp_path: Path) -> None:
    save_snapshot(tmp_path, _state(1.5))
    state = load_snapshot(tmp_path)
    assert state["iteration"] == 7
    assert torch.equal(state["trainer"]["weights"], torch.full((64,), 1.5))
    assert [path.name for path in tmp_path.iterdir()] == [SNAPSHOT_FILE]


def test_a_write_that_fails_keeps_the_former_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_snapshot(tmp_path, _state(1.0))
    before = (tmp_path / SNAPSHOT_FILE).read_bytes()

    def full_disk(state: object, stream: object) -> None:
        stream.write(b"the first half")  # type: ignore[attr-defined]  # an open file
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_snapshot(tmp_path, _state(2.0))
    assert (tmp_path / SNAPSHOT_FILE).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [SNAPSHOT_FILE]


def test_a_missing_snapshot_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=re.escape(str(tmp_path / SNAPSHOT_FILE))):
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
def test_a_damaged_snapshot_is_refused_by_name(tmp_path: Path, how: str) -> None:
    save_snapshot(tmp_path, _state(1.0))
    path = tmp_path / SNAPSHOT_FILE
    path.write_bytes(_damage(path.read_bytes(), how))
    with pytest.raises(CheckpointError, match=re.escape(f"{path} is damaged: remove it")):
        load_snapshot(tmp_path)


class _Harmful:
    """Unpickling this would run code."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("harm"),))


def test_a_snapshot_never_runs_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"trainer": _Harmful()}, tmp_path / SNAPSHOT_FILE)
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
