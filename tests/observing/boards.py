"""Dashboards as Grafana would ask them: variables put in, every query sent, every answer judged."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What NVIDIA's exporter calls the metrics that are shown: no test here has a GPU.
# Source: NVIDIA/dcgm-exporter, etc/default-counters.csv.
DCGM_NAMES = {
    "DCGM_FI_DEV_FB_USED",
    "DCGM_FI_DEV_GPU_UTIL",
    "DCGM_FI_DEV_POWER_USAGE",
    "DCGM_FI_PROF_SM_ACTIVE",
}
_VARIABLES = {"$__rate_interval": "10s"}
_NAME = re.compile(r"\b(?:onestep[_:]|DCGM_|ALERTS|up\b)[\w:]*")

Ask = Callable[[str], list[dict[str, Any]]]


@dataclass(frozen=True)
class Query:
    """One query of a panel, ready to be sent."""

    board: str
    panel: str
    legend: str
    expression: str
    needs_gpu: bool

    @property
    def names(self) -> set[str]:
        """The metrics that it asks for."""
        return set(_NAME.findall(self.expression))


def load_boards(folder: Path) -> dict[str, dict[str, Any]]:
    """Every dashboard by its file's name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def queries_of(name: str, board: dict[str, Any]) -> Iterator[Query]:
    """All of a dashboard's queries."""
    for panel in board["panels"]:
        for target in panel["targets"]:
            yield Query(
                name,
                panel["title"],
                target["legendFormat"],
                expanded(target["expr"]),
                panel["needsGpu"],
            )


def expanded(expression: str) -> str:
    """An expression with Grafana's variables put in."""
    for variable, value in _VARIABLES.items():
        expression = expression.replace(variable, value)
    if "$" in expression:
        raise ValueError(f"a variable that nobody puts in: {expression}")
    return expression


def complaint(query: Query, ask: Ask, known: Collection[str]) -> str | None:
    """What is wrong with a query's answer now; None when it shows something."""
    where = f"{query.board}, {query.panel}, {query.legend}"
    if unknown := query.names - set(known):
        return f"{where}: no metric {', '.join(sorted(unknown))}"
    if query.needs_gpu:
        return None
    series = ask(query.expression)
    if not series:
        return f"{where}: empty"
    bad = {one["value"][1] for one in series if not math.isfinite(float(one["value"][1]))}
    return f"{where}: {', '.join(sorted(bad))}" if bad else None


def legend_of(legend: str, labels: dict[str, str]) -> str:
    """A series' name, as Grafana makes it."""
    return re.sub(r"{{(\w+)}}", lambda found: labels.get(found[1], ""), legend)
