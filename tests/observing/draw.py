"""Draws every dashboard from its own queries, as a test's minute of faults had them.

    PYTHONPATH=tests python -m observing.draw [BUNDLE]

Grafana is not needed and not imitated: the pictures in docs/images show which lines there are and
how they move. Panels that need a GPU are left out.
"""

from __future__ import annotations

import io
import math
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import altair as alt
from PIL import Image

from engines.spec import ModelSpec
from observing.boards import expanded, legend_of, load_boards
from observing.server import PrometheusServer
from observing.timeline import ObservedFleet, Seen, live_through

_ROOT = Path(__file__).resolve().parent.parent.parent
_IMAGES = _ROOT / "docs" / "images"
_MAX_BYTES = 150_000
_WIDTH, _HEIGHT = 430, 150
_NUM_TICKS = 5
_FORMATS = {"percentunit": ".0%", "bytes": "~s"}


def main() -> int:
    """Live through the minute, then draw what it looked like."""
    bundle = Path(sys.argv[1]) if len(sys.argv) > 1 else _ROOT / "models" / "emoji"
    rules = sorted((_ROOT / "docker/prometheus").glob("*.rules.yml"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with closing(PrometheusServer(folder / "prometheus", rules)) as prometheus:
            with closing(ObservedFleet(bundle, folder, prometheus.targets)) as fleet:
                model = ModelSpec.load(bundle).name
                seen = live_through(fleet, prometheus, model, lambda state: [])
            for board_name, board in load_boards(_ROOT / "docker/grafana/dashboards").items():
                path = _IMAGES / f"{board_name}.webp"
                _save(_board(board, prometheus, seen), path)
                print(path.relative_to(_ROOT), path.stat().st_size, "bytes")
    return 0


def _board(board: dict[str, Any], prometheus: PrometheusServer, seen: Seen) -> alt.TopLevelMixin:
    charts = [
        _chart(panel, _points(panel, prometheus, seen), seen.end_s - seen.begin_s)
        for panel in board["panels"]
        if not panel["needsGpu"]
    ]
    return (
        alt.concat(*charts, columns=2, spacing=18)
        .resolve_scale(color="independent", x="independent", y="independent")
        .configure_axis(minExtent=40)
        .properties(title=board["title"], padding=12, background="white")
    )


def _points(
    panel: dict[str, Any], prometheus: PrometheusServer, seen: Seen
) -> list[dict[str, Any]]:
    instances: dict[str, str] = {}
    points: list[dict[str, Any]] = []
    for target in panel["targets"]:
        expression = expanded(target["expr"])
        for series in prometheus.query_range(expression, seen.begin_s, seen.end_s):
            labels = series["metric"]
            if "instance" in labels:  # a port tells a reader nothing
                name = instances.setdefault(labels["instance"], f"process {len(instances) + 1}")
                labels = labels | {"instance": name}
            points += [
                {
                    "seconds": round(at_s - seen.begin_s, 1),
                    "value": float(value),
                    "line": legend_of(target["legendFormat"], labels),
                }
                for at_s, value in series["values"]
                if math.isfinite(float(value))
            ]
    return points


def _chart(panel: dict[str, Any], points: list[dict[str, Any]], length_s: float) -> alt.Chart:
    unit = panel["fieldConfig"]["defaults"]["unit"]
    axis = alt.Axis(title=None, tickCount=_NUM_TICKS, format=_FORMATS.get(unit, ",.3~r"))
    values = [point["value"] for point in points]
    # Lines that stay at 0 would else have an axis of one figure.
    scale = alt.Scale(domain=[min(0, *values), max(values) or 1], nice=True)
    time_scale = alt.Scale(domain=[0, round(length_s)])
    lines = list(dict.fromkeys(point["line"] for point in points))
    return (
        alt.Chart(alt.Data(values=points))
        .mark_line(strokeWidth=1.5)
        .encode(
            x=alt.X("seconds:Q", title=None, axis=alt.Axis(grid=False), scale=time_scale),
            y=alt.Y("value:Q", axis=axis, scale=scale),
            color=alt.Color(
                "line:N",
                sort=lines,
                legend=alt.Legend(title=None, orient="bottom", columns=5, labelLimit=220),
            ),
        )
        .properties(width=_WIDTH, height=_HEIGHT, title=panel["title"])
    )


def _save(chart: alt.TopLevelMixin, path: Path) -> None:
    """As WebP, in the best quality that the size allows."""
    drawn = io.BytesIO()
    chart.save(drawn, format="png", scale_factor=1.3)
    path.parent.mkdir(exist_ok=True)
    with Image.open(drawn) as image:
        for quality in (90, 80, 65, 50):
            image.convert("RGB").save(path, "WEBP", quality=quality, method=6)
            if path.stat().st_size <= _MAX_BYTES:
                return
    raise AssertionError(f"{path} cannot be made smaller than {_MAX_BYTES} bytes")


if __name__ == "__main__":
    sys.exit(main())
