"""The ablation through its command: trains, judges, writes a page, goes on where it was stopped."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from distill_fixtures import squeezenet_arrays

from distill.__main__ import main

ROWS = "full,regression_teacher,teacher"


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("judge") / "squeezenet.npz"
    np.savez(path, **squeezenet_arrays())
    return path


def _ablation(folder: Path, judge: Path, *words: str) -> int:
    return main(
        [
            *("ablation", "--preset", "ablation_tiny", "--out", str(folder)),
            *("--features", str(judge), "--rows", ROWS, "--max-pictures", "8"),
            *("--seeds-per-prompt", "1", "--teacher-steps", "1,2", "--guidance-sweep", "1,2"),
            *words,
        ]
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, judge: Path) -> Path:
    """An ablation of two rows and the teacher with two seeds; a test only reads it."""
    folder = tmp_path_factory.mktemp("ablation") / "run"
    assert _ablation(folder, judge, "--seeds", "0,1") == 0
    return folder


def test_every_row_and_seed_is_judged(finished: Path) -> None:
    names = sorted(path.stem for path in (finished / "runs").glob("*.json"))
    rows = ROWS.split(",")
    assert names == sorted(f"{row}-seed{seed}" for row in rows for seed in (0, 1))
    text = (finished / "ablation.md").read_text()
    for words in ("ADD, full | 2 |", "regression on the teacher's pictures | 2 |", "dpm++"):
        assert words in text
    assert (finished / "with-style.webp").is_file()
    # Both kinds of prompts at once come first, and are held against more real pictures.
    kinds = re.findall(r"\*\*(?:Prompts )?([\w ]+): (\d+) pictures", text)
    with_style, without_style = (int(num) for _, num in kinds[1:3])
    assert kinds[0] == ("All prompts", str(with_style + without_style))
    assert [kind for kind, _ in kinds[1:3]] == ["with style", "without style"]
    summary = json.loads((finished / "ablation.json").read_text())
    for run in summary["runs"]:
        for scores in run["scores"].values():
            assert scores["all prompts"].keys() >= {"frechet_distance", "top1", "sharpness"}
            assert len({of["frechet_distance"] for of in scores.values()}) == len(scores)
    assert {run["num_pictures"] for run in summary["runs"] if run["row"] != "teacher"} == {16}


def test_seeds_train_different_students_and_the_same_one_again(
    finished: Path, judge: Path, tmp_path: Path
) -> None:
    def scores(folder: Path, seed: int) -> object:
        run = json.loads((folder / "runs" / f"full-seed{seed}.json").read_text())
        return [drawn["scores"] for drawn in run["drawn"]]

    assert scores(finished, 0) != scores(finished, 1)
    again = tmp_path / "again"
    shutil.copytree(finished, again, ignore=shutil.ignore_patterns("runs"))
    assert _ablation(again, judge, "--seeds", "1", "--rows", "full") == 0
    assert scores(again, 1) == scores(finished, 1)


def test_a_stopped_one_keeps_what_is_finished(finished: Path, judge: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    kept, lost = folder / "runs/full-seed0.json", folder / "runs/regression_teacher-seed1.json"
    before, text = kept.stat().st_mtime_ns, lost.read_text()
    lost.unlink()
    assert _ablation(folder, judge, "--seeds", "0,1", "--resume") == 0
    assert kept.stat().st_mtime_ns == before
    assert (
        json.loads(lost.read_text())["drawn"][0]["scores"]
        == (json.loads(text)["drawn"][0]["scores"])
    )


def test_a_folder_with_runs_is_not_mixed_by_accident(
    finished: Path, judge: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _ablation(finished, judge) == 2
    assert "add --resume, or give another --out" in capsys.readouterr().err
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    changed = ("--seeds", "0", "--resume", "--set", "student.lambda_distill=1.0")
    assert _ablation(folder, judge, *changed) == 2
    assert "student.lambda_distill (was 2.5): remove it" in capsys.readouterr().err


def test_what_is_finished_can_be_tabulated_without_training(
    finished: Path, judge: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "runs/full-seed1.json").unlink()
    (folder / "ablation.md").unlink()
    before = sorted((folder / "runs").iterdir())
    assert _ablation(folder, judge, "--seeds", "0,1,2", "--finished") == 0
    assert sorted((folder / "runs").iterdir()) == before
    text = (folder / "ablation.md").read_text()
    assert "ADD, full | 1 |" in text and "regression on the teacher's pictures | 2 |" in text
    for path in (folder / "runs").iterdir():
        path.unlink()
    assert _ablation(folder, judge, "--finished") == 2
    assert "leave out --finished to train" in capsys.readouterr().err
