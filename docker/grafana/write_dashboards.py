"""Writes docker/grafana/dashboards/*.json from `panels.py`: `make dashboards`.

Owns the form that Grafana reads. Knows no query.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from panels import DASHBOARDS, Dashboard, Panel

FOLDER = Path(__file__).resolve().parent / "dashboards"
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


def main() -> int:
    """Write every dashboard; with --check, only say which files are not as they would be."""
    stale = []
    for dashboard in DASHBOARDS:
        path, wanted = FOLDER / f"{dashboard.uid}.json", dashboard_json(dashboard)
        if not path.is_file() or path.read_text() != wanted:
            stale.append(path.name)
            if "--check" not in sys.argv:
                path.write_text(wanted)
    if stale:
        print("written" if "--check" not in sys.argv else "not as panels.py says", *stale)
    return int(bool(stale) and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
