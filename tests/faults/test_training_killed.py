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
from training_process import LIMIT_S, arguments, assert_same_run, finish, start

from distill.checkpoint import load_snapshot, snapshot_paths

STAGES = {"autoencoder": "autoencoder", "teacher": "teacher", "train": "student"}
NUM_KILLS = int(os.environ.get("ONESTEP_KILLS", "10"))


def _linked(finished: Path, run: Path, but: str) -> Path:
    """A run that has the finished stages, but one."""
    run.mkdir()
    for stage in ("autoencoder", "teacher"):
        if stage != but:
            (run / stage).symlink_to(finished / stage)
    return run


def _num_lines(folder: Path) -> int:
    metrics = folder / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def _kill_after(words: list[str], folder: Path, num_lines: int, output: Path) -> None:
    """Start a training and kill it once its metrics have so many lines."""
    process = start(words, output)
    deadline_s = time.monotonic() + LIMIT_S
    while process.is_alive() and _num_lines(folder) < num_lines:
        assert time.monotonic() < deadline_s, output.read_text()
        time.sleep(0.001)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, output.read_text()


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
    straight = _linked(finished, tmp_path / "straight", but=stage) / stage
    parts = _linked(finished, tmp_path / "parts", but=stage) / stage
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


@pytest.mark.parametrize("slow_bytes", [0, 4096], ids=["quick writes", "slow writes"])
def test_a_storm_of_kills_leaves_the_run_as_if_nothing_had_been(
    tmp_path: Path, slow_bytes: int
) -> None:
    rng = random.Random(slow_bytes)
    num_kills = -(-NUM_KILLS // 2)
    folder = tmp_path / "parts" / "autoencoder"
    length = f"autoencoder.optimizer.iterations={(8 if slow_bytes else 30) * num_kills}"
    settings = (length, "snapshot_every_s=0", "sample_every=1000")
    reached, num_in_a_write = 0, 0
    for i in range(num_kills):
        words = [*arguments("autoencoder", folder.parent, *settings), "--resume"]
        output = tmp_path / f"{i}.txt"
        process = start(words, output, slow_bytes=slow_bytes)
        # From its first new iteration on, any moment is as likely as another.
        before = _num_lines(folder)
        deadline_s = time.monotonic() + LIMIT_S
        while process.is_alive() and _num_lines(folder) <= before:
            assert time.monotonic() < deadline_s
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.2))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, output.read_text()
        assert "damaged" not in output.read_text()
        num_in_a_write += len(list(folder.glob("snapshots/*.partial")))
        if snapshot_paths(folder):
            now = load_snapshot(folder)["iteration"]
            assert now >= reached
            reached = now
        assert len(snapshot_paths(folder)) <= 3  # two, and one not yet cleared away
    if slow_bytes:
        assert num_in_a_write, "no kill came while a snapshot was written"
    else:
        assert reached > num_kills
    words = [*arguments("autoencoder", folder.parent, *settings), "--resume"]
    code, printed = finish(words, tmp_path / "last.txt")
    assert code == 0, printed
    assert "damaged" not in printed
    straight = tmp_path / "straight" / "autoencoder"
    calm = arguments("autoencoder", straight.parent, length, "sample_every=1000")
    code, printed = finish(calm, tmp_path / "straight.txt")
    assert code == 0, printed
    assert_same_run(straight, folder)
