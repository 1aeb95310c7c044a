"""The denoise stage: a UNet, and the arithmetic that turns its output into clean latents.

Owns that arithmetic, always in float32, and SDXL's time ids. Knows nothing of sampling loops.

Shape suffixes: B batch, L tokens, D width, P pooled width, C channel, h/w latent, T timestep index.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from engines.schedule import Schedule
from engines.spec import PredictionType


class DenoiseStage(nn.Module):
    """Noisy latents, timestep and text to the estimate of the clean latents, in float32."""

    from_latents_T: Tensor
    from_output_T: Tensor

    def __init__(
        self,
        unet: nn.Module,
        schedule: Schedule,
        prediction: PredictionType,
        *,
        downscale: int = 8,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Wrap a UNet with the tables that turn its output into clean latents.

        Args:
            unet: in `dtype`.
            schedule: that it was trained on.
            prediction: what it predicts.
            downscale: pixels per latent cell; tells SDXL the size of the picture.
            dtype: the UNet is called with.

        Raises:
            ValueError: the schedule cannot be inverted for this prediction type.
        """
        super().__init__()
        self.unet = unet
        self.is_sample = prediction == "sample"
        self.downscale = downscale
        self.dtype = dtype
        from_latents_T, from_output_T = schedule.denoised_scales(prediction)
        self.register_buffer("from_latents_T", torch.from_numpy(np.float32(from_latents_T)))
        self.register_buffer("from_output_T", torch.from_numpy(np.float32(from_output_T)))

    def forward(
        self,
        latents_BChw: Tensor,
        timestep_B: Tensor,
        text_embeds_BLD: Tensor,
        pooled_BP: Tensor | None = None,
    ) -> Tensor:
        """Return denoised_BChw."""
        options: dict[str, Any] = {}
        if pooled_BP is not None:
            # Both stay float32 up to the layer that takes them, so that a size keeps its digits.
            added = {"text_embeds": pooled_BP, "time_ids": self._time_ids(latents_BChw)}
            options = {"added_cond_kwargs": added}
        output: Any = self.unet(
            latents_BChw.to(self.dtype),
            timestep_B,
            encoder_hidden_states=text_embeds_BLD.to(self.dtype),
            return_dict=False,
            **options,
        )
        output_BChw = cast(Tensor, output[0]).float()
        if self.is_sample:
            return output_BChw
        from_latents_B = self.from_latents_T[timestep_B].view(-1, 1, 1, 1)
        from_output_B = self.from_output_T[timestep_B].view(-1, 1, 1, 1)
        return from_latents_B * latents_BChw + from_output_B * output_BChw

    def _time_ids(self, latents_BChw: Tensor) -> Tensor:
        """Original height and width, the crop's top and left, target height and width."""
        ones_B1 = torch.ones_like(latents_BChw[:, :1, 0, 0])
        height_B1 = ones_B1 * (latents_BChw.shape[2] * self.downscale)
        width_B1 = ones_B1 * (latents_BChw.shape[3] * self.downscale)
        size_B2 = torch.cat([height_B1, width_B1], dim=1)
        return torch.cat([size_B2, torch.zeros_like(size_B2), size_B2], dim=1)
