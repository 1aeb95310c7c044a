"""`onestep serve` with an engine whose speed is known, and with nothing else changed.

The command runs as it is, from its arguments to its drain; three names are put in other hands
first: loading the pipeline, the sizes that the model has and, with `--prepared`, the encoder.

    python -m tests.bench.overhead.onestep_server [--prepared] serve --model models/emoji
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from engines.pipeline import Generated
from service import __main__ as command
from service.processes import models
from service.schemas import ModelLimits
from service.settings import Settings
from service.telemetry import Telemetry
from tests.bench.overhead.engine import SIZE_PX, Engine, encode_jpeg, texture_HWC

PREPARED = "--prepared"


class EmulatedPipeline:
    """`service.engine_thread.ImagePipeline` over the emulated engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def warm_up(self, batch_sizes: Sequence[int]) -> None:
        """Nothing to warm."""

    def generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        width: int,
        height: int,
        steps: int,
        images_BHWC: NDArray[np.uint8] | None = None,
        strength: float = 0.5,
    ) -> Generated:
        """Sleep as long as the batch takes."""
        return Generated(self._engine.draw(len(seeds), seeds[0]), {"draw": 0.0})


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    load_limits = models.load_limits

    def load_limits_of_size(bundle: Path) -> ModelLimits:
        # The bundle's own tokenizer goes on counting: that is part of a request's work.
        return replace(load_limits(bundle), sizes_px=((SIZE_PX, SIZE_PX),))

    def loaders(settings: Settings, limits: ModelLimits, telemetry: Telemetry) -> dict[str, Any]:
        return {one.name: lambda: EmulatedPipeline(Engine.from_environment()) for one in limits.all}

    with ExitStack() as stack:
        stack.enter_context(patch.object(models, "load_limits", load_limits_of_size))
        stack.enter_context(patch("service.processes.serve.loaders", loaders))
        if PREPARED in arguments:
            picture = encode_jpeg(texture_HWC(0))
            stack.enter_context(patch("service.encoders.encode_image", lambda *_: picture))
        return command.main([part for part in arguments if part != PREPARED])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
