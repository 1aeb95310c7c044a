"""What a backend gives the pipeline.

Owns the protocol of a stage and the tensor names that every graph, plan and module shares.
Knows no framework.

Shape suffixes: B batch, L tokens, D width, C channel, H/W pixels, h/w latent.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from engines.spec import ModelSpec, StageName

INPUTS: dict[StageName, tuple[str, ...]] = {
    "text": ("input_ids_BL",),
    "denoise": ("latents_BChw", "timestep_B", "text_embeds_BLD"),
    "decode": ("latents_BChw",),
}
OUTPUTS: dict[StageName, str] = {
    "text": "text_embeds_BLD",
    "denoise": "denoised_BChw",
    "decode": "images_BHWC",
}


class Stage(Protocol):
    """One compiled part of a model."""

    def __call__(self, *inputs: NDArray[Any]) -> NDArray[Any]:
        """Run on arrays in the order of `INPUTS`; return the one output.

        Raises:
            BackendError: the runtime refused the inputs or failed.
        """


@dataclass(frozen=True)
class Stages:
    """The three stages of a model, loaded by one backend.

    Attributes:
        text: input_ids_BL int64 -> text_embeds_BLD float32.
        denoise: latents_BChw float32, timestep_B int64, text_embeds_BLD float32 ->
            denoised_BChw float32, the estimate of the clean latents.
        decode: latents_BChw float32 -> images_BHWC uint8.
    """

    text: Stage
    denoise: Stage
    decode: Stage


class Backend(Protocol):
    """The module-level interface that the registry loads by name."""

    def load_stages(self, folder: Path, spec: ModelSpec, num_threads: int | None) -> Stages:
        """Load the stages of `folder`; `num_threads` None leaves the choice to the runtime.

        Raises:
            BundleError: a file is missing or damaged.
            BackendError: the runtime cannot load it.
        """
