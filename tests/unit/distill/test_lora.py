"""Students that train low-rank factors: what they start as, what is trained, kept and written."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from distill_fixtures import resumed, tiny_conditioning, tiny_config, tiny_trainer, tiny_unet
from safetensors.torch import load_file
from torch import nn
from training_process import assert_same

from distill.config import ConfigError, LoraConfig
from distill.networks.conditioning import predict
from distill.networks.lora import LORA_FILE, fused, lora_state, save_lora, with_lora
from distill.networks.unet import freeze, load_unet
from distill.student import initial_student
from distill.training.checkpoint import averaged

LORA = ("student.lora.rank=2", "student.lora.alpha=6", "student.optimizer.lr=0.01")
EVERYWHERE = ("conv1", "conv2", "conv_in", "conv_out", "proj_in", "to_q", "to_out.0", "net.2")
METHODS = {
    "add": (),
    "regression": ("student.method=regression", "student.teacher_steps=2"),
    "ladd": (
        "student.method=ladd",
        "student.lambda_distill=0",
        "student.distill_weight=exponential",
    ),
    "dmd2": (
        "student.method=dmd2",
        "student.distill_space=latent",
        "student.distill_weight=none",
        "student.critic_steps=2",
    ),
}


@torch.no_grad()
def _said(unet: nn.Module) -> torch.Tensor:
    noisy_BChw = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(3))
    return predict(unet, noisy_BChw, torch.tensor([999, 120]), tiny_conditioning())


def _scrambled(unet: UNet2DConditionModel, scale: float = 0.1) -> UNet2DConditionModel:
    """Give the factors that start at zero other values."""
    torch.manual_seed(7)
    for name, parameter in unet.named_parameters():
        if "lora_B" in name:
            parameter.data = scale * torch.randn_like(parameter)
    return unet


def test_the_student_starts_as_the_teacher() -> None:
    teacher = freeze(tiny_unet())
    student = initial_student(teacher, tiny_config(*LORA).student)
    assert student.training
    assert torch.equal(_said(student), _said(teacher))
    assert not torch.equal(_said(_scrambled(student)), _said(teacher))


def test_both_networks_hold_the_same_weights_once() -> None:
    teacher = tiny_unet()
    student = with_lora(teacher, LoraConfig(rank=2))
    shared = {id(p) for p in teacher.parameters()}
    own = {name: p for name, p in student.named_parameters() if id(p) not in shared}
    assert len(shared) + len(own) == len(list(student.parameters()))
    assert all("lora_" in name and p.requires_grad for name, p in own.items())
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not any("lora_" in name for name, _ in teacher.named_parameters())
    # Two attentions a block, four layers each, two factors a layer.
    assert {name.split(".lora_")[0].rpartition("attn")[2][2:] for name in own} == {
        "to_q",
        "to_k",
        "to_v",
        "to_out.0",
    }


@pytest.mark.parametrize("method", METHODS)
def test_only_factors_are_trained_averaged_and_kept(method: str) -> None:
    trainer = tiny_trainer(*LORA, *METHODS[method])
    before = copy.deepcopy(trainer.teacher.unet.state_dict())
    start = _said(trainer.student)
    for _ in range(2):
        metrics = trainer.iterate(1.0)
    assert metrics["skipped"] == 0
    assert metrics["grad_norm"] > 0
    assert all(torch.equal(v, before[k]) for k, v in trainer.teacher.unet.state_dict().items())
    state = trainer.state_dict()
    num_factors = sum("lora_" in name for name in trainer.student.state_dict())
    assert num_factors == len(state["student"]) == len(state["adam_student"]["state"])
    for names in (state["student"], state["ema"]["weights"]):
        assert len(names) == num_factors
        assert all("lora_" in name for name in names)
    assert (_said(trainer.student) - start).abs().max() > 1e-3
    with averaged(trainer.student, trainer.ema):
        assert (_said(trainer.student) - start).abs().max() > 1e-4


@pytest.mark.parametrize("method", METHODS)
def test_a_training_resumes_to_the_bit(method: str) -> None:
    straight, continued = resumed(*LORA, *METHODS[method])
    assert straight["iteration"] == continued["iteration"] == 4
    assert_same(straight, continued)


@pytest.mark.parametrize(
    ("assignments", "words"),
    [
        (["student.lora.rank=-1"], r"student\.lora\.rank must be at least 1, or 0"),
        (["student.lora.alpha=8"], r"student\.lora has no meaning .* set student\.lora\.rank"),
        (['student.lora.target_modules=["to_q"]'], r"student\.lora has no meaning without a rank"),
        (["student.lora.rank=2", "student.lora.alpha=0"], r"student\.lora\.alpha must be above 0"),
        (["student.lora.rank=2", "student.lora.target_modules=[]"], "must name layers of the UNet"),
        (
            ["student.lora.rank=2", 'student.lora.target_modules=["to_q",""]'],
            r"student\.lora\.target_modules must name layers",
        ),
        (
            ["student.lora.rank=2", "student.initialise=random"],
            r'set student\.initialise="teacher", or student\.lora\.rank=0',
        ),
    ],
)
def test_values_that_make_no_adapter_are_refused(assignments: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        tiny_config(*assignments)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("to_k2", r"target_modules: 'to_k2' names no layer of this UNet; .* to_k, to_out\.0, to_q"),
        ("attn1", "'attn1' names more than linear and convolution layers"),
        ("norm1", "'norm1' names more than linear and convolution layers"),
        ("o_q", "'o_q' names no layer"),
    ],
)
def test_a_target_that_is_no_layer_is_refused(target: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        with_lora(tiny_unet(), LoraConfig(rank=2, target_modules=("to_q", target)))


def test_the_fused_network_says_what_the_adapted_one_does() -> None:
    teacher = tiny_unet()
    config = LoraConfig(rank=3, alpha=5.0, target_modules=EVERYWHERE)
    student = _scrambled(with_lora(teacher, config)).eval()
    adapted, whole = _said(student), fused(student)
    torch.testing.assert_close(_said(whole), adapted, atol=2e-5, rtol=1e-4)
    assert (adapted - _said(teacher)).abs().max() > 0.05
    # A plain network again, and the one it came from as it was.
    assert whole.state_dict().keys() == teacher.state_dict().keys()
    assert torch.equal(_said(student), adapted)


def test_the_files_product_is_the_whole_difference(tmp_path: Path) -> None:
    teacher = tiny_unet()
    config = LoraConfig(rank=3, alpha=5.0, target_modules=EVERYWHERE)
    student = _scrambled(with_lora(teacher, config)).eval()
    save_lora(tmp_path, lora_state(student))
    stored = load_file(tmp_path / LORA_FILE)
    assert not any("alpha" in name for name in stored)
    weights, whole = teacher.state_dict(), fused(student).state_dict()
    names = {name.removeprefix("unet.").split(".lora_")[0] for name in stored}
    assert names == {
        n.removesuffix(".weight") for n in weights if not torch.equal(weights[n], whole[n])
    }
    for name in names:
        down, up = (stored[f"unet.{name}.lora_{part}.weight"].flatten(1) for part in "AB")
        difference = (whole[f"{name}.weight"] - weights[f"{name}.weight"]).flatten(1)
        torch.testing.assert_close(up @ down, difference, atol=1e-6, rtol=1e-4)


def test_a_finished_student_is_written_fused_and_as_an_adapter(tmp_path: Path) -> None:
    trainer = tiny_trainer(*LORA)
    for _ in range(3):
        trainer.iterate(1.0)
    trainer.save_model(tmp_path)
    with averaged(trainer.student, trainer.ema):
        expected = _said(trainer.student)
    assert (expected - _said(trainer.student)).abs().max() > 1e-4
    torch.testing.assert_close(_said(load_unet(tmp_path).eval()), expected, atol=2e-5, rtol=1e-4)
    reader = copy.deepcopy(trainer.teacher.unet)
    reader.load_lora_adapter(tmp_path / "lora", prefix="unet", weight_name=LORA_FILE)
    torch.testing.assert_close(_said(reader), expected, atol=2e-5, rtol=1e-4)


def test_a_student_of_full_rank_writes_no_adapter(tmp_path: Path) -> None:
    tiny_trainer().save_model(tmp_path)
    assert (tmp_path / "unet" / "config.json").is_file()
    assert not (tmp_path / "lora").exists()
