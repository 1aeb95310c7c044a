"""The loop on a training of one number: resume, reports, refusals."""

from __future__ import annotations

import contextlib
import json
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from walk_trainer import Walk, lines_of, train

from distill.config import ConfigError, OptimizerConfig, RunConfig
from distill.training.checkpoint import (
    CheckpointError,
    load_snapshot,
    snapshot_path,
    snapshot_paths,
)
from distill.training.loop import lr_scale_at
from distill.training.run_folder import Resume
from distill.training.trainer import Interrupted


def test_the_rate_warms_up_then_decays() -> None:
    config = OptimizerConfig(warmup_iterations=4, final_lr_fraction=0.1, iterations=1000)
    assert lr_scale_at(0, config) == pytest.approx(0.25, rel=1e-4)
    assert lr_scale_at(3, config) == pytest.approx(1.0, rel=1e-4)
    assert lr_scale_at(500, config) == pytest.approx(0.1 + 0.9 / 2)
    assert lr_scale_at(1000, config) == pytest.approx(0.1)
    scales = [lr_scale_at(i, config) for i in range(4, 1000)]
    assert scales == sorted(scales, reverse=True)


def test_a_run_leaves_its_config_metrics_samples_snapshot_and_model(tmp_path: Path) -> None:
    folder = train(tmp_path, Walk(5), report_every=2, sample_every=2)
    assert RunConfig.from_json((folder / "config.json").read_text()).report_every == 2
    assert [line["iteration"] for line in lines_of(folder)] == [2, 4, 5]
    names = sorted(path.name for path in (folder / "samples").iterdir())
    assert names == ["0000002.png", "0000004.png", "0000005.png"]
    assert load_snapshot(folder)["iteration"] == 5
    assert (folder / "model" / "position").is_file()


def test_a_line_is_the_mean_since_the_line_before(tmp_path: Path) -> None:
    every = lines_of(train(tmp_path / "a", Walk(4), report_every=1))
    halves = lines_of(train(tmp_path / "b", Walk(4), report_every=2))
    for line, pair in zip(halves, ((0, 1), (2, 3)), strict=True):
        assert line["position"] == pytest.approx(sum(every[i]["position"] for i in pair) / 2)


def test_an_interrupted_run_continues_as_if_nothing_had_been(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", Walk(6))
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match=r"stopped after 2 of 6; continue with --resume"):
        train(tmp_path / "parts", Walk(6, stop_at=2))
    assert signal.getsignal(signal.SIGTERM) is handler
    assert not (tmp_path / "parts" / "teacher" / "model").exists()
    parts = train(tmp_path / "parts", Walk(6), resume="last")
    assert (parts / "model" / "position").read_text() == (whole / "model" / "position").read_text()
    positions = [[line["position"] for line in lines_of(folder)] for folder in (whole, parts)]
    assert positions[0] == positions[1]


def test_lines_after_the_snapshot_are_written_once(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(tmp_path, Walk(6, stop_at=2))
    # A crash before the next snapshot: two more lines, the second of them cut short.
    metrics = tmp_path / "teacher" / "metrics.jsonl"
    with metrics.open("a") as stream:
        stream.write('{"iteration": 3, "position": 0.0}\n{"iteration": 4, "pos')
    folder = train(tmp_path, Walk(6), resume="last")
    assert [line["iteration"] for line in lines_of(folder)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("resume", ["last", None])
def test_a_run_that_crashed_before_its_first_snapshot_starts_anew(
    tmp_path: Path, resume: Resume | None
) -> None:
    with pytest.raises(RuntimeError, match="power"):
        train(tmp_path, Walk(4, crash_at=3))
    assert not snapshot_paths(tmp_path / "teacher")
    folder = train(tmp_path, Walk(4), resume=resume)
    assert [line["iteration"] for line in lines_of(folder)] == [1, 2, 3, 4]


def test_a_snapshot_is_written_when_it_is_due(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="power"):
        train(tmp_path, Walk(4, crash_at=3), snapshot_every_s=0)
    assert load_snapshot(tmp_path / "teacher")["iteration"] == 2


def test_a_finished_run_resumes_to_the_same_model(tmp_path: Path) -> None:
    folder = train(tmp_path, Walk(3))
    before = (folder / "model" / "position").read_text()
    (folder / "model" / "position").unlink()
    train(tmp_path, Walk(3), resume="last")
    assert (folder / "model" / "position").read_text() == before
    assert len(lines_of(folder)) == 3


def test_a_run_is_not_overwritten(tmp_path: Path) -> None:
    folder = train(tmp_path, Walk(2))
    before = snapshot_path(folder, 2).read_bytes()
    with pytest.raises(ConfigError, match=r"teacher holds a training: add --resume"):
        train(tmp_path, Walk(2))
    assert snapshot_path(folder, 2).read_bytes() == before


def test_another_config_is_not_resumed(tmp_path: Path) -> None:
    folder = train(tmp_path, Walk(2))
    before = (folder / "config.json").read_text()
    settings = {"seed": 3, "unet.norm_num_groups": 4}
    message = (
        r"config\.json differs in seed \(was 0\), unet\.norm_num_groups \(was 8\): resume with"
    )
    with pytest.raises(ConfigError, match=message):
        train(tmp_path, Walk(2), resume="last", **settings)
    assert (folder / "config.json").read_text() == before


def test_what_shapes_later_stages_only_may_change(tmp_path: Path) -> None:
    train(tmp_path, Walk(2))
    train(tmp_path, Walk(2), resume="last", **{"student.lambda_distill": 9.0})


@pytest.mark.parametrize("first", [3, 6], ids=["interrupted", "finished"])
def test_a_run_may_be_made_longer(tmp_path: Path, first: int) -> None:
    def walk(iterations: int, **kwargs: int) -> Walk:
        walk = Walk(iterations, **kwargs)
        # Without decay the shorter run is the beginning of the longer one.
        walk.optimizer = replace(walk.optimizer, decay_fraction=0.0)
        return walk

    whole = train(tmp_path / "whole", walk(9))
    six = {"teacher.optimizer.iterations": 6}
    with contextlib.suppress(Interrupted):
        train(tmp_path / "parts", walk(6, stop_at=first), **six)
    nine = {"teacher.optimizer.iterations": 9}
    parts = train(tmp_path / "parts", walk(9), resume="last", **nine)
    assert (parts / "model" / "position").read_text() == (whole / "model" / "position").read_text()
    message = (
        r"teacher\.optimizer\.iterations may be raised on resuming, not lowered: .* has 9, got 6"
    )
    with pytest.raises(ConfigError, match=message):
        train(tmp_path / "parts", Walk(6), resume="last", **six)


def test_what_shapes_nothing_may_change(tmp_path: Path) -> None:
    train(tmp_path, Walk(2))
    settings = {
        "report_every": 7,
        "guard.num_snapshots": 5,
        "guard.alarms.spike_action": "abort",
        "track.wandb_name": "again",
        "num_threads": 2,
        "description": "other words",
    }
    folder = train(tmp_path, Walk(2), resume="last", **settings)
    assert RunConfig.from_json((folder / "config.json").read_text()).report_every == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda plain: plain["unet"].update(num_experts=4), "unknown field unet.num_experts"),
        (lambda plain: plain.pop("name"), "name is missing"),
        (lambda plain: plain.update(seed="zero"), "seed must be int, got 'zero'"),
    ],
)
def test_the_config_of_another_version_is_named(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    path = train(tmp_path, Walk(2)) / "config.json"
    plain = json.loads(path.read_text())
    change(plain)
    path.write_text(json.dumps(plain))
    words = re.escape(f"{path} does not fit this version ({message}")
    with pytest.raises(ConfigError, match=words):
        train(tmp_path, Walk(2), resume="last")


def test_a_field_that_an_older_config_lacks_has_its_default(tmp_path: Path) -> None:
    path = train(tmp_path, Walk(2)) / "config.json"
    plain = json.loads(path.read_text())
    del plain["guard"], plain["data"]["num_shapes"]
    path.write_text(json.dumps(plain))
    with pytest.raises(ConfigError, match=r"differs in data\.num_shapes \(was 512\)"):
        train(tmp_path, Walk(2), resume="last")
    plain["data"]["num_shapes"] = 48
    path.write_text(json.dumps(plain))
    train(tmp_path, Walk(2), resume="last")


def test_a_damaged_config_is_named(tmp_path: Path) -> None:
    folder = train(tmp_path, Walk(2))
    (folder / "config.json").write_text('{"name": "sha')
    message = re.escape(f"{folder / 'config.json'} is damaged")
    with pytest.raises(ConfigError, match=message):
        train(tmp_path, Walk(2), resume="last")


def test_the_snapshot_of_another_stage_is_refused(tmp_path: Path) -> None:
    train(tmp_path, Walk(2))
    other = Walk(2)
    other.name = "student"
    (tmp_path / "teacher").rename(tmp_path / "student")
    with pytest.raises(CheckpointError, match=r"student belongs to 'teacher'"):
        train(tmp_path, other, resume="last")
