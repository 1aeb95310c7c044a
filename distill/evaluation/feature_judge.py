"""The judge that looks through a network: which score is taken of which kind of prompts.

Holds the real pictures' features, so that every sampler is held against the same ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from distill.dataset import Pictures
from distill.dataset.recolour import plain_name
from distill.evaluation.distances import FrechetReference, KernelDistance
from distill.evaluation.intervals import Estimate, bootstrap_mean, jackknife
from distill.evaluation.judges import REAL
from distill.evaluation.manifolds import Manifolds, pairwise_distances
from distill.evaluation.networks import Description, Network
from distill.evaluation.pixels import grey
from distill.evaluation.prompts import PromptSet
from distill.evaluation.results import Score
from distill.evaluation.retrieval import retrieval_ranks
from distill.evaluation.variety import spread_within, style_purity

# Shape suffixes: N generated pictures, G real pictures of the gallery, D width of a feature vector.

Statistic = Callable[[NDArray[np.int64]], float]


class FeatureJudge:
    """Distances between sets, retrieval, diversity and style purity in a network's features."""

    def __init__(self, network: Network, gallery: Pictures, *, has_intervals: bool = True) -> None:
        """Describe the gallery.

        Args:
            network: that looks.
            gallery: every real picture, training and held-out.
            has_intervals: of the scores of whole sets, which take twenty times as long.
        """
        self.card = network.card
        self._network = network
        self._gallery = gallery
        self._has_intervals = has_intervals
        self._styles = np.asarray(gallery.styles)
        described = network.describe(gallery.images_NHWC)
        self._layout_GD = described.layout_ND
        self._pooled = dict(zip(_digests(gallery), described.pooled_ND, strict=True))
        self._grey_layout_GD: NDArray[np.float32] | None = None
        self._references: dict[str, tuple[NDArray[np.float64], FrechetReference]] = {}

    def score(self, sampler: str, asked: PromptSet, images_NHWC: NDArray[np.uint8]) -> Score:
        """Every figure that the set of prompts allows."""
        described = self._network.describe(images_NHWC)
        metrics, notes = self._of_sets(
            asked, described.pooled_ND[: asked.num_in_set], asked.prompts[: asked.num_in_set]
        )
        by_group: dict[str, float] = {}
        if asked.concepts:
            ranks_N = self._ranks(asked, images_NHWC, described)
            for k in (1, 5):
                metrics[f"top{k}"] = bootstrap_mean((ranks_N <= k).astype(float), asked.prompts)
            by_group = _share_by_group(ranks_N <= 1, asked.groups)
        if asked.concepts and any(self._styles) and not any(asked.styles):
            metrics |= self._purity(asked, described)
        metrics |= self._diversity(asked, described)
        return Score(sampler, asked.kind, self.card.name, metrics, by_group, notes)

    def floor(self, asked: PromptSet) -> Score | None:
        """Real pictures that the set left out, as many as are drawn, as if a model had drawn them.

        Only distances between sets are taken of them.
        """
        if asked.floor is None:
            return None
        pooled_ND = self._network.describe(asked.floor.images_NHWC).pooled_ND
        metrics, notes = self._of_sets(asked, pooled_ND, asked.prompts[: len(pooled_ND)])
        return Score(REAL, asked.kind, self.card.name, metrics, {}, notes)

    def _of_sets(
        self, asked: PromptSet, fake_ND: NDArray[np.float64], prompts: Sequence[str]
    ) -> tuple[dict[str, Estimate], dict[str, float]]:
        real_ND, reference = self._reference(asked)
        width = real_ND.shape[1]
        unit = reference.variance if self.card.is_scaled else 1.0
        statistics: dict[str, Statistic] = {
            "frechet_distance": lambda keep: reference.distance(fake_ND[keep]) / unit
        }
        root = (unit / width) ** 0.5 if self.card.is_scaled else 1.0
        kernel = KernelDistance(real_ND / root, fake_ND / root)
        statistics["kernel_distance"] = kernel.unbiased
        if Manifolds.is_possible(len(real_ND), len(fake_ND)):
            balls = Manifolds(real_ND, fake_ND)
            statistics["precision"] = balls.precision
            statistics["recall"] = balls.recall
            statistics["density"] = balls.density
            statistics["coverage"] = balls.coverage
        metrics = {name: self._estimate(name, of, prompts) for name, of in statistics.items()}
        subsets = kernel.subsets()
        notes = {
            "kernel_subset_mean": subsets.mean,
            "kernel_subset_std": subsets.std,
            "kernel_subset_size": float(subsets.size),
        }
        return metrics, notes

    def _estimate(self, name: str, statistic: Statistic, prompts: Sequence[str]) -> Estimate:
        bounds = (0.0, 1.0) if name in ("precision", "recall", "coverage") else None
        if self._has_intervals:
            return jackknife(statistic, prompts, bounds)
        return Estimate(statistic(np.arange(len(prompts))))

    def _reference(self, asked: PromptSet) -> tuple[NDArray[np.float64], FrechetReference]:
        if asked.kind not in self._references:
            digests = _digests(asked.real)
            new = [i for i, digest in enumerate(digests) if digest not in self._pooled]
            if new:
                rows_ND = self._network.describe(asked.real.images_NHWC[new]).pooled_ND
                self._pooled |= zip([digests[i] for i in new], rows_ND, strict=True)
            real_ND = np.stack([self._pooled[digest] for digest in digests])
            self._references[asked.kind] = real_ND, FrechetReference(real_ND)
        return self._references[asked.kind]

    def _ranks(
        self, asked: PromptSet, images_NHWC: NDArray[np.uint8], described: Description
    ) -> NDArray[np.int64]:
        """Ranks among pictures of the asked style; a thing in a new colour is compared in grey."""
        names: Sequence[str] = self._gallery.names
        layout_ND, gallery_GD = described.layout_ND, self._layout_GD
        if asked.colours:
            if self._grey_layout_GD is None:
                self._grey_layout_GD = self._network.describe(
                    grey(self._gallery.images_NHWC)
                ).layout_ND
            gallery_GD = self._grey_layout_GD
            layout_ND = self._network.describe(grey(images_NHWC)).layout_ND
            names = [plain_name(name) for name in names]
        style_N = np.asarray(asked.styles)
        distances_NG = np.full((len(layout_ND), len(gallery_GD)), np.inf, dtype=np.float32)
        for style in np.unique(style_N):
            rows = np.flatnonzero(style_N == style)
            columns = np.flatnonzero((self._styles == style) | (style == ""))
            distances_NG[np.ix_(rows, columns)] = pairwise_distances(
                layout_ND[rows], gallery_GD[columns]
            )
        return retrieval_ranks(distances_NG, asked.concepts, names)

    def _purity(self, asked: PromptSet, described: Description) -> dict[str, Estimate]:
        rows: dict[str, list[int]] = {}
        for i, name in enumerate(self._gallery.names):
            rows.setdefault(name, []).append(i)
        values, prompts = [], []
        for i, concept in enumerate(asked.concepts):
            real = rows[concept]
            value = style_purity(
                described.layout_ND[i], self._layout_GD[real], self._styles[real].tolist()
            )
            if value is not None:
                values.append(value)
                prompts.append(asked.prompts[i])
        return {"style_purity": bootstrap_mean(np.asarray(values), prompts)} if values else {}

    @cached_property
    def _mean_distance(self) -> float:
        """Between any two real pictures, from about 200 of them to all."""
        some_ND = self._layout_GD[:: max(1, len(self._layout_GD) // 200)]
        apart = pairwise_distances(some_ND, self._layout_GD)
        return float(apart[apart > 0].mean())

    @cached_property
    def _real_spread(self) -> dict[str, float]:
        """Between the real pictures of each concept."""
        return spread_within(self._layout_GD, self._gallery.names)

    def _diversity(self, asked: PromptSet, described: Description) -> dict[str, Estimate]:
        """Distance between pictures of one prompt, in two units."""
        fake = spread_within(described.layout_ND, asked.prompts)
        if not fake:
            return {}
        per_prompt = np.array(list(fake.values())) / self._mean_distance
        metrics = {"diversity": bootstrap_mean(per_prompt, list(fake))}
        if asked.concepts:
            real = self._real_spread
            both = [(p, fake[p], real[p]) for p in fake if p in real]
            if both:
                drawn, given = (np.array([entry[k] for entry in both]) for k in (1, 2))
                ratio = jackknife(_ratio_of(drawn, given), [entry[0] for entry in both])
                metrics["diversity_ratio"] = ratio
        return metrics


def _digests(pictures: Pictures) -> list[bytes]:
    images = pictures.images_NHWC
    return [hashlib.sha1(np.ascontiguousarray(i).tobytes()).digest() for i in images]


def _share_by_group(is_right_N: NDArray[np.bool_], groups: Sequence[str]) -> dict[str, float]:
    group_N = np.asarray(groups)
    return {str(group): float(is_right_N[group_N == group].mean()) for group in np.unique(group_N)}


def _ratio_of(above: NDArray[np.float64], below: NDArray[np.float64]) -> Statistic:
    return lambda keep: float(above[keep].mean() / below[keep].mean())
