"""Judges on pictures whose figures are known: copies, averages, one mode, another colour."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from distill_fixtures import squeezenet_arrays
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from distill.dataset import Pictures
from distill.evaluation.distances import KernelDistance, frechet_distance
from distill.evaluation.feature_judge import FeatureJudge
from distill.evaluation.judges import PixelJudge
from distill.evaluation.prompts import PromptSet, Size, prompt_sets
from distill.evaluation.results import SamplerFacts, Score
from distill.evaluation.running import DECODED, Sampler, Subject, draw_all, evaluate
from distill.evaluation.squeezenet import SqueezeNet

NUM_CONCEPTS = 8
STYLES = ("flat", "noto")


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> SqueezeNet:
    path = tmp_path_factory.mktemp("squeezenet") / "weights.npz"
    np.savez(path, **squeezenet_arrays())
    return SqueezeNet(path)


def _named_pictures(*, has_names: bool = True) -> Pictures:
    """Every concept a coarse random pattern, drawn plain and inverted: two styles."""
    rng = np.random.default_rng(0)
    images, names, styles = [], [], []
    for i in range(NUM_CONCEPTS):
        coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        plain = np.asarray(Image.fromarray(coarse).resize((128, 128), Image.Resampling.NEAREST))
        images += [plain, 255 - plain]
        names += [f"pattern {i}"] * 2
        styles += STYLES
    blank = ("",) * len(names)
    return Pictures(
        np.stack(images),
        tuple((f"{name}, {style}",) for name, style in zip(names, styles, strict=True)),
        tuple(names) if has_names else blank,
        tuple(styles) if has_names else blank,
        tuple("even" if i % 4 < 2 else "odd" for i in range(len(names))),
    )


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    return _named_pictures()


@pytest.fixture(scope="module")
def judge(network: SqueezeNet, pictures: Pictures) -> FeatureJudge:
    return FeatureJudge(network, pictures)


@pytest.fixture(scope="module")
def asked(pictures: Pictures) -> dict[str, PromptSet]:
    sets = prompt_sets(pictures, None, Size(max_pictures=48, num_seeds=4))
    return {each.kind: each for each in sets}


def _values(score: Score) -> dict[str, float]:
    return {name: estimate.value for name, estimate in score.metrics.items()}


def _by_style(pictures: Pictures, asked: PromptSet, style_of: dict[int, int]) -> NDArray[np.uint8]:
    """The real picture of each prompt's concept, its style by the seed modulo 4."""
    first = {name: i for i, name in reversed(list(enumerate(pictures.names)))}
    rows = [
        first[concept] + style_of[seed % 4]
        for concept, seed in zip(asked.concepts, asked.seeds, strict=True)
    ]
    return pictures.images_NHWC[rows]


def test_the_real_pictures_are_perfect(judge: FeatureJudge, asked: dict[str, PromptSet]) -> None:
    score = judge.score("copy", asked["with style"], asked["with style"].real.images_NHWC)
    values = _values(score)
    assert values["frechet_distance"] == pytest.approx(0, abs=1e-6)
    assert values["kernel_distance"] <= 0
    for name in ("precision", "recall", "coverage", "top1", "top5"):
        assert values[name] == 1.0
    assert score.top1_by_group == {"even": 1.0, "odd": 1.0}
    assert "diversity" not in values  # one seed per prompt
    for estimate in score.metrics.values():
        assert estimate.low is not None and estimate.high is not None


def test_the_distances_are_in_units_of_the_real_variance(
    network: SqueezeNet, judge: FeatureJudge, asked: dict[str, PromptSet]
) -> None:
    each = asked["with style"]
    fake = 255 - each.real.images_NHWC // 2
    real_ND = network.describe(each.real.images_NHWC).pooled_ND
    fake_ND = network.describe(fake).pooled_ND
    variance = real_ND.var(0, ddof=1).sum()
    values = _values(judge.score("x", each, fake))
    assert values["frechet_distance"] == pytest.approx(
        frechet_distance(real_ND, fake_ND) / variance, rel=1e-6
    )
    root = (variance / real_ND.shape[1]) ** 0.5
    expected = KernelDistance(real_ND / root, fake_ND / root).unbiased()
    assert values["kernel_distance"] == pytest.approx(expected, rel=1e-6)


def test_a_wrong_concept_is_not_retrieved(judge: FeatureJudge, asked: dict[str, PromptSet]) -> None:
    each = asked["with style"]
    moved = np.roll(each.real.images_NHWC, 2, axis=0)  # the next concept, in the same style
    values = _values(judge.score("moved", each, moved))
    assert values["top1"] == 0.0
    assert values["frechet_distance"] == pytest.approx(0, abs=1e-6)


def test_seeds_that_change_the_style_are_diverse_and_pure(
    judge: FeatureJudge, pictures: Pictures, asked: dict[str, PromptSet]
) -> None:
    each = asked["without style"]
    varied = _values(judge.score("v", each, _by_style(pictures, each, {0: 0, 1: 1, 2: 0, 3: 1})))
    single = _values(judge.score("s", each, _by_style(pictures, each, {0: 0, 1: 0, 2: 0, 3: 0})))
    # Of the six pairs of four seeds four differ, by the distance of the two real pictures.
    assert varied["diversity_ratio"] == pytest.approx(4 / 6, rel=1e-3)
    assert single["diversity_ratio"] == pytest.approx(0, abs=2e-3)
    assert varied["style_purity"] == single["style_purity"] == pytest.approx(1.0)
    assert varied["recall"] == 1.0
    assert single["recall"] < 0.9


def test_an_average_of_styles_is_not_pure(
    judge: FeatureJudge, pictures: Pictures, asked: dict[str, PromptSet]
) -> None:
    each = asked["without style"]
    both = [_by_style(pictures, each, dict.fromkeys(range(4), s)).astype(int) for s in (0, 1)]
    tilted = ((9 * both[0] + 11 * both[1]) // 20).astype(np.uint8)
    assert _values(judge.score("average", each, tilted))["style_purity"] < 0.75


def test_captions_have_a_floor_and_diversity_in_units_of_real_pictures(
    network: SqueezeNet,
) -> None:
    pictures = _named_pictures(has_names=False)
    (each,) = prompt_sets(pictures, None, Size(max_pictures=48, num_seeds=3))
    assert each.floor is not None
    judge = FeatureJudge(network, pictures, has_intervals=False)
    floor = judge.floor(each)
    assert floor is not None
    num = each.num_in_set
    rng = np.random.default_rng(1)
    noise = rng.integers(0, 256, (len(each.prompts), 128, 128, 3), dtype=np.uint8)
    noisy = judge.score("noise", each, noise)
    assert _values(floor)["frechet_distance"] < _values(noisy)["frechet_distance"]
    assert "top1" not in noisy.metrics
    # The floor is what its pictures would score as a sampler's, further seeds aside.
    drawn = np.concatenate([each.floor.images_NHWC, noise[num:]])
    as_sampler = _values(judge.score("half", each, drawn))
    assert as_sampler["frechet_distance"] == pytest.approx(_values(floor)["frechet_distance"])
    assert noisy.metrics["frechet_distance"].low is None
    same = judge.score("same", each, np.repeat(noise[:1], len(each.prompts), axis=0))
    assert _values(same)["diversity"] == pytest.approx(0, abs=2e-3)
    assert _values(noisy)["diversity"] > 0.05


def test_colours_are_judged_by_hue_and_by_shape_without_it(network: SqueezeNet) -> None:
    rng = np.random.default_rng(0)
    images = []
    for i in range(8):
        hsv = np.full((128, 128, 3), (0, 0, 255), dtype=np.uint8)
        y, x = rng.integers(10, 60, 2)
        hsv[y : y + 30 + 5 * i, x : x + 60] = (0, 220, 200)
        images.append(np.asarray(Image.fromarray(hsv, "HSV").convert("RGB")))
    names = tuple(f"box {i}" for i in range(8))
    pictures = Pictures(
        np.stack(images), tuple((n,) for n in names), names, ("flat",) * 8, ("",) * 8
    )
    *_, each = prompt_sets(pictures, None, Size(40, 1), recolourable=pictures)
    assert each.kind == "colours held out"
    judge = FeatureJudge(network, pictures, has_intervals=False)
    right = _values(judge.score("right", each, each.real.images_NHWC))
    assert right["top1"] == 1.0
    assert _values(PixelJudge().score("right", each, each.real.images_NHWC))["right_hue"] == 1.0
    rows = [names.index(concept) for concept in each.concepts]
    unpainted = pictures.images_NHWC[rows]
    assert _values(PixelJudge().score("red", each, unpainted))["right_hue"] == 0.0
    assert _values(judge.score("red", each, unpainted))["top1"] == 1.0


def test_sharpness_is_one_for_real_pictures_and_less_for_blurred(
    asked: dict[str, PromptSet],
) -> None:
    each = asked["with style"]
    real = each.real.images_NHWC
    blurred = np.stack(
        [np.asarray(Image.fromarray(x).filter(ImageFilter.GaussianBlur(2))) for x in real]
    )
    pixels = PixelJudge()
    assert _values(pixels.score("real", each, real))["sharpness"] == pytest.approx(1.0)
    assert _values(pixels.score("blur", each, blurred))["sharpness"] < 0.3


def _constant(value: int) -> Sampler:
    def draw(prompts: object, seeds: object) -> NDArray[np.uint8]:
        assert isinstance(prompts, tuple | list) and isinstance(seeds, tuple | list | range)
        assert len(prompts) == len(seeds) <= 32
        return np.stack([np.full((128, 128, 3), (value + s) % 256, np.uint8) for s in seeds])

    return Sampler(SamplerFacts(f"grey {value}", "student", 1, 1, "student"), draw)


def test_everything_is_drawn_scored_and_shown(
    judge: FeatureJudge, asked: dict[str, PromptSet]
) -> None:
    sets = list(asked.values())
    subject = Subject("run", [_constant(0), _constant(99)], through_codec=lambda images: images)
    outcome = evaluate(subject, sets, [judge, PixelJudge()], {"guidance": 1.0})
    found = outcome.evaluation
    assert [s.name for s in found.samplers] == [DECODED, "grey 0", "grey 99"]
    for sampler in ("grey 0", "grey 99"):
        for kind in asked:
            for name in ("squeezenet", "pixels"):
                assert found.find(sampler, kind, name) is not None
    # Only prompts with one right answer each can be held against the decoded pictures.
    decoded = found.find(DECODED, "with style", "squeezenet")
    assert decoded is not None and decoded.metrics["top1"].value == 1.0
    assert found.find(DECODED, "without style", "squeezenet") is None
    prompts, rows = outcome.sheets["without style"]
    assert len(prompts) == 12
    assert list(rows) == ["grey 0", "grey 99"]
    assert all(s.ms_per_picture is not None for s in found.samplers[1:])
    facts = {f.kind: f for f in found.sets}
    assert facts["without style"].num_prompts == NUM_CONCEPTS
    assert facts["without style"].num_pictures == 4 * NUM_CONCEPTS
    assert facts["without style"].num_real == 2 * NUM_CONCEPTS


def test_seeds_are_those_of_the_set() -> None:
    drawn = draw_all(_constant(0).draw, ("a",) * 40, tuple(range(5, 45)))
    assert drawn[:, 0, 0, 0].tolist() == list(range(5, 45))
    assert draw_all(_constant(0).draw, ["a"] * 3)[:, 0, 0, 0].tolist() == [0, 1, 2]


def test_a_missing_file_of_weights_is_told_before_anything_is_read(tmp_path: Path) -> None:
    from distill.config import ConfigError
    from distill.evaluation.options import EvaluateOptions

    with pytest.raises(ConfigError, match="name the network that judges"):
        EvaluateOptions()
    for name in ("features", "inception"):
        with pytest.raises(ConfigError, match=f"--{name}: no file at"):
            EvaluateOptions(**{name: tmp_path / "gone"})
    present = tmp_path / "a.npz"
    present.write_bytes(b"x")
    with pytest.raises(ConfigError, match="--clip: no file at"):
        EvaluateOptions(features=present, clip=tmp_path / "gone")
    with pytest.raises(ConfigError, match="--dino: no model at"):
        EvaluateOptions(features=present, dino=tmp_path)
    with pytest.raises(ConfigError, match="--max-pictures must be at least 8"):
        EvaluateOptions(features=present, max_pictures=2)
    with pytest.raises(ConfigError, match="--solvers must be among"):
        EvaluateOptions(features=present, solvers=("euler",))
