"""A bench's result as a picture: latency and pictures per second over batch size.

Owns the drawing, in SVG or PNG. Every figure is in the result already.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from engines.errors import BackendError

SUFFIXES = (".svg", ".png")
_ROOFLINE = "roofline"
_PANEL_WIDTH_PX, _PANEL_HEIGHT_PX = 320, 260


def require_drawable(path: Path) -> None:
    """Refuse a path that `draw` cannot write, before anything is measured.

    Raises:
        BackendError: the ending is unknown, or the drawing package is missing.
    """
    if path.suffix not in SUFFIXES:
        raise BackendError(f"--plot: {path} must end in {' or '.join(SUFFIXES)}")
    try:
        for package in ("altair", "vl_convert"):
            importlib.import_module(package)
    except ImportError as error:
        raise BackendError(f"--plot needs {error.name}: pip install 'onestep[bench]'") from error


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Write two panels; a dashed line is the roofline of the configurations on one device.

    Raises:
        BackendError: see `require_drawable`.
        OSError: the file cannot be written.
    """
    require_drawable(path)
    import altair

    names = [configuration["name"] for configuration in result["configurations"]]
    points = list(_points(result))
    width, height = result["size_px"]
    title = f"{result['model']}, {width}x{height} px, {result['steps']} steps"
    sizes = sorted({point["batch_size"] for point in points})
    x = altair.X("batch_size:Q", title="batch size", axis=altair.Axis(values=sizes)).scale(
        type="log", base=2, nice=False
    )
    color = altair.Color("name:N", title=None, sort=[*names, _ROOFLINE])
    dash = altair.StrokeDash("is_bound:N", legend=None).scale(
        domain=[False, True], range=[[1, 0], [6, 4]]
    )

    def panel(field: str, label: str) -> Any:
        y = altair.Y(f"{field}:Q", title=label).scale(type="log")
        chart = altair.Chart(
            {"values": points}, width=_PANEL_WIDTH_PX, height=_PANEL_HEIGHT_PX
        ).mark_line(point=True)
        return chart.encode(x=x, y=y, color=color, strokeDash=dash)

    latency = panel("median_ms", "milliseconds per batch, median")
    throughput = panel("images_per_s", "pictures per second")
    altair.hconcat(latency, throughput, title=title).save(path)


def _points(result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One per configuration and batch size, and one per device's floor."""
    bounds: dict[tuple[str, int], float] = {}
    for configuration in result["configurations"]:
        for row in configuration["batches"]:
            yield {
                "name": configuration["name"],
                "is_bound": False,
                "batch_size": row["batch_size"],
                "median_ms": row["median_ms"],
                "images_per_s": row["images_per_s"],
            }
            if row["floor_ms"] is not None:
                bounds[configuration["device"], row["batch_size"]] = row["floor_ms"]
    devices = {device for device, _ in bounds}
    for (device, batch_size), floor_ms in bounds.items():
        yield {
            "name": _ROOFLINE if len(devices) == 1 else f"{_ROOFLINE} of {device}",
            "is_bound": True,
            "batch_size": batch_size,
            "median_ms": floor_ms,
            "images_per_s": batch_size * 1000 / floor_ms,
        }
