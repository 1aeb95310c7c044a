"""The arithmetic between noisy latents, a network's prediction and the denoised latents.

Owns the schedule as tensors. Teacher and student share it; it knows nothing of either.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from engines.schedule import Schedule
from engines.spec import PredictionType, ScheduleSpec

# Shape suffixes: B batch, C channel, h/w latent cells, T timesteps.


@dataclass(frozen=True)
class Diffusion:
    """The schedule as float32 tensors, and the network's prediction turned into x0.

    Source: arXiv:2202.00512, appendix D, for the v prediction; arXiv:2209.03003 for the flow.
    """

    alphas_T: torch.Tensor
    sigmas_T: torch.Tensor
    prediction_type: PredictionType
    is_input_pure_noise: bool

    @classmethod
    def create(
        cls,
        spec: ScheduleSpec,
        prediction_type: PredictionType,
        device: torch.device | None = None,
    ) -> Diffusion:
        """Build from the schedule that model.json will carry; the CPU is the default device."""
        table = Schedule.from_spec(spec)
        return cls(
            torch.from_numpy(table.alphas).float().to(device),
            torch.from_numpy(table.sigmas).float().to(device),
            prediction_type,
            table.is_input_pure_noise,
        )

    @property
    def num_timesteps(self) -> int:
        """Length of the schedule."""
        return len(self.alphas_T)

    @property
    def device(self) -> torch.device:
        """Where the tables lie, and the timesteps that index them must."""
        return self.alphas_T.device

    def scales(self, timestep_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """alpha_t and sigma_t, each (B, 1, 1, 1)."""
        shape = (-1, 1, 1, 1)
        return self.alphas_T[timestep_B].view(shape), self.sigmas_T[timestep_B].view(shape)

    def draw_timesteps(self, num: int, shift: float) -> torch.Tensor:
        """Random timesteps, uniform for shift 1, towards noise above. Source: arXiv:2403.03206."""
        uniform_B = torch.rand(num)
        shifted_B = shift * uniform_B / (1 + (shift - 1) * uniform_B)
        timestep_B = (shifted_B * self.num_timesteps).long().clamp_max(self.num_timesteps - 1)
        return timestep_B.to(self.device)

    def add_noise(
        self, latents_BChw: torch.Tensor, noise_BChw: torch.Tensor, timestep_B: torch.Tensor
    ) -> torch.Tensor:
        """Noisy latents; pure noise at the last timestep where the schedule ends without signal."""
        alpha, sigma = self.scales(timestep_B)
        noisy_BChw = alpha * latents_BChw + sigma * noise_BChw
        if self.is_input_pure_noise:
            is_last = (timestep_B == self.num_timesteps - 1).view(-1, 1, 1, 1)
            noisy_BChw = torch.where(is_last, noise_BChw, noisy_BChw)
        return noisy_BChw

    def denoised(
        self, prediction_BChw: torch.Tensor, noisy_BChw: torch.Tensor, timestep_B: torch.Tensor
    ) -> torch.Tensor:
        """x0 in float32 from what the network predicts."""
        alpha, sigma = self.scales(timestep_B)
        prediction_BChw = prediction_BChw.float()
        if self.prediction_type == "sample":
            return prediction_BChw
        if self.prediction_type == "v_prediction":
            return alpha * noisy_BChw - sigma * prediction_BChw
        if self.prediction_type == "flow":
            return (noisy_BChw - sigma * prediction_BChw) / (alpha + sigma)
        return (noisy_BChw - sigma * prediction_BChw) / alpha

    def target(
        self, latents_BChw: torch.Tensor, noise_BChw: torch.Tensor, timestep_B: torch.Tensor
    ) -> torch.Tensor:
        """What the network should predict."""
        alpha, sigma = self.scales(timestep_B)
        if self.prediction_type == "sample":
            return latents_BChw
        if self.prediction_type == "v_prediction":
            return alpha * noise_BChw - sigma * latents_BChw
        if self.prediction_type == "flow":
            return noise_BChw - latents_BChw
        return noise_BChw
