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
)
from transformers import Dinov2Config, Dinov2Model

from distill.config import ConfigError, DiscriminatorConfig
from distill.networks.features import (
    Look,
    TeacherEmbedder,
    TeacherFeatures,
    VisionEmbedder,
    VisionFeatures,
    build_embedder,
    build_features,
    freeze,
)
from distill.networks.levels import Levels

NUM_LAYERS = 3
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def vision_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dinov2")
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=16,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=2,
        mlp_ratio=2,
        image_size=28,
        patch_size=14,
    )
    Dinov2Model(config).save_pretrained(folder)
    return folder


def _config(folder: Path, hooks: tuple[int, ...] = (0, 2)) -> DiscriminatorConfig:
    disc = tiny_config().student.discriminator
    return replace(
        disc,
        features="vision",
        vision_model=str(folder),
        hooks=hooks,
        input_size_px=45,
        augment=(),
    )


RANGE = Levels(100, 800)


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


def _see(features: VisionFeatures, images_BCHW: torch.Tensor) -> list[torch.Tensor]:
    num = len(images_BCHW)
    return features(Look(images_BCHW=images_BCHW), tiny_sample(num).conditioning, tiny_draws(num))


def test_a_folders_maps_have_the_promised_channels(vision_folder: Path) -> None:
    features = VisionFeatures(_config(vision_folder), CPU)
    assert features.channels == (16, 16, 16)
    images = (torch.rand(2, 3, 32, 32) * 2 - 1).requires_grad_()
    maps = _see(features, images)
    # 45 pixels hold three whole patches of 14 along each axis.
    assert [tuple(m.shape) for m in maps] == [(2, 16, 3, 3)] * 3
    for m in maps:
        (gradient,) = torch.autograd.grad(m.pow(2).sum(), images, retain_graph=True)
        assert gradient.abs().amax((1, 2, 3)).min() > 0


def test_pixels_beyond_the_range_keep_their_gradient(vision_folder: Path) -> None:
    features = VisionFeatures(_config(vision_folder), CPU)
    images = torch.full((1, 3, 42, 42), 1.5).requires_grad_()
    (gradient,) = torch.autograd.grad(_see(features, images)[0].pow(2).sum(), images)
    assert gradient.abs().min() > 0


@torch.no_grad()
def test_cells_keep_their_place_in_the_picture(vision_folder: Path) -> None:
    features = VisionFeatures(_config(vision_folder), CPU)
    still = torch.zeros((1, 3, 42, 42))
    touched = still.clone()
    touched[:, :, 14:28, 28:] = 1.0  # middle row, right column
    moved = (_see(features, still)[0] - _see(features, touched)[0]).abs().sum(1)[0]
    assert moved.argmax().item() == 1 * 3 + 2
    assert (moved > 1e-5).sum() == 1


def test_the_config_chooses_the_source(vision_folder: Path) -> None:
    unet, diffusion = freeze(tiny_unet()), tiny_diffusion()
    teacher = tiny_config().student.discriminator
    assert isinstance(build_features(teacher, unet, diffusion, CPU), TeacherFeatures)
    assert isinstance(build_features(_config(vision_folder), unet, diffusion, CPU), VisionFeatures)


@torch.no_grad()
def test_the_config_chooses_who_describes_the_real_picture(vision_folder: Path) -> None:
    unet, sample, codec = freeze(tiny_unet()), tiny_sample(), tiny_codec()
    for condition in ("none", "text"):
        silent = replace(_config(vision_folder), condition=condition)
        assert build_embedder(silent, unet, CPU) is None
    from_teacher = build_embedder(_config(vision_folder), unet, CPU)
    assert isinstance(from_teacher, TeacherEmbedder)
    assert from_teacher(sample, codec).shape == (2, from_teacher.width) == (2, 64)
    config = replace(_config(vision_folder), condition="image", image_model=str(vision_folder))
    from_folder = build_embedder(config, unet, CPU)
    assert isinstance(from_folder, VisionEmbedder)
    described = from_folder(sample, codec)
    assert described.shape == (2, 16)
    assert (described[0] - described[1]).abs().max() > 1e-4


@pytest.mark.parametrize("hooks", [(), (0, NUM_LAYERS), (-1,)])
def test_hooks_that_do_not_exist_are_refused(vision_folder: Path, hooks: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"student\.discriminator\.hooks must lie in 0\.\.2"):
        VisionFeatures(_config(vision_folder, hooks), CPU)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    message = r"student\.discriminator\.vision_model: no model at .*gone"
    with pytest.raises(ConfigError, match=message):
        VisionFeatures(_config(tmp_path / "gone"), CPU)
    config = replace(_config(tmp_path), image_model=str(tmp_path / "gone"))
    with pytest.raises(ConfigError, match=r"student\.discriminator\.image_model: no model"):
        VisionEmbedder(config, CPU)


def test_a_hub_name_without_a_hub_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    config = replace(tiny_config().student.discriminator, vision_model="nobody/no-such-model")
    with pytest.raises(
        ConfigError, match=r"nobody/no-such-model cannot be loaded[\s\S]*give its folder"
    ):
        VisionFeatures(config, CPU)
