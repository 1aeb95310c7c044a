"""Memory for time: batches in parts, activations computed twice; and what a process is dealt."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL
from distill_fixtures import tiny_config, tiny_trainer
from peak_memory import peak_of
from torch import nn

from distill.autoencoder import build_autoencoder
from distill.config import ConfigError
from distill.networks.codec import Codec
from distill.training.processes import ALONE, Processes, dealt_like, local, whole

SAME = ("scale.micro_batch_size=1", 'scale.recompute=["decoder","student"]')


def _losses(*settings: str) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    trainer = tiny_trainer(*settings)
    metrics = [dict(trainer.iterate(1.0)) for _ in range(2)]
    return metrics, trainer.student.state_dict()


@pytest.mark.parametrize("settings", [SAME[:1], SAME[1:], SAME], ids=["parts", "again", "both"])
def test_what_saves_memory_changes_no_result(settings: tuple[str, ...]) -> None:
    plain, weights = _losses()
    saved, others = _losses(*settings)
    for a, b in zip(plain, saved, strict=True):
        for name in ("loss_d", "loss_adversarial", "loss_distill", "grad_norm"):
            assert b[name] == pytest.approx(a[name], rel=2e-3, abs=1e-6), name
    for name, value in weights.items():
        assert (value - others[name]).abs().mean() < 1e-4, name


def _deep_codec() -> Codec:
    torch.manual_seed(0)
    config = tiny_config("autoencoder.decoder_layers=[3,3,3]").autoencoder
    return Codec(build_autoencoder(config))


def _kl_codec() -> Codec:
    torch.manual_seed(0)
    return Codec(
        AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(16, 32),
            layers_per_block=2,
            norm_num_groups=8,
        )
    )


@pytest.mark.parametrize("build", [_deep_codec, _kl_codec], ids=["deep compression", "kl"])
def test_a_decoder_computed_again_gives_the_same_gradient_in_less_memory(build: object) -> None:
    assert callable(build)
    gradients, peaks = [], []
    for is_again in (False, True):
        codec = build()
        if is_again:
            codec.recompute()
        torch.manual_seed(1)
        latents = torch.randn(2, codec.latent_channels, 16, 16, requires_grad=True)

        def run(codec: Codec = codec, latents: torch.Tensor = latents) -> None:
            codec.decode(latents).pow(2).mean().backward()

        peaks.append(peak_of(run))
        assert latents.grad is not None
        gradients.append(latents.grad.clone())
    torch.testing.assert_close(gradients[1], gradients[0])
    assert peaks[1] < 0.8 * peaks[0]


def test_an_autoencoder_without_blocks_is_refused_by_name() -> None:
    class Plain(nn.Module):
        config: dict[str, float] = {}  # noqa: RUF012  # as diffusers' models have it
        _supports_gradient_checkpointing = False

    with pytest.raises(ConfigError, match=r"Plain .*scale\.recompute"):
        Codec(Plain()).recompute()


def test_processes_deal_a_batch_out_side_by_side() -> None:
    parts = [Processes(rank, 3).part(12) for rank in range(3)]
    assert [list(part) for part in parts] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert ALONE.part(12) == range(12)


def test_alone_nothing_is_wrapped_or_changed() -> None:
    network = nn.Linear(2, 2)
    assert ALONE.share(network, tiny_config("scale.strategy=fsdp"), is_large=True) is network
    assert ALONE.mean({"loss": 0.5}) == {"loss": 0.5}
    assert ALONE.any(True, False) == (True, False)
    assert ALONE.of_main(3.0) == 3.0
    state = {"a": [torch.ones(2)], "b": 1}
    assert whole(state)["a"][0] is state["a"][0]  # type: ignore[index]  # values differ in kind
    assert local(network.weight) is network.weight
    assert dealt_like(network.bias, network.weight) is network.bias


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_one_bad_number_is_found_among_all(bad: float) -> None:
    good = [torch.ones(3), torch.zeros(2, 2)]
    assert ALONE.are_finite(good)
    assert ALONE.are_finite([])
    assert not ALONE.are_finite([*good, torch.tensor([1.0, bad])])
