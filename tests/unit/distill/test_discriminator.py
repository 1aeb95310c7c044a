"""The heads: shapes, what they listen to, and that they hold their gain."""

from __future__ import annotations

import pytest
import torch

from distill.networks.discriminator import Discriminator, renew_norms


@pytest.fixture
def heads() -> Discriminator:
    torch.manual_seed(0)
    return Discriminator((8, 12), condition_width=6, width=16)


def _features(num: int) -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [torch.randn(num, 8, 4, 4), torch.randn(num, 12, 2, 2)]


@pytest.mark.parametrize("num", [1, 3])
def test_every_cell_of_every_map_is_judged(heads: Discriminator, num: int) -> None:
    logits = heads(_features(num), torch.randn(num, 6))
    assert [tuple(map_Bhw.shape) for map_Bhw in logits] == [(num, 4, 4), (num, 2, 2)]


def test_the_condition_matters(heads: Discriminator) -> None:
    features = _features(1)
    a, b = heads(features, torch.zeros(1, 6)), heads(features, torch.ones(1, 6))
    assert all((x - y).abs().max() > 0.01 for x, y in zip(a, b, strict=True))


def test_the_picture_matters(heads: Discriminator) -> None:
    logits = heads(_features(2), torch.ones(2, 6))
    assert all((x[0] - x[1]).abs().max() > 0.01 for x in logits)


def test_a_sample_is_judged_without_its_batch_mates(heads: Discriminator) -> None:
    features, condition = _features(3), torch.randn(3, 6)
    together = heads(features, condition)
    alone = heads([f[1:2] for f in features], condition[1:2])
    for x, y in zip(together, alone, strict=True):
        torch.testing.assert_close(x[1:2], y)


def test_a_feature_map_too_few_is_an_error(heads: Discriminator) -> None:
    with pytest.raises(ValueError, match="shorter"):
        heads(_features(1)[:1], torch.zeros(1, 6))


def test_the_convolutions_gain_is_one(heads: Discriminator) -> None:
    for _ in range(60):
        renew_norms(heads)
    for name in ("reduce", "mix", "out"):
        weight = getattr(heads.heads[0], name).weight.flatten(1)
        assert torch.linalg.matrix_norm(weight, 2).item() == pytest.approx(1.0, abs=0.01)


def test_looking_moves_no_norm_and_renewing_does(heads: Discriminator) -> None:
    before = {name: value.clone() for name, value in heads.named_buffers()}
    heads(_features(3), torch.zeros(3, 6))
    assert all(torch.equal(value, before[name]) for name, value in heads.named_buffers())
    with torch.no_grad():
        heads.heads[0].mix.parametrizations.weight.original.add_(
            torch.randn(heads.heads[0].mix.weight.shape)
        )
    renew_norms(torch.nn.ModuleDict({"heads": heads}))
    moved = [not torch.equal(value, before[name]) for name, value in heads.named_buffers()]
    assert any(moved)
    assert not heads.training
