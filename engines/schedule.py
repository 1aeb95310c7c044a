"""The diffusion noise schedule in plain numpy.

Owns alpha_t and sigma_t: x_t = alpha_t * x_0 + sigma_t * noise, with alpha_t^2 + sigma_t^2 = 1, or
alpha_t + sigma_t = 1 for a flow. Knows nothing of models, prompts or frameworks, so that training,
export and serving share one table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines.spec import PredictionType, ScheduleSpec

Float64 = NDArray[np.float64]


def _betas(spec: ScheduleSpec) -> Float64:
    num = spec.num_train_timesteps
    if spec.beta_schedule == "linear":
        return np.linspace(spec.beta_start, spec.beta_end, num, dtype=np.float64)
    if spec.beta_schedule == "scaled_linear":
        return np.linspace(spec.beta_start**0.5, spec.beta_end**0.5, num, dtype=np.float64) ** 2

    # Source: arXiv:2102.09672, eq. 17, with the same clipping of beta at 0.999.
    def signal(fraction: float) -> float:
        return math.cos((fraction + 0.008) / 1.008 * math.pi / 2) ** 2

    ratios = [1 - signal((i + 1) / num) / signal(i / num) for i in range(num)]
    return np.minimum(np.array(ratios, dtype=np.float64), 0.999)


@dataclass(frozen=True)
class Schedule:
    """Signal and noise scales by timestep index.

    Attributes:
        alphas: (num_train_timesteps,) float64, signal scale, descending.
        sigmas: (num_train_timesteps,) float64, noise scale, ascending.
        is_input_pure_noise: at the last timestep the network is given pure noise, whatever
            alpha says there.
    """

    alphas: Float64
    sigmas: Float64
    is_input_pure_noise: bool

    @classmethod
    def from_spec(cls, spec: ScheduleSpec) -> Schedule:
        """Build the table that a model was trained with."""
        if spec.beta_schedule == "flow":
            # Source: arXiv:2209.03003, section 2.1, with time running from data to noise.
            sigmas = np.linspace(0.0, 1.0, spec.num_train_timesteps, dtype=np.float64)
            return cls(1.0 - sigmas, sigmas, spec.zero_terminal_snr != "none")
        alphas = np.sqrt(np.cumprod(1.0 - _betas(spec)))
        if spec.zero_terminal_snr == "rescale":
            # Shift so that the last alpha is 0, scale so that the first one keeps its value.
            # Source: arXiv:2305.08891, algorithm 1.
            first, last = alphas[0], alphas[-1]
            alphas = (alphas - last) * (first / (first - last))
        sigmas = np.sqrt(np.clip(1.0 - alphas**2, 0.0, 1.0))
        return cls(alphas, sigmas, spec.zero_terminal_snr != "none")

    def denoised_scales(self, prediction: PredictionType) -> tuple[Float64, Float64]:
        """Tables that turn a network's output into the estimate of the clean latents.

        Returns:
            (from_latents, from_output), by timestep: x_0 = from_latents * x_t + from_output * y.

        Raises:
            ValueError: epsilon prediction where alpha reaches 0, which leaves nothing of x_0.
        """
        if prediction == "sample":
            return np.zeros_like(self.alphas), np.ones_like(self.alphas)
        if prediction == "v_prediction":
            # Source: arXiv:2202.00512, section 4: v = alpha * noise - sigma * x_0.
            return self.alphas, -self.sigmas
        if prediction == "flow":
            # y = noise - x_0, so x_t = (alpha + sigma) * x_0 + sigma * y on any schedule.
            total = self.alphas + self.sigmas
            return 1.0 / total, -self.sigmas / total
        if self.alphas.min() <= 0.0:
            raise ValueError(
                "epsilon prediction cannot end at zero signal: use zero_terminal_snr "
                "'input_only', or train with v_prediction"
            )
        return 1.0 / self.alphas, -self.sigmas / self.alphas
