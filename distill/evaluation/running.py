"""Every sampler's pictures of every set of prompts before every judge.

Owns the order of the work, its progress bar and the one call that scores finished pictures. Knows
nothing of how a picture is drawn.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from distill.evaluation.judges import REAL, Judge
from distill.evaluation.prompts import PromptSet
from distill.evaluation.results import Evaluation, SamplerFacts, Score, SetFacts

# Shape suffixes: N pictures, H/W pixels, C channel.

Draw = Callable[[Sequence[str], Sequence[int]], NDArray[np.uint8]]
BATCH_SIZE = 32
NUM_SHOWN = 12
DECODED = "real, through the autoencoder"


@dataclass(frozen=True)
class Sampler:
    """A way to draw, and what is to be known of it."""

    facts: SamplerFacts
    draw: Draw


@dataclass(frozen=True)
class Subject:
    """What is evaluated.

    Attributes:
        name: of the run.
        samplers: in the order of the tables.
        through_codec: real pictures as the autoencoder gives them back, which bounds what a model
            that draws in its latents can reach; None where there is no autoencoder.
    """

    name: str
    samplers: Sequence[Sampler]
    through_codec: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] | None = None


@dataclass(frozen=True)
class Outcome:
    """Figures, and some of the pictures that they were taken of.

    Attributes:
        evaluation: the figures.
        sheets: by kind of prompts, the first prompts and each sampler's pictures of them.
    """

    evaluation: Evaluation
    sheets: dict[str, tuple[tuple[str, ...], dict[str, NDArray[np.uint8]]]]


def draw_all(
    draw: Draw,
    prompts: Sequence[str],
    seeds: Sequence[int] | None = None,
    on_batch: Callable[[int], object] | None = None,
) -> NDArray[np.uint8]:
    """Draw every prompt with its seed, by default 0, 1, 2, ... in order; images_NHWC.

    Args:
        draw: prompts and seeds to pictures.
        prompts: to draw.
        seeds: of each.
        on_batch: is told the number of pictures after each batch.
    """
    seeds = range(len(prompts)) if seeds is None else seeds
    images = []
    for start in range(0, len(prompts), BATCH_SIZE):
        part = slice(start, start + BATCH_SIZE)
        images.append(draw(prompts[part], seeds[part]))
        if on_batch is not None:
            on_batch(len(images[-1]))
    return np.concatenate(images)


def score_pictures(
    sampler: str, asked: PromptSet, images_NHWC: NDArray[np.uint8], judges: Sequence[Judge]
) -> list[Score]:
    """All figures of one sampler's pictures of one set of prompts."""
    assert len(images_NHWC) == len(asked.prompts), "one picture per prompt"
    return [judge.score(sampler, asked, images_NHWC) for judge in judges]


def evaluate(
    subject: Subject,
    sets: Sequence[PromptSet],
    judges: Sequence[Judge],
    settings: dict[str, Any] | None = None,
) -> Outcome:
    """Draw every set with every sampler, the same seeds for all, and score it.

    Args:
        subject: what is evaluated.
        sets: of prompts with their real pictures.
        judges: of which each gives its own figures.
        settings: to be kept with the figures, so that they can be repeated.
    """
    scores: list[Score] = []
    facts: list[SamplerFacts] = []
    sheets: dict[str, tuple[tuple[str, ...], dict[str, NDArray[np.uint8]]]] = {
        asked.kind: (asked.prompts[:NUM_SHOWN], {}) for asked in sets
    }
    floors = [judge.floor(asked) for asked in sets for judge in judges]
    scores += [floor for floor in floors if floor is not None]
    if scores:
        facts.append(SamplerFacts(REAL, "real"))
    if subject.through_codec is not None:
        # Only where every prompt has the one real picture at its place.
        for asked in (a for a in sets if len(a.real) == len(a.prompts)):
            images_NHWC = subject.through_codec(asked.real.images_NHWC)
            scores += score_pictures(DECODED, asked, images_NHWC, judges)
            sheets[asked.kind][1][DECODED] = images_NHWC[:NUM_SHOWN]
        if any(score.sampler == DECODED for score in scores):
            facts.append(SamplerFacts(DECODED, "codec"))
    num_pictures = sum(len(asked.prompts) for asked in sets)
    total = num_pictures * sum(_cost(sampler.facts) for sampler in subject.samplers)
    with tqdm(total=total, desc="evaluate", unit="call") as bar:
        for sampler in subject.samplers:
            bar.set_postfix_str(sampler.facts.name)
            on_batch = partial(_advance, bar, _cost(sampler.facts))
            drawing_s = 0.0
            for asked in sets:
                start_s = time.perf_counter()
                images_NHWC = draw_all(sampler.draw, asked.prompts, asked.seeds, on_batch)
                drawing_s += time.perf_counter() - start_s
                scores += score_pictures(sampler.facts.name, asked, images_NHWC, judges)
                sheets[asked.kind][1][sampler.facts.name] = images_NHWC[:NUM_SHOWN]
            ms = 1000 * drawing_s / num_pictures
            facts.append(replace(sampler.facts, ms_per_picture=round(ms, 2)))
    evaluation = Evaluation(
        subject.name,
        settings or {},
        {judge.card.name: judge.card for judge in judges},
        [_facts_of(asked) for asked in sets],
        facts,
        scores,
    )
    return Outcome(evaluation, sheets)


def _cost(facts: SamplerFacts) -> int:
    """Of one picture for the progress bar: calls of the network, and about one for the decoder."""
    return facts.num_calls + 1


def _advance(bar: tqdm[object], cost: int, num_pictures: int) -> None:
    bar.update(cost * num_pictures)


def _facts_of(asked: PromptSet) -> SetFacts:
    return SetFacts(
        asked.kind,
        len(set(asked.prompts[: asked.num_in_set])),
        asked.num_in_set,
        len(asked.real),
        asked.fingerprint,
    )
