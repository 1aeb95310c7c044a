"""What a judging network is, and which ones a command names.

Owns the protocol, the card that every result carries, and the loading by option. A network is for
judging only; no training may look through it, and one that a training did look through is marked.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from distill.config import ConfigError

# Shape suffixes: N pictures, D width of a feature vector.


@dataclass(frozen=True)
class NetworkCard:
    """Which network judged, so that figures of different judges are never set side by side.

    Attributes:
        name: of the network.
        weights_sha256: of the file of its weights.
        resize: filter and size, as the pictures are brought to the network.
        features: which of its outputs are compared.
        is_scaled: the Fréchet distance is in units of the real features' total variance and the
            kernel distance is taken of features divided by their root mean variance; where a
            network has an established scale, as Inception, nothing is scaled.
        is_neutral: no discriminator of this project looks through it, so it may choose.
        note: what a reader must know.
    """

    name: str
    weights_sha256: str
    resize: str
    features: str
    is_scaled: bool = False
    is_neutral: bool = True
    note: str = ""
    precision: str = "float32"


@dataclass(frozen=True)
class Description:
    """Pictures as vectors.

    Attributes:
        pooled_ND: float64, without places: for distances between sets.
        layout_ND: float32, with places where the network gives them: for distances between
            pictures.
    """

    pooled_ND: NDArray[np.float64]
    layout_ND: NDArray[np.float32]


class Network(Protocol):
    """Pictures to feature vectors."""

    card: NetworkCard

    def describe(self, images_NHWC: NDArray[np.uint8], batch_size: int = 64) -> Description:
        """Describe uint8 pictures of any size."""
        ...


def sha256_of(path: Path) -> str:
    """Hash of a file of weights."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def needs(package: str, option: str, error: ImportError) -> ConfigError:
    """The error where an optional package is missing, or lacks something itself."""
    return ConfigError(
        f"{option} needs {package} ({error}): pip install 'onestep[evaluate]', and give the "
        "weights as a local file; nothing is downloaded"
    )


def require_file(path: Path, option: str) -> None:
    """Refuse a path that is no file.

    Raises:
        ConfigError: there is none.
    """
    if not path.is_file():
        raise ConfigError(f"{option}: no file at {path}")
