"""From prompts and seeds to pictures: the only sampling loop.

Owns the order of the stages and the arithmetic between denoise steps. Knows nothing of backends'
insides, of requests or of image files.

Shape suffixes: B batch, L tokens, D width, C channel, H/W pixels, h/w latent.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.noise import unit_noise
from engines.runtime.base import Stages
from engines.runtime.registry import load_stages
from engines.schedule import Schedule
from engines.spec import ModelSpec
from engines.tokenizer import Tokenizer


@dataclass(frozen=True)
class Generated:
    """Pictures and the time that each part took.

    Attributes:
        images_BHWC: uint8, one picture per prompt, in order.
        stage_ms: milliseconds spent in "tokens", "text", "denoise" and "decode".
    """

    images_BHWC: NDArray[np.uint8]
    stage_ms: Mapping[str, float]


class Pipeline:
    """A loaded model. Holds no state between calls; a call may run in any thread."""

    def __init__(self, spec: ModelSpec, tokenizer: Tokenizer, stages: Stages) -> None:
        """Join loaded parts; `load` is the usual way."""
        self.spec = spec
        self._tokenizer = tokenizer
        self._stages = stages
        self._schedule = Schedule.from_spec(spec.schedule)

    @classmethod
    def load(
        cls, bundle: Path, *, backend: str = "onnx", num_threads: int | None = None
    ) -> Pipeline:
        """Read a bundle and load its stages, after comparing every file with its digest.

        Raises:
            BundleError: a file is missing or damaged.
            BackendError: the backend is unknown or cannot load the stages.
        """
        bundle = Path(bundle)
        spec = ModelSpec.load(bundle)
        spec.verify(bundle)
        stages = load_stages(backend, bundle, spec, num_threads)
        return cls(spec, Tokenizer.load(bundle, spec), stages)

    def generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        width: int,
        height: int,
        steps: int,
    ) -> Generated:
        """Draw one picture per prompt and seed; a picture does not depend on its batch-mates.

        Raises:
            ValueError: no prompt, a seed too few or out of range, or a size or number of steps
                that the model was not trained for.
            BackendError: a stage failed.
        """
        self._check(prompts, seeds, (width, height), steps)
        stage_ms: dict[str, float] = {}
        # A request for several pictures repeats its prompt: encode each text once.
        texts = list(dict.fromkeys(prompts))
        rows = [texts.index(prompt) for prompt in prompts]
        with _timed(stage_ms, "tokens"):
            input_ids_BL = self._tokenizer.encode(texts)
        with _timed(stage_ms, "text"):
            text_embeds_BLD = self._stages.text(input_ids_BL)[rows]
        with _timed(stage_ms, "denoise"):
            latents_BChw = self._denoise(text_embeds_BLD, seeds, (width, height), steps)
        with _timed(stage_ms, "decode"):
            images_BHWC = self._stages.decode(latents_BChw)
        return Generated(images_BHWC, stage_ms)

    def warm_up(self, batch_sizes: Iterable[int]) -> None:
        """Draw and drop one batch of every size, so that the first request waits for no set-up."""
        width, height = self.spec.sizes_px[0]
        for batch_size in batch_sizes:
            prompts = [f"warm up {index}" for index in range(batch_size)]
            self.generate(prompts, range(batch_size), width=width, height=height, steps=1)

    def _check(
        self, prompts: Sequence[str], seeds: Sequence[int], size_px: tuple[int, int], steps: int
    ) -> None:
        if not prompts or len(prompts) != len(seeds):
            raise ValueError(
                f"give one seed per prompt, got {len(prompts)} prompts and {len(seeds)} seeds"
            )
        if size_px not in self.spec.sizes_px:
            sizes = ", ".join(f"{width}x{height}" for width, height in self.spec.sizes_px)
            raise ValueError(f"size must be one of {sizes}, got {size_px[0]}x{size_px[1]}")
        if steps not in self.spec.student_timesteps:
            raise ValueError(f"steps must be in 1..{self.spec.max_steps}, got {steps}")

    def _denoise(
        self,
        text_embeds_BLD: NDArray[Any],
        seeds: Sequence[int],
        size_px: tuple[int, int],
        steps: int,
    ) -> NDArray[Any]:
        """Estimate clean latents, noise them again to the next timestep, estimate again."""
        shape = self.spec.latent_shape(*size_px)
        denoised_BChw = np.zeros((len(seeds), *shape), dtype=np.float32)
        for step, timestep in enumerate(self.spec.student_timesteps[steps]):
            noise_BChw = unit_noise(seeds, shape, step)
            if step == 0:
                noisy_BChw = noise_BChw  # a student starts from pure noise
            else:
                alpha = np.float32(self._schedule.alphas[timestep])
                sigma = np.float32(self._schedule.sigmas[timestep])
                noisy_BChw = alpha * denoised_BChw + sigma * noise_BChw
            timestep_B = np.full(len(seeds), timestep, dtype=np.int64)
            denoised_BChw = self._stages.denoise(noisy_BChw, timestep_B, text_embeds_BLD)
        return denoised_BChw


@contextmanager
def _timed(stage_ms: dict[str, float], name: str) -> Iterator[None]:
    start_s = time.perf_counter()
    yield
    stage_ms[name] = (time.perf_counter() - start_s) * 1000
