"""SIGKILL at any moment loses a training nothing but time.

ONESTEP_KILLS sets how many kills the storm has; a night's run takes a thousand.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_process import LIMIT_S, arguments, assert_same_run, finish, linked, start

from distill.training.checkpoint import load_snapshot, snapshot_paths

STAGES = {"autoencoder": "autoencoder", "teacher": "teacher", "train": "student"}
NUM_KILLS = int(os.environ.get("ONESTEP_KILLS", "10"))


def _num_lines(folder: Path) -> int:
    metrics = folder / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def _kill_after(
    words: list[str],
    folder: Path,
    num_lines: int,
    output: Path,
    *,
    wait_s: float = 0.0,
    slow_bytes: int = 0,
) -> None:
    """Start a training and kill it a while after its metrics have so many lines."""
    process = start(words, output, slow_bytes=slow_bytes)
    deadline_s = time.monotonic() + LIMIT_S
    while process.is_alive() and _num_lines(folder) < num_lines:
        assert time.monotonic() < deadline_s, output.read_text()
        time.sleep(0.001)
    time.sleep(wait_s)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, output.read_text()
    assert "damaged" not in output.read_text()


def _curve(folder: Path) -> list[int]:
    """Iterations that TensorBoard shows."""
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [event.step for event in events.Scalars("num_skipped")]


@pytest.mark.parametrize("command", STAGES)
def test_twenty_iterations_are_ten_and_a_kill_and_ten(
    finished: Path, tmp_path: Path, command: str
) -> None:
    stage = STAGES[command]
    straight = linked(finished, tmp_path / "straight", but=stage) / stage
    parts = linked(finished, tmp_path / "parts", but=stage) / stage
    # Reports every three iterations: a snapshot falls between two, and holds what is summed.
    settings = (
        f"{stage}.optimizer.iterations=20",
        "report_every=3",
        f"sample_every={8 if stage == 'student' else 1000}",
        "guard.score_every=8",
    )
    code, words = finish(arguments(command, straight.parent, *settings), tmp_path / "a.txt")
    assert code == 0, words
    # The fourth line comes after iteration 12; snapshots are of every iteration.
    killed = arguments(command, parts.parent, *settings, "snapshot_every_s=0")
    _kill_after(killed, parts, 4, tmp_path / "b.txt")
    assert 10 <= load_snapshot(parts)["iteration"] < 20
    assert not (parts / "model").exists()
    again = [*arguments(command, parts.parent, *settings), "--resume"]
    code, words = finish(again, tmp_path / "c.txt")
    assert code == 0, words
    assert_same_run(straight, parts)
    assert _curve(parts) == _curve(straight) == [3, 6, 9, 12, 15, 18, 20]


@pytest.mark.parametrize(
    ("command", "per_kill", "slow_bytes"),
    [("autoencoder", 20, 0), ("autoencoder", 8, 4096), ("train", 5, 0)],
    ids=["quick writes", "slow writes", "a best after each iteration"],
)
def test_a_storm_of_kills_leaves_the_run_as_if_nothing_had_been(
    finished: Path,
    tmp_path: Path,
    command: str,
    per_kill: int,
    slow_bytes: int,
) -> None:
    rng, num_kills, stage = random.Random(slow_bytes), -(-NUM_KILLS // 3), STAGES[command]
    folder = linked(finished, tmp_path / "parts", but=stage) / stage
    settings = (
        f"{stage}.optimizer.iterations={per_kill * num_kills}",
        "guard.score_every=3",
        "sample_every=1000",
    )
    words = [*arguments(command, folder.parent, *settings, "snapshot_every_s=0"), "--resume"]
    reached, num_in_a_write = 0, 0
    for i in range(num_kills):
        _kill_after(
            words,
            folder,
            _num_lines(folder) + rng.randint(1, 3),
            tmp_path / f"{i}.txt",
            wait_s=rng.uniform(0, 0.05),
            slow_bytes=slow_bytes,
        )
        num_in_a_write += len(list(folder.glob("snapshots/*.partial")))
        assert len(snapshot_paths(folder)) <= 3  # two, and one not yet cleared away
        if snapshot_paths(folder):
            now = load_snapshot(folder)["iteration"]
            assert now >= reached
            reached = now
    if slow_bytes:
        assert num_in_a_write, "no kill came while a snapshot was written"
    else:
        assert reached >= num_kills
    code, printed = finish(words, tmp_path / "last.txt")
    assert code == 0, printed
    assert "damaged" not in printed
    straight = linked(finished, tmp_path / "straight", but=stage) / stage
    code, printed = finish(arguments(command, straight.parent, *settings), tmp_path / "calm.txt")
    assert code == 0, printed
    assert_same_run(straight, folder)
    best = [(run / "best" / "best.json").read_text() for run in (straight, folder)]
    assert best[0] == best[1]
