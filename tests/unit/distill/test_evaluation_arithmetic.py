"""Neighbours, variety, ranks, sharpness and colour on points that can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from distill.dataset.recolour import rotate_hue
from distill.evaluation.manifolds import Manifolds, pairwise_distances
from distill.evaluation.pixels import detail_energy, grey, has_hue
from distill.evaluation.retrieval import retrieval_ranks
from distill.evaluation.variety import spread_within, style_purity


def _line(*positions: float) -> NDArray[np.float64]:
    """Points on a line, in two dimensions."""
    return np.array([[p, 0.0] for p in positions])


# Six real pictures a unit apart: the third neighbour of the inner ones is 2 away, of those next
# to the ends 2, of the ends 3. The fifth neighbour is 5, 4, 3, 3, 4, 5 away.
REAL = _line(0, 1, 2, 3, 4, 5)


def test_precision_counts_pictures_inside_a_real_ball() -> None:
    fake = _line(0.5, 8.0, 8.01, -3.0, -3.01, 100.0)
    balls = Manifolds(REAL, fake)
    # 8.0 lies 3 from the end, whose ball reaches 3; so does -3.0; the others are outside.
    assert balls.precision(np.arange(6)) == pytest.approx(3 / 6)
    assert balls.precision(np.array([0, 1])) == 1.0


def test_recall_counts_real_pictures_inside_a_generated_ball() -> None:
    fake = _line(1.0, 1.1, 1.2, 1.3, 50.0, 90.0)
    balls = Manifolds(REAL, fake)
    # Without the far two: 1.0 reaches 0.3, 1.3 back to 1.0; only the real picture at 1 is inside.
    assert balls.recall(np.array([0, 1, 2, 3])) == pytest.approx(1 / 6)
    # The third neighbour of 50 is 1.2: its ball takes in all from there on, and only 0 is left out.
    assert balls.recall(np.arange(6)) == pytest.approx(5 / 6)


def test_density_counts_balls_and_coverage_real_pictures() -> None:
    fake = _line(2.0, 2.0, 2.0, 2.0, 2.0, 60.0)
    balls = Manifolds(REAL, fake)
    # At 2 lie all six balls (radii 5, 4, 3, 3, 4, 5 reach it), at 60 none.
    assert balls.density(np.arange(6)) == pytest.approx(5 * 6 / 6 / 5)
    assert balls.coverage(np.arange(6)) == 1.0
    assert Manifolds(REAL, fake + 55).coverage(np.array([5])) == 0.0


def test_the_same_pictures_are_precise_and_recalled() -> None:
    cloud = np.random.default_rng(0).standard_normal((40, 3))
    balls = Manifolds(cloud, cloud)
    everything = np.arange(40)
    assert balls.precision(everything) == balls.recall(everything) == 1.0
    assert balls.coverage(everything) == 1.0
    # Each picture lies in its own ball and, in the mean, in those of its five neighbours.
    # The fifth lies on the edge, where rounding may leave it outside.
    assert balls.density(everything) == pytest.approx(6 / 5, abs=0.02)


def test_a_mode_that_is_lost_costs_recall_and_no_precision() -> None:
    rng = np.random.default_rng(0)
    both = np.concatenate([rng.standard_normal((60, 2)), rng.standard_normal((60, 2)) + 40])
    one = rng.standard_normal((60, 2))
    balls = Manifolds(both, one)
    assert balls.precision(np.arange(60)) > 0.9
    assert balls.recall(np.arange(60)) <= 0.5


def test_few_pictures_have_no_manifold() -> None:
    assert not Manifolds.is_possible(5, 100)
    assert not Manifolds.is_possible(100, 7)
    assert Manifolds.is_possible(6, 8)


def test_distances_are_euclidean() -> None:
    a, b = np.array([[0.0, 0.0], [3.0, 4.0]]), np.array([[0.0, 4.0]])
    assert pairwise_distances(a, b).tolist() == [[4.0], [3.0]]


def test_the_spread_is_the_mean_distance_within_a_group() -> None:
    features = np.array([[0.0], [1.0], [4.0], [9.0]])
    found = spread_within(features, ["cat", "cat", "cat", "dog"])
    assert found == {"cat": pytest.approx((1 + 4 + 3) / 3)}


def test_purity_is_the_place_between_two_styles() -> None:
    real = np.array([[0.0, 0.0], [4.0, 0.0]])
    styles = ["flat", "noto"]
    for x, expected in ((0.0, 1.0), (1.0, 0.5), (2.0, 0.0), (3.0, 0.5), (4.0, 1.0), (-2.0, 1.0)):
        assert style_purity(np.array([x, 0.0]), real, styles) == pytest.approx(expected)
        # How far beside the line a picture lies is another score's part.
        assert style_purity(np.array([x, 7.0]), real, styles) == pytest.approx(expected)


def test_purity_overlooks_a_style_that_hardly_differs() -> None:
    real = np.array([[0.0], [0.1], [4.0]])
    assert style_purity(np.array([0.05]), real, ["3d", "color", "noto"]) == pytest.approx(
        1.0, abs=0.03
    )
    apart = np.array([[0.0], [2.0], [4.0]])
    assert style_purity(np.array([1.0]), apart, ["3d", "color", "noto"]) == pytest.approx(0.0)


def test_one_style_has_no_purity() -> None:
    assert style_purity(np.zeros(1), np.array([[0.0], [1.0]]), ["flat", "flat"]) is None
    assert style_purity(np.zeros(1), np.zeros((2, 1)), ["flat", "noto"]) is None


def _distances(fake: list[float], gallery: list[float]) -> NDArray[np.float64]:
    return np.abs(np.subtract.outer(fake, gallery))


def test_ranks_count_concepts_once_at_their_nearest() -> None:
    names = ["cat", "cat", "dog", "owl", "fox"]
    distances = _distances([0.1, 0.1, 0.1, 8.0], [0.0, 1.0, 1.5, 4.0, 9.0])
    ranks = retrieval_ranks(distances, ["cat", "dog", "owl", "owl"], names)
    assert ranks.tolist() == [1, 2, 3, 2]


def test_only_the_allowed_pictures_compete() -> None:
    distances = _distances([0.0], [0.0, 1.0, 5.0])
    assert retrieval_ranks(distances, ["owl"], ["cat", "dog", "owl"]).tolist() == [3]
    distances[0, 0] = np.inf
    assert retrieval_ranks(distances, ["owl"], ["cat", "dog", "owl"]).tolist() == [2]


def test_a_concept_without_a_picture_is_our_own_mistake() -> None:
    distances = _distances([0.0], [0.0, 1.0])
    with pytest.raises(AssertionError, match="not in the gallery"):
        retrieval_ranks(distances, ["emu"], ["cat", "dog"])
    distances[0, 1] = np.inf
    with pytest.raises(AssertionError, match="no picture that may compete"):
        retrieval_ranks(distances, ["dog"], ["cat", "dog"])


def _image(luma_HW: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.repeat(luma_HW.astype(np.uint8)[None, ..., None], 3, axis=3)


def test_detail_is_the_laplacian_of_luma() -> None:
    dot = np.zeros((5, 5))
    dot[2, 2] = 100
    # Inside the border: -400 at the dot, 100 at its four neighbours, 0 at the four corners.
    assert detail_energy(_image(dot))[0] == pytest.approx(((400**2 + 4 * 100**2) / 9) ** 0.5)
    slope = np.tile(np.arange(0, 50, 10.0), (5, 1))
    assert detail_energy(_image(slope))[0] == pytest.approx(0.0, abs=1e-3)


def test_blur_costs_detail_and_noise_adds_it() -> None:
    edge = np.zeros((16, 16))
    edge[:, 8:] = 200
    soft = (np.roll(edge, 1, 1) + 2 * edge + np.roll(edge, -1, 1)) / 4
    noisy = edge + np.random.default_rng(0).integers(0, 30, edge.shape)
    sharp, blurred, rough = (detail_energy(_image(x))[0] for x in (edge, soft, noisy))
    assert blurred < 0.6 * sharp
    assert rough > sharp


def test_hues_within_thirty_degrees_count() -> None:
    red = np.zeros((1, 8, 8, 3), dtype=np.uint8)
    red[..., 0] = 220
    nearly, other = (rotate_hue(red[0], degrees)[None] for degrees in (25, 40))
    pictures = np.concatenate([red, nearly, other, np.full_like(red, 255)])
    assert has_hue(pictures, ["red"] * 4).tolist() == [True, True, False, False]


def test_grey_pictures_keep_their_luma_alone() -> None:
    picture = np.zeros((1, 1, 2, 3), dtype=np.uint8)
    picture[0, 0] = [[255, 0, 0], [0, 0, 255]]
    assert grey(picture)[0, 0].tolist() == [[76, 76, 76], [29, 29, 29]]
