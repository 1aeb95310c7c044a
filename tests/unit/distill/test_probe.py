"""The two numbers that watch a student, against hand-computed values."""

from __future__ import annotations

import pytest
import torch

from distill.probe import latent_distance, spread


def test_the_spread_is_the_mean_distance_within_prompts() -> None:
    latents_PSChw = torch.zeros(2, 3, 1, 2, 2)
    latents_PSChw[0, 1] = 3.0  # from its two neighbours 3 per value, and they 0 from each other
    latents_PSChw[1] = 100.0  # another prompt's distance does not count
    assert spread(latents_PSChw) == pytest.approx((3 + 3 + 0 + 0 + 0 + 0) / 6)


def test_the_distance_of_two_gaussians_by_hand() -> None:
    # Constant pictures: 16 equal cells, and no deviation within a picture.
    real_NChw = torch.tensor([-1.0, 1.0, -1.0, 1.0]).view(4, 1, 1, 1).expand(4, 1, 8, 8)
    moved_and_narrower = real_NChw / 2 + 3
    # Deviation of the four: sqrt(4/3). (3² + (sqrt(4/3)/2)²) / (4/3), alike in every cell.
    assert latent_distance(real_NChw, moved_and_narrower) == pytest.approx((9 + 1 / 3) / (4 / 3))
    assert latent_distance(real_NChw, real_NChw) == 0.0


def test_blurred_and_alike_pictures_are_far() -> None:
    generator = torch.Generator().manual_seed(0)
    real_NChw, other_NChw = (torch.randn(256, 4, 8, 8, generator=generator) for _ in range(2))
    near = latent_distance(real_NChw, other_NChw)
    blurred_NChw = torch.nn.functional.interpolate(
        torch.nn.functional.avg_pool2d(other_NChw, 2), scale_factor=2
    )
    assert latent_distance(real_NChw, blurred_NChw) > 5 * near
    assert latent_distance(real_NChw, other_NChw[:1].expand(256, -1, -1, -1)) > 5 * near
