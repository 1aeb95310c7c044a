"""Finished runs as small files, and which of them belong to an ablation.

Owns the form of a run's JSON. Knows nothing of networks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distill.config import ConfigError

SCHEMA = 1
RUNS = "runs"


@dataclass(frozen=True)
class Drawn:
    """One way to draw, and its figures.

    Attributes:
        sampler: its name.
        num_steps: denoise evaluations.
        num_calls: of the network per picture.
        ms_per_picture: decoding included.
        scores: metrics by kind of prompts.
    """

    sampler: str
    num_steps: int
    num_calls: int
    ms_per_picture: float
    scores: dict[str, dict[str, float]]


@dataclass(frozen=True)
class RunResult:
    """One row with one seed.

    Attributes:
        row: its name.
        seed: of the student's training and of the noise that was drawn from.
        made_of: everything that decides the result, by dotted name.
        num_pictures: that the student made in training; 0 for the teacher.
        train_s: wall time.
        drawn: at each number of steps.
        last_metrics: of the training, averaged over its last tenth.
    """

    row: str
    seed: int
    made_of: dict[str, Any]
    num_pictures: int
    train_s: float
    drawn: tuple[Drawn, ...]
    last_metrics: dict[str, float]

    def save(self, folder: Path) -> None:
        """Write the file whole or not at all."""
        path = run_path(folder, self.row, self.seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(
            json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1) + "\n", encoding="utf-8"
        )
        partial.replace(path)

    @classmethod
    def load(cls, folder: Path, row: str, seed: int) -> RunResult | None:
        """Read a finished run, or None where there is none.

        Raises:
            ConfigError: the file is damaged or of another version.
        """
        path = run_path(folder, row, seed)
        if not path.is_file():
            return None
        try:
            plain = json.loads(path.read_text(encoding="utf-8"))
            if plain.pop("schema") != SCHEMA:
                raise ValueError("another version")
            drawn = tuple(Drawn(**entry) for entry in plain.pop("drawn"))
            return cls(drawn=drawn, **plain)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path} is damaged ({error}): remove it") from error

    def require_same(self, made_of: Mapping[str, Any], folder: Path) -> None:
        """Check that the run is of the same settings; a field that either lacks is no difference.

        Raises:
            ConfigError: it is not.
        """
        both = self.made_of.keys() & made_of.keys()
        changed = [name for name in sorted(both) if self.made_of[name] != made_of[name]]
        if changed:
            words = ", ".join(f"{name} (was {self.made_of[name]!r})" for name in changed)
            path = run_path(folder, self.row, self.seed)
            raise ConfigError(f"{path} differs in {words}: remove it, or give another --out")


def run_path(folder: Path, row: str, seed: int) -> Path:
    """Where a run's figures are."""
    return folder / RUNS / f"{row}-seed{seed}.json"


def strip_path(folder: Path, row: str, seed: int, sampler: str, kind: str) -> Path:
    """Where a run's first pictures of one kind of prompts are."""
    words = f"{row}-seed{seed}-{sampler}-{kind}".replace(" ", "_").replace(",", "")
    return folder / RUNS / f"{words}.png"
