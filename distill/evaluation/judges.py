"""Judges: pictures drawn for prompts, and the real ones, to figures with intervals.

Owns what a judge is, and the two that compare no features: pixels alone, and CLIP's cosine between
picture and prompt.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from distill.evaluation.clip import Clip
from distill.evaluation.intervals import bootstrap_mean
from distill.evaluation.networks import NetworkCard
from distill.evaluation.pixels import detail_energy, has_hue
from distill.evaluation.prompts import PromptSet
from distill.evaluation.results import Score

# Shape suffixes: N pictures, H/W pixels, C channel.

REAL = "real pictures"


class Judge(Protocol):
    """Scores a sampler's pictures of one set of prompts."""

    card: NetworkCard

    def score(self, sampler: str, asked: PromptSet, images_NHWC: NDArray[np.uint8]) -> Score:
        """Every figure that the judge can give; images_NHWC in the order of the prompts."""
        ...

    def floor(self, asked: PromptSet) -> Score | None:
        """The same of real pictures, where the set has some to spare."""
        ...


class PixelJudge:
    """Sharpness against the real pictures', and whether the colour is the one asked for."""

    card = NetworkCard(
        "pixels",
        "",
        "none",
        "root mean square of the Laplacian of luma; mean hue",
        note="no network",
    )

    def score(self, sampler: str, asked: PromptSet, images_NHWC: NDArray[np.uint8]) -> Score:
        """Sharpness, and the share of hues within 30 degrees where colours are asked for."""
        real = float(detail_energy(asked.real.images_NHWC).mean())
        metrics = {"sharpness": bootstrap_mean(detail_energy(images_NHWC) / real, asked.prompts)}
        if asked.colours:
            fits = has_hue(images_NHWC, asked.colours).astype(float)
            metrics["right_hue"] = bootstrap_mean(fits, asked.prompts)
        return Score(sampler, asked.kind, self.card.name, metrics)

    def floor(self, asked: PromptSet) -> Score | None:
        """Sharpness of the real pictures left out."""
        if asked.floor is None:
            return None
        real = float(detail_energy(asked.real.images_NHWC).mean())
        values = detail_energy(asked.floor.images_NHWC) / real
        metrics = {"sharpness": bootstrap_mean(values, asked.prompts[: len(values)])}
        return Score(REAL, asked.kind, self.card.name, metrics)


class ClipJudge:
    """Whether pictures fit their prompts."""

    def __init__(self, clip: Clip) -> None:
        """Use a CLIP model."""
        self.card = clip.card
        self._clip = clip

    def score(self, sampler: str, asked: PromptSet, images_NHWC: NDArray[np.uint8]) -> Score:
        """Mean cosine of picture and prompt."""
        cosines = self._clip.scores(images_NHWC, asked.prompts)
        metrics = {"clip_score": bootstrap_mean(cosines, asked.prompts)}
        return Score(sampler, asked.kind, self.card.name, metrics)

    def floor(self, asked: PromptSet) -> Score | None:
        """Real pictures with their own captions."""
        if asked.floor is None:
            return None
        prompts = asked.prompts[: len(asked.floor)]
        cosines = self._clip.scores(asked.floor.images_NHWC, prompts)
        metrics = {"clip_score": bootstrap_mean(cosines, prompts)}
        return Score(REAL, asked.kind, self.card.name, metrics)
