"""A set whose pictures the teacher draws: the captions are the data's, the latents its own.

Owns how such latents are made. LADD trains on them instead of on photographs, which the teacher's
distribution does not match in style or in how well they fit their captions.
Source: arXiv:2403.12015, section 4.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

import torch

from distill.config import ConfigError
from distill.samples.fingerprints import weights_hash
from distill.sampling import Solver, sample_teacher
from distill.teachers.base import Teacher
from distill.training.device import half_precision

# Shape suffixes: M captions, C channel, h/w latent cells.

_DRAW_TOGETHER = 32


@dataclass(frozen=True)
class Drawing:
    """How the teacher draws.

    Attributes:
        num_steps: calls of the teacher per picture, twice as many with guidance.
        guidance: classifier-free guidance scale.
        solver: of the path from noise to picture.
        seed: of the run; the same caption of the same row gets the same noise again.
        bf16: half precision in the network.
    """

    num_steps: int
    guidance: float = 1.0
    solver: Solver = "dpm++"
    seed: int = 0
    bf16: bool = False

    def __post_init__(self) -> None:
        """Refuse what draws nothing.

        Raises:
            ConfigError: there is no step, or no prompt in the guidance.
        """
        if self.num_steps < 1:
            raise ConfigError(f"--synthetic-steps must be at least 1, got {self.num_steps}")
        if self.guidance <= 0:
            raise ConfigError(f"--synthetic-guidance must be above 0, got {self.guidance:g}")

    def fingerprint(self, teacher: Teacher) -> str:
        """Hash of all that decides the latents, but the captions."""
        diffusion = teacher.diffusion
        schedule = (diffusion.alphas_T.tolist(), diffusion.sigmas_T.tolist())
        settings = repr((self, diffusion.prediction_type, diffusion.is_input_pure_noise, schedule))
        return weights_hash(teacher.unet, settings)

    def latents(
        self,
        teacher: Teacher,
        captions: Sequence[str],
        places: Sequence[tuple[int, int]],
        shape: tuple[int, int, int],
    ) -> torch.Tensor:
        """One picture per caption.

        Args:
            teacher: who draws.
            captions: M prompts.
            places: of each, its row in the set and its number there; they name its noise.
            shape: (C, h, w) of one picture's latents.

        Returns:
            latents_MChw float32 on the CPU, scaled.
        """
        # 32 bits of a hash: two captions of a large set may share their noise, which does no harm.
        seeds = [crc32(f"{self.seed} {row} {number}".encode()) for row, number in places]
        drawn = []
        for start in range(0, len(captions), _DRAW_TOGETHER):
            part = slice(start, start + _DRAW_TOGETHER)
            with half_precision(teacher.codec.device, enabled=self.bf16):
                latents_BChw = sample_teacher(
                    teacher.unet,
                    teacher.text,
                    teacher.diffusion,
                    captions[part],
                    seeds[part],
                    shape,
                    self.num_steps,
                    self.guidance,
                    self.solver,
                )
            drawn.append(latents_BChw.float().cpu())
        return torch.cat(drawn)
