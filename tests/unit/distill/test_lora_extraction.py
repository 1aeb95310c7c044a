"""An adapter taken out of two networks: the best of its rank, in the form that diffusers reads."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from distill_fixtures import tiny_unet
from numpy.typing import NDArray
from safetensors.torch import load_file
from teacher_folders import save_tiny_pipeline
from torch import nn

from distill.__main__ import main
from distill.export.lora import best_factors, extract_lora
from distill.networks.lora import LAYERS, LORA_FILE


def _low_rank(shape: tuple[int, int], rank: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.randn((side, rank), generator=generator) for side in shape)
    return left @ right.T


@pytest.mark.parametrize("shape", [(24, 10), (10, 24), (16, 16)])
def test_a_difference_of_the_rank_is_recovered(shape: tuple[int, int]) -> None:
    matrix_ON = _low_rank(shape, 3)
    down_RN, up_OR, kept = best_factors(matrix_ON, 3)
    assert (down_RN.shape, up_OR.shape) == ((3, shape[1]), (shape[0], 3))
    torch.testing.assert_close((up_OR @ down_RN).float(), matrix_ON, atol=1e-5, rtol=1e-5)
    assert kept == pytest.approx(matrix_ON.pow(2).sum().item(), rel=1e-6)
    # Each takes half of every singular value.
    torch.testing.assert_close(up_OR.norm(dim=0), down_RN.norm(dim=1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(24, 10), (10, 24)])
def test_what_is_lost_is_the_tail_of_the_singular_values(shape: tuple[int, int]) -> None:
    matrix: NDArray[Any] = np.random.default_rng(1).standard_normal(shape)
    values = np.linalg.svd(matrix, compute_uv=False)
    for rank in range(1, 10):
        down_RN, up_OR, kept = best_factors(torch.from_numpy(matrix), rank)
        lost = ((up_OR @ down_RN).numpy() - matrix) ** 2
        assert lost.sum() == pytest.approx((values[rank:] ** 2).sum(), rel=1e-9)
        assert kept == pytest.approx((values[:rank] ** 2).sum(), rel=1e-9)


def test_a_rank_beyond_the_layers_own_is_filled_with_zeros() -> None:
    down_RN, up_OR, _ = best_factors(_low_rank((4, 6), 2), 8)
    assert (down_RN.shape, up_OR.shape) == ((8, 6), (4, 8))
    torch.testing.assert_close((up_OR @ down_RN).float(), _low_rank((4, 6), 2))
    assert not down_RN[4:].any() and not up_OR[:, 4:].any()
    assert torch.isfinite(down_RN).all() and torch.isfinite(up_OR).all()


def _pair(
    root: Path, change: Callable[[str, nn.Module], None], kind: str = "sd21"
) -> tuple[Path, Path]:
    """A teacher's folder, and its copy with every layer changed."""
    teacher = save_tiny_pipeline(kind, root / "teacher")
    unet = UNet2DConditionModel.from_pretrained(teacher / "unet")
    with torch.no_grad():
        for name, module in unet.named_modules():
            change(name, module)
    unet.save_pretrained(root / "student" / "unet")
    return teacher, root / "student"


def _by_rank_two(name: str, module: nn.Module) -> None:
    if isinstance(module, LAYERS):
        flat = module.weight.flatten(1).shape
        seed = sum(map(ord, name))
        module.weight += 0.02 * _low_rank((flat[0], flat[1]), 2, seed).view_as(module.weight)


def _by_anything(name: str, module: nn.Module) -> None:
    torch.manual_seed(sum(map(ord, name)))
    for parameter in module.parameters(recurse=False):
        parameter += 0.05 * torch.randn_like(parameter)


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
@torch.no_grad()
def test_the_adapter_brings_the_teacher_to_the_student(kind: str, tmp_path: Path) -> None:
    teacher, student = _pair(tmp_path, _by_rank_two, kind)
    made = extract_lora(teacher, student, 2, tmp_path / "lora")
    assert made.kept == pytest.approx(1.0, abs=1e-6)
    assert made.squared_elsewhere == 0
    adapted, whole, before = (
        UNet2DConditionModel.from_pretrained(folder / "unet")
        for folder in (teacher, student, teacher)
    )
    assert len(made.layers) == sum(isinstance(m, LAYERS) for m in whole.modules())
    adapted.load_lora_adapter(tmp_path / "lora", prefix="unet", weight_name=LORA_FILE)
    width = whole.config.cross_attention_dim
    given = {"encoder_hidden_states": torch.randn(2, 12, width)}
    if kind == "sdxl":
        times = {"text_embeds": torch.randn(2, 40), "time_ids": torch.full((2, 6), 32.0)}
        given["added_cond_kwargs"] = times
    noisy_BChw = torch.randn(2, 4, 8, 8)
    said = [unet(noisy_BChw, 500, **given).sample for unet in (adapted, whole, before)]
    torch.testing.assert_close(said[0], said[1], atol=1e-4, rtol=1e-4)
    assert (said[1] - said[2]).abs().max() > 0.05


def test_the_shares_are_those_of_the_files(tmp_path: Path) -> None:
    teacher, student = _pair(tmp_path, _by_anything)
    made = extract_lora(teacher, student, 3, tmp_path / "lora")
    before, after = (
        load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
        for folder in (teacher, student)
    )
    factors = load_file(tmp_path / "lora" / LORA_FILE)
    lost = 0.0
    for name, new in after.items():
        left = (new - before[name]).double()
        stem = f"unet.{name.removesuffix('.weight')}"
        if f"{stem}.lora_A.weight" in factors:
            down, up = (factors[f"{stem}.lora_{part}.weight"].flatten(1) for part in "AB")
            left = left.flatten(1) - up @ down
        lost += left.pow(2).sum().item()
    total = sum((new - before[name]).double().pow(2).sum().item() for name, new in after.items())
    assert made.squared == pytest.approx(total, rel=1e-6)
    assert 1 - made.kept == pytest.approx(lost / total, rel=1e-5)
    assert 0.2 < made.kept < 0.9


def test_the_command_says_what_is_kept_and_where_the_most_is_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(name: str, module: nn.Module) -> None:
        _by_rank_two(name, module)
        if name == "mid_block.resnets.0.conv1":
            module.weight += 0.1 * torch.randn_like(module.weight)

    teacher, student = _pair(tmp_path, change)
    command = ["extract-lora", "--teacher", str(teacher), "--student", str(student / "unet")]
    assert main([*command, "--rank", "2", "--out", str(tmp_path / "lora")]) == 0
    said = capsys.readouterr().out.splitlines()
    share = re.match(r"extract-lora: rank 2 keeps (.*)% of the squared difference", said[0])
    assert share is not None
    assert 10 < float(share[1]) < 99
    assert said[1] == "  no adapter holds 0.00% of it: biases and norms"
    assert said[2].startswith("  mid_block.resnets.0.conv1: ")
    assert f"{tmp_path / 'lora'} is ready" in said[-1]
    # Without --out it lies beside the student; a second time replaces the first.
    command[4] = str(student)
    for _ in range(2):
        assert main([*command, "--rank", "1"]) == 0
    assert [path.name for path in (tmp_path / "student-lora").iterdir()] == [LORA_FILE]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher and its student; one that is broken, one that is torn, one of another form."""
    root = tmp_path_factory.mktemp("pairs")

    def break_one(name: str, module: nn.Module) -> None:
        if name == "mid_block.resnets.0.conv1":
            module.weight.fill_(torch.nan)

    _, broken = _pair(root, break_one)
    broken.rename(root / "broken")
    _, student = _pair(root, _by_rank_two)
    tiny_unet().save_pretrained(root / "other" / "unet")
    shutil.copytree(student, root / "torn")
    weights = root / "torn" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    return root


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--rank", "0", "--rank must be at least 1, got 0"),
        ("--teacher", "nowhere", "--teacher nowhere: no UNet can be read there"),
        ("--student", "nowhere", "--student nowhere: no UNet can be read there"),
        ("--teacher", "{root}/teacher/vae", "is a AutoencoderKL"),
        ("--student", "{root}/other", "--student {root}/other is of another architecture"),
        ("--student", "{root}/torn", "--student {root}/torn: no UNet can be read there"),
        ("--student", "{root}/broken", "--student {root}/broken: mid_block.resnets.0.conv1"),
        ("--teacher", "{root}/broken", "--teacher {root}/broken: mid_block.resnets.0.conv1"),
        ("--student", "{root}/teacher", "there is nothing to extract"),
        ("--out", "{root}/teacher", "--out {root}/teacher: exists and is no adapter"),
    ],
)
def test_what_cannot_be_extracted_is_refused(
    option: str,
    value: str,
    words: str,
    folders: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = {
        "--teacher": str(folders / "teacher"),
        "--student": str(folders / "student"),
        "--rank": "2",
        "--out": str(tmp_path / "lora"),
        option: value.format(root=folders),
    }
    assert main(["extract-lora", *(part for pair in given.items() for part in pair)]) == 2
    said = capsys.readouterr().err
    assert words.format(root=folders) in said
    assert said.startswith("onestep-distill: ")
    assert said.count("\n") == 1
    assert not (tmp_path / "lora").exists()
    assert (folders / "teacher" / "unet" / "config.json").is_file()
