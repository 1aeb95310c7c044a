"""At which noise levels the discriminator's features look, and what the heads are told of it.

Owns the distribution of that timestep. Knows no network.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers.models.embeddings import get_timestep_embedding

from distill.draws import Draws

# Shape suffixes: B batch, D width of the level's vector.

LEVEL_WIDTH = 64


@dataclass(frozen=True)
class Levels:
    """Timesteps drawn from a range, both ends included.

    Attributes:
        low: the lowest timestep.
        high: the highest.
        logit_normal: location and scale of a Gaussian whose sigmoid is the place in the range, so
            that a location above 0 draws noisier timesteps more often; None draws evenly.
            Source: arXiv:2403.12015, section 4.1; arXiv:2403.03206, eq. 19.
    """

    low: int
    high: int
    logit_normal: tuple[float, float] | None = None

    def draw(self, draws: Draws) -> torch.Tensor:
        """timestep_B int64; real and fake of one batch are given the same."""
        if self.logit_normal is None:
            return draws.integers("feature_timestep", self.low, self.high)
        location, scale = self.logit_normal
        place_B = torch.sigmoid(location + scale * draws.normal("feature_level").double())
        # A sigmoid that rounds to 1 would fall behind the last timestep.
        counted_B = (place_B * (self.high - self.low + 1)).long().clamp_max(self.high - self.low)
        return self.low + counted_B

    def embedded(self, draws: Draws) -> torch.Tensor:
        """The drawn timesteps as sines and cosines, level_BD float32 in [-1, 1].

        Source: arXiv:2006.11239, appendix B.
        """
        level_BD: torch.Tensor = get_timestep_embedding(self.draw(draws), LEVEL_WIDTH)
        return level_BD
