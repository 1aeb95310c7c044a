"""The judges: known distances, known ranks, and a network file that is checked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from distill_fixtures import squeezenet_arrays
from numpy.typing import NDArray

from distill.config import ConfigError
from distill.metrics import SqueezeNet, frechet_distance, retrieval_ranks


@pytest.fixture(scope="module")
def network_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("squeezenet") / "weights.npz"
    np.savez(path, **squeezenet_arrays())
    return path


def _pictures(num: int) -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (num, 64, 64, 3), dtype=np.uint8)


def test_the_network_describes_pictures_the_same_every_time(network_file: Path) -> None:
    pooled, layout = SqueezeNet(network_file).features(_pictures(3), batch_size=2)
    assert pooled.shape == (3, 512)
    assert pooled.dtype == np.float64
    channels = 2 * (128 + 256 + 384 + 512)
    assert layout.shape == (3, channels * 4 * 4)
    again, again_layout = SqueezeNet(network_file).features(_pictures(3), batch_size=2)
    assert np.array_equal(again, pooled)
    assert np.array_equal(again_layout, layout)
    together, _ = SqueezeNet(network_file).features(_pictures(3), batch_size=3)
    np.testing.assert_allclose(together, pooled, rtol=1e-4)
    # Every block has unit length, so no block outweighs the others.
    assert np.linalg.norm(layout, axis=1) == pytest.approx([8**0.5] * 3)
    assert np.abs(pooled[0] - pooled[1]).max() > 1e-3


def test_the_network_reads_blue_first(network_file: Path, tmp_path: Path) -> None:
    """Caffe's order: the first input channel of conv1 is blue, less its mean of 104."""
    arrays = squeezenet_arrays()
    arrays["conv1_w"][:] = 0
    arrays["conv1_w"][:, 0] = 1
    np.savez(tmp_path / "blue.npz", **arrays)
    network = SqueezeNet(tmp_path / "blue.npz")
    dark, blue, red = (np.zeros((1, 64, 64, 3), dtype=np.uint8) for _ in range(3))
    blue[..., 2] = 255
    red[..., 0] = 255
    pooled = [network.features(picture)[0] for picture in (dark, blue, red)]
    assert np.array_equal(pooled[0], pooled[2])
    assert not np.array_equal(pooled[0], pooled[1])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--features: no file at .*gone\.npz"):
        SqueezeNet(tmp_path / "gone.npz")


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


def test_equal_sets_have_no_distance() -> None:
    features = np.random.default_rng(0).standard_normal((50, 6))
    assert frechet_distance(features, features) == pytest.approx(0.0, abs=1e-9)


def test_a_shift_costs_its_squared_length() -> None:
    features = np.random.default_rng(0).standard_normal((50, 6))
    shift = np.array([1.0, -2.0, 0.0, 0.5, 0.0, 0.0])
    assert frechet_distance(features, features + shift) == pytest.approx(5.25)


def test_a_stretch_costs_the_gap_of_the_deviations() -> None:
    """Between N(0, S) and N(0, 9 S) lies trace(S) (1 + 9 - 2 * 3)."""
    features = np.random.default_rng(0).standard_normal((50, 6))
    features -= features.mean(0)
    trace = np.cov(features, rowvar=False).trace()
    assert frechet_distance(features, 3 * features) == pytest.approx(4 * trace)


def test_fewer_pictures_than_features_still_have_a_distance() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((5, 20)), rng.standard_normal((5, 20)) + 1
    assert np.isfinite(frechet_distance(a, b))
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a))


def test_ranks_count_concepts_once_at_their_nearest() -> None:
    gallery = np.array([[0.0], [1.0], [1.5], [4.0], [9.0]], dtype=np.float32)
    names = ["cat", "cat", "dog", "owl", "fox"]
    everyone = np.ones(5, dtype=bool)
    fake = np.array([[0.1], [0.1], [0.1], [8.0]], dtype=np.float32)
    asked = ["cat", "dog", "owl", "owl"]
    ranks = retrieval_ranks(fake, asked, gallery, names, [everyone] * 4)
    assert ranks.tolist() == [1, 2, 3, 2]


def test_only_the_allowed_pictures_compete() -> None:
    gallery = np.array([[0.0], [1.0], [5.0]], dtype=np.float32)
    mask = np.array([False, True, True])
    fake = np.zeros((1, 1), dtype=np.float32)
    ranks = retrieval_ranks(fake, ["owl"], gallery, ["cat", "dog", "owl"], [mask])
    assert ranks.tolist() == [2]
