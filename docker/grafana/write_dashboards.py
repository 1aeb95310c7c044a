"""Writes what is made of other files: `make dashboards`.

    docker/grafana/dashboards/*.json           from `panels.py`
    k8s/components/monitoring/rules.yaml       from docker/prometheus/*.rules.yml

Owns the form that Grafana and the Prometheus operator read. Knows no query.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from panels import DASHBOARDS, Dashboard, Panel

DOCKER = Path(__file__).resolve().parent.parent
FOLDER = DOCKER / "grafana" / "dashboards"
RULES = DOCKER.parent / "k8s" / "components" / "monitoring" / "rules.yaml"
_WIDTH, _HEIGHT = 12, 8
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_GPU_TEXT = "Has values only where a GPU, or its exporter, tells them. "


def dashboard_json(dashboard: Dashboard) -> str:
    """The file of one dashboard."""
    document = {
        "uid": dashboard.uid,
        "title": f"onestep: {dashboard.title}",
        "tags": ["onestep"],
        "schemaVersion": 39,
        "editable": False,
        "refresh": "15s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                {
                    "name": "datasource",
                    "type": "datasource",
                    "query": "prometheus",
                    "current": {"text": "Prometheus", "value": "prometheus"},
                }
            ]
        },
        "panels": [_panel(panel, index) for index, panel in enumerate(dashboard.panels)],
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _panel(panel: Panel, index: int) -> dict[str, Any]:
    row, column = divmod(index, 2)
    return {
        "id": index + 1,
        "title": panel.title,
        "description": (_GPU_TEXT if panel.needs_gpu else "") + panel.text,
        # Grafana keeps no such field; the tests read it.
        "needsGpu": panel.needs_gpu,
        "type": "stat" if panel.is_number else "timeseries",
        "gridPos": {"x": column * _WIDTH, "y": row * _HEIGHT, "w": _WIDTH, "h": _HEIGHT},
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
        "options": {} if panel.is_number else {"legend": {"displayMode": "list"}},
        "targets": [
            {
                "refId": chr(ord("A") + number),
                "datasource": _SOURCE,
                "expr": expression,
                "legendFormat": legend,
            }
            for number, (legend, expression) in enumerate(panel.queries.items())
        ],
    }


def operator_rules() -> str:
    """Prometheus' rule files as the operator's objects, comments and all."""
    written = "# Written by `make dashboards` from docker/prometheus; change it there.\n"
    for path in sorted((DOCKER / "prometheus").glob("*.rules.yml")):
        name = f"onestep-{path.name.removesuffix('.rules.yml')}"
        written += (
            "---\n"
            "apiVersion: monitoring.coreos.com/v1\n"
            "kind: PrometheusRule\n"
            f"metadata: {{name: {name}, namespace: onestep}}\n"
            f"spec:\n{textwrap.indent(path.read_text(), '  ')}"
        )
    return written


def _files() -> Iterator[tuple[Path, str]]:
    for dashboard in DASHBOARDS:
        yield FOLDER / f"{dashboard.uid}.json", dashboard_json(dashboard)
    yield RULES, operator_rules()


def main() -> int:
    """Write every file; with --check, only say which are not as they would be."""
    stale = []
    for path, wanted in _files():
        if not path.is_file() or path.read_text() != wanted:
            stale.append(path.name)
            if "--check" not in sys.argv:
                path.write_text(wanted)
    if stale:
        print("written" if "--check" not in sys.argv else "not as `make dashboards` writes", *stale)
    return int(bool(stale) and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
