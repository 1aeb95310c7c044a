"""Where the discriminator looks: promised channels, gradients to the picture, refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from distill_fixtures import tiny_codec, tiny_config, tiny_diffusion, tiny_sample, tiny_unet
from transformers import Dinov2Config, Dinov2Model

from distill.config import ConfigError, DiscriminatorConfig
from distill.features import FolderFeatures, TeacherFeatures, build_features, freeze

NUM_LAYERS = 3


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


def _config(folder: Path | None, hooks: tuple[int, ...] = (0, 2)) -> DiscriminatorConfig:
    disc = tiny_config().student.discriminator
    return replace(
        disc,
        features="folder",
        folder=None if folder is None else str(folder),
        hooks=hooks,
        input_size_px=45,
    )


def test_the_teachers_maps_have_the_promised_channels() -> None:
    unet, sample = freeze(tiny_unet()), tiny_sample()
    features = TeacherFeatures(unet, tiny_diffusion())
    assert features.channels == (32, 64, 64)
    latents = sample.latents_BChw.requires_grad_()
    maps = features(latents, sample.text_embeds_BLD, torch.tensor([100, 800]))
    assert [tuple(m.shape) for m in maps] == [(2, 32, 8, 8), (2, 64, 4, 4), (2, 64, 4, 4)]
    for m in maps:
        (gradient,) = torch.autograd.grad(m.sum(), latents, retain_graph=True)
        assert gradient.abs().amax((1, 2, 3)).min() > 0
    assert all(p.grad is None for p in unet.parameters())


@torch.no_grad()
def test_the_teachers_last_map_is_what_its_up_blocks_get() -> None:
    """The first half is run by hand here, so it is held against the whole network."""
    unet, sample, diffusion = freeze(tiny_unet()), tiny_sample(), tiny_diffusion()
    timestep_B = torch.tensor([100, 800])
    caught: list[torch.Tensor] = []
    hook = unet.mid_block.register_forward_hook(lambda m, inputs, output: caught.append(output))
    torch.manual_seed(0)
    maps = TeacherFeatures(unet, diffusion)(sample.latents_BChw, sample.text_embeds_BLD, timestep_B)
    torch.manual_seed(0)
    noise = torch.randn_like(sample.latents_BChw)
    noisy = diffusion.add_noise(sample.latents_BChw, noise, timestep_B)
    unet(noisy, timestep_B, sample.text_embeds_BLD)
    hook.remove()
    torch.testing.assert_close(maps[-1], caught[-1])


def test_the_text_matters_to_the_teachers_maps() -> None:
    sample = tiny_sample()
    features = TeacherFeatures(freeze(tiny_unet()), tiny_diffusion())

    def maps(text_embeds_BLD: torch.Tensor) -> list[torch.Tensor]:
        torch.manual_seed(0)
        return features(sample.latents_BChw, text_embeds_BLD, torch.tensor([100, 800]))

    pairs = zip(maps(sample.text_embeds_BLD), maps(sample.empty_embeds_BLD), strict=True)
    assert all((a - b).abs().max() > 1e-4 for a, b in pairs)


def test_a_folders_maps_have_the_promised_channels(vision_folder: Path) -> None:
    sample = tiny_sample()
    features = FolderFeatures(_config(vision_folder), tiny_codec())
    assert features.channels == (16, 16, 16)
    latents = sample.latents_BChw.requires_grad_()
    maps = features(latents, sample.text_embeds_BLD, torch.tensor([0, 0]))
    # 45 pixels hold three whole patches of 14 along each axis.
    assert [tuple(m.shape) for m in maps] == [(2, 16, 3, 3)] * 3
    for m in maps:
        (gradient,) = torch.autograd.grad(m.pow(2).sum(), latents, retain_graph=True)
        assert gradient.abs().amax((1, 2, 3)).min() > 0


@torch.no_grad()
def test_cells_keep_their_place_in_the_picture(vision_folder: Path) -> None:
    codec = tiny_codec()
    features = FolderFeatures(_config(vision_folder), codec)
    still = torch.zeros((1, 3, 42, 42))
    touched = still.clone()
    touched[:, :, 14:28, 28:] = 1.0  # middle row, right column

    def first_map(images_BCHW: torch.Tensor) -> torch.Tensor:
        codec.decode = lambda latents_BChw: images_BCHW  # type: ignore[method-assign]  # a picture
        return features(torch.zeros(1), torch.zeros(1), torch.zeros(1))[0]

    moved = (first_map(still) - first_map(touched)).abs().sum(1)[0]
    assert moved.argmax().item() == 1 * 3 + 2
    assert (moved > 1e-5).sum() == 1


def test_the_config_chooses_the_source(vision_folder: Path) -> None:
    unet, codec, diffusion = freeze(tiny_unet()), tiny_codec(), tiny_diffusion()
    teacher = tiny_config().student.discriminator
    assert isinstance(build_features(teacher, unet, diffusion, codec), TeacherFeatures)
    folder = _config(vision_folder)
    assert isinstance(build_features(folder, unet, diffusion, codec), FolderFeatures)


@pytest.mark.parametrize("hooks", [(), (0, NUM_LAYERS), (-1,)])
def test_hooks_that_do_not_exist_are_refused(vision_folder: Path, hooks: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"student\.discriminator\.hooks must lie in 0\.\.2"):
        FolderFeatures(_config(vision_folder, hooks), tiny_codec())


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    message = r"student\.discriminator\.folder: no model at .*gone"
    with pytest.raises(ConfigError, match=message):
        FolderFeatures(_config(tmp_path / "gone"), tiny_codec())
