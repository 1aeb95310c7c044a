"""From a Stable Diffusion folder to a student that diffusers and the service draw with.

The folders are tiny and their weights random; classes, files and commands are the real ones.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from teacher_folders import KINDS, save_tiny_pipeline
from transformers import Dinov2Config, Dinov2Model

from distill.__main__ import main
from distill.networks.unet import load_unet
from engines.__main__ import main as engines_main
from engines.noise import unit_noise
from engines.pipeline import Pipeline

PROMPTS, SEEDS, SHAPE = ["a red circle", "blue ring above green square"], [0, 1], (4, 8, 8)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def vision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two vision transformers of different width: one judges, one describes the real picture."""
    root = tmp_path_factory.mktemp("vision")
    for name, width in (("judge", 32), ("describe", 48)):
        torch.manual_seed(width)
        config = Dinov2Config(
            hidden_size=width,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=32,
            image_size=28,
            patch_size=14,
        )
        Dinov2Model(config).save_pretrained(root / name)
    return root


def _arguments(command: str, run: Path, teacher: Path, *settings: str) -> list[str]:
    pairs = [part for setting in ("num_threads=1", *settings) for part in ("--set", setting)]
    return [
        *(command, "--preset", "shapes_tiny", "--out", str(run), "--teacher", str(teacher)),
        *pairs,
    ]


@pytest.fixture(scope="module", params=KINDS)
def run(
    request: pytest.FixtureRequest, vision: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Two iterations of the paper's setting: pixels, DINOv2 features, both conditions; exported."""
    root = tmp_path_factory.mktemp(request.param)
    teacher = save_tiny_pipeline(request.param, root / "teacher")
    settings = (
        "student.optimizer.iterations=2",
        "student.optimizer.batch_size=2",
        "student.optimizer.lr=0.001",
        "student.discriminator.features=vision",
        f"student.discriminator.vision_model={vision / 'judge'}",
        f"student.discriminator.image_model={vision / 'describe'}",
        "student.discriminator.hooks=[0,1]",
        "student.discriminator.input_size_px=28",
        "student.teacher_guidance=2.0",
    )
    for command in ("train", "export"):
        assert main(_arguments(command, root / "run", teacher, *settings)) == 0
    return root


def test_training_starts_at_the_teacher_and_moves(run: Path) -> None:
    metrics = [
        json.loads(line)
        for line in (run / "run" / "student" / "metrics.jsonl").read_text().splitlines()
    ]
    assert len(metrics) == 2
    for line in metrics:
        assert all(np.isfinite(value) for value in line.values() if isinstance(value, float))
        assert line["loss_distill"] > 0
        assert line["grad_adversarial"] > 0
    config = json.loads((run / "run" / "student" / "config.json").read_text())
    is_v = "sd21" in run.name
    assert config["teacher"]["prediction_type"] == ("v_prediction" if is_v else "epsilon")
    teacher, student = load_unet(run / "teacher"), load_unet(run / "run" / "student" / "model")
    gaps = [
        (a - b).abs().max().item()
        for a, b in zip(teacher.parameters(), student.parameters(), strict=True)
    ]
    assert 0 < max(gaps) < 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_the_teachers_own_features_work_too(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = save_tiny_pipeline(kind, tmp_path / "teacher")
    settings = (
        "student.optimizer.batch_size=2",
        "student.discriminator.features=teacher",
        "student.discriminator.image_model=null",
    )
    arguments = _arguments("train", tmp_path / "run", teacher, *settings)
    assert main([*arguments, "--dry-run"]) == 0
    assert "train: one iteration works: " in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


@torch.no_grad()
def test_diffusers_and_the_service_draw_the_same_picture(run: Path, tmp_path: Path) -> None:
    out = run / "run" / "export"
    pipeline = DiffusionPipeline.from_pretrained(out, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        PROMPTS,
        num_inference_steps=1,
        guidance_scale=0.0,
        latents=torch.from_numpy(unit_noise(SEEDS, SHAPE)),
        output_type="np",
    ).images
    assert theirs.shape == (2, 32, 32, 3)
    assert np.abs(theirs[0] - theirs[1]).mean() > 0.01
    if "sd15" not in run.name:
        return  # one trace of three graphs is enough
    bundle = tmp_path / "bundle"
    assert engines_main(["export", str(out), "--out", str(bundle)]) == 0
    assert (bundle / "provenance.json").is_file()
    served = Pipeline.load(bundle).generate(PROMPTS, SEEDS, width=32, height=32, steps=1)
    gap = np.abs(served.images_BHWC.astype(float) - theirs * 255)
    assert gap.mean() < 1
    assert gap.max() <= 8
