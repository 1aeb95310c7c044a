"""`onestep-distill report`: one page that says what a run is, how it trained and what it draws.

Owns the order of the page. Reads a run folder and loads no model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from distill.config import ConfigError
from distill.evaluation.curves import chart_sheet, duration_s, read_metrics
from distill.evaluation.differences import difference_table, nearest_preset, saved_config
from distill.evaluation.page import Heading, Page, Picture, Words
from distill.evaluation.results import EVALUATION_FILE, Evaluation, SamplerFacts
from distill.evaluation.tables import (
    COLUMNS,
    Table,
    group_table,
    score_tables,
    timing_table,
    written,
)
from distill.presets import PRESETS

_STAGES = ("autoencoder", "teacher", "student")
_REFERENCE_STEPS = 25
MEANINGS = {
    "FD, KD": "distance between the features of generated and real pictures: Fréchet and kernel. "
    "FD depends on the number of pictures, KD does not.",
    "precision, recall": "share of generated pictures that lie among real ones, and of real ones "
    "that lie among generated ones. Recall falls when variety is lost.",
    "density, coverage": "the same with outliers counting less.",
    "top 1, top 5": "how often the asked concept's real picture is the nearest, or among the five "
    "nearest concepts.",
    "style purity": "for prompts without a style: 1 where a picture keeps to one style, 0 where it "
    "lies half-way between two, as an average of right answers does.",
    "diversity": "distance between pictures of one prompt: 0 for always the same, 1 for as "
    "different as any two real pictures; or held against the real pictures of the same concept.",
    "sharpness": "fine detail against the real pictures'; below 1 is blurred, above 1 is noisy.",
    "right hue": "share within 30° of the colour asked for, for colours never shown on the thing.",
    "[low, high]": "95 % interval over prompts. It says nothing of another training's result.",
}


def write_report(
    run_folder: Path, preset_name: str | None = None, compared: Sequence[Path] = ()
) -> list[Path]:
    """Write report.md and report.html into the run folder; return their paths.

    Args:
        run_folder: of the run.
        preset_name: to compare the configuration with; the nearest one by default.
        compared: other runs whose figures join the tables.

    Raises:
        ConfigError: the folder holds no run, or the runs cannot be compared.
    """
    config = saved_config(run_folder)
    if not config:
        raise ConfigError(f"{run_folder} holds no run: no stage has a config.json")
    if preset_name is not None and preset_name not in PRESETS:
        raise ConfigError(f"--preset: choose one of {', '.join(sorted(PRESETS))}")
    page = Page(f"Run {config.get('name', run_folder.name)}", run_folder)
    if config.get("description"):
        page.add(Words((str(config["description"]),)))
    if (run_folder / EVALUATION_FILE).is_file() or compared:
        evaluations = [Evaluation.load(folder) for folder in (run_folder, *compared)]
        _add_figures(page, evaluations)
    else:
        page.add(Words(("Not evaluated yet: run `onestep-distill evaluate`.",)))
    _add_training(page)
    page.add(
        Heading("Configuration"),
        difference_table(config, preset_name or nearest_preset(config)),
    )
    written_files = [run_folder / "report.md", run_folder / "report.html"]
    for path, text in zip(written_files, (page.markdown(), page.html()), strict=True):
        path.write_text(text, encoding="utf-8")
    return written_files


def _add_figures(page: Page, evaluations: Sequence[Evaluation]) -> None:
    tables = score_tables(evaluations)
    first = evaluations[0]
    page.add(Heading("In short"), comparison_table(first))
    page.add(Heading("Pictures"))
    for facts in first.sets:
        path = page.folder / "evaluation" / f"{facts.kind.replace(' ', '-')}.webp"
        if path.is_file():
            page.add(Picture(path, f"{facts.kind}: the same prompts and seeds by every sampler"))
    if (page.folder / "grid.webp").is_file():
        page.add(
            Picture(
                page.folder / "grid.webp", "the student in one step, seeds 0, 1, 2, ... unpicked"
            )
        )
    page.add(Heading("Figures"), *tables)
    page.add(Words(tuple(f"{name}: {meaning}" for name, meaning in MEANINGS.items())))
    judge = next(iter(first.judges))
    groups = [group_table(first, facts.kind, judge) for facts in first.sets]
    page.add(*(table for table in groups if table is not None), timing_table(first))
    rows = tuple(
        (card.name, card.resize, card.features, card.weights_sha256[:16] or "–", card.note or "–")
        for card in first.judges.values()
    )
    page.add(
        Table(
            "Who judged", ("judge", "resize", "compares", "sha256 of weights", "note"), rows, True
        ),
        Table("How it was evaluated", ("setting", "value"), _settings(first), True),
    )


def _settings(evaluation: Evaluation) -> tuple[tuple[str, str], ...]:
    """What was set, as text."""
    rows = []
    for name, value in evaluation.settings.items():
        if isinstance(value, dict):
            text = ", ".join(f"{key}: {number:.3g}" for key, number in value.items())
        elif isinstance(value, list | tuple):
            text = ", ".join(map(str, value))
        else:
            text = "" if value is None else str(value)
        if text:
            rows.append((name, text))
    return tuple(rows)


def reference_teacher(evaluation: Evaluation, kind: str, judge: str) -> SamplerFacts | None:
    """The teacher at 25 steps by its better solver, or at the most steps below that were taken."""
    teachers = [s for s in evaluation.samplers if s.model == "teacher"]
    steps = max((s.num_steps for s in teachers if s.num_steps <= _REFERENCE_STEPS), default=0)
    scored = {
        s.name: score.metrics["frechet_distance"].value
        for s in teachers
        if s.num_steps == steps
        and (score := evaluation.find(s.name, kind, judge)) is not None
        and "frechet_distance" in score.metrics
    }
    if not scored:
        return None
    best = min(scored, key=lambda name: scored[name])
    return next(s for s in teachers if s.name == best)


def comparison_table(evaluation: Evaluation) -> Table:
    """Every student sampler's distance and recall as multiples of the reference teacher's."""
    judge = next(iter(evaluation.judges))
    rows = []
    for facts in evaluation.sets:
        reference = reference_teacher(evaluation, facts.kind, judge)
        if reference is None:
            continue
        base = evaluation.find(reference.name, facts.kind, judge)
        for sampler in evaluation.samplers:
            score = evaluation.find(sampler.name, facts.kind, judge)
            if sampler.model != "student" or score is None or base is None:
                continue
            cells = [
                f"{score.metrics[name].value / base.metrics[name].value:.2f}"
                if name in score.metrics and base.metrics[name].value > 0
                else "–"
                for name in ("frechet_distance", "recall")
            ]
            tops = [
                written(score.metrics[name].value, is_share=COLUMNS[name].is_share)
                if name in score.metrics
                else "–"
                for name in ("top1", "top5")
            ]
            rows.append((facts.kind, sampler.name, reference.name, *cells, *tops))
    return Table(
        f"The student against its teacher, judged by {judge}",
        ("prompts", "sampler", "against", "FD ratio ↓", "recall ratio ↑", "top 1", "top 5"),
        tuple(rows),
    )


def _alarms(path: Path) -> list[Words]:
    """What the run's alarms said."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            alarm = json.loads(text)
        except json.JSONDecodeError:  # the line that a crash cut short
            continue
        words = ", ".join(
            f"{key} {value}" for key, value in alarm.items() if key not in ("iteration", "time_s")
        )
        lines.append(f"alarm at iteration {alarm.get('iteration', '?')}: {words}")
    return [Words(tuple(lines))] if lines else []


def _add_training(page: Page) -> None:
    page.add(Heading("Training"))
    charts = page.folder / "report"
    for stage in _STAGES:
        path = page.folder / stage / "metrics.jsonl"
        series = read_metrics(path)
        if not series:
            continue
        charts.mkdir(exist_ok=True)
        chart = charts / f"{stage}.svg"
        chart.write_text(chart_sheet(series), encoding="utf-8")
        last = max(x for points in series.values() for x, _ in points)
        caption = f"{stage}: {last:.0f} iterations in {duration_s(path) / 60:.0f} minutes"
        page.add(Picture(chart, caption))
        page.add(*_alarms(page.folder / stage / "alarms.jsonl"))
        samples = sorted((page.folder / stage / "samples").glob("*.png"))
        if samples:
            page.add(Picture(samples[-1], f"{stage}: the last sheet of samples"))
