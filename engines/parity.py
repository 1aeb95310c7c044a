"""How two sides are compared: what is drawn, what is measured, how much may differ.

Owns the tolerances by precision. Knows nothing of bundles or of check.json's place.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines.errors import ParityError
from engines.pipeline import Pipeline
from engines.recording import PROMPTS, Call, Recorder, draw, max_error, mean_error
from engines.runtime.base import Stages, stage_outputs
from engines.spec import ModelSpec, Precision, StageName
from engines.tokenizer import Tokenizer
from engines.verdicts import PictureFigures, StageFigures

_NUM_PROMPTS = 8
_NUM_ALONE = 2
_FIRST_SEED = 1000


@dataclass(frozen=True)
class Tolerance:
    """What may differ.

    Attributes:
        stage_mean_error: of each stage on the same inputs, over the output's mean absolute value.
        mean_difference: of whole pictures, in levels of 0..255.
        max_difference: of one value of one pixel; None where a rare one may flip.
        psnr_db: at least; None where the two above say enough.
    """

    stage_mean_error: float
    mean_difference: float
    max_difference: int | None = None
    psnr_db: float | None = None


# float32 differs by the order of sums and by weights that are stored in half. In half, sums of
# thousands of products lose their last digits as well, and an edge may move by some levels. With
# 8 bits an edge may move by a pixel, so that single values say nothing: what counts is the mean,
# and a PSNR that lossy picture formats have at high quality.
TOLERANCES: Mapping[Precision, Tolerance] = {
    "float32": Tolerance(0.005, 1.0, max_difference=8),
    "float16": Tolerance(0.01, 1.5, max_difference=32),
    "bfloat16": Tolerance(0.05, 2.0, psnr_db=36.0),
    "float8": Tolerance(0.06, 2.0, psnr_db=36.0),
    "int8": Tolerance(0.06, 2.0, psnr_db=36.0),
}


@dataclass(frozen=True)
class Reference:
    """What the other side drew, and what its stages were given.

    Attributes:
        name: in words.
        pictures: by number of steps: the batch, then the first ones alone.
        calls: of each stage, at the largest number of steps.
    """

    name: str
    pictures: Mapping[int, list[NDArray[np.uint8]]]
    calls: Mapping[StageName, list[Call]]


def compare_stages(
    spec: ModelSpec,
    stages: Stages,
    calls: Mapping[StageName, list[Call]],
    tolerance: Tolerance,
) -> tuple[dict[StageName, StageFigures], list[str]]:
    """Give each stage what the reference's was given; the worst call counts."""
    figures: dict[StageName, StageFigures] = {}
    failures: list[str] = []
    for stage, noted in calls.items():
        run = getattr(stages, stage)
        pairs = [
            (tested, expected)
            for call in noted
            for tested, expected in zip(run(*call.inputs), call.outputs, strict=True)
        ]
        assert len(pairs) == len(noted) * len(stage_outputs(spec, stage))
        if any(tested.shape != expected.shape for tested, expected in pairs):
            raise ParityError(f"the {stage} stage gives other shapes: compare the same model")
        figures[stage] = StageFigures(
            max_error=max(max_error(*pair) for pair in pairs),
            mean_error=max(mean_error(*pair) for pair in pairs),
        )
        # Not `>`: a stage that gives NaN must fail.
        if not figures[stage].mean_error <= tolerance.stage_mean_error:
            failures.append(
                f"{stage} stage: mean error {figures[stage].mean_error:.4f}, "
                f"allowed {tolerance.stage_mean_error:g}"
            )
    return figures, failures


def reference_of(pipeline_parts: tuple[ModelSpec, Tokenizer, Stages], name: str) -> Reference:
    """Draw everything that configurations are compared with, once."""
    spec, tokenizer, stages = pipeline_parts
    recorder = Recorder()
    pipeline = Pipeline(spec, tokenizer, recorder.watch(stages))
    pictures: dict[int, list[NDArray[np.uint8]]] = {}
    calls: dict[StageName, list[Call]] = {}
    for steps in range(spec.max_steps, 0, -1):
        drawn = []
        for part in _parts():
            drawn.append(_draw(pipeline, part, steps))
            # The first batch visits every stage, at the largest number of steps.
            calls = calls or {stage: list(noted) for stage, noted in recorder.calls.items()}
        pictures[steps] = drawn
    return Reference(name, pictures, calls)


def compare(tested: Pipeline, reference: Reference, name: str) -> Iterator[PictureFigures]:
    """Compare whole pictures, and the tested batch with its pictures drawn alone."""
    for steps in range(1, tested.spec.max_steps + 1):
        batch_BHWC = np.empty(0, np.uint8)
        for part, expected_BHWC in zip(_parts(), reference.pictures[steps], strict=True):
            images_BHWC = _draw(tested, part, steps)
            if part == _parts()[0]:
                batch_BHWC = images_BHWC
            yield _figures(f"{name} / {reference.name}", steps, images_BHWC, expected_BHWC)
            if part != _parts()[0]:
                yield _figures(f"{name} alone / in batch", steps, images_BHWC, batch_BHWC[part])


def excesses(figures: PictureFigures, tolerance: Tolerance) -> Iterable[str]:
    """What of a comparison is out of tolerance, in words."""
    where = f"{figures.what}, {figures.steps} steps, batch {figures.batch_size}"
    if figures.mean_difference > tolerance.mean_difference:
        yield (
            f"{where}: mean {figures.mean_difference:.3f}, allowed {tolerance.mean_difference:g}"
        )
    if tolerance.max_difference is not None and figures.max_difference > tolerance.max_difference:
        yield f"{where}: max {figures.max_difference}, allowed {tolerance.max_difference}"
    if None not in (tolerance.psnr_db, figures.psnr_db) and figures.psnr_db < tolerance.psnr_db:  # type: ignore[operator] # neither is None here
        yield f"{where}: PSNR {figures.psnr_db:.1f} dB, at least {tolerance.psnr_db:g}"


def _parts() -> tuple[slice, ...]:
    """The whole batch first, then pictures alone."""
    return (slice(0, _NUM_PROMPTS), *(slice(i, i + 1) for i in range(_NUM_ALONE)))


def _draw(pipeline: Pipeline, part: slice, steps: int) -> NDArray[np.uint8]:
    prompts = (*pipeline.spec.examples, *PROMPTS)[:_NUM_PROMPTS]
    seeds = range(_FIRST_SEED, _FIRST_SEED + _NUM_PROMPTS)
    return draw(pipeline, prompts[part], seeds[part], steps)


def _figures(
    what: str, steps: int, left_BHWC: NDArray[np.uint8], right_BHWC: NDArray[np.uint8]
) -> PictureFigures:
    levels = np.abs(left_BHWC.astype(np.int16) - right_BHWC.astype(np.int16))
    squared = float(np.square(levels, dtype=np.float64).mean())
    return PictureFigures(
        what=what,
        steps=steps,
        batch_size=len(left_BHWC),
        max_difference=int(levels.max()),
        mean_difference=float(levels.mean()),
        psnr_db=None if squared == 0 else 10 * math.log10(255**2 / squared),
    )
