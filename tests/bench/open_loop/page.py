"""The report as one HTML file that needs nothing else: drawings are inside it, as SVG.

Owns the page's looks. Every figure is in the report already.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

import altair

from tests.bench.open_loop.sending import Sent
from tests.bench.open_loop.stages import QUANTILES, outcome

_WIDTH_PX, _HEIGHT_PX = 760, 240
_NUM_BINS = 60
_PAPER = "#faf9f6"
_COLOURS = ("#1b7f79", "#d98324", "#b3261e")
_STYLE = """
:root { color-scheme: light; font: 16px/1.5 system-ui, sans-serif; color: #1d1b19; }
body { max-width: 56rem; margin: 2.5rem auto; padding: 0 1.25rem; background: #faf9f6; }
h1 { font-size: 1.5rem; margin-bottom: .25rem; } h2 { font-size: 1.1rem; margin: 2.5rem 0 .5rem; }
p { color: #68635c; margin: .25rem 0; } .warn { color: #b3261e; }
div { overflow-x: auto; } svg { max-width: 100%; height: auto; display: block; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .9rem; text-align: right; border-bottom: 1px solid #e4e0d8; }
th { font-weight: 500; color: #68635c; }
"""


def render(report: Mapping[str, Any], stages: Sequence[Sequence[Sent]]) -> str:
    """The whole page.

    Args:
        report: as it is written to JSON.
        stages: the requests behind it, which the histograms are made of.
    """
    return "\n".join(_parts(report, stages))


def _parts(report: Mapping[str, Any], stages: Sequence[Sequence[Sent]]) -> Iterator[str]:
    yield '<!doctype html><html lang="en"><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>Load on {escape(report['url'])}</title><style>{_STYLE}</style>"
    yield f"<h1>Load on {escape(report['url'])}</h1>"
    machine, load = report["machine"], report["load_average"][0]
    yield (
        f"<p>{escape(report['began'])}; the client ran on {escape(machine['cpu'])}, "
        f"{machine['num_cores']} cores, whose load was {load:.2f} before the start.</p>"
    )
    yield (
        "<p>Requests are due at random times that no answer changes. Latency counts from when a "
        "request was due, to the last byte of the right picture.</p>"
    )
    yield f"<div>{_table(report['stages'])}</div>"
    for stage, sent in zip(report["stages"], stages, strict=True):
        yield f"<h2>{stage['rate_per_s']:g} pictures/s for {stage['duration_s']:g} s</h2>"
        if warning := client_warning(stage):
            yield f'<p class="warn">{escape(warning)}</p>'
        for chart in _charts(stage, sent):
            yield f"<div>{_svg(chart)}</div>"
    yield "</html>"


def client_warning(stage: Mapping[str, Any]) -> str | None:
    """Why a stage says more of the client than of the service."""
    late_ms, p50_ms = stage["client_late_p99_ms"], stage["latency_ms"]["p50"]
    if late_ms is None or p50_ms is None or late_ms < max(5.0, p50_ms / 5):
        return None
    return (
        f"The client itself sent requests up to {late_ms:.0f} ms late (p99): "
        "it is too slow for this rate, or shares its cores with others."
    )


def _table(stages: Sequence[Mapping[str, Any]]) -> str:
    heads = ("asked/s", "right/s", *QUANTILES, "batch", "client late p99", "answers")
    rows = []
    for stage in stages:
        cells = [f"{stage['rate_per_s']:g}", f"{stage['right_per_s']:.1f}"]
        cells += [_ms(stage["latency_ms"][name]) for name in QUANTILES]
        size = stage["mean_batch_size"]
        cells += [f"{size:.2f}" if size else "–", _ms(stage["client_late_p99_ms"])]
        cells += [", ".join(f"{name}: {num}" for name, num in stage["statuses"].items())]
        rows.append("".join(f"<td>{escape(cell)}</td>" for cell in cells))
    head = "".join(f"<th>{name}</th>" for name in heads)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _charts(stage: Mapping[str, Any], sent: Sequence[Sent]) -> Iterator[altair.Chart]:
    right_ms = [1000 * one.latency_s for one in sent if one.is_right]
    if right_ms:
        yield _latency_over_time(stage["over_time"])
        yield _histogram(right_ms)
    yield _answers_over_time(sent, stage["over_time"])


def _latency_over_time(rows: Sequence[Mapping[str, Any]]) -> altair.Chart:
    points = [
        {"at_s": row["at_s"], "quantile": name, "ms": row[name]}
        for row in rows
        for name in QUANTILES
        if row[name] is not None
    ]
    colour = altair.Color("quantile:N", title=None, sort=list(QUANTILES))
    return (
        _chart(points, "Latency over time")
        .mark_line(point=True)
        .encode(
            x=altair.X("at_s:Q", title="seconds from the start, by when it was due"),
            y=altair.Y("ms:Q", title="milliseconds"),
            color=colour.scale(domain=list(QUANTILES), range=list(_COLOURS)),
        )
    )


def _histogram(right_ms: Sequence[float]) -> altair.Chart:
    low, high = min(right_ms), max(right_ms)
    width = (high - low) / _NUM_BINS or 1.0
    counts = [0] * _NUM_BINS
    for value in right_ms:
        counts[min(_NUM_BINS - 1, int((value - low) / width))] += 1
    bars = [
        {"from_ms": low + index * width, "to_ms": low + (index + 1) * width, "num": num}
        for index, num in enumerate(counts)
    ]
    return (
        _chart(bars, "Latencies")
        .mark_bar(color=_COLOURS[0])
        .encode(
            x=altair.X("from_ms:Q", title="milliseconds").bin("binned"),
            x2="to_ms:Q",
            y=altair.Y("num:Q", title="pictures"),
        )
    )


def _answers_over_time(sent: Sequence[Sent], rows: Sequence[Mapping[str, Any]]) -> altair.Chart:
    slice_s = rows[1]["at_s"] if len(rows) > 1 else max(1.0, *(one.due_s for one in sent), 1.0)
    counts: dict[tuple[int, str], int] = {}
    for one in sent:
        place = (int(one.due_s / slice_s), outcome(one))
        counts[place] = counts.get(place, 0) + 1
    bars = [
        {"from_s": index * slice_s, "to_s": (index + 1) * slice_s, "answer": name, "num": num}
        for (index, name), num in sorted(counts.items())
    ]
    return (
        _chart(bars, "Answers by status")
        .mark_bar()
        .encode(
            x=altair.X("from_s:Q", title="seconds from the start, by when it was due").bin(
                "binned"
            ),
            x2="to_s:Q",
            y=altair.Y("num:Q", title="requests"),
            color=altair.Color("answer:N", title=None),
        )
    )


def _chart(rows: Sequence[Mapping[str, Any]], title: str) -> altair.Chart:
    return altair.Chart(
        altair.Data(values=list(rows)),
        title=title,
        background=_PAPER,
        width=_WIDTH_PX,
        height=_HEIGHT_PX,
    )


def _svg(chart: altair.Chart) -> str:
    import vl_convert

    return str(vl_convert.vegalite_to_svg(chart.to_json()))


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f} ms"
