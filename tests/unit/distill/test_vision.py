"""Vision models as features: whose maps, how pictures are given to them, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from distill_fixtures import (
    tiny_codec,
    tiny_config,
    tiny_draws,
    tiny_sample,
    tiny_vision_transformer,
    vision_config,
)
from transformers import (
    ConvNextConfig,
    ConvNextModel,
    EfficientNetConfig,
    EfficientNetModel,
)

from distill.config import ConfigError
from distill.networks.features import Look
from distill.networks.vision import VisionEmbedder, VisionFeatures, VisionModel

CPU = torch.device("cpu")
MEAN, STD = (
    torch.tensor(levels).view(3, 1, 1) for levels in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
)


@pytest.fixture(scope="module")
def vision_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vision_transformer(tmp_path_factory.mktemp("dinov2"))


@pytest.fixture(scope="module")
def convolutional_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three blocks, whose maps have 16, 24 and 40 channels at a half, a quarter, an eighth."""
    folder = tmp_path_factory.mktemp("efficientnet")
    torch.manual_seed(0)
    config = EfficientNetConfig(
        in_channels=[32, 16, 24],
        out_channels=[16, 24, 40],
        kernel_sizes=[3, 3, 5],
        strides=[1, 2, 2],
        num_block_repeats=[1, 1, 1],
        expand_ratios=[1, 6, 6],
        width_coefficient=1.0,
        depth_coefficient=1.0,
        hidden_dim=1280,
        # Random weights as small as the usual ones would leave nothing of a picture.
        initializer_range=0.2,
    )
    EfficientNetModel(config).save_pretrained(folder)
    return folder


def _see(features: VisionFeatures, images_BCHW: torch.Tensor) -> list[torch.Tensor]:
    num = len(images_BCHW)
    return features(Look(images_BCHW=images_BCHW), tiny_sample(num).conditioning, tiny_draws(num))


def test_a_folders_maps_have_the_promised_channels(vision_folder: Path) -> None:
    features = VisionFeatures(vision_config(vision_folder), CPU)
    assert features.channels == (16, 16, 16)
    images = (torch.rand(2, 3, 32, 32) * 2 - 1).requires_grad_()
    maps = _see(features, images)
    # 45 pixels hold three whole patches of 14 along each axis.
    assert [tuple(m.shape) for m in maps] == [(2, 16, 3, 3)] * 3
    for m in maps:
        (gradient,) = torch.autograd.grad(m.pow(2).sum(), images, retain_graph=True)
        assert gradient.abs().amax((1, 2, 3)).min() > 0


def test_pixels_beyond_the_range_keep_their_gradient(vision_folder: Path) -> None:
    features = VisionFeatures(vision_config(vision_folder), CPU)
    images = torch.full((1, 3, 42, 42), 1.5).requires_grad_()
    (gradient,) = torch.autograd.grad(_see(features, images)[0].pow(2).sum(), images)
    assert gradient.abs().min() > 0


@torch.no_grad()
def test_cells_keep_their_place_in_the_picture(vision_folder: Path) -> None:
    features = VisionFeatures(vision_config(vision_folder), CPU)
    still = torch.zeros((1, 3, 42, 42))
    touched = still.clone()
    touched[:, :, 14:28, 28:] = 1.0  # middle row, right column
    moved = (_see(features, still)[0] - _see(features, touched)[0]).abs().sum(1)[0]
    assert moved.argmax().item() == 1 * 3 + 2
    assert (moved > 1e-5).sum() == 1


@pytest.mark.parametrize("hooks", [(), (0, 3), (-1,)])
def test_hooks_that_do_not_exist_are_refused(vision_folder: Path, hooks: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"student\.discriminator\.hooks must lie in 0\.\.2"):
        VisionFeatures(vision_config(vision_folder, hooks), CPU)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    message = r"student\.discriminator\.vision_model: no model at .*gone"
    with pytest.raises(ConfigError, match=message):
        VisionFeatures(vision_config(tmp_path / "gone"), CPU)
    config = replace(vision_config(tmp_path), image_model=str(tmp_path / "gone"))
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


def test_a_convolutional_networks_maps_are_those_of_the_hooked_blocks(
    convolutional_folder: Path,
) -> None:
    config = replace(vision_config(convolutional_folder, hooks=(1, 2)), input_size_px=70)
    features = VisionFeatures(config, CPU)
    assert features.channels == (24, 40)
    images = (torch.rand(2, 3, 32, 32) * 2 - 1).requires_grad_()
    maps = _see(features, images)
    # 70 pixels are rounded down to twice 32.
    assert [tuple(m.shape) for m in maps] == [(2, 24, 16, 16), (2, 40, 8, 8)]
    for m in maps:
        (gradient,) = torch.autograd.grad(m.pow(2).sum(), images, retain_graph=True)
        assert gradient.abs().amax((1, 2, 3)).min() > 0
    with pytest.raises(ConfigError, match=r"hooks must lie in 0\.\.2"):
        VisionFeatures(replace(config, hooks=(3,)), CPU)


@torch.no_grad()
def test_a_convolutional_network_may_have_patches(tmp_path: Path) -> None:
    """ConvNeXt's first layer cuts the picture into them; what it gives are maps all the same."""
    torch.manual_seed(0)
    config = ConvNextConfig(num_stages=2, hidden_sizes=[8, 16], depths=[1, 1], patch_size=4)
    ConvNextModel(config).save_pretrained(tmp_path)
    features = VisionFeatures(replace(vision_config(tmp_path, hooks=(1,)), input_size_px=34), CPU)
    assert features.channels == (16,)
    (found,) = _see(features, torch.rand(2, 3, 32, 32) * 2 - 1)
    assert found.shape == (2, 16, 4, 4)


@torch.no_grad()
def test_a_convolutional_network_describes_a_picture_by_its_mean(
    convolutional_folder: Path,
) -> None:
    config = replace(
        vision_config(convolutional_folder),
        condition="image",
        image_model=str(convolutional_folder),
        input_size_px=64,
    )
    embedder, sample, codec = VisionEmbedder(config, CPU), tiny_sample(), tiny_codec()
    described = embedder(sample, codec)
    assert described.shape == (2, embedder.width) == (2, 1280)
    images_BCHW = sample.real_images(codec)
    model = EfficientNetModel.from_pretrained(convolutional_folder).eval()
    inputs = torch.nn.functional.interpolate(
        ((images_BCHW + 1) / 2 - MEAN) / STD, size=(64, 64), mode="bilinear", antialias=True
    )
    torch.testing.assert_close(described, model(inputs).last_hidden_state.flatten(2).mean(2))


@torch.no_grad()
def test_a_folder_may_name_its_own_levels(vision_folder: Path, tmp_path: Path) -> None:
    """What DINOv2's folder names are ImageNet's; others are trained on other ones."""
    plain = VisionModel(str(vision_folder), "field", 42, CPU)
    own = tiny_vision_transformer(tmp_path)
    levels = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}
    (own / "preprocessor_config.json").write_text(json.dumps(levels))
    named = VisionModel(str(own), "field", 42, CPU)
    # The same input to the network, in the levels of each.
    values = torch.rand(1, 3, 42, 42)
    from_plain = plain.described((values * STD + MEAN) * 2 - 1)
    torch.testing.assert_close(named.described((values * 0.25 + 0.5) * 2 - 1), from_plain)
    assert (named.described((values * STD + MEAN) * 2 - 1) - from_plain).abs().max() > 1e-4
