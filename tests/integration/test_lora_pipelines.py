"""From a Stable Diffusion folder to an adapter that diffusers puts on that very folder.

The folders are tiny and their weights random; classes, files and commands are the real ones.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, LCMScheduler
from numpy.typing import NDArray
from safetensors.torch import load_file
from teacher_folders import KINDS, save_tiny_pipeline

from distill.__main__ import main
from distill.networks.lora import LORA_FILE
from distill.training.checkpoint import load_snapshot
from engines.noise import unit_noise

PROMPTS, SEEDS, SHAPE = ["a red circle", "blue ring above green square"], [0, 1], (4, 8, 8)
SETTINGS = (
    "num_threads=1",
    "student.optimizer.batch_size=2",
    "student.optimizer.lr=0.05",
    "student.optimizer.decay_fraction=0",
    "student.lora.rank=4",
    "student.lora.alpha=8",
    'student.lora.target_modules=["to_q","to_k","to_v","to_out.0","conv1","proj_in"]',
)

pytestmark = pytest.mark.usefixtures("one_thread")


def _arguments(command: str, run: Path, teacher: Path, num_iterations: int) -> list[str]:
    settings = (*SETTINGS, f"student.optimizer.iterations={num_iterations}")
    pairs = [part for setting in settings for part in ("--set", setting)]
    return [
        *(command, "--preset", "shapes_tiny", "--out", str(run), "--teacher", str(teacher)),
        *pairs,
    ]


@pytest.fixture(scope="module", params=KINDS)
def root(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher and a student of four iterations, exported."""
    root = tmp_path_factory.mktemp(request.param)
    teacher = save_tiny_pipeline(request.param, root / "teacher")
    for command in ("train", "export"):
        assert main(_arguments(command, root / "run", teacher, 4)) == 0
    return root


@torch.no_grad()
def _drawn(pipeline: Any) -> NDArray[np.float32]:
    pipeline.set_progress_bar_config(disable=True)
    images: NDArray[np.float32] = pipeline(
        PROMPTS,
        num_inference_steps=1,
        guidance_scale=0.0,
        latents=torch.from_numpy(unit_noise(SEEDS, SHAPE)),
        output_type="np",
    ).images
    return images


def _teacher_pipeline(root: Path) -> Any:
    pipeline = DiffusionPipeline.from_pretrained(root / "teacher", local_files_only=True)
    pipeline.scheduler = LCMScheduler.from_pretrained(root / "run" / "export" / "scheduler")
    return pipeline


def test_the_adapter_on_the_teacher_draws_what_the_fused_student_does(root: Path) -> None:
    out = root / "run" / "export"
    fused = _drawn(DiffusionPipeline.from_pretrained(out, local_files_only=True))
    adapted = _teacher_pipeline(root)
    adapted.load_lora_weights(out / "lora")
    np.testing.assert_allclose(_drawn(adapted), fused, atol=2e-4)
    assert np.abs(_drawn(_teacher_pipeline(root)) - fused).max() > 0.02
    assert np.abs(fused[0] - fused[1]).mean() > 0.01


def test_the_lines_on_the_card_put_the_adapter_on(root: Path) -> None:
    out = root / "run" / "export"
    card = (out / "README.md").read_text()
    assert "a LoRA of rank 4, to put on its teacher" in card
    assert "| trained | factors of rank 4 on to_q, to_k," in card
    assert "lora/pytorch_lora_weights.safetensors" in (out / "provenance.json").read_text()
    code = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(code) == 2
    names: dict[str, Any] = {"folder": str(out), "teacher": str(root / "teacher")}
    exec(code[1].replace("image = ", "#"), names)
    fused = _drawn(DiffusionPipeline.from_pretrained(out, local_files_only=True))
    np.testing.assert_allclose(_drawn(names["pipe"]), fused, atol=2e-4)


def test_a_training_that_goes_on_is_the_one_that_never_stopped(root: Path) -> None:
    if "sd15" not in root.name:
        return  # resuming knows nothing of the kind of teacher
    parts, teacher = root / "parts", root / "teacher"
    assert main(_arguments("train", parts, teacher, 2)) == 0
    kept = load_snapshot(parts / "student")
    assert kept["iteration"] == 2
    assert all("lora_" in name for name in kept["trainer"]["student"])
    assert main([*_arguments("train", parts, teacher, 4), "--resume"]) == 0
    model = Path("student", "model", "lora", LORA_FILE)
    straight, continued = (load_file(root / run / model) for run in ("run", "parts"))
    assert straight.keys() == continued.keys()
    assert all(torch.equal(value, continued[name]) for name, value in straight.items())
    assert max(value.abs().max() for name, value in straight.items() if "lora_B" in name) > 0.01


def test_extracting_from_the_fused_student_gives_the_adapter_back(root: Path) -> None:
    out = root / "run" / "export"
    command = ["extract-lora", "--teacher", str(root / "teacher"), "--student", str(out)]
    assert main([*command, "--rank", "4", "--out", str(root / "lora")]) == 0
    adapted = _teacher_pipeline(root)
    adapted.load_lora_weights(root / "lora")
    fused = _drawn(DiffusionPipeline.from_pretrained(out, local_files_only=True))
    np.testing.assert_allclose(_drawn(adapted), fused, atol=2e-4)
