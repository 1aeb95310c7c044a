"""The trainings through their command: resume to the bit, refuse in one line, learn, and arrive.

Everything runs on the drawn set at the tiny preset's size, for a few iterations.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from distill_fixtures import squeezenet_arrays, tiny_config
from training_process import assert_same_run

from distill.__main__ import main
from distill.dataset import to_uint8
from distill.evaluation.results import Evaluation
from distill.networks.codec import Codec
from distill.networks.diffusion import Diffusion
from distill.networks.encoders import TextEncoder
from distill.networks.unet import load_unet
from distill.sampling import sample_student
from distill.training.checkpoint import load_snapshot, snapshot_path, snapshot_paths
from engines.__main__ import main as engines_main
from engines.pipeline import Pipeline

STAGE_FOLDERS = {"autoencoder": "autoencoder", "teacher": "teacher", "train": "student"}
PROCESS_LIMIT_S = 120

pytestmark = pytest.mark.usefixtures("one_thread")


def _arguments(command: str, run: Path, *settings: str) -> list[str]:
    pairs = [part for setting in ("num_threads=1", *settings) for part in ("--set", setting)]
    return [command, "--preset", "shapes_tiny", "--out", str(run), *pairs]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose three trainings are done, exported; shared, so a test only reads it."""
    run = tmp_path_factory.mktemp("finished") / "run"
    for command in STAGE_FOLDERS:
        assert main(_arguments(command, run)) == 0
    assert main(_arguments("export", run)) == 0
    return run


def _linked(finished: Path, run: Path, but: str) -> Path:
    """A run that has the finished stages, but one."""
    run.mkdir()
    for folder in STAGE_FOLDERS.values():
        if folder != but:
            (run / folder).symlink_to(finished / folder)
    return run


def _interrupt(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Start a training as a process of its own and send SIGTERM after its second report."""
    process = subprocess.Popen(
        [sys.executable, "-m", "distill", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = folder / "metrics.jsonl"
    deadline_s = time.monotonic() + PROCESS_LIMIT_S
    try:
        while process.poll() is None and time.monotonic() < deadline_s:
            if metrics.exists() and metrics.read_bytes().count(b"\n") >= 2:
                process.send_signal(signal.SIGTERM)
                break
            time.sleep(0.005)
        out, err = process.communicate(timeout=PROCESS_LIMIT_S)
    finally:
        process.kill()
        process.wait()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def _metrics(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "time_s"} for line in lines]


def test_an_interrupted_training_resumes_to_the_bit(tmp_path: Path) -> None:
    straight, parts = (tmp_path / name / "autoencoder" for name in ("straight", "parts"))
    length = "autoencoder.optimizer.iterations=40"
    assert main(_arguments("autoencoder", straight.parent, length, "sample_every=1000")) == 0

    # A picture sheet after every iteration slows the process, so that the signal is in time.
    stopped = _interrupt(_arguments("autoencoder", parts.parent, length, "sample_every=1"), parts)
    assert stopped.returncode == 130, stopped.stderr
    assert "of 40; continue with --resume" in stopped.stderr.splitlines()[-1]
    assert "Traceback" not in stopped.stderr
    assert 2 <= load_snapshot(parts)["iteration"] < 40
    assert not (parts / "model").exists()

    again = _arguments("autoencoder", parts.parent, length, "sample_every=1000")
    assert main([*again, "--resume"]) == 0
    assert_same_run(straight, parts)


def test_a_training_that_breaks_down_ends_by_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    settings = (
        "autoencoder.optimizer.iterations=40",
        "autoencoder.optimizer.lr=1e38",  # the first step throws the weights out of all bounds
        "guard.max_skipped_in_a_row=3",
        "snapshot_every_s=0",
    )
    assert main(_arguments("autoencoder", run, *settings)) == 3
    words = capsys.readouterr().err.strip().splitlines()[-1]
    assert words.startswith("onestep-distill: autoencoder: stopped at iteration ")
    assert "3 iterations in a row had no finite gradient. Set bf16=false, lower" in words
    assert f"is {run / 'autoencoder' / 'best' / 'model'}; continue from it with" in words
    assert (run / "autoencoder" / "best" / "model" / "config.json").is_file()
    assert [line["num_skipped"] for line in _metrics(run / "autoencoder")][-2:] == [1, 2]


def test_a_run_is_neither_overwritten_nor_mixed(
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(config: object) -> None:
        raise AssertionError("reading the pictures takes minutes; the refusal comes before")

    monkeypatch.setattr("distill.stages.load_pictures", never)
    before = snapshot_paths(finished / "teacher")[0].read_bytes()
    assert main(_arguments("teacher", finished)) == 2
    assert "holds a training: add --resume" in capsys.readouterr().err
    assert main([*_arguments("teacher", finished, "text.num_layers=2"), "--resume"]) == 2
    assert (
        "config.json differs in text.num_layers (was 1): resume with the same"
        in capsys.readouterr().err
    )
    assert snapshot_paths(finished / "teacher")[0].read_bytes() == before


def test_a_damaged_snapshot_is_refused_by_name(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run" / "autoencoder"
    folder.mkdir(parents=True)
    whole = snapshot_paths(finished / "autoencoder")[0].read_bytes()
    path = snapshot_path(folder, 4)
    path.parent.mkdir()
    path.write_bytes(whole[: len(whole) // 2])
    assert main([*_arguments("autoencoder", tmp_path / "run"), "--resume"]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert errors[-1] == (
        f"onestep-distill: every snapshot is damaged ({path}): remove them and train again"
    )


@pytest.mark.parametrize("command", STAGE_FOLDERS)
def test_a_dry_run_leaves_no_file(
    finished: Path, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name = STAGE_FOLDERS[command]
    run = _linked(finished, tmp_path / "run", but=name)
    before = sorted(tmp_path.rglob("*"))
    assert main([*_arguments(command, run), "--dry-run"]) == 0
    assert sorted(tmp_path.rglob("*")) == before
    words = capsys.readouterr().out
    assert f"{command}: one iteration works: " in words
    assert "loss" in words


def test_a_wrong_field_is_one_line_of_a_quick_answer(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "distill", "teacher", "--set", "teacher.optimiser.lr=1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PROCESS_LIMIT_S,
    )
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert ran.stderr == ("onestep-distill: --set teacher.optimiser.lr: no section 'optimiser'\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("data", "--data", "gone.parquet"), "data.path: nothing at gone.parquet"),
        (("teacher", "--out", "run"), "no autoencoder at run/autoencoder/model: run `onestep-"),
        (("export", "--out", "run"), "no student in run: run `onestep-distill train` first"),
        (("evaluate", "--out", "run", "--features", "a.npz"), "--features: no file at a.npz"),
    ],
)
def test_what_is_missing_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*arguments, "--preset", "shapes_tiny"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith(f"onestep-distill: {message}")
    assert not list(tmp_path.iterdir())


def test_the_autoencoder_learns(tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = ("autoencoder.optimizer.iterations=30", "sample_every=1000")
    assert main(_arguments("autoencoder", run, *settings)) == 0
    losses = [line["loss"] for line in _metrics(run / "autoencoder")]
    assert len(losses) == 30
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])
    # Its config tells the later stages how to scale latents to about unit variance.
    codec = Codec.load(run / "autoencoder" / "model")
    assert codec.scale > 0
    assert codec.scale != 1.0


def test_the_data_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "--preset", "shapes_tiny", "--set", "data.num_shapes=30"]) == 0
    out = capsys.readouterr().out
    assert "30 pictures read, 0 rows skipped" in out
    assert "30 chosen, 30 concepts, 90 captions" in out


def test_the_run_is_judged_and_reported(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for folder in STAGE_FOLDERS.values():
        (run / folder).symlink_to(finished / folder)
    np.savez(tmp_path / "judge.npz", **squeezenet_arrays())
    arguments = [*_arguments("evaluate", run, "data.num_shapes=6"), "--teacher-steps", "1,2"]
    assert main([*arguments, "--features", str(tmp_path / "judge.npz")]) == 0
    tables = capsys.readouterr().out
    found = Evaluation.load(run)
    samplers = {sampler.name for sampler in found.samplers if sampler.model != "codec"}
    students = {"student, 1 step", "student, 4 steps"}
    assert students | {"teacher, 1 step", "teacher, 2 steps ddim"} <= samplers
    for sampler in samplers:
        assert f"| {sampler} |" in tables
        score = found.find(sampler, "without style", "squeezenet")
        assert score is not None
        assert np.isfinite(score.metrics["frechet_distance"].value)
        assert 0 <= score.metrics["top1"].value <= score.metrics["top5"].value <= 1
        assert score.metrics["diversity"].value > 0
    assert (run / "grid.webp").is_file()
    assert (run / "evaluation" / "without-style.webp").is_file()

    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "student, 1 step" in page
    assert page.count("<svg") == 0  # every picture travels inside, coded
    assert page.count("data:image/svg+xml;base64,") == len(STAGE_FOLDERS)
    assert "shapes_tiny" in (run / "report.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def exported(finished: Path) -> Path:
    bundle = finished.parent / "bundle"
    assert engines_main(["export", str(finished / "export"), "--out", str(bundle)]) == 0
    return bundle


@torch.no_grad()
@pytest.mark.parametrize("num_steps", [1, 4])
def test_what_is_served_is_what_was_judged(finished: Path, exported: Path, num_steps: int) -> None:
    prompts, seeds = ["a red circle", "blue ring above green square", "", "Zug 9!"], [0, 1, 2, 3]
    pipeline = Pipeline.load(exported)
    served = pipeline.generate(prompts, seeds, width=32, height=32, steps=num_steps).images_BHWC

    config, student = tiny_config(), finished / "student" / "model"
    codec = Codec.load(finished / "autoencoder" / "model")
    latents_BChw = sample_student(
        load_unet(student).eval(),
        TextEncoder.load(student).eval(),
        Diffusion.create(config.teacher.schedule, config.teacher.prediction_type),
        prompts,
        seeds,
        (4, 8, 8),
        pipeline.spec.student_timesteps[num_steps],
    )
    drawn = to_uint8(codec.decode(latents_BChw))
    difference = np.abs(served.astype(int) - drawn.astype(int))
    assert difference.mean() <= 1
    assert difference.max() <= 8
    # The pictures are pictures: neither one grey plane nor all the same.
    assert drawn.std() > 4
    assert np.abs(drawn[0].astype(int) - drawn[1].astype(int)).mean() > 2
