"""What an evaluation found, as one JSON file, and which figures may stand in one table.

Owns the file's form and the refusal to compare what cannot be compared.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from distill.config import ConfigError
from distill.evaluation.intervals import Estimate
from distill.evaluation.networks import NetworkCard

SCHEMA = 2
EVALUATION_FILE = "evaluation.json"


@dataclass(frozen=True)
class SetFacts:
    """One kind of prompts, as far as it decides what is comparable.

    Attributes:
        fingerprint: hash of prompts, seeds and real pictures.
    """

    kind: str
    num_prompts: int
    num_pictures: int
    num_real: int
    fingerprint: str


@dataclass(frozen=True)
class SamplerFacts:
    """How the pictures were drawn.

    Attributes:
        name: in tables.
        model: "student", "teacher", "codec" for real pictures through the autoencoder, or "real".
        num_steps: denoise evaluations.
        num_calls: of the network per picture; guidance costs two per step.
        solver: "ddim", "dpm++", "student", or "" for real pictures.
        guidance: scale of classifier-free guidance.
        ms_per_picture: time of drawing in batches, decoding included.
    """

    name: str
    model: str
    num_steps: int = 0
    num_calls: int = 0
    solver: str = ""
    guidance: float = 1.0
    ms_per_picture: float | None = None


@dataclass(frozen=True)
class Score:
    """One sampler on one kind of prompts before one judge."""

    sampler: str
    kind: str
    judge: str
    metrics: dict[str, Estimate]
    top1_by_group: dict[str, float] = field(default_factory=dict)
    notes: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """Everything one command found.

    Attributes:
        run: name of the run.
        settings: what the command was told, to repeat it.
        judges: cards by the name that scores carry.
        sets: kinds of prompts.
        samplers: in the order of the tables.
        scores: every sampler on every set before every judge.
    """

    run: str
    settings: dict[str, Any]
    judges: dict[str, NetworkCard]
    sets: list[SetFacts]
    samplers: list[SamplerFacts]
    scores: list[Score]

    def find(self, sampler: str, kind: str, judge: str) -> Score | None:
        """One score, or None where it was not taken."""
        wanted = (sampler, kind, judge)
        return next((s for s in self.scores if (s.sampler, s.kind, s.judge) == wanted), None)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"schema": SCHEMA, **asdict(self)}

    def save(self, run_folder: Path) -> Path:
        """Write evaluation.json whole or not at all."""
        path = run_folder / EVALUATION_FILE
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(self.to_json(), indent=2) + "\n", encoding="utf-8")
        partial.replace(path)
        return path

    @classmethod
    def load(cls, run_folder: Path) -> Evaluation:
        """Read a run's evaluation.json.

        Raises:
            ConfigError: there is none, or it is damaged or of an older form.
        """
        path = run_folder / EVALUATION_FILE
        if not path.is_file():
            raise ConfigError(f"no {path}: run `onestep-distill evaluate` first")
        again = f"{path} is damaged or older than this program: run `onestep-distill evaluate`"
        try:
            plain = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(plain, dict) or plain.pop("schema", None) != SCHEMA:
                raise ConfigError(again)
            return cls(
                plain["run"],
                plain["settings"],
                {name: NetworkCard(**card) for name, card in plain["judges"].items()},
                [SetFacts(**entry) for entry in plain["sets"]],
                [SamplerFacts(**entry) for entry in plain["samplers"]],
                [_score(entry) for entry in plain["scores"]],
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(again) from error


def _score(plain: dict[str, Any]) -> Score:
    metrics = {name: Estimate(**value) for name, value in plain.pop("metrics").items()}
    return Score(metrics=metrics, **plain)


def refuse_to_mix(evaluations: Iterable[Evaluation]) -> None:
    """Check that figures of several evaluations may stand in one table.

    A Fréchet distance depends on the number of pictures, and every score on the network, its
    weights, the resize and what was asked.

    Raises:
        ConfigError: they may not; the message names what differs.
    """
    first, *others = evaluations
    for other in others:
        where = f"{first.run} and {other.run} cannot be compared"
        for name in first.judges.keys() & other.judges.keys():
            if first.judges[name] != other.judges[name]:
                raise ConfigError(f"{where}: another {name} judged (weights or resize differ)")
        if not first.judges.keys() & other.judges.keys():
            raise ConfigError(f"{where}: no network judged both")
        sets = {facts.kind: facts for facts in other.sets}
        for facts in first.sets:
            there = sets.get(facts.kind)
            if there is None:
                continue
            if (facts.num_pictures, facts.num_real) != (there.num_pictures, there.num_real):
                raise ConfigError(
                    f'{where}: "{facts.kind}" is {facts.num_pictures} pictures against '
                    f"{facts.num_real} real ones in the first, {there.num_pictures} against "
                    f"{there.num_real} in the other: evaluate again with the same --max-pictures"
                )
            if facts.fingerprint != there.fingerprint:
                raise ConfigError(f'{where}: "{facts.kind}" asks other prompts or pictures')
        if not sets.keys() & {facts.kind for facts in first.sets}:
            raise ConfigError(f"{where}: they have no kind of prompts in common")
