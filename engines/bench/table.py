"""A bench's result as aligned text.

Owns the printed form. Every figure is in the result already.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

TRUSTED_DRIFT = 0.1


def table(result: Mapping[str, Any]) -> str:
    """Return the whole report, several lines."""
    return "\n".join(_lines(result))


def _lines(result: Mapping[str, Any]) -> Iterator[str]:
    width, height = result["size_px"]
    machine = result["machine"]
    yield (
        f"{result['model']}, {width}x{height} px, {result['steps']} steps, {result['num_runs']} "
        "runs per batch size; median milliseconds, share of the roofline"
    )
    loads = [machine[f"load_average_{when}"][0] for when in ("before", "after")]
    where = machine.get("gpu") or machine["cpu"]
    yield f"{where}, {machine['num_cores']} cores; load {loads[0]} before, {loads[1]} after"
    for device, peaks in result["peaks"].items():
        yield (
            f"peaks of {device}: {peaks['flops_per_s'] / 1e9:,.0f} GFLOP/s, "
            f"{peaks['bytes_per_s'] / 1e9:,.1f} GB/s ({peaks['how']})"
        )
        if peaks["drift"] > TRUSTED_DRIFT:
            yield (
                f"  they changed by {peaks['drift']:.0%} meanwhile: the machine was not quiet, and "
                "no share of the roofline can be trusted"
            )
    if result["not_counted"] is not None:
        yield f"no roofline: {result['not_counted']}"
    for configuration in result["configurations"]:
        yield ""
        yield from _configuration_lines(configuration)
    if result["ratios"]:
        yield ""
        yield f"times as fast as {result['ratios'][0]['reference']}, 95 % interval"
        for row in result["ratios"]:
            interval = "" if row["low"] is None else f"  {row['low']:.3f} to {row['high']:.3f}"
            yield f"  {row['name']:24} batch {row['batch_size']:>3} {row['value']:7.3f}{interval}"


def _configuration_lines(configuration: Mapping[str, Any]) -> Iterator[str]:
    rows = configuration["batches"]
    stages = list(rows[0]["stages"])
    yield configuration["name"]
    heads = ["batch", "whole", "p99", "images/s", "GFLOP", "share", "peak MB"]
    yield "".join(f"{head:>9}" for head in heads) + "".join(f"{stage:>15}" for stage in stages)
    for row in rows:
        memory = row["peak_memory_bytes"] or {"rss": None, "cuda": None}
        num_bytes = memory["cuda"] or memory["rss"]
        cells = [
            f"{row['batch_size']}",
            f"{row['median_ms']:.1f}",
            f"{row['p99_ms']:.1f}",
            f"{row['images_per_s']:.1f}",
            "-" if row["gflop"] is None else f"{row['gflop']:.2f}",
            _share(row) or "-",
            "-" if num_bytes is None else f"{num_bytes / 1e6:,.0f}",
        ]
        spans = [
            f"{row['stages'][s]['median_ms']:.1f} {_share(row['stages'][s]):>4}" for s in stages
        ]
        yield "".join(f"{cell:>9}" for cell in cells) + "".join(f"{span:>15}" for span in spans)


def _share(figures: Mapping[str, Any]) -> str:
    share = figures["roofline_share"]
    return "" if share is None else f"{share:.0%}"
