"""Finished runs as tables: means over seeds, the paper's figures beside them, what agrees.

Owns the page that an ablation writes. Every sentence in it follows from a figure in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from distill.ablation.claims import CLAIMS, Figures, Goal, Verdict, goals, judged
from distill.ablation.results import RunResult
from distill.ablation.rows import FULL, ROWS, TEACHER, VISION, Row
from distill.evaluation.intervals import Estimate, over_seeds
from distill.evaluation.prompts import ALL_PROMPTS
from distill.evaluation.tables import COLUMNS, Table, cell, written

_SHOWN = (
    "frechet_distance",
    "kernel_distance",
    "precision",
    "recall",
    "top1",
    "top5",
    "style_purity",
    "diversity_ratio",
    "sharpness",
)


def label_of(result: RunResult, sampler_index: int) -> str:
    """Name of a line: the row, and its number of steps where it has several."""
    drawn = result.drawn[sampler_index]
    if result.row == TEACHER:
        return drawn.sampler
    return result.row if drawn.num_steps == 1 else f"{result.row}, {drawn.num_steps} steps"


def figures_of(results: Sequence[RunResult], aliases: Mapping[str, str]) -> Figures:
    """Scores by label and seed; the teacher's best solver answers to "teacher 25", too.

    Args:
        results: finished runs.
        aliases: further labels by label.
    """
    figures: Figures = {}
    for result in results:
        for index, drawn in enumerate(result.drawn):
            label = label_of(result, index)
            figures.setdefault(label, {})[result.seed] = drawn.scores
            if label in aliases:
                figures.setdefault(aliases[label], {})[result.seed] = drawn.scores
    return figures


def teacher_aliases(results: Sequence[RunResult], solver: str, guidance: float) -> dict[str, str]:
    """Which of the teacher's samplers stands for it at a number of steps: the strong solver."""
    aliases = {}
    for result in results:
        for drawn in result.drawn if result.row == TEACHER else ():
            is_guided = guidance == 1.0 or "guidance" in drawn.sampler
            is_solver = solver in drawn.sampler or drawn.num_steps == 1
            if is_guided and is_solver:
                aliases[drawn.sampler] = f"{TEACHER} {drawn.num_steps}"
    return aliases


def ordered_labels(results: Sequence[RunResult]) -> list[str]:
    """Labels in the order of the rows, the teacher's last."""
    order = {row.name: i for i, row in enumerate(ROWS)}
    ranked = sorted(results, key=lambda result: order.get(result.row, len(order)))
    return list(dict.fromkeys(label_of(r, i) for r in ranked for i in range(len(r.drawn))))


def score_table(
    kind: str, results: Sequence[RunResult], figures: Figures, counts: Mapping[str, int]
) -> Table:
    """Every line's means over seeds with their intervals, for one kind of prompts."""
    labels = [label for label in ordered_labels(results) if _has(figures[label], kind)]
    given = [s.get(kind, {}) for label in labels for s in figures[label].values()]
    names = [name for name in _SHOWN if any(name in scores for scores in given)]
    rows = {row.name: row for row in ROWS}
    lines = tuple(_line(x, kind, names, figures, rows) for x in labels)
    arrows = {"lower": " ↓", "higher": " ↑", "one": ""}
    headings = ("row", "seeds", *(COLUMNS[n].label + arrows[COLUMNS[n].better] for n in names))
    asked = "All prompts" if kind == ALL_PROMPTS else f"Prompts {kind}"
    caption = f"{asked}: {counts[kind]} pictures; mean over seeds [95 %, Student's t]"
    return Table(caption, (*headings, "paper: FID / CLIP"), lines)


def _has(by_seed: dict[int, dict[str, dict[str, float]]], kind: str) -> bool:
    return any(kind in scores for scores in by_seed.values())


def _line(
    label: str, kind: str, names: Sequence[str], figures: Figures, rows: Mapping[str, Row]
) -> tuple[str, ...]:
    by_seed = {seed: scores for seed, scores in figures[label].items() if kind in scores}
    row = rows.get(label.partition(",")[0])
    words, paper = label, "–"
    if row is not None:
        words = row.words + label[len(row.name) :]
        if row.paper is not None and label == row.name:
            paper = f"{row.paper.fid:g} / {row.paper.clip_score:g}"
    cells = []
    for name in names:
        values = [s[kind][name] for s in by_seed.values() if name in s.get(kind, {})]
        estimate = over_seeds(values) if values else None
        cells.append(cell(estimate, is_share=COLUMNS[name].is_share, has_interval=True))
    return (words, str(len(by_seed)), *cells, paper)


def claims_table(verdicts: Sequence[Verdict]) -> Table:
    """Statements of the paper and whether these runs say the same."""
    lines = tuple(
        (
            v.claim.words,
            v.claim.source,
            v.kind,
            _interval(v.difference),
            v.words,
        )
        for v in verdicts
    )
    headings = ("the paper", "its FID / CLIP", "prompts", "difference of FD here", "these runs")
    return Table("What the paper found, and what these runs say", headings, lines, is_words=True)


def goals_table(found: Sequence[Goal], row: str) -> Table:
    """The project's aims for one row's student; `row` as it is called in the other tables."""
    lines = tuple(
        (g.words, _interval(g.value), f"{g.limit:g}", "yes" if g.is_met else "no") for g in found
    )
    return Table(f"Aims at one step: {row}", ("aim", "measured", "limit", "met"), lines)


def cost_table(results: Sequence[RunResult]) -> Table:
    """What each row costs to train and to draw with."""
    lines = []
    for row in ROWS:
        runs = [result for result in results if result.row == row.name]
        if runs:
            times = over_seeds([run.train_s for run in runs]).value
            ms = over_seeds([run.drawn[0].ms_per_picture for run in runs]).value
            balance = runs[0].last_metrics
            push, pull = balance.get("grad_adversarial"), balance.get("grad_distill")
            ratio = "–" if not push or not pull else written(push / pull, is_share=False)
            accuracy = balance.get("d_accuracy")
            heads = "–" if accuracy is None else written(accuracy, is_share=False)
            lines.append((row.words, row.topic, f"{times:.0f}", f"{ms:.1f}", ratio, heads))
    headings = (
        "row",
        "question",
        "training s",
        "ms/picture",
        "adversarial : distillation gradient",
        "heads' accuracy",
    )
    return Table("Cost, and the losses' balance at the end of training", headings, tuple(lines))


def _interval(estimate: Estimate) -> str:
    return cell(estimate, is_share=False, has_interval=True)


def page(
    results: Sequence[RunResult],
    skipped: Mapping[str, str],
    facts: Mapping[str, str],
    counts: Mapping[str, int],
    aliases: Mapping[str, str],
) -> str:
    """The whole page in Markdown.

    Args:
        results: finished runs.
        skipped: rows that could not be run, with the reason.
        facts: machine, versions, budget, as words.
        counts: pictures of each kind of prompts.
        aliases: of the teacher's samplers.
    """
    figures = figures_of(results, aliases)
    parts = ["\n".join(f"- {name}: {value}" for name, value in facts.items()) + "\n"]
    parts += [score_table(kind, results, figures, counts).markdown() for kind in counts]
    verdicts = judged(CLAIMS, figures, list(counts))
    if verdicts:
        parts.append(claims_table(verdicts).markdown())
    for row in ROWS:
        if row.name in (FULL, VISION) and row.name in figures:
            aims = goals(figures, list(counts), row.name)
            if aims:
                parts.append(goals_table(aims, row.words).markdown())
    parts.append(cost_table(results).markdown())
    if skipped:
        lines = "\n".join(f"- {name}: {reason}" for name, reason in skipped.items())
        parts.append(f"Not run:\n\n{lines}\n")
    return "\n".join(parts)
