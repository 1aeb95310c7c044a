"""The judging networks: what they see, what their card says, and what a missing part is told."""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from distill_fixtures import squeezenet_arrays
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from transformers import Dinov2Config, Dinov2Model

from distill.config import ConfigError
from distill.evaluation.clip import Clip
from distill.evaluation.dinov2 import Dino
from distill.evaluation.inception import Inception
from distill.evaluation.networks import NetworkCard
from distill.evaluation.squeezenet import SqueezeNet, resized


@pytest.fixture(scope="module")
def network_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("squeezenet") / "weights.npz"
    np.savez(path, **squeezenet_arrays())
    return path


def _pictures(num: int, side_px: int = 128) -> NDArray[np.uint8]:
    shape = (num, side_px, side_px, 3)
    return np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)


def test_squeezenet_describes_pictures_the_same_every_time(network_file: Path) -> None:
    network = SqueezeNet(network_file)
    described = network.describe(_pictures(3), batch_size=2)
    assert described.pooled_ND.shape == (3, 512)
    assert described.pooled_ND.dtype == np.float64
    channels = 2 * (128 + 256 + 384 + 512)
    assert described.layout_ND.shape == (3, channels * 4 * 4)
    again = SqueezeNet(network_file).describe(_pictures(3), batch_size=2)
    assert np.array_equal(again.pooled_ND, described.pooled_ND)
    assert np.array_equal(again.layout_ND, described.layout_ND)
    together = network.describe(_pictures(3), batch_size=3)
    np.testing.assert_allclose(together.pooled_ND, described.pooled_ND, rtol=1e-3)
    # Every block has unit length, so no block outweighs the others.
    assert np.linalg.norm(described.layout_ND, axis=1) == pytest.approx([8**0.5] * 3)
    assert np.abs(described.pooled_ND[0] - described.pooled_ND[1]).max() > 1e-3


def test_squeezenet_names_its_weights_and_its_resize(network_file: Path) -> None:
    card = SqueezeNet(network_file).card
    assert card.weights_sha256 == hashlib.sha256(network_file.read_bytes()).hexdigest()
    assert "128 px, bicubic" in card.resize
    assert card.is_neutral


def test_small_pictures_are_brought_to_the_pinned_size(network_file: Path) -> None:
    """A 64 px picture counts as the 128 px one that Pillow's bicubic filter makes of it."""
    small = _pictures(2, 64)
    grown = np.stack(
        [np.asarray(Image.fromarray(x).resize((128, 128), Image.Resampling.BICUBIC)) for x in small]
    )
    network = SqueezeNet(network_file)
    ours, theirs = network.describe(small), network.describe(grown)
    np.testing.assert_allclose(ours.layout_ND, theirs.layout_ND, atol=0.02)
    untouched = torch.from_numpy(_pictures(1)).permute(0, 3, 1, 2).float()
    assert resized(untouched, 128) is untouched
    halved = resized(untouched, 64)[0].permute(1, 2, 0).round().numpy()
    by_pillow = np.asarray(
        Image.fromarray(_pictures(1)[0]).resize((64, 64), Image.Resampling.BICUBIC), dtype=float
    )
    # Pillow rounds between its two passes.
    assert np.abs(halved - by_pillow).max() <= 2
    assert np.abs(halved - by_pillow).mean() < 0.3


def test_squeezenet_reads_blue_first(network_file: Path, tmp_path: Path) -> None:
    """Caffe's order: the first input channel of conv1 is blue, less its mean of 104."""
    arrays = squeezenet_arrays()
    arrays["conv1_w"][:] = 0
    arrays["conv1_w"][:, 0] = 1
    np.savez(tmp_path / "blue.npz", **arrays)
    network = SqueezeNet(tmp_path / "blue.npz")
    dark, blue, red = (np.zeros((1, 64, 64, 3), dtype=np.uint8) for _ in range(3))
    blue[..., 2] = 255
    red[..., 0] = 255
    pooled = [network.describe(picture).pooled_ND for picture in (dark, blue, red)]
    assert np.array_equal(pooled[0], pooled[2])
    assert not np.array_equal(pooled[0], pooled[1])


@pytest.mark.parametrize("network", [SqueezeNet, Inception, Clip.load])
def test_a_missing_file_is_named(network: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--(features|inception|clip): no file at .*gone"):
        network(tmp_path / "gone.bin")


def test_a_missing_layer_is_named(tmp_path: Path) -> None:
    arrays = squeezenet_arrays()
    del arrays["fire5_conv3x3_2_w"], arrays["fire9_conv1x1_1_b"]
    np.savez(tmp_path / "a.npz", **arrays)
    message = r"a\.npz lacks fire5_conv3x3_2, fire9_conv1x1_1"
    with pytest.raises(ConfigError, match=message):
        SqueezeNet(tmp_path / "a.npz")


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut"])
def test_a_file_that_is_no_archive_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ConfigError, match=r"--features: .*a\.npz is no \.npz archive of arrays"):
        SqueezeNet(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("network", "package", "module", "option"),
    [
        (Inception, "torch-fidelity", "torch_fidelity", "--inception"),
        (Clip.load, "open_clip_torch", "open_clip", "--clip"),
    ],
)
def test_a_missing_package_names_the_extra(
    network: Any,
    package: str,
    module: str,
    option: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real_import = importlib.import_module

    def without(name: str, *rest: Any) -> ModuleType:
        if name.startswith(module):
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)
        return real_import(name, *rest)

    monkeypatch.setattr(importlib, "import_module", without)
    (tmp_path / "weights.pth").write_bytes(b"x")
    with pytest.raises(ConfigError) as caught:
        network(tmp_path / "weights.pth")
    words = str(caught.value)
    assert words.startswith(f"{option} needs {package} (No module named {module!r})")
    assert "pip install 'onestep[evaluate]'" in words


class _TinyClip(nn.Module):
    """Two towers of one linear layer each, called as open_clip's models are."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image = nn.Linear(3 * 4 * 4, 8)
        self.text = nn.Embedding(128, 8)

    def encode_image(self, image: torch.Tensor, normalize: bool = False) -> torch.Tensor:
        features: torch.Tensor = self.image(image.flatten(1))
        return features

    def encode_text(self, text: torch.Tensor, normalize: bool = False) -> torch.Tensor:
        features: torch.Tensor = self.text(text).mean(1)
        return features


def _prepare(image: Image.Image) -> torch.Tensor:
    small = np.asarray(image.resize((4, 4)), dtype=np.float32) / 255
    return torch.from_numpy(small).permute(2, 0, 1)


def _tokenize(prompts: list[str]) -> torch.Tensor:
    return torch.tensor([[ord(c) for c in f"{prompt:6.6}"] for prompt in prompts])


def test_the_clip_score_is_the_cosine_of_each_picture_with_its_own_prompt() -> None:
    model = _TinyClip()
    clip = Clip(model, _prepare, _tokenize, NetworkCard("clip", "", "", ""))
    pictures, prompts = _pictures(5, 16), ["cat", "dog", "owl", "fox", "emu"]
    found = clip.scores(pictures, prompts, batch_size=2)
    for i, prompt in enumerate(prompts):
        with torch.no_grad():
            a = model.encode_image(_prepare(Image.fromarray(pictures[i]))[None])[0].numpy()
            b = model.encode_text(_tokenize([prompt]))[0].numpy()
        expected = a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
        assert found[i] == pytest.approx(expected, abs=1e-5)
    assert np.ptp(found) > 0.01


@pytest.fixture(scope="module")
def dino_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dino")
    torch.manual_seed(0)
    settings = Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=56, patch_size=14
    )
    Dinov2Model(settings).save_pretrained(folder)
    return folder


def test_dino_is_reported_and_never_chooses(dino_folder: Path) -> None:
    network = Dino(dino_folder)
    described = network.describe(_pictures(3, 64), batch_size=2)
    assert described.pooled_ND.shape == (3, 16)
    assert np.abs(described.pooled_ND[0] - described.pooled_ND[1]).max() > 1e-4
    assert not network.card.is_neutral
    assert "never used to choose" in network.card.note
    weights = (dino_folder / "model.safetensors").read_bytes()
    assert network.card.weights_sha256 == hashlib.sha256(weights).hexdigest()
    with pytest.raises(ConfigError, match="--dino: no model at"):
        Dino(dino_folder / "gone")
