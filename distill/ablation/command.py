"""`onestep-distill ablation`: train what is missing, judge it, and write the page.

Owns the files of an ablation and what an interrupted one continues from: finished runs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from distill.ablation.options import AblationOptions
from distill.ablation.report import PAGE_FILE, Facts, write_report
from distill.ablation.results import RUNS, RunResult, strip_path
from distill.ablation.rows import TEACHER, Plan, num_pictures, plan
from distill.ablation.workshop import Sheets, Workshop
from distill.config import ConfigError, RunConfig
from distill.training.trainer import Interrupted

GUIDANCE_FILE = "guidance.json"


@dataclass
class _Ablation:
    """One command's runs in one folder."""

    folder: Path
    plan: Plan
    options: AblationOptions
    workshop: Workshop
    bar: Any

    def require_same(self, found: RunResult) -> None:
        """Check that a finished run is of this ablation."""
        found.require_same(self._made_of(found.row), self.folder)

    def _made_of(self, name: str) -> dict[str, Any]:
        if name != TEACHER:
            return self.workshop.made_of(self.plan.configs[name])
        made_of = self.workshop.made_of(self.workshop.config)
        made_of = {k: v for k, v in made_of.items() if not k.startswith("student.")}
        return made_of | {f"evaluation.{k}": v for k, v in self._asked_of_teacher().items()}

    def student(self, name: str, seed: int) -> RunResult:
        config, row = self.plan.configs[name], self.plan.rows[name]
        made_of = self._made_of(name)
        found = RunResult.load(self.folder, name, seed)
        if found is not None:
            found.require_same(made_of, self.folder)
            self.bar.update(config.student.optimizer.iterations)
            return found
        trained = self.workshop.train(config, seed, self.bar.update)
        drawn, sheets = self.workshop.judge_student(trained, seed, row.num_steps)
        result = RunResult(
            name,
            seed,
            made_of,
            num_pictures(config),
            round(trained.train_s, 2),
            tuple(drawn),
            dict(trained.last_metrics),
        )
        self._keep(result, sheets)
        return result

    def teacher(self, seed: int) -> RunResult:
        made_of = self._made_of(TEACHER)
        found = RunResult.load(self.folder, TEACHER, seed)
        if found is not None:
            found.require_same(made_of, self.folder)
            return found
        drawn, sheets = self.workshop.judge_teacher(self.guidance(), seed)
        result = RunResult(TEACHER, seed, made_of, 0, 0.0, tuple(drawn), {})
        self._keep(result, sheets)
        return result

    def guidance(self) -> float:
        """Of the teacher: given, or tuned once and kept."""
        options = self.options.evaluation
        if not options.guidance_sweep:
            return options.guidance
        path = self.folder / GUIDANCE_FILE
        if not path.is_file():
            best, distances = self.workshop.tune(options.guidance_sweep)
            path.write_text(json.dumps({"guidance": best, "distances": distances}) + "\n")
        return float(json.loads(path.read_text())["guidance"])

    def _asked_of_teacher(self) -> dict[str, Any]:
        options = self.options.evaluation
        asked = {
            "teacher_steps": options.teacher_steps,
            "solvers": options.solvers,
            "guidance": options.guidance,
            "guidance_sweep": options.guidance_sweep,
        }
        plain: dict[str, Any] = json.loads(json.dumps(asked))
        return plain

    def write(self, results: Sequence[RunResult]) -> None:
        """Write the page of what is finished."""
        is_judged = any(result.row == TEACHER for result in results)
        facts = Facts(self.workshop.config, self.options, self.guidance() if is_judged else 1.0)
        write_report(self.folder, results, facts, self.plan.skipped, self.workshop.sets)

    def _keep(self, result: RunResult, sheets: Sheets) -> None:
        (self.folder / RUNS).mkdir(exist_ok=True)
        for (sampler, kind), images_NHWC in sheets.items():
            strip = Image.fromarray(np.concatenate(list(images_NHWC), axis=1))
            strip.save(strip_path(self.folder, result.row, result.seed, sampler, kind))
        result.save(self.folder)  # last: a run counts as finished by its figures


def run_ablation(config: RunConfig, folder: Path, options: AblationOptions) -> Path:
    """Run every row with every seed, seed by seed, and write the page after each.

    Args:
        config: of the full row.
        folder: holds the autoencoder and the teacher already.
        options: what is run.

    Returns:
        The page.

    Raises:
        ConfigError: the folder holds another ablation, or one that is not to be continued.
        Interrupted: Ctrl-C; finished runs are kept.
    """
    planned = plan(config, options.rows, options.vision_model)
    if any((folder / RUNS).glob("*.json")) and not options.resume:
        raise ConfigError(f"{folder} holds an ablation: add --resume, or give another --out")
    for name, reason in planned.skipped.items():
        print(f"skipped {name}: {reason}")
    workshop = Workshop(config, folder, options.evaluation)
    total = sum(c.student.optimizer.iterations for c in planned.configs.values())
    results: list[RunResult] = []
    if options.is_finished_only:
        return _tabulated(folder, planned, options, workshop)
    with tqdm(total=total * len(options.seeds), desc="ablation", unit="iteration") as bar:
        ablation = _Ablation(folder, planned, options, workshop, bar)
        try:
            for seed in options.seeds:
                for name, run in _runs(ablation):
                    bar.set_postfix_str(f"{name}, seed {seed}")
                    results.append(run(seed))
                    bar.write(_line(results[-1]))
                    ablation.write(results)
        except KeyboardInterrupt as error:
            raise Interrupted(
                f"stopped after {len(results)} finished runs; continue with --resume"
            ) from error
    return folder / PAGE_FILE


def _tabulated(folder: Path, planned: Plan, options: AblationOptions, workshop: Workshop) -> Path:
    names = [*planned.configs, *([TEACHER] if planned.has_teacher else [])]
    found = [RunResult.load(folder, name, seed) for seed in options.seeds for name in names]
    results = [result for result in found if result is not None]
    if not results:
        raise ConfigError(f"no finished run in {folder / RUNS}: leave out --finished to train")
    ablation = _Ablation(folder, planned, options, workshop, None)
    for result in results:
        ablation.require_same(result)
    ablation.write(results)
    return folder / PAGE_FILE


def _runs(ablation: _Ablation) -> list[tuple[str, Callable[[int], RunResult]]]:
    def student(name: str) -> Callable[[int], RunResult]:
        return lambda seed: ablation.student(name, seed)

    runs = [(name, student(name)) for name in ablation.plan.configs]
    return [*runs, (TEACHER, ablation.teacher)] if ablation.plan.has_teacher else runs


def _line(result: RunResult) -> str:
    scores = result.drawn[0].scores
    words = ", ".join(f"{k}: FD {v['frechet_distance']:.3f}" for k, v in scores.items())
    return f"{result.row} seed {result.seed} ({result.train_s:.0f} s) {words}"
