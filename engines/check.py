"""Do two backends draw the same pictures?

Owns the parity test of a bundle against the torch folder that it was exported from: fixed
prompts and seeds, every number of steps, alone and in a batch, with stated tolerances.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engines.errors import ParityError
from engines.pipeline import Pipeline

# In levels of 0..255. What differs is rounding: half-precision weights, another order of sums.
MAX_MEAN_DIFFERENCE = 1.0
MAX_DIFFERENCE = 8

_NUM_PROMPTS = 8
_NUM_ALONE = 2
_PROMPTS = (
    "a red heart",
    "a blue circle above a yellow square",
    "a smiling face",
    "a cat",
    "a green tree",
    "an umbrella with rain drops",
    "a rocket",
    "a slice of pizza",
)


@dataclass(frozen=True)
class Comparison:
    """One pair of batches.

    Attributes:
        what: the two sides, in words.
        steps: number of denoise steps.
        batch_size: pictures in the batch.
        mean_difference: mean absolute difference in levels of 0..255.
        max_difference: largest absolute difference.
    """

    what: str
    steps: int
    batch_size: int
    mean_difference: float
    max_difference: int

    @property
    def is_within(self) -> bool:
        """Whether both differences are tolerable."""
        return self.mean_difference <= MAX_MEAN_DIFFERENCE and self.max_difference <= MAX_DIFFERENCE

    def __str__(self) -> str:
        """One line of the report."""
        verdict = "ok" if self.is_within else "TOO FAR"
        return (
            f"{self.what:24} steps {self.steps}  batch {self.batch_size}  "
            f"mean {self.mean_difference:.3f}  max {self.max_difference:3d}  {verdict}"
        )


@dataclass(frozen=True)
class ParityReport:
    """All comparisons of one check."""

    comparisons: tuple[Comparison, ...]

    @property
    def is_within(self) -> bool:
        """Whether every comparison is within the tolerances."""
        return all(comparison.is_within for comparison in self.comparisons)

    def require(self) -> None:
        """Raise where a comparison is out of tolerance.

        Raises:
            ParityError: names the first such comparison.
        """
        for comparison in self.comparisons:
            if not comparison.is_within:
                raise ParityError(
                    f"pictures differ ({comparison.what}, {comparison.steps} steps, "
                    f"batch {comparison.batch_size}: mean {comparison.mean_difference:.3f}, "
                    f"max {comparison.max_difference}; allowed {MAX_MEAN_DIFFERENCE:g} and "
                    f"{MAX_DIFFERENCE}): export the bundle again from this torch folder"
                )


def check_bundle(
    bundle: Path, source: Path, *, backend: str = "onnx", num_threads: int | None = None
) -> ParityReport:
    """Compare a bundle under `backend` with its torch folder under torch.

    Raises:
        BundleError: a folder is missing or damaged.
        BackendError: a backend cannot load or run it.
        ExportError: the torch folder cannot be read.
    """
    tested = Pipeline.load(bundle, backend=backend, num_threads=num_threads)
    reference = Pipeline.load(source, backend="torch", num_threads=num_threads)
    return ParityReport(tuple(compare(tested, reference, backend)))


def compare(tested: Pipeline, reference: Pipeline, name: str) -> Iterator[Comparison]:
    """Compare two pipelines, and the tested one's batch with its pictures drawn alone."""
    examples = (*tested.spec.examples, *_PROMPTS)[:_NUM_PROMPTS]
    seeds = tuple(1000 + index for index in range(len(examples)))
    for steps in range(1, tested.spec.max_steps + 1):
        batch_BHWC = _draw(tested, examples, seeds, steps)
        expected_BHWC = _draw(reference, examples, seeds, steps)
        yield _difference(f"{name} / torch", steps, batch_BHWC, expected_BHWC)
        for index in range(_NUM_ALONE):
            one = slice(index, index + 1)
            alone_BHWC = _draw(tested, examples[one], seeds[one], steps)
            expected_alone_BHWC = _draw(reference, examples[one], seeds[one], steps)
            yield _difference(f"{name} / torch", steps, alone_BHWC, expected_alone_BHWC)
            yield _difference(f"{name} alone / in batch", steps, alone_BHWC, batch_BHWC[one])


def _draw(
    pipeline: Pipeline, prompts: tuple[str, ...], seeds: tuple[int, ...], steps: int
) -> NDArray[np.uint8]:
    width, height = pipeline.spec.sizes_px[0]
    return pipeline.generate(prompts, seeds, width=width, height=height, steps=steps).images_BHWC


def _difference(
    what: str, steps: int, left_BHWC: NDArray[np.uint8], right_BHWC: NDArray[np.uint8]
) -> Comparison:
    if left_BHWC.shape != right_BHWC.shape:
        raise ParityError(
            f"{what}: pictures of shape {left_BHWC.shape} and {right_BHWC.shape}: "
            "the bundle was exported from another torch folder"
        )
    levels = np.abs(left_BHWC.astype(np.int16) - right_BHWC.astype(np.int16))
    return Comparison(what, steps, len(left_BHWC), float(levels.mean()), int(levels.max()))
