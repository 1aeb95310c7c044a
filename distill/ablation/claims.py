"""What the paper says, held against the figures: agreement, contradiction, or neither.

Owns the statements and the rule by which they are judged. A statement is judged from finished runs
alone, by differences between runs of the same seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from distill.ablation.rows import FULL, ROWS, TEACHER
from distill.evaluation.intervals import Estimate, over_seeds

DISTANCE = "frechet_distance"
Figures = dict[str, dict[int, dict[str, dict[str, float]]]]
"""By label, seed, kind of prompts and metric."""


@dataclass(frozen=True)
class Claim:
    """One row is better than another, or as good.

    Attributes:
        words: the statement.
        better: label of the row that should have the lower distance.
        worse: label of the other.
        source: the paper's figures.
    """

    words: str
    better: str
    worse: str
    source: str


@dataclass(frozen=True)
class Verdict:
    """A claim and what the runs say.

    Attributes:
        claim: what was said.
        kind: of prompts.
        difference: of the distances, worse less better, over seeds.
        words: "agrees", "disagrees", or "not decided" where the interval holds 0.
    """

    claim: Claim
    kind: str
    difference: Estimate
    words: str


@dataclass(frozen=True)
class Goal:
    """One of the project's own aims.

    Attributes:
        words: the aim.
        value: measured, over seeds.
        limit: it must not pass.
        is_met: by the mean.
    """

    words: str
    value: Estimate
    limit: float
    is_met: bool


def _found(name: str) -> str:
    paper = next(row.paper for row in ROWS if row.name == name)
    assert paper is not None
    return f"{paper.fid:g} / {paper.clip_score:g}"


def _against_full(words: str, worse: str) -> Claim:
    return Claim(words, FULL, worse, f"{_found(FULL)} against {_found(worse)}")


CLAIMS: tuple[Claim, ...] = (
    _against_full("a pretrained start is better than a random one", "init_random"),
    _against_full("both losses are better than distillation alone", "distill_only"),
    _against_full("both losses are better than the adversary alone", "adversarial_only"),
    Claim(
        "the adversary alone is better than distillation alone",
        "adversarial_only",
        "distill_only",
        f"{_found('adversarial_only')} against {_found('distill_only')}",
    ),
    Claim(
        "the adversary alone is better than distillation alone, through a vision model",
        "vision_adversarial_only",
        "distill_only",
        f"{_found('vision_adversarial_only')} against {_found('distill_only')}",
    ),
    _against_full("exponential weights give a lower distance than SDS", "weight_sds"),
    _against_full("exponential weights give a lower distance than NFSD", "weight_nfsd"),
    _against_full("heads told text and picture are better than told nothing", "condition_none"),
    _against_full("told both is better than the text alone", "condition_text"),
    _against_full("told both is better than the picture alone", "condition_image"),
    Claim(
        "a student of one step is better than its teacher at 8",
        FULL,
        f"{TEACHER} 8",
        "table 2: 19.7 / 0.326 against 31.7 / 0.320",
    ),
    Claim(
        "a student of one step is as good as its teacher at 25",
        FULL,
        f"{TEACHER} 25",
        "table 2: 19.7 / 0.326 against 20.1 / 0.318",
    ),
)
REGRESSIONS = ("regression_real", "regression_teacher")


def judged(claims: Sequence[Claim], figures: Figures, kinds: Sequence[str]) -> list[Verdict]:
    """Every claim whose two rows have seeds in common, for each kind of prompts."""
    verdicts = []
    for claim in claims:
        for kind in kinds:
            gaps = _paired(figures, claim, kind)
            if gaps:
                difference = over_seeds(gaps)
                verdicts.append(Verdict(claim, kind, difference, _verdict(difference)))
    return verdicts


def _paired(figures: Figures, claim: Claim, kind: str) -> list[float]:
    better, worse = figures.get(claim.better, {}), figures.get(claim.worse, {})
    return [
        worse[seed][kind][DISTANCE] - better[seed][kind][DISTANCE]
        for seed in sorted(better.keys() & worse.keys())
        if kind in better[seed] and kind in worse[seed]
    ]


def _verdict(difference: Estimate) -> str:
    if difference.low is None or difference.high is None:
        return "one seed: not decided"
    if difference.low > 0:
        return "agrees"
    return "disagrees" if difference.high < 0 else "not decided"


def goals(figures: Figures, kinds: Sequence[str], student: str) -> list[Goal]:
    """The project's aims for a row's one-step student, of those rows that are finished."""
    found = []
    for kind in kinds:
        found += _teacher_goals(figures, kind, student)
        for name in REGRESSIONS:
            values = _ratios(figures, student, name, kind, DISTANCE)
            if values:
                value = over_seeds(values)
                words = f"{kind}: distance below that of {name}, as a ratio"
                found.append(Goal(words, value, 1.0, value.value < 1.0))
    return found


def _teacher_goals(figures: Figures, kind: str, student: str) -> list[Goal]:
    found = []
    for steps, limit in ((25, 1.15), (4, 1.0)):
        values = _ratios(figures, student, f"{TEACHER} {steps}", kind, DISTANCE)
        if values:
            value = over_seeds(values)
            words = f"{kind}: distance at most {limit:g} times the teacher's at {steps} steps"
            found.append(Goal(words, value, limit, value.value <= limit))
    values = _ratios(figures, student, f"{TEACHER} 25", kind, "recall")
    if values:
        value = over_seeds(values)
        words = f"{kind}: recall at least 0.8 times the teacher's at 25 steps"
        found.append(Goal(words, value, 0.8, value.value >= 0.8))
    return found


def _ratios(figures: Figures, above: str, below: str, kind: str, metric: str) -> list[float]:
    a, b = figures.get(above, {}), figures.get(below, {})
    return [
        a[seed][kind][metric] / b[seed][kind][metric]
        for seed in sorted(a.keys() & b.keys())
        if b[seed].get(kind, {}).get(metric) and metric in a[seed].get(kind, {})
    ]
