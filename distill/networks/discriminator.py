"""The trained half of the discriminator: one small conditioned head per feature map.

Written from the description in arXiv:2311.17042, section 3.2: spectrally normalised convolutions,
a residual block, and a projection of the condition onto every cell's features. Knows nothing of
where the features come from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

# Shape suffixes: B batch, C channel, h/w cells of a feature map, D width of the condition.


class Head(nn.Module):
    """Logits for every cell of one feature map, given the condition."""

    def __init__(self, channels: int, condition_width: int, width: int) -> None:
        """Build an untrained head; GroupNorm, because a batch may be as small as one."""
        super().__init__()
        self.reduce = spectral_norm(nn.Conv2d(channels, width, 1))
        self.norm_in = nn.GroupNorm(8, width)
        self.mix = spectral_norm(nn.Conv2d(width, width, 3, padding=1))
        self.norm_mix = nn.GroupNorm(8, width)
        self.out = spectral_norm(nn.Conv2d(width, width, 1))
        self.project = nn.Linear(condition_width, width)

    def forward(self, feature_BChw: torch.Tensor, condition_BD: torch.Tensor) -> torch.Tensor:
        """logits_Bhw."""
        hidden = functional.leaky_relu(self.norm_in(self.reduce(feature_BChw)), 0.2)
        mixed = functional.leaky_relu(self.norm_mix(self.mix(hidden)), 0.2)
        hidden = self.out((hidden + mixed) / math.sqrt(2.0))
        projection_BC11 = self.project(condition_BD)[:, :, None, None]
        logits_Bhw: torch.Tensor = (hidden * projection_BC11).sum(1) / math.sqrt(hidden.shape[1])
        return logits_Bhw


class Discriminator(nn.Module):
    """All heads; the frozen features are computed elsewhere and given to `forward`."""

    def __init__(self, channels: Sequence[int], condition_width: int, width: int) -> None:
        """One head per entry of `channels`."""
        super().__init__()
        self.heads = nn.ModuleList(Head(c, condition_width, width) for c in channels)
        self.eval()

    def forward(
        self, features: Sequence[torch.Tensor], condition_BD: torch.Tensor
    ) -> list[torch.Tensor]:
        """Logits of every head, each (B, h, w)."""
        return [
            head(feature, condition_BD) for head, feature in zip(self.heads, features, strict=True)
        ]


@torch.no_grad()
def renew_norms(network: nn.Module) -> None:
    """Let every spectral norm follow its weights by one power iteration.

    Outside of it heads stay in evaluation mode, in which the estimates stand still: how often
    heads look, in one pass or several, must not change what they see. Source: arXiv:1802.05957.
    """
    for part in network.modules():
        if isinstance(part, Discriminator):
            part.train()
            for layer in part.modules():
                if parametrize.is_parametrized(layer, "weight"):
                    _ = layer.weight  # reading it in training mode is what iterates
            part.eval()
