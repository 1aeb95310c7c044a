"""The optimizer that a configuration names: AdamW in 32 bits, or with its moments in 8."""

from __future__ import annotations

import io
import sys

import pytest
import torch
from distill_fixtures import resumed
from torch import nn

from distill.config import ConfigError, OptimizerConfig, override
from distill.presets import preset
from distill.training.optimizers import adamw


def _updated(optimizer: torch.optim.Optimizer, network: nn.Linear, num: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    for _ in range(num):
        optimizer.zero_grad()
        batch = torch.randn(8, 128, generator=generator)
        (network(batch) - batch.roll(1, dims=1)).pow(2).mean().backward()
        optimizer.step()
    return network.weight.detach().clone()


def _network() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(128, 128)


def test_the_first_update_is_the_textbooks() -> None:
    config = OptimizerConfig(lr=0.01, beta1=0.9, beta2=0.99, weight_decay=0.1)
    network = _network()
    before = network.weight.detach().clone()
    after = _updated(adamw(network.parameters(), config), network, 1)
    assert network.weight.grad is not None
    # After one update both moments are the gradient's own, whatever the betas.
    # Source: arXiv:1711.05101, algorithm 2.
    gradient = network.weight.grad
    expected = before * (1 - 0.01 * 0.1) - 0.01 * gradient / (gradient.abs() + 1e-8)
    torch.testing.assert_close(after, expected)


def test_eight_bits_train_nearly_alike_in_a_quarter_of_the_memory() -> None:
    moved, sizes = {}, {}
    start = _network().weight.detach().clone()
    for bits in (32, 8):
        network = _network()
        config = OptimizerConfig(lr=1e-3, bits=bits)
        optimizer = adamw([network.weight], config)
        moved[bits] = _updated(optimizer, network, 30) - start
        stream = io.BytesIO()
        torch.save(optimizer.state_dict()["state"], stream)
        sizes[bits] = stream.tell()
    gap = (moved[8] - moved[32]).norm() / moved[32].norm()
    assert 0 < gap < 0.1
    assert sizes[8] < 0.35 * sizes[32]


def test_a_weight_decay_of_its_own_takes_the_place_of_the_configs() -> None:
    network = _network()
    made = adamw(network.parameters(), OptimizerConfig(weight_decay=0.5), weight_decay=0.0)
    assert [group["weight_decay"] for group in made.param_groups] == [0.0]


def test_a_resumed_run_in_eight_bits_is_the_same_run() -> None:
    straight, continued = resumed("student.optimizer.bits=8")
    for name, value in straight["student"].items():
        assert torch.equal(value, continued["student"][name]), name


def test_the_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(ConfigError, match=r"adam8bit"):
        adamw(_network().parameters(), OptimizerConfig(bits=8))


def test_settings_that_cannot_work_are_refused() -> None:
    base = preset("shapes_tiny")
    with pytest.raises(ConfigError, match=r"student\.optimizer\.bits"):
        override(base, ["student.optimizer.bits=16"])
    with pytest.raises(ConfigError, match=r"choose one of the two"):
        override(base, ["student.optimizer.bits=8", "scale.strategy=fsdp"])
    with pytest.raises(ConfigError, match=r"scale\.micro_batch_size"):
        override(base, ["scale.micro_batch_size=0"])
    with pytest.raises(ConfigError, match=r"student\.lora\.rank .*ddp"):
        override(base, ["student.lora.rank=4", "scale.strategy=fsdp"])
