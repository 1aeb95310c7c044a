"""Dashboards and alerts against real processes: every panel shows something, whatever happens.

Grafana itself does not run here: its queries do, as it would send them.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from observing.boards import (
    DCGM_NAMES,
    Query,
    complaint,
    expanded,
    load_boards,
    queries_of,
)
from observing.server import PrometheusServer
from observing.timeline import STATES, ObservedFleet, Seen, live_through

from engines.spec import ModelSpec

# Told by engines on a GPU only.
_GPU_NAMES = DCGM_NAMES | {"onestep_gpu_memory_bytes"}
FIRED_LIVE = {
    *("OnestepErrorBudgetBurnsFast", "OnestepErrorBudgetBurns", "OnestepErrorBudgetBurnsSlowly"),
    *("OnestepOldestJobIsOld", "OnestepRejectsMany", "OnestepDeadLetters"),
    *("OnestepRedeliversJobs", "OnestepRedisIsFull"),
    *("OnestepQueueIsUnavailable", "OnestepRedisDoesNotPersist", "OnestepHasNoWorkers"),
    *("OnestepIsNotReady", "OnestepTargetIsDown", "OnestepIsAbsent"),
}


@pytest.fixture(scope="module")
def queries(repo_root: Path) -> list[Query]:
    boards = load_boards(repo_root / "docker/grafana/dashboards")
    return [query for name, board in boards.items() for query in queries_of(name, board)]


@pytest.fixture(scope="module")
def seen(
    repo_root: Path,
    bundle: Path,
    queries: list[Query],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Seen]:
    folder = tmp_path_factory.mktemp("observed")
    rules = sorted((repo_root / "docker/prometheus").glob("*.rules.yml"))
    with closing(PrometheusServer(folder / "prometheus", rules)) as prometheus:

        def look(state: str) -> list[str]:
            known = prometheus.metric_names() | _GPU_NAMES | {"ALERTS"}
            found = (complaint(query, prometheus.query, known) for query in queries)
            return [one for one in found if one is not None]

        with closing(ObservedFleet(bundle, folder, prometheus.targets)) as fleet:
            yield live_through(fleet, prometheus, ModelSpec.load(bundle).name, look)


def test_there_are_five_boards_and_what_is_written_of_others_is_up_to_date(
    repo_root: Path, queries: list[Query]
) -> None:
    script = repo_root / "docker/grafana/write_dashboards.py"
    ran = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout
    assert len({query.board for query in queries}) == 5
    assert len(queries) > 60


def test_only_panels_that_ask_for_a_gpu_may_be_empty(queries: list[Query]) -> None:
    for query in queries:
        assert query.needs_gpu == bool(query.names & _GPU_NAMES), query


@pytest.mark.parametrize("state", STATES)
def test_every_panel_shows_something(state: str, seen: Seen) -> None:
    assert seen.complaints[state] == []


def test_nothing_fires_while_all_is_well(seen: Seen) -> None:
    assert seen.fired_calmly == set()


def test_faults_fire_their_alerts(seen: Seen) -> None:
    assert FIRED_LIVE - seen.fired == set()


@pytest.mark.parametrize(
    ("answer", "expression", "wanted"),
    [
        ([], "sum(onestep_ready)", "empty"),
        ([{"value": [0, "NaN"]}], "sum(onestep_ready)", "NaN"),
        ([{"value": [0, "1"]}, {"value": [0, "+Inf"]}], "sum(onestep_ready)", "Inf"),
        ([{"value": [0, "0"]}], "sum(onestep_gone) or vector(0)", "no metric onestep_gone"),
        ([{"value": [0, "0"]}], "sum(onestep_ready)", None),
    ],
)
def test_a_panel_that_shows_nothing_is_seen(
    answer: list[dict[str, Any]], expression: str, wanted: str | None
) -> None:
    query = Query("board", "panel", "legend", expression, False)
    found = complaint(query, lambda _: answer, {"onestep_ready"})
    assert (found is None) == (wanted is None)
    assert wanted is None or (found and wanted in found)


def test_a_variable_that_nobody_puts_in_is_seen() -> None:
    with pytest.raises(ValueError, match="nobody puts in"):
        expanded("rate(onestep_images_total[$window])")
