"""The files that an ablation leaves for a reader: page, summary, sheets of pictures.

Owns their names and what they say of machine and budget.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from distill.ablation.options import AblationOptions
from distill.ablation.results import RunResult, strip_path
from distill.ablation.tables import label_of, page, teacher_aliases
from distill.ablation.workshop import shown_prompts
from distill.config import RunConfig
from distill.evaluation.prompts import PromptSet
from distill.grid import labelled_rows
from distill.training.device import pick_device, precision_words

# Shape suffixes: N pictures, H/W pixels, C channel.

PAGE_FILE, SUMMARY_FILE = "ablation.md", "ablation.json"


@dataclass(frozen=True)
class Facts:
    """What a reader must know of the runs.

    Attributes:
        config: of the full row.
        options: of the command.
        guidance: the teacher's.
    """

    config: RunConfig
    options: AblationOptions
    guidance: float

    def words(self, num_teacher_pictures: int) -> dict[str, str]:
        """The facts as a list."""
        config, optimizer = self.config, self.config.student.optimizer
        teacher = config.teacher.optimizer
        is_tuned = bool(self.options.evaluation.guidance_sweep)
        return {
            "machine": machine_words(config),
            "set-up": f"{config.name}, {config.data.image_size_px} px, "
            f"{num_teacher_pictures} real pictures in judging",
            "teacher": f"{teacher.iterations} iterations of {teacher.batch_size} pictures, "
            "one for all rows",
            "every student": f"{optimizer.iterations} iterations of {optimizer.batch_size} "
            "pictures, the averaged weights judged",
            "seeds": f"{', '.join(map(str, self.options.seeds))} of the student's training and of "
            "the noise drawn from when judging; the teacher's rows differ in that noise alone",
            "teacher's guidance": f"{self.guidance:g}"
            + (", the least distance at 25 steps" if is_tuned else ""),
        }


def write_report(
    folder: Path,
    results: Sequence[RunResult],
    facts: Facts,
    skipped: Mapping[str, str],
    sets: Sequence[PromptSet],
) -> None:
    """Write the page, the summary and a sheet per kind of prompts."""
    counts = {asked.kind: len(asked.prompts) for asked in sets}
    solver = facts.options.evaluation.solvers[-1]
    aliases = teacher_aliases(results, solver, facts.guidance)
    words = facts.words(max(len(asked.real) for asked in sets))
    text = page(results, skipped, words, counts, aliases)
    (folder / PAGE_FILE).write_text(text, encoding="utf-8")
    summary = {
        "facts": words,
        "skipped": dict(skipped),
        "runs": [
            {
                "row": result.row,
                "seed": result.seed,
                "num_pictures": result.num_pictures,
                "train_s": result.train_s,
                "last_metrics": result.last_metrics,
                "ms_per_picture": {one.sampler: one.ms_per_picture for one in result.drawn},
                "scores": {one.sampler: one.scores for one in result.drawn},
            }
            for result in results
        ],
    }
    (folder / SUMMARY_FILE).write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    first = [result for result in results if result.seed == facts.options.seeds[0]]
    for asked in sets:
        rows = _first_pictures(folder, first, asked.kind)
        if rows:
            sheet = labelled_rows(shown_prompts(asked), rows)
            sheet.save(folder / f"{asked.kind.replace(' ', '-')}.webp", quality=90)


def _first_pictures(
    folder: Path, results: Sequence[RunResult], kind: str
) -> dict[str, NDArray[np.uint8]]:
    rows = {}
    for result in results:
        for index, drawn in enumerate(result.drawn):
            path = strip_path(folder, result.row, result.seed, drawn.sampler, kind)
            if not path.is_file():  # of a run from before this kind was drawn
                continue
            strip_HWC = np.asarray(Image.open(path))
            num = strip_HWC.shape[1] // strip_HWC.shape[0]
            rows[label_of(result, index)] = np.stack(np.split(strip_HWC, num, axis=1))
    return rows


def machine_words(config: RunConfig) -> str:
    """What the ablation ran on."""
    if torch.cuda.is_available() and config.device != "cpu":
        where = torch.cuda.get_device_name()
    else:
        where = f"{_cpu_name()}, {torch.get_num_threads()} thread(s)"
    precision = precision_words(pick_device(config.device), enabled=config.bf16)
    return f"{where}, torch {torch.__version__}, {precision}"


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
