"""Figures as tables: which columns, how a number is written, and what may share a table.

Owns the form of the tables, in Markdown and in HTML.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from distill.evaluation.intervals import Estimate
from distill.evaluation.results import Evaluation, Score, SetFacts, refuse_to_mix


@dataclass(frozen=True)
class Column:
    """One metric in tables.

    Attributes:
        label: its heading.
        better: "lower", "higher", or "one" where the real pictures' value is 1.
        is_share: shown as a percentage.
    """

    label: str
    better: str
    is_share: bool = False


COLUMNS: dict[str, Column] = {
    "frechet_distance": Column("FD", "lower"),
    "kernel_distance": Column("KD", "lower"),
    "precision": Column("precision", "higher", True),
    "recall": Column("recall", "higher", True),
    "density": Column("density", "one"),
    "coverage": Column("coverage", "higher", True),
    "top1": Column("top 1", "higher", True),
    "top5": Column("top 5", "higher", True),
    "right_hue": Column("right hue", "higher", True),
    "style_purity": Column("style purity", "higher"),
    "diversity": Column("diversity", "higher"),
    "diversity_ratio": Column("diversity, real = 1", "one"),
    "sharpness": Column("sharpness, real = 1", "one"),
    "clip_score": Column("CLIP score", "higher"),
}
_ARROWS = {"lower": " ↓", "higher": " ↑", "one": ""}
# What the literature calls the two distances when Inception gives the features.
_INCEPTION = {"FD": "FID", "KD": "KID"}


@dataclass(frozen=True)
class Table:
    """A caption, headings and rows of plain text.

    Attributes:
        is_words: cells are words to be wrapped, not figures to be lined up.
    """

    caption: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    is_words: bool = False

    def markdown(self) -> str:
        """Return the table with its caption above."""
        lines = [
            f"| {' | '.join(self.headings)} |",
            "|" + "---|" * len(self.headings),
            *(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in self.rows),
        ]
        return f"**{self.caption}**\n\n" + "\n".join(lines) + "\n"

    def html(self) -> str:
        """Return the table with its caption."""
        head = "".join(f"<th>{html.escape(text)}</th>" for text in self.headings)
        body = "".join(
            "<tr>" + "".join(f"<td>{_html_cell(cell)}</td>" for cell in row) + "</tr>"
            for row in self.rows
        )
        kind = ' class="words"' if self.is_words else ""
        return (
            f"<table{kind}><caption>{html.escape(self.caption)}</caption>"
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        )


def _html_cell(text: str) -> str:
    """An interval goes below its figure, to keep wide tables on the page."""
    value, bracket, interval = text.partition(" [")
    if not bracket or (not value[:1].isdigit() and value[:1] != "-"):
        return html.escape(text)
    return f"{html.escape(value)}<br><small>[{html.escape(interval)}</small>"


def written(value: float, *, is_share: bool) -> str:
    """A number as tables show it."""
    if is_share:
        return f"{100 * value:.0f} %"
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.2g}"


def cell(estimate: Estimate | None, *, is_share: bool, has_interval: bool) -> str:
    """A figure, with its interval on demand; a dash where it was not taken."""
    if estimate is None:
        return "–"
    text = written(estimate.value, is_share=is_share)
    if not has_interval or estimate.low is None or estimate.high is None:
        return text
    low, high = (written(v, is_share=is_share) for v in (estimate.low, estimate.high))
    return f"{text} [{low.removesuffix(' %')}, {high.removesuffix(' %')}]"


def score_tables(evaluations: Sequence[Evaluation], *, has_intervals: bool = True) -> list[Table]:
    """One table per kind of prompts and judge, all samplers of all runs in it.

    Raises:
        ConfigError: the runs were judged by other networks, or asked something else.
    """
    refuse_to_mix(evaluations)
    first = evaluations[0]
    tables = []
    for facts in first.sets:
        for judge in first.judges:
            taken = [
                (evaluation, sampler.name, score)
                for evaluation in evaluations
                for sampler in evaluation.samplers
                if (score := evaluation.find(sampler.name, facts.kind, judge)) is not None
            ]
            names = [n for n in COLUMNS if any(n in score.metrics for _, _, score in taken)]
            if not names:
                continue
            rows = tuple(
                (
                    sampler if len(evaluations) == 1 else f"{evaluation.run}: {sampler}",
                    *_cells(score, names, has_intervals=has_intervals),
                )
                for evaluation, sampler, score in taken
            )
            headings = tuple(_heading(name, judge) for name in names)
            tables.append(Table(_caption(first, facts, judge), ("sampler", *headings), rows))
    return tables


def timing_table(evaluation: Evaluation) -> Table:
    """What each sampler costs."""
    rows = tuple(
        (
            s.name,
            str(s.num_steps),
            str(s.num_calls),
            f"{s.guidance:g}" if s.model == "teacher" else "–",
            "–" if s.ms_per_picture is None else f"{s.ms_per_picture:.1f}",
        )
        for s in evaluation.samplers
        if s.model in ("student", "teacher")
    )
    device = evaluation.settings.get("device", "")
    caption = f"Cost, decoding included, in batches of 32{f' on {device}' if device else ''}"
    return Table(caption, ("sampler", "steps", "network calls", "guidance", "ms/picture"), rows)


def group_table(evaluation: Evaluation, kind: str, judge: str) -> Table | None:
    """Retrieval by group of concepts, where there are groups."""
    found = [
        (s.name, score.top1_by_group)
        for s in evaluation.samplers
        if (score := evaluation.find(s.name, kind, judge)) is not None and score.top1_by_group
    ]
    groups = list(dict.fromkeys(group for _, shares in found for group in shares if group))
    if not groups:
        return None
    rows = tuple(
        (name, *(written(shares[g], is_share=True) if g in shares else "–" for g in groups))
        for name, shares in found
    )
    return Table(f"Top 1 by group, {kind}, {judge}", ("sampler", *groups), rows)


def _cells(score: Score, names: Sequence[str], *, has_intervals: bool) -> list[str]:
    return [
        cell(score.metrics.get(n), is_share=COLUMNS[n].is_share, has_interval=has_intervals)
        for n in names
    ]


def _heading(name: str, judge: str) -> str:
    column = COLUMNS[name]
    label = _INCEPTION.get(column.label, column.label) if judge == "inception" else column.label
    return label + _ARROWS[column.better]


def _caption(evaluation: Evaluation, facts: SetFacts, judge: str) -> str:
    card = evaluation.judges[judge]
    note = f"; {card.note}" if card.note else ""
    return (
        f"{facts.kind}, judged by {judge}: {facts.num_pictures} pictures of {facts.num_prompts} "
        f"prompts against {facts.num_real} real ones{note}"
    )
