"""Where the discriminator looks: promised channels, gradients to the picture, refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from distill_fixtures import (
    tiny_codec,
    tiny_config,
    tiny_diffusion,
    tiny_draws,
    tiny_sample,
    tiny_unet,
    tiny_vision_transformer,
    vision_config,
)

from distill.networks.features import (
    Look,
    TeacherEmbedder,
    TeacherFeatures,
    build_embedder,
    build_features,
)
from distill.networks.levels import Levels
from distill.networks.unet import freeze
from distill.networks.vision import VisionEmbedder, VisionFeatures

CPU = torch.device("cpu")
RANGE = Levels(100, 800)


@pytest.fixture(scope="module")
def vision_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vision_transformer(tmp_path_factory.mktemp("dinov2"))


def test_the_teachers_maps_have_the_promised_channels() -> None:
    unet, sample = freeze(tiny_unet()), tiny_sample()
    features = TeacherFeatures(unet, tiny_diffusion(), RANGE)
    assert features.channels == (32, 64, 64)
    latents = sample.latents_BChw.requires_grad_()
    maps = features(Look(latents_BChw=latents), sample.conditioning, tiny_draws())
    assert [tuple(m.shape) for m in maps] == [(2, 32, 8, 8), (2, 64, 4, 4), (2, 64, 4, 4)]
    for m in maps:
        (gradient,) = torch.autograd.grad(m.sum(), latents, retain_graph=True)
        assert gradient.abs().amax((1, 2, 3)).min() > 0
    assert all(p.grad is None for p in unet.parameters())


@torch.no_grad()
def test_the_teachers_last_map_is_what_its_up_blocks_get() -> None:
    """The first half is run by hand here, so it is held against the whole network."""
    unet, sample, diffusion = freeze(tiny_unet()), tiny_sample(), tiny_diffusion()
    caught: list[torch.Tensor] = []
    hook = unet.mid_block.register_forward_hook(lambda m, inputs, output: caught.append(output))
    draws = tiny_draws()
    features = TeacherFeatures(unet, diffusion, RANGE)
    maps = features(Look(latents_BChw=sample.latents_BChw), sample.conditioning, draws)
    caught.clear()
    timestep_B = RANGE.draw(draws)
    noise = draws.normal("feature_noise_fake", (4, 8, 8))
    noisy = diffusion.add_noise(sample.latents_BChw, noise, timestep_B)
    unet(noisy, timestep_B, sample.conditioning.text_embeds_BLD)
    hook.remove()
    torch.testing.assert_close(maps[-1], caught[-1])


@torch.no_grad()
def test_real_and_fake_share_the_level_and_not_the_noise() -> None:
    sample = tiny_sample()
    features = TeacherFeatures(freeze(tiny_unet()), tiny_diffusion(), RANGE)
    look = Look(latents_BChw=sample.latents_BChw)
    first, again, real = (
        features(look, sample.conditioning, tiny_draws(), name)[0]
        for name in ("fake", "fake", "real")
    )
    torch.testing.assert_close(first, again)
    assert (first - real).abs().max() > 1e-3
    at_one = TeacherFeatures(freeze(tiny_unet()), tiny_diffusion(), Levels(0, 0))
    # At the lowest level there is next to no noise, so the two must come together.
    near = [at_one(look, sample.conditioning, tiny_draws(), name)[0] for name in ("fake", "real")]
    assert (near[0] - near[1]).abs().max() < 0.5 * (first - real).abs().max()


@torch.no_grad()
def test_the_text_matters_to_the_teachers_maps() -> None:
    sample = tiny_sample()
    features = TeacherFeatures(freeze(tiny_unet()), tiny_diffusion(), RANGE)
    look = Look(latents_BChw=sample.latents_BChw)
    with_text = features(look, sample.conditioning, tiny_draws())
    without = features(look, sample.empty, tiny_draws())
    assert all((a - b).abs().max() > 1e-4 for a, b in zip(with_text, without, strict=True))


def test_the_config_chooses_the_source(vision_folder: Path) -> None:
    unet, diffusion = freeze(tiny_unet()), tiny_diffusion()
    teacher, vision = tiny_config().student.discriminator, vision_config(vision_folder)
    assert isinstance(build_features(teacher, unet, diffusion, CPU), TeacherFeatures)
    assert isinstance(build_features(vision, unet, diffusion, CPU), VisionFeatures)


@torch.no_grad()
def test_the_config_chooses_who_describes_the_real_picture(vision_folder: Path) -> None:
    unet, sample, codec = freeze(tiny_unet()), tiny_sample(), tiny_codec()
    for condition in ("none", "text"):
        silent = replace(vision_config(vision_folder), condition=condition)
        assert build_embedder(silent, unet, CPU) is None
    from_teacher = build_embedder(vision_config(vision_folder), unet, CPU)
    assert isinstance(from_teacher, TeacherEmbedder)
    assert from_teacher(sample, codec).shape == (2, from_teacher.width) == (2, 64)
    config = replace(
        vision_config(vision_folder), condition="image", image_model=str(vision_folder)
    )
    from_folder = build_embedder(config, unet, CPU)
    assert isinstance(from_folder, VisionEmbedder)
    described = from_folder(sample, codec)
    assert described.shape == (2, 16)
    assert (described[0] - described[1]).abs().max() > 1e-4
