"""Where a training runs: the choice, its refusals, and the state of its generators."""

from __future__ import annotations

import pytest
import torch

from distill.config import ConfigError, override
from distill.presets import preset
from distill.training import device
from distill.training.device import (
    half_precision,
    pick_device,
    precision_words,
    random_state,
    set_random_state,
)

CPU = torch.device("cpu")


def test_auto_takes_what_is_there() -> None:
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert pick_device("auto").type == expected
    assert pick_device("cpu") == CPU


@pytest.mark.parametrize("name", ["gpu", "meta", "", "cuda:99"])
def test_a_device_that_cannot_be_used_is_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match="device") as refusal:
        pick_device(name)
    assert repr(name) in str(refusal.value)


def test_the_random_state_continues_where_it_was_taken() -> None:
    torch.manual_seed(5)
    state = random_state(CPU)
    first = torch.randn(4)
    torch.manual_seed(6)
    set_random_state(state, CPU)
    assert torch.equal(torch.randn(4), first)


def test_half_precision_is_on_only_where_asked_and_of_use(monkeypatch: pytest.MonkeyPatch) -> None:
    a = torch.ones(2, 2)
    monkeypatch.setattr(device, "has_half_units", lambda _: False)
    assert precision_words(CPU, enabled=True) == "float32"
    with half_precision(CPU, enabled=True):
        assert (a @ a).dtype == torch.float32
    monkeypatch.setattr(device, "has_half_units", lambda _: True)
    assert precision_words(CPU, enabled=True) == "bf16"
    with half_precision(CPU, enabled=True):
        assert (a @ a).dtype == torch.bfloat16
    with half_precision(CPU, enabled=False):
        assert (a @ a).dtype == torch.float32


def test_the_device_does_not_decide_whether_a_run_may_be_resumed() -> None:
    config = preset("shapes_tiny")
    moved = override(config, ["device=cuda"])
    assert moved.that_shapes("student") == config.that_shapes("student")
