"""Augmentations against numpy, at rest, and with gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distill.draws import Draws
from distill.networks.diffaug import augmented, colour, cutout, translation


def _images(num: int = 2) -> torch.Tensor:
    return Draws(0, 0, range(num)).normal("images", (3, 16, 16))


def test_at_one_half_colour_and_place_stay() -> None:
    images = _images()
    torch.testing.assert_close(colour(images, torch.full((2, 3), 0.5)), images)
    torch.testing.assert_close(translation(images, torch.full((2, 2), 0.5)), images)


def test_colour_against_numpy() -> None:
    images, u = _images(), torch.tensor([[0.9, 0.1, 0.7], [0.2, 0.8, 0.0]])
    found = colour(images, u).numpy()
    for image, (b, s, c), mine in zip(images.numpy(), u.tolist(), found, strict=True):
        x = image + (b - 0.5)
        grey = x.mean(0, keepdims=True)
        x = grey + (x - grey) * 2 * s
        x = x.mean() + (x - x.mean()) * (c + 0.5)
        np.testing.assert_allclose(mine, x, atol=1e-5)


@pytest.mark.parametrize(("u", "by"), [((0.0, 0.999), (-2, 2)), ((0.999, 0.5), (2, 0))])
def test_translation_moves_whole_pixels_and_lets_grey_in(
    u: tuple[float, float], by: tuple[int, int]
) -> None:
    image = _images(1)
    found = translation(image, torch.tensor([u]))[0].numpy()
    expected = np.zeros_like(found)
    down, right = by
    for y in range(16):
        for x in range(16):
            if 0 <= y - down < 16 and 0 <= x - right < 16:
                expected[:, y, x] = image[0, :, y - down, x - right].numpy()
    np.testing.assert_array_equal(found, expected)


def test_cutout_greys_a_square_of_half_the_side() -> None:
    found = cutout(torch.ones((2, 3, 16, 16)), torch.tensor([[0.5, 0.5], [0.0, 0.999]]))
    holes = (found == 0).all(1)
    assert holes[0].sum() == 64
    assert holes[0, 4:12, 4:12].all()
    # In the corner a quarter of it is left.
    assert holes[1, :4, 12:].all()
    assert holes[1].sum() == 16


def test_gradients_flow_and_draws_of_real_and_fake_differ() -> None:
    images = _images(4).requires_grad_()
    names = ("colour", "translation", "cutout")
    draws = Draws(1, 0, range(4))
    seen = augmented(images, names, draws, "fake")
    (gradient,) = torch.autograd.grad(seen.pow(2).sum(), images)
    assert (gradient.abs().amax((1, 2, 3)) > 0).all()
    torch.testing.assert_close(seen, augmented(images, names, draws, "fake"))
    assert (seen - augmented(images, names, draws, "real")).abs().max() > 0.1
    torch.testing.assert_close(augmented(images, (), draws, "fake"), images)
