"""The metrics of a training as one drawing: a small chart per metric, in SVG.

Owns the drawing. Knows nothing of what the metrics mean.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

Points = list[tuple[float, float]]

_WIDTH_PX, _HEIGHT_PX = 320, 190
_LEFT_PX, _RIGHT_PX, _TOP_PX, _BOTTOM_PX = 52, 12, 26, 22
_NUM_COLUMNS = 3
_MAX_POINTS = 300
_LOG_RATIO = 100.0  # a metric that spans more is drawn on a logarithmic axis
_NOT_METRICS = ("iteration", "time_s")


def read_metrics(path: Path) -> dict[str, Points]:
    """The finite values of every metric of a metrics.jsonl by iteration; {} where there is none."""
    series: dict[str, Points] = {}
    if not path.is_file():
        return series
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            values = json.loads(line)
        except json.JSONDecodeError:  # the line that a crash cut short
            continue
        for name, value in values.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if name not in _NOT_METRICS and is_number and math.isfinite(value):
                series.setdefault(name, []).append((float(values["iteration"]), float(value)))
    return series


def duration_s(path: Path) -> float:
    """Seconds between the first and the last line of a metrics.jsonl, pauses included."""
    times = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            times.append(float(json.loads(line)["time_s"]))
        except (json.JSONDecodeError, KeyError):
            continue
    return max(times) - min(times) if times else 0.0


def chart_sheet(series: Mapping[str, Points]) -> str:
    """Return an SVG with a chart per metric, three in a row."""
    num_rows = -(-len(series) // _NUM_COLUMNS)
    width = _WIDTH_PX * min(_NUM_COLUMNS, len(series))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {num_rows * _HEIGHT_PX}" '
        f'width="{width}" font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for i, (name, points) in enumerate(series.items()):
        row, column = divmod(i, _NUM_COLUMNS)
        place = f"translate({column * _WIDTH_PX},{row * _HEIGHT_PX})"
        parts.append(f'<g transform="{place}">{_chart(name, thinned(points))}</g>')
    return "".join([*parts, "</svg>"])


def thinned(points: Points, num: int = _MAX_POINTS) -> Points:
    """At most `num` points, each the mean of equally many neighbours."""
    stride = -(-len(points) // num)
    means = []
    for start in range(0, len(points), stride):
        part = points[start : start + stride]
        means.append(
            (math.fsum(x for x, _ in part) / len(part), math.fsum(y for _, y in part) / len(part))
        )
    return means


def _chart(name: str, points: Points) -> str:
    xs, ys = [x for x, _ in points], [y for _, y in points]
    is_log = min(ys) > 0 and max(ys) / min(ys) > _LOG_RATIO
    heights = [math.log10(y) for y in ys] if is_log else ys
    low, high = min(heights), max(heights)
    if high - low < 1e-12:
        low, high = low - 0.5, high + 0.5
    left, right = min(xs), max(max(xs), min(xs) + 1)
    inner_width = _WIDTH_PX - _LEFT_PX - _RIGHT_PX
    inner_height = _HEIGHT_PX - _TOP_PX - _BOTTOM_PX

    def across(x: float) -> float:
        return _LEFT_PX + inner_width * (x - left) / (right - left)

    def down(y: float) -> float:
        return _TOP_PX + inner_height * (high - y) / (high - low)

    title = html.escape(name) + (" (log)" if is_log else "")
    parts = [f'<text x="{_LEFT_PX}" y="16" font-weight="bold">{title}</text>']
    for tick in ticks(low, high):
        y = down(tick)
        label = _short(10**tick if is_log else tick)
        parts.append(
            f'<line x1="{_LEFT_PX}" x2="{_WIDTH_PX - _RIGHT_PX}" y1="{y:.1f}" y2="{y:.1f}" '
            f'stroke="#ddd"/><text x="{_LEFT_PX - 6}" y="{y + 4:.1f}" text-anchor="end" '
            f'fill="#555">{label}</text>'
        )
    for x, anchor in ((left, "start"), (right, "end")):
        parts.append(
            f'<text x="{across(x):.1f}" y="{_HEIGHT_PX - 6}" text-anchor="{anchor}" '
            f'fill="#555">{_short(x)}</text>'
        )
    path = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in zip(xs, heights, strict=True))
    parts.append(
        f'<polyline points="{path}" fill="none" stroke="#2563a8" stroke-width="1.4" '
        'stroke-linejoin="round"/>'
    )
    return "".join(parts)


def ticks(low: float, high: float, num: int = 5) -> Sequence[float]:
    """About `num` round numbers between two values."""
    raw = (high - low) / num
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * k for k in (1, 2, 5, 10) if power * k >= raw)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def _short(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value else "0"
