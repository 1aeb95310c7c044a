"""The judges of the extra [evaluate] against the packages themselves, with random weights.

Outside the usual test paths, because the packages pull torchvision:
`pip install -e '.[distill,dev,evaluate]' && pytest tests/extra`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from distill.config import ConfigError
from distill.evaluation.clip import Clip
from distill.evaluation.distances import KernelDistance, frechet_distance
from distill.evaluation.inception import Inception
from distill.evaluation.manifolds import Manifolds

open_clip = pytest.importorskip("open_clip")
inceptionv3 = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")

MODEL = "ViT-S-32-alt"
PICTURES = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def clip_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.pt"
    torch.manual_seed(0)
    torch.save(open_clip.create_model(MODEL, pretrained=None).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    class Untrained(inceptionv3.FeatureExtractorInceptionV3):  # type: ignore[misc,name-defined]
        def load_state_dict(self, *args: object) -> None:
            """Keep the random weights."""

    path = tmp_path_factory.mktemp("inception") / "inception.pth"
    torch.save({}, path)
    torch.manual_seed(0)
    model = Untrained("x", ["2048"], feature_extractor_weights_path=str(path))
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.kaiming_normal_(weight)
    torch.save(model.state_dict(), path)
    return path


def test_clip_scores_are_those_of_the_package(clip_file: Path) -> None:
    prompts = ["a cat", "a dog", "an owl", "a fox", "an emu"]
    found = Clip.load(clip_file, MODEL).scores(PICTURES, prompts, batch_size=2)
    from PIL import Image

    model, prepare = open_clip.create_model_from_pretrained(MODEL, pretrained=str(clip_file))
    pixels = torch.stack([prepare(Image.fromarray(picture)) for picture in PICTURES])
    with torch.no_grad():
        image, text, _ = model.eval()(pixels, open_clip.get_tokenizer(MODEL)(prompts))
    np.testing.assert_allclose(found, (image * text).sum(1).numpy(), atol=1e-5)


@pytest.mark.parametrize("name", ["ViT-B-32", "no-such-model"])
def test_weights_of_another_clip_are_refused(clip_file: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"holds no weights of ViT-B-32|no model 'no-such-model'"):
        Clip.load(clip_file, name)


def test_inception_features_are_those_of_the_package(inception_file: Path) -> None:
    network = Inception(inception_file)
    model = inceptionv3.FeatureExtractorInceptionV3(
        "x", ["2048"], feature_extractor_weights_path=str(inception_file)
    )
    with torch.no_grad():
        (expected,) = model(torch.from_numpy(PICTURES).permute(0, 3, 1, 2))
    found = network.describe(PICTURES, batch_size=2).pooled_ND
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-4)


def test_other_weights_are_no_inception(clip_file: Path) -> None:
    with pytest.raises(ConfigError, match="holds no weights of Inception v3"):
        Inception(clip_file)


def test_the_scores_are_those_of_torch_fidelity() -> None:
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    rng = np.random.default_rng(0)
    real, fake = rng.standard_normal((60, 8)), 1.2 * rng.standard_normal((60, 8)) + 0.3
    a, b = torch.from_numpy(fake), torch.from_numpy(real)
    theirs = fid_statistics_to_metric(
        fid_features_to_statistics(a), fid_features_to_statistics(b), False
    )
    assert frechet_distance(real, fake) == pytest.approx(
        theirs["frechet_inception_distance"], rel=1e-5
    )
    kid = kid_features_to_metric(a, b, kid_subsets=1, kid_subset_size=60, verbose=False, rng_seed=0)
    assert KernelDistance(real, fake).unbiased() == pytest.approx(
        kid["kernel_inception_distance_mean"], rel=1e-5
    )
    prc = prc_features_to_metric(
        a, b, prc_neighborhood=3, prc_batch_size=1000, save_cpu_ram=False, verbose=False
    )
    balls = Manifolds(real, fake)
    everything = np.arange(60)
    assert balls.precision(everything) == pytest.approx(prc["precision"])
    assert balls.recall(everything) == pytest.approx(prc["recall"])
