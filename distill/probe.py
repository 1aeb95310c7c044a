"""A student looked at through a few fixed prompts and seeds, cheaply enough to do while it trains.

Owns two numbers about one-step latents: how far they are from real ones, and how varied they are
for one prompt. Both compare a run with itself; judging a finished model is the evaluation's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch.nn import functional

from distill.draws import Draws
from distill.methods.base import Sample
from distill.networks.conditioning import Conditioning

# Shape suffixes: N pictures, P prompts, S seeds, C channel, h/w latent cells, D width.

Draw = Callable[[Conditioning, Sequence[int]], torch.Tensor]

_NUM_PICTURES = 128
_NUM_PROMPTS, _NUM_SEEDS = 4, 4
_NUM_AT_ONCE = 8


class Samples(Protocol):
    """Real pictures addressed by draws."""

    def sample(self, draws: Draws) -> Sample:
        """Latents and conditioning for the draws' positions."""
        ...


class Probe:
    """The first real pictures of the training's order, and their prompts."""

    def __init__(self, samples: Samples, seed: int, device: torch.device) -> None:
        """Name the pictures; they are read when they are first needed."""
        self._samples = samples
        self._draws = Draws(seed, 0, range(_NUM_PICTURES), device)
        self._parts: list[tuple[torch.Tensor, Conditioning]] = []

    def _real(self) -> list[tuple[torch.Tensor, Conditioning]]:
        # In parts, because a set that is not precomputed runs its encoders here.
        if not self._parts:
            for start in range(0, _NUM_PICTURES, _NUM_AT_ONCE):
                sample = self._samples.sample(self._draws.at(slice(start, start + _NUM_AT_ONCE)))
                self._parts.append((sample.latents_BChw, sample.conditioning))
        return self._parts

    def distance(self, draw: Draw) -> float:
        """How far drawn latents are from the real ones of the same prompts."""
        real, drawn = [], []
        for part, (latents_BChw, conditioning) in enumerate(self._real()):
            real.append(latents_BChw)
            first = part * _NUM_AT_ONCE
            drawn.append(draw(conditioning, range(first, first + len(conditioning))))
        return latent_distance(torch.cat(real), torch.cat(drawn))

    def diversity(self, draw: Draw) -> float:
        """How far apart latents of one prompt and different seeds are."""
        _, conditioning = self._real()[0]
        drawn = [
            draw(conditioning[p : p + 1].expand(_NUM_SEEDS), range(_NUM_SEEDS))
            for p in range(_NUM_PROMPTS)
        ]
        return spread(torch.stack(drawn))


def spread(latents_PSChw: torch.Tensor) -> float:
    """Root mean square distance per value between two seeds of a prompt, mean over all pairs."""
    flat_PSD = latents_PSChw.double().flatten(2)
    distances = [torch.pdist(flat_SD) for flat_SD in flat_PSD]
    return float(torch.cat(distances).mean() / flat_PSD.shape[2] ** 0.5)


def latent_distance(real_NChw: torch.Tensor, fake_NChw: torch.Tensor) -> float:
    """Fréchet distance of Gaussians with diagonal covariance, over the real ones' total variance.

    They are fitted to the latents' means in 4 x 4 cells, which hold the composition, and to each
    channel's deviation within a picture, which falls where pictures are blurred.
    Source: arXiv:1706.08500, eq. 6, with correlations left out.
    """
    real_ND, fake_ND = _described(real_NChw), _described(fake_NChw)
    gap = (real_ND.mean(0) - fake_ND.mean(0)).pow(2).sum()
    spread_gap = (real_ND.std(0) - fake_ND.std(0)).pow(2).sum()
    return float((gap + spread_gap) / real_ND.var(0).sum())


def _described(latents_NChw: torch.Tensor) -> torch.Tensor:
    latents_NChw = latents_NChw.double()
    cells_ND = functional.adaptive_avg_pool2d(latents_NChw, 4).flatten(1)
    return torch.cat([cells_ND, latents_NChw.std((2, 3))], dim=1)
