"""Fixed prompts and seeds through student and teacher, and the scores of what they draw.

Owns the three sets of prompts (with a style, without one, and pairs kept from training) and the
table. The judging network is given by the caller and takes no part in training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from distill.dataset import Pictures
from distill.device import half_precision
from distill.metrics import SqueezeNet, frechet_distance, retrieval_ranks

Draw = Callable[[Sequence[str], Sequence[int]], NDArray[np.uint8]]


@dataclass(frozen=True)
class PromptSet:
    """Prompts of one kind, with the real pictures that are right answers for them."""

    kind: str
    prompts: tuple[str, ...]
    concepts: tuple[str, ...]
    styles: tuple[str, ...]
    groups: tuple[str, ...]
    real: Pictures


@dataclass(frozen=True)
class Score:
    """One sampler on one set of prompts."""

    sampler: str
    kind: str
    num_prompts: int
    frechet_distance: float
    top1: float
    top5: float
    top1_by_group: dict[str, float]


def prompt_sets(pictures: Pictures, heldout: Pictures | None) -> list[PromptSet]:
    """Training prompts with a style, without one, and held-out pairs where there are any."""
    styled = [i for i, style in enumerate(pictures.styles) if style]
    sets = [_styled_set("with style", pictures.select(styled))] if styled else []
    first: dict[str, int] = {}
    for i, name in enumerate(pictures.names):
        first.setdefault(name, i)
    one_each = pictures.select(list(first.values()))
    sets.append(
        PromptSet(
            "without style",
            one_each.names,
            one_each.names,
            ("",) * len(one_each),
            one_each.groups,
            pictures,
        )
    )
    if heldout is not None:
        sets.append(_styled_set("held-out pairs", heldout))
    return sets


def _styled_set(kind: str, pictures: Pictures) -> PromptSet:
    prompts = tuple(
        f"{name}, {style}" for name, style in zip(pictures.names, pictures.styles, strict=True)
    )
    return PromptSet(kind, prompts, pictures.names, pictures.styles, pictures.groups, pictures)


class Judge:
    """Holds the real pictures' features, so that every sampler is held against the same ones."""

    def __init__(
        self, network: SqueezeNet, pictures: Pictures, heldout: Pictures | None = None
    ) -> None:
        """Describe the gallery: training pictures, and held-out ones where there are any."""
        self._network = network
        galleries = [pictures] if heldout is None else [pictures, heldout]
        self._names = [name for g in galleries for name in g.names]
        self._styles = np.array([style for g in galleries for style in g.styles])
        self._layout_ND = np.concatenate([network.features(g.images_NHWC)[1] for g in galleries])

    def score(self, sampler: str, prompts: PromptSet, images_NHWC: NDArray[np.uint8]) -> Score:
        """Score one sampler's pictures of one set of prompts.

        The Fréchet distance is given in units of the real features' total variance, because
        the network's own scale says nothing by itself.
        """
        real_pooled_ND, _ = self._network.features(prompts.real.images_NHWC)
        variance = float(real_pooled_ND.var(axis=0, ddof=1).sum())
        pooled_ND, layout_ND = self._network.features(images_NHWC)
        every = np.ones(len(self._styles), dtype=bool)
        allowed = [self._styles == style if style else every for style in prompts.styles]
        ranks = retrieval_ranks(layout_ND, prompts.concepts, self._layout_ND, self._names, allowed)
        groups = np.asarray(prompts.groups)
        return Score(
            sampler=sampler,
            kind=prompts.kind,
            num_prompts=len(prompts.prompts),
            frechet_distance=frechet_distance(real_pooled_ND, pooled_ND) / variance,
            top1=float((ranks <= 1).mean()),
            top5=float((ranks <= 5).mean()),
            top1_by_group={
                str(g): float((ranks[groups == g] <= 1).mean()) for g in np.unique(groups)
            },
        )


def one_prompt_per_concept(pictures: Pictures) -> list[str]:
    """Every concept once, the styles it has taking turns."""
    styles_of: dict[str, list[str]] = {}
    for name, style in zip(pictures.names, pictures.styles, strict=True):
        styles_of.setdefault(name, []).append(style)
    prompts = []
    for i, (name, styles) in enumerate(sorted(styles_of.items())):
        style = sorted(styles)[i % len(styles)]
        prompts.append(f"{name}, {style}" if style else name)
    return prompts


def draw_all(
    draw: Draw, prompts: Sequence[str], batch_size: int = 32, bar: tqdm[object] | None = None
) -> NDArray[np.uint8]:
    """Draw every prompt, seeds 0, 1, 2, ... in order; images_NHWC."""
    images = []
    for start in range(0, len(prompts), batch_size):
        chunk = prompts[start : start + batch_size]
        images.append(draw(chunk, range(start, start + len(chunk))))
        if bar is not None:
            bar.update(len(chunk))
    return np.concatenate(images)


def evaluate(samplers: dict[str, Draw], sets: Sequence[PromptSet], judge: Judge) -> list[Score]:
    """Draw every set with every sampler, the same seeds for all, and score it."""
    scores = []
    total = sum(len(s.prompts) for s in sets) * len(samplers)
    with tqdm(total=total, desc="evaluate", unit="picture") as bar:
        for name, draw in samplers.items():
            for prompts in sets:
                scores.append(judge.score(name, prompts, draw_all(draw, prompts.prompts, bar=bar)))
    return scores


def markdown_table(scores: Sequence[Score]) -> str:
    """One row per sampler, the sets side by side: Fréchet distance, top 1, top 5."""
    kinds = list(dict.fromkeys(score.kind for score in scores))
    by_key = {(score.sampler, score.kind): score for score in scores}
    header = "| sampler |" + "".join(f" {k}: FD | top 1 | top 5 |" for k in kinds)
    rows = [header, "|---|" + "---|---|---|" * len(kinds)]
    for sampler in dict.fromkeys(score.sampler for score in scores):
        cells = ""
        for kind in kinds:
            score = by_key[sampler, kind]
            cells += f" {score.frechet_distance:.2f} | {score.top1:.0%} | {score.top5:.0%} |"
        rows.append(f"| {sampler} |{cells}")
    counts = ", ".join(f"{k}: {by_key[scores[0].sampler, k].num_prompts} prompts" for k in kinds)
    return "\n".join(rows) + f"\n\n{counts}\n"


def as_json(scores: Sequence[Score]) -> list[dict[str, object]]:
    """Plain values for a report file."""
    return [asdict(score) for score in scores]


def in_bf16(draw: Draw, device: torch.device, *, enabled: bool) -> Draw:
    """Run a sampler under bf16 autocast, as it was trained."""

    def drawn(prompts: Sequence[str], seeds: Sequence[int]) -> NDArray[np.uint8]:
        with half_precision(device, enabled=enabled):
            return draw(prompts, seeds)

    return drawn
