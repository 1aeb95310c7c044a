"""What prompts become for the networks, and the one way to call a UNet with it.

Owns the difference between text encoders: one or two of them, with or without a pooled vector and
time ids. Knows nothing of how a prompt is encoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

# Shape suffixes: B batch, C channel, h/w latent cells, L tokens, D width, S entries of a row.


@dataclass(frozen=True)
class Conditioning:
    """B encoded prompts.

    Attributes:
        text_embeds_BLD: what the UNet's cross-attention reads.
        pooled_BD: one vector per prompt: the heads' condition, and part of SDXL's time embedding.
        time_ids_BS: SDXL's original size, crop and target size, (B, 6); None for other networks.
    """

    text_embeds_BLD: torch.Tensor
    pooled_BD: torch.Tensor
    time_ids_BS: torch.Tensor | None = None

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self.text_embeds_BLD)

    def __getitem__(self, index: slice | torch.Tensor) -> Conditioning:
        """Rows by slice or by a tensor of indices."""
        return self._each(lambda tensor: tensor[index])

    def to(self, *args: Any) -> Conditioning:
        """Move or convert every tensor, as `torch.Tensor.to` does."""
        return self._each(lambda tensor: tensor.to(*args))

    def expand(self, num: int) -> Conditioning:
        """One prompt, repeated without copying."""
        return self._each(lambda tensor: tensor.expand(num, *tensor.shape[1:]))

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """Rows of several, in order."""
        has_ids = parts[0].time_ids_BS is not None
        return Conditioning(
            torch.cat([part.text_embeds_BLD for part in parts]),
            torch.cat([part.pooled_BD for part in parts]),
            torch.cat([p.time_ids_BS for p in parts if p.time_ids_BS is not None])
            if has_ids
            else None,
        )

    def unet_arguments(self) -> dict[str, Any]:
        """Keyword arguments of a diffusers UNet2DConditionModel."""
        arguments: dict[str, Any] = {"encoder_hidden_states": self.text_embeds_BLD}
        if self.time_ids_BS is not None:
            arguments["added_cond_kwargs"] = {
                "text_embeds": self.pooled_BD,
                "time_ids": self.time_ids_BS,
            }
        return arguments

    def _each(self, change: Any) -> Conditioning:
        ids = self.time_ids_BS
        return Conditioning(
            change(self.text_embeds_BLD),
            change(self.pooled_BD),
            None if ids is None else change(ids),
        )


class PromptEncoder(Protocol):
    """Prompts to conditioning, in two steps so that token ids can be kept."""

    def tokens(self, prompts: Sequence[str]) -> torch.Tensor:
        """Token ids, batch first: (B, L), or (B, 2, L) for two tokenizers."""
        ...

    def encode(self, input_ids: torch.Tensor) -> Conditioning:
        """Conditioning of token ids."""
        ...

    def save(self, folder: Path) -> None:
        """Write tokenizers and models where diffusers finds them."""
        ...


def predict(
    unet: nn.Module,
    noisy_BChw: torch.Tensor,
    timestep_B: torch.Tensor,
    conditioning: Conditioning,
) -> torch.Tensor:
    """The UNet's raw prediction, prediction_BChw."""
    output = unet(noisy_BChw, timestep_B, **conditioning.unet_arguments())
    prediction_BChw: torch.Tensor = output.sample
    return prediction_BChw


def guided(
    unet: nn.Module,
    noisy_BChw: torch.Tensor,
    timestep_B: torch.Tensor,
    conditioning: Conditioning,
    *,
    empty: Conditioning,
    guidance: float,
) -> torch.Tensor:
    """Prediction with classifier-free guidance; scale 1 costs one call. Source: arXiv:2207.12598.

    Args:
        unet: the network.
        noisy_BChw: its input.
        timestep_B: model indices.
        conditioning: the prompts.
        empty: conditioning of the empty prompt, as many rows.
        guidance: scale; above 1 the prompt counts for more.
    """
    if guidance == 1.0:
        return predict(unet, noisy_BChw, timestep_B, conditioning)
    both = Conditioning.cat([conditioning, empty])
    prediction = predict(unet, noisy_BChw.repeat(2, 1, 1, 1), timestep_B.repeat(2), both)
    with_BChw, without_BChw = prediction.chunk(2)
    return without_BChw + guidance * (with_BChw - without_BChw)
