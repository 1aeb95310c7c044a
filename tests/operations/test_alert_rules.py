"""Each alert fires where it should and keeps still where it should, and leads to its runbook."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from manifests.watching import (
    EVERYWHERE,
    asked_jobs,
    composed_jobs,
    expressions,
    labels_asked_for,
)
from observing.alert_cases import CASES, Series


def _alerts(repo_root: Path) -> list[dict[str, Any]]:
    groups = yaml.safe_load((repo_root / "docker/prometheus/alerts.rules.yml").read_text())
    return [rule for group in groups["groups"] for rule in group["rules"]]


def _promtool() -> str:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    return program


def _unit(alert: str, series: Series, at_min: int, is_firing: bool) -> dict[str, Any]:
    expected = [{"labels": f'{{alertname="{alert}"}}', "value": 1}] if is_firing else []
    firing = f'ALERTS{{alertname="{alert}", alertstate="firing"}}'
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": text} for name, text in series.items()],
        "promql_expr_test": [
            {
                "expr": f"group by (alertname) ({firing})",
                "eval_time": f"{at_min}m",
                "exp_samples": expected,
            }
        ],
    }


def _judge(repo_root: Path, folder: Path, units: list[dict[str, Any]], step: str = "1m") -> str:
    rules = sorted(str(path) for path in (repo_root / "docker/prometheus").glob("*.rules.yml"))
    path = folder / "units.yml"
    document = {"rule_files": rules, "evaluation_interval": step, "tests": units}
    path.write_text(yaml.safe_dump(document))
    ran = subprocess.run([_promtool(), "test", "rules", str(path)], capture_output=True, text=True)
    return "" if ran.returncode == 0 else ran.stdout + ran.stderr


def test_every_alert_has_its_cases(repo_root: Path) -> None:
    assert {rule["alert"] for rule in _alerts(repo_root)} == set(CASES)
    assert all(case.calm for case in CASES.values())


@pytest.mark.parametrize("alert", CASES)
def test_an_alert_fires_on_its_cause_and_on_nothing_else(
    alert: str, repo_root: Path, tmp_path: Path
) -> None:
    case = CASES[alert]
    units = [_unit(alert, case.fires, case.at_min, True)]
    units += [_unit(alert, series, case.at_min, False) for series in case.calm]
    # Days in steps of a minute would take promtool half a minute.
    step = "4m" if case.at_min > 1000 else "1m"
    assert _judge(repo_root, tmp_path, units, step) == ""


def test_a_case_that_expects_the_contrary_is_seen_to_fail(repo_root: Path, tmp_path: Path) -> None:
    alert, case = "OnestepHasNoWorkers", CASES["OnestepHasNoWorkers"]
    assert "FAILED" in _judge(repo_root, tmp_path, [_unit(alert, case.fires, 10, False)])
    assert "FAILED" in _judge(repo_root, tmp_path, [_unit(alert, case.calm[0], 10, True)])


def test_every_alert_says_whom_it_wakes_and_what_to_do(repo_root: Path) -> None:
    runbook = (repo_root / "docs/runbook.md").read_text()
    anchors = {title.lower() for title in re.findall(r"^### (\w+)$", runbook, re.MULTILINE)}
    alerts = _alerts(repo_root)
    for rule in alerts:
        assert rule["labels"]["severity"] in ("page", "ticket"), rule["alert"]
        assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
        assert rule["annotations"]["runbook_url"] == f"docs/runbook.md#{rule['alert'].lower()}"
    assert anchors == {rule["alert"].lower() for rule in alerts}


def test_rules_and_dashboards_see_every_process_of_the_service() -> None:
    """By the jobs of the composed Prometheus; those of a cluster are held against the same."""
    jobs = composed_jobs()
    assert jobs == {"onestep-api", "onestep-worker"}
    assert list(asked_jobs(jobs, expressions())) == []
    for blind in ('up{job="onestep"}', 'up{job!="onestep-api"}', 'up{job=~"onestep/.+"}'):
        assert list(asked_jobs(jobs, (blind,)))


def test_rules_and_dashboards_ask_for_labels_that_are_there_everywhere() -> None:
    """A pod or a namespace is known in a cluster only."""
    assert all(labels_asked_for(query) <= EVERYWHERE for query in expressions())
    assert labels_asked_for("sum by (pod, model) (up)") == {"pod"}
    assert labels_asked_for('up{namespace="onestep"}') == {"namespace"}
