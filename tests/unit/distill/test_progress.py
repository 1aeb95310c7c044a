"""What watches a training: skipped iterations, alarms and their actions, the best snapshot."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from distill_fixtures import tiny_config
from walk_trainer import ScoredWalk, VariedWalk, WatchedWalk, lines_of, train

from distill.config import ConfigError
from distill.training.checkpoint import (
    CheckpointError,
    load_snapshot,
    read_snapshot,
    snapshot_paths,
)
from distill.training.progress import Progress
from distill.training.run_folder import RunFolder
from distill.training.trainer import Aborted, Interrupted

EVERY = {"snapshot_every_s": 0}
WON = {
    **EVERY,
    "guard.alarms.accuracy_iterations": 2,
    "guard.alarms.accuracy_limit": 0.9,
}


def _best(folder: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((folder / "best" / "best.json").read_text())
    return facts


def _accuracies(*values: float) -> dict[int, dict[str, float]]:
    return {i + 1: {"d_accuracy": value} for i, value in enumerate(values)}


def test_skipped_iterations_are_counted_in_the_metrics(tmp_path: Path) -> None:
    metrics = {2: {"skipped": 1.0, "position": math.nan}, 3: {"skipped": 2.0}}
    folder = train(tmp_path, WatchedWalk(4, metrics), report_every=2)
    first, second = lines_of(folder)
    assert [line["num_skipped"] for line in (first, second)] == [1, 2]
    assert math.isfinite(first["position"])


def test_too_many_skipped_in_a_row_end_the_run_and_keep_the_best(tmp_path: Path) -> None:
    metrics = {i: {"skipped": 1.0} for i in (2, 4, 5, 6, 7)}
    settings = {**EVERY, "guard.max_skipped_in_a_row": 3}
    words = (
        r"teacher: stopped at iteration 6 of 9: 3 iterations in a row had no finite gradient\. "
        r"Set bf16=false, lower teacher\.optimizer\.lr.*The best model, of iteration 3, is "
    )
    with pytest.raises(Aborted, match=words):
        train(tmp_path, WatchedWalk(9, metrics), **settings)
    folder = tmp_path / "teacher"
    assert _best(folder) == {"iteration": 3}
    position = read_snapshot(folder / "best" / "snapshot.pt")["trainer"]["position"].item()
    assert (folder / "best" / "model" / "position").read_text() == repr(position)
    assert not (folder / "model").exists()


def test_the_count_of_skipped_outlives_an_interruption(tmp_path: Path) -> None:
    metrics = {i: {"skipped": 1.0} for i in (2, 3, 4)}
    settings = {"guard.max_skipped_in_a_row": 3}
    with pytest.raises(Interrupted):
        train(tmp_path, WatchedWalk(9, metrics, stop_at=3), **settings)
    with pytest.raises(Aborted, match="iteration 4 of 9"):
        train(tmp_path, WatchedWalk(9, metrics), resume="last", **settings)


def test_a_run_that_never_was_good_says_so(tmp_path: Path) -> None:
    metrics = {i: {"skipped": 1.0} for i in range(9)}
    with pytest.raises(Aborted, match=r"No snapshot was good yet: start again"):
        train(tmp_path, WatchedWalk(9, metrics), **{**EVERY, "guard.max_skipped_in_a_row": 3})


def test_a_won_discriminator_is_slowed_down_and_stays_so(tmp_path: Path) -> None:
    metrics = _accuracies(0.5, 0.95, 0.95, 0.95, 0.95)
    walk = WatchedWalk(6, metrics, stop_at=4)
    with pytest.raises(Interrupted):
        train(tmp_path, walk, **WON)
    assert walk.lr_d_scale == 0.5
    again = WatchedWalk(6, metrics)
    folder = train(tmp_path, again, resume="last", **WON)
    assert again.lr_d_scale == 0.25
    alarms = lines_of(folder, "alarms.jsonl")
    assert [(a["iteration"], a["alarm"], a["action"]) for a in alarms] == [
        (3, "accuracy", "halve_lr_d"),
        (5, "accuracy", "halve_lr_d"),
    ]


def test_an_alarm_can_end_the_run_at_the_last_sound_snapshot(tmp_path: Path) -> None:
    metrics = _accuracies(0.5, 0.5, 0.99, 0.99, 0.99)
    settings = {**WON, "guard.alarms.accuracy_action": "abort", "guard.num_snapshots": 1}
    words = r"iteration 4 of 9: the discriminator was right .*Or let it pass: guard\.alarms\.acc"
    with pytest.raises(Aborted, match=words):
        train(tmp_path, WatchedWalk(9, metrics), **settings)
    folder = tmp_path / "teacher"
    # The last snapshot is of the third iteration, when the trouble had begun.
    assert load_snapshot(folder)["iteration"] == 3
    assert _best(folder) == {"iteration": 2}
    assert (folder / "best" / "model" / "position").is_file()
    assert [line["alarm"] for line in lines_of(folder, "alarms.jsonl")] == ["accuracy"]
    # Resumed as it was, it ends the same way, and the alarm is not there twice.
    with pytest.raises(Aborted, match="iteration 4 of 9"):
        train(tmp_path, WatchedWalk(9, metrics), resume="last", **settings)
    assert len(lines_of(folder, "alarms.jsonl")) == 1
    # Watching is no part of the result, so it may be told to let it pass.
    train(tmp_path, WatchedWalk(9, metrics), resume="last", **WON)


def test_the_way_back_to_the_best_may_have_other_settings(tmp_path: Path) -> None:
    metrics = _accuracies(0.5, 0.5, 0.99, 0.99, 0.99)
    settings = {**WON, "guard.alarms.accuracy_action": "abort"}
    with pytest.raises(Aborted):
        train(tmp_path, WatchedWalk(9, metrics), **settings)
    folder = tmp_path / "teacher"
    changed = {**WON, "teacher.optimizer.lr": 1e-5}
    with pytest.raises(ConfigError, match=r"differs in teacher\.optimizer\.lr \(was 0\.001\)"):
        train(tmp_path, WatchedWalk(9, {}), resume="last", **changed)
    with pytest.raises(ConfigError, match=r"differs in text\.num_layers"):
        train(tmp_path, WatchedWalk(9, {}), resume="best", **{**WON, "text.num_layers": 2})
    with pytest.raises(RuntimeError, match="power"):
        train(tmp_path, WatchedWalk(9, {}, crash_at=3), resume="best", **changed)
    assert load_snapshot(folder)["iteration"] == 2
    with pytest.raises(Interrupted):
        train(tmp_path, WatchedWalk(9, {}, stop_at=3), resume="last", **changed)
    # What came after the best is given up: neither snapshot nor line of it is left.
    assert [read_snapshot(path)["iteration"] for path in snapshot_paths(folder)] == [3, 2]
    assert [line["iteration"] for line in lines_of(folder)] == [1, 2, 3]
    assert not lines_of(folder, "alarms.jsonl")


def test_the_way_back_needs_a_best(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no best snapshot in .*best: use --resume"):
        train(tmp_path, WatchedWalk(3, {}), resume="best")


def test_pictures_that_become_alike_raise_an_alarm(tmp_path: Path) -> None:
    diversities = {1: 1.0, 2: 0.4, 3: 0.4, 4: 0.9}
    walk = VariedWalk(4, diversities)
    folder = train(tmp_path, walk, sample_every=1)
    assert [line["diversity"] for line in lines_of(folder)] == [1.0, 0.4, 0.4, 0.9]
    assert [a["iteration"] for a in lines_of(folder, "alarms.jsonl")] == [3]


def test_the_lowest_score_is_the_best(tmp_path: Path) -> None:
    scores = {2: 5.0, 4: 3.0, 6: 4.0, 8: math.nan, 9: 3.0}
    folder = train(tmp_path, ScoredWalk(9, scores), **{"guard.score_every": 2})
    assert _best(folder) == {"iteration": 4, "distance": 3.0}
    best = read_snapshot(folder / "best" / "snapshot.pt")
    assert best["iteration"] == 4
    position = best["trainer"]["position"].item()
    assert (folder / "best" / "model" / "position").read_text() == repr(position)
    lines = {line["iteration"]: line.get("distance") for line in lines_of(folder)}
    assert lines == {1: None, 2: 5, 3: None, 4: 3, 5: None, 6: 4, 7: None, 8: None, 9: 3}


def test_a_kill_before_the_best_was_kept_is_made_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise RuntimeError("killed")

    scores = {2: 5.0}
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(RunFolder, "keep_best", killed)
        train(tmp_path, ScoredWalk(4, scores), **{"guard.score_every": 2})
    assert load_snapshot(tmp_path / "teacher")["iteration"] == 2
    folder = train(tmp_path, ScoredWalk(4, scores), resume="last", **{"guard.score_every": 2})
    assert _best(folder) == {"iteration": 2, "distance": 5.0}


def test_watching_does_not_change_what_is_learned(tmp_path: Path) -> None:
    watched = train(tmp_path / "a", ScoredWalk(6, {}), sample_every=1, **{"guard.score_every": 1})
    varied = train(tmp_path / "b", VariedWalk(6, dict.fromkeys(range(7), 1.0)), sample_every=2)
    plain = train(tmp_path / "c", WatchedWalk(6, {}))
    positions = [(f / "model" / "position").read_text() for f in (watched, varied, plain)]
    assert positions[0] == positions[1] == positions[2]


def test_a_best_kept_without_links_is_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("os.link", refuse)
    folder = train(tmp_path, ScoredWalk(2, {2: 1.0}))
    assert read_snapshot(folder / "best" / "snapshot.pt")["iteration"] == 2


def test_two_trainings_do_not_share_a_folder(tmp_path: Path) -> None:
    folder = train(tmp_path, WatchedWalk(1, {}))
    with (
        RunFolder(folder).locked(),
        pytest.raises(ConfigError, match=r"another training is running in .*teacher: wait"),
    ):
        train(tmp_path, WatchedWalk(1, {}), resume="last")
    train(tmp_path, WatchedWalk(1, {}), resume="last")


@pytest.mark.parametrize("moment", ["before", "between", "after"])
def test_a_kill_while_a_model_is_replaced_leaves_a_whole_one(tmp_path: Path, moment: str) -> None:
    folder = train(tmp_path, WatchedWalk(2, {}))
    model = folder / "model"
    old = (model / "position").read_text()
    if moment == "before":
        shutil.copytree(model, folder / "model.partial")
        (folder / "model.partial" / "position").write_text("half")
    elif moment == "between":
        model.rename(folder / "model.before")
    else:
        shutil.copytree(model, folder / "model.before")
    RunFolder(folder).mend()
    assert (model / "position").read_text() == old
    train(tmp_path, WatchedWalk(2, {}), resume="last")
    assert sorted(path.name for path in folder.glob("model*")) == ["model"]


def test_a_snapshot_that_does_not_fit_is_named(tmp_path: Path) -> None:
    folder = train(tmp_path, WatchedWalk(2, {}))
    state = load_snapshot(folder)
    del state["trainer"]["position"]
    torch.save(state, snapshot_paths(folder)[0])
    before = (folder / "config.json").read_text()
    changed = {"teacher.optimizer.lr": 1e-5}
    with pytest.raises(CheckpointError, match="does not fit this model or version"):
        train(tmp_path, WatchedWalk(2, {}), resume="last")
    torch.save(state, folder / "best" / "snapshot.pt")
    with pytest.raises(CheckpointError, match="does not fit this model or version"):
        train(tmp_path, WatchedWalk(2, {}), resume="best", **changed)
    # What was refused has left no trace: the settings are still those of the snapshots.
    assert (folder / "config.json").read_text() == before


class _Flushed:
    """A tracker that looks at the folder when it is flushed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.num_snapshots: list[int] = []

    def flush(self) -> None:
        self.num_snapshots.append(len(snapshot_paths(self._folder)))


def test_no_snapshot_is_ahead_of_the_curves(tmp_path: Path) -> None:
    progress = Progress(WatchedWalk(2, {}), tmp_path, tiny_config())
    tracker = _Flushed(tmp_path)
    progress.trackers = [tracker]  # type: ignore[list-item]  # the one method that is called
    progress.iterate(1.0)
    progress.snapshot(has_best_score=False)
    progress.iterate(1.0)
    progress.snapshot(has_best_score=False)
    assert tracker.num_snapshots == [0, 1]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("guard.num_snapshots=0", r"guard\.num_snapshots must be at least 1"),
        ("guard.alarms.spike_window=0", r"guard\.alarms\.spike_window must be at least 1"),
        ("guard.alarms.spike_factor=1", r"guard\.alarms\.spike_factor must be above 1"),
        ("guard.alarms.spike_action=stop", r"guard\.alarms\.spike_action must be one of .*abort"),
    ],
)
def test_a_watch_that_cannot_work_is_refused(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_config(setting)
