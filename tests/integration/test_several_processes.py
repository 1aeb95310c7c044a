"""Several processes train what one would: the same losses, weights and files, on any number.

Two real processes over gloo, started with what torchrun sets.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from process_group import agreements
from training_process import (
    LIMIT_S,
    arguments,
    asked_together,
    finish,
    finish_together,
    join_all,
    linked,
    metrics_of,
    start_together,
    with_teacher,
)

from distill.training.checkpoint import load_snapshot, snapshot_paths

NUM_ITERATIONS = 6
SETTINGS = (
    f"student.optimizer.iterations={NUM_ITERATIONS}",
    "student.optimizer.lr=0.0001",
    "sample_every=3",
    "guard.score_every=3",
)
DMD2 = (
    "student.method=dmd2",
    "student.distill_space=latent",
    "student.distill_weight=none",
    "student.critic_steps=2",
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an autoencoder and a teacher; a test only reads it."""
    return with_teacher(tmp_path_factory.mktemp("finished") / "run")


def _alone(finished: Path, run: Path, *settings: str) -> Path:
    words = arguments("train", linked(finished, run), *SETTINGS, *settings)
    code, printed = finish(words, run.with_suffix(".txt"))
    assert code == 0, printed
    return run / "student"


def _together(finished: Path, run: Path, *settings: str) -> Path:
    words = arguments("train", linked(finished, run), *SETTINGS, *settings)
    codes, printed = finish_together(words, run.with_suffix(".txt"), 2)
    assert codes == [0, 0], "\n".join(printed)
    assert "finished" in printed[0] and "finished" not in printed[1]
    return run / "student"


def _assert_near(one: Path, other: Path) -> None:
    """Compare two trainings whose sums were added in another order."""
    before, after = metrics_of(one), metrics_of(other)
    assert [line["iteration"] for line in after] == list(range(1, NUM_ITERATIONS + 1))
    for a, b in zip(before, after, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            if not name.startswith("grad_") or name == "grad_norm":  # those are of parts
                assert b[name] == pytest.approx(a[name], rel=2e-3, abs=1e-5), (name, a, b)
    a, b = load_snapshot(one), load_snapshot(other)
    _assert_weights_near(a["trainer"]["student"], b["trainer"]["student"])
    _assert_weights_near(a["trainer"]["ema"]["weights"], b["trainer"]["ema"]["weights"])
    _assert_weights_near(a["trainer"]["modules"], b["trainer"]["modules"])
    for x, y in zip(_moments(a), _moments(b), strict=True):
        assert x.shape == y.shape


def _assert_weights_near(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        # Adam moves a weight by about its rate, even where the gradient is all but noise.
        gap = (a[name].double() - b[name].double()).abs()
        assert gap.mean() < 5e-5 and gap.max() < 2e-2, (name, gap.mean(), gap.max())


def _moments(snapshot: dict[str, Any]) -> list[torch.Tensor]:
    states = snapshot["trainer"]["adam_student"]["state"].values()
    return [state["exp_avg"] for state in states]


@pytest.mark.parametrize(
    "settings",
    [
        ("scale.strategy=ddp",),
        ("scale.strategy=ddp", "scale.micro_batch_size=1", 'scale.recompute=["decoder","student"]'),
        ("scale.strategy=fsdp",),
        ("scale.strategy=fsdp", "scale.micro_batch_size=1", *DMD2),
    ],
    ids=["ddp", "ddp in parts", "fsdp", "fsdp, two networks, in parts"],
)
def test_two_processes_train_what_one_does_with_the_double_batch(
    finished: Path, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    method = [setting for setting in settings if setting in DMD2]
    alone = _alone(finished, tmp_path / "alone", *method)
    _assert_near(alone, _together(finished, tmp_path / "together", *settings))
    files = {path.relative_to(alone) for path in (alone / "model").rglob("*") if path.is_file()}
    for path in files:
        size = (tmp_path / "together" / "student" / path).stat().st_size
        assert size == pytest.approx((alone / path).stat().st_size, abs=64)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_run_goes_on_with_another_number_of_processes(
    finished: Path, tmp_path: Path, strategy: str
) -> None:
    # A rate that does not fall, and looks that fall together, so that stops leave no trace.
    settings = ("student.optimizer.decay_fraction=0.1", "sample_every=2", "guard.score_every=2")
    alone = _alone(finished, tmp_path / "alone", *settings)
    run = linked(finished, tmp_path / "moved")
    settings = (*SETTINGS, *settings)
    scale = f"scale.strategy={strategy}"
    two = arguments("train", run, *settings, "student.optimizer.iterations=2", scale)
    codes, printed = finish_together(two, tmp_path / "two.txt", 2)
    assert codes == [0, 0], printed
    one = arguments("train", run, *settings, "student.optimizer.iterations=4")
    code, words = finish([*one, "--resume"], tmp_path / "one.txt")
    assert code == 0, words
    again = [*arguments("train", run, *settings, scale), "--resume"]
    codes, printed = finish_together(again, tmp_path / "again.txt", 2)
    assert codes == [0, 0], printed
    _assert_near(alone, run / "student")


def test_processes_agree_on_what_decides_how_a_run_goes_on() -> None:
    first, second = asked_together(agreements, 2)
    assert (first.pop("part"), second.pop("part")) == ([0, 1, 2, 3], [4, 5, 6, 7])
    assert first == second
    assert first["mean"] == {"b": 0.5, "a": 3.0}
    assert first["any"] == (True, False)
    assert first["of_main"] == 5.0
    assert not first["bad"] and first["good"]


def test_a_signal_to_one_process_stops_all_with_one_snapshot(
    finished: Path, tmp_path: Path
) -> None:
    run = linked(finished, tmp_path / "run")
    words = arguments("train", run, *SETTINGS, "student.optimizer.iterations=100000")
    processes = start_together(words, tmp_path / "out.txt", 2)
    metrics = run / "student" / "metrics.jsonl"
    deadline_s = time.monotonic() + LIMIT_S
    while not metrics.exists() and time.monotonic() < deadline_s:
        time.sleep(0.02)
    second = processes[1].pid
    assert second is not None
    os.kill(second, signal.SIGTERM)
    for process in processes:
        process.join(LIMIT_S)
    join_all(processes)
    assert [process.exitcode for process in processes] == [130, 130]
    done = load_snapshot(run / "student")["iteration"]
    assert metrics_of(run / "student")[-1]["iteration"] == done
    assert len(snapshot_paths(run / "student")) >= 1


def test_what_processes_cannot_share_is_refused(finished: Path, tmp_path: Path) -> None:
    run = linked(finished, tmp_path / "run")
    words = arguments("train", run, "student.optimizer.batch_size=5")
    codes, printed = finish_together(words, tmp_path / "odd.txt", 2)
    assert codes == [2, 2]
    assert "student.optimizer.batch_size is 5" in printed[0] and "multiple of 2" in printed[0]
    codes, printed = finish_together(arguments("teacher", run), tmp_path / "teacher.txt", 2)
    assert codes == [2, 2]
    assert "without torchrun" in printed[0]
