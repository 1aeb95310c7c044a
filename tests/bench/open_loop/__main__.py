"""Ask a running service for pictures as many people would, and write how it bore it.

    make load ARGS="--url http://127.0.0.1:8000 --rate 20 40 80 --seconds 30"
    python -m tests.bench.open_loop --rate 50 --out bench-results/load

Writes OUT.json and OUT.html. An API key is read from ONESTEP_API_KEY. Fails when an answer was
neither the right picture nor a refusal with 429.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from engines.bench.machine import describe_machine, load_average
from tests.bench.open_loop.page import client_warning, render
from tests.bench.open_loop.sending import BadAddress, Sent, Target, send_stage
from tests.bench.open_loop.stages import summary

_KEY_VARIABLE = "ONESTEP_API_KEY"
_PROMPTS = ("red apple", "cat face, 3d", "rocket, flat", "castle, color", "octopus, blob")
# What a full queue may answer without anything being wrong.
_REFUSED = "429"
# Between two rates, so that the line of the one before is empty.
_PAUSE_S = 1.0


def main() -> int:
    """Send, print, write."""
    options = _parser().parse_args()
    prompts = options.prompt or _PROMPTS
    try:
        target = Target.at(options.url, os.environ.get(_KEY_VARIABLE), prompts, options.give_up)
    except BadAddress as error:
        print(error, file=sys.stderr)
        return 2
    report: dict[str, Any] = {
        "url": options.url,
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(None),
        "load_average": load_average(),
        "seed": options.seed,
    }
    stages = asyncio.run(_send(target, options))
    report["stages"] = [
        summary(sent, rate, options.seconds)
        for sent, rate in zip(stages, options.rate, strict=True)
    ]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    json_path, html_path = (options.out.with_name(options.out.name + s) for s in (".json", ".html"))
    json_path.write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2) + b"\n")
    html_path.write_text(render(report, stages), encoding="utf-8")
    print(f"written to {json_path} and {html_path}")
    return 1 if num_amiss(report) else 0


def num_amiss(report: dict[str, Any]) -> int:
    """Answers that were neither the right picture nor told to come back later."""
    return sum(
        stage["num_asked"] - stage["num_right"] - stage["statuses"].get(_REFUSED, 0)
        for stage in report["stages"]
    )


async def _send(target: Target, options: argparse.Namespace) -> list[list[Sent]]:
    stages = []
    for number, rate in enumerate(options.rate):
        if number:
            await asyncio.sleep(_PAUSE_S)
        sent = await send_stage(target, rate, options.seconds, options.seed + number)
        stages.append(sent)
        _tell(summary(sent, rate, options.seconds))
    return stages


def _tell(stage: dict[str, Any]) -> None:
    latencies = ", ".join(
        f"{name} {'–' if value is None else f'{value:.1f} ms'}"
        for name, value in stage["latency_ms"].items()
    )
    answers = ", ".join(f"{name}: {num}" for name, num in stage["statuses"].items())
    print(
        f"{stage['rate_per_s']:g}/s: {stage['right_per_s']:.1f} right/s; {latencies}; {answers}",
        flush=True,
    )
    if warning := client_warning(stage):
        print(f"  {warning}", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="make load", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--rate", type=_positive, nargs="+", default=[10.0], help="pictures/s")
    parser.add_argument("--seconds", type=_positive, default=20.0, help="of each rate")
    parser.add_argument("--give-up", type=_positive, default=30.0, help="seconds for an answer")
    parser.add_argument("--prompt", action="append", help="what to draw; may be given again")
    parser.add_argument("--seed", type=int, default=1, help="of the arrivals and the pictures")
    parser.add_argument("--out", type=Path, default=Path("bench-results/load"))
    return parser


def _positive(text: str) -> float:
    if not (value := float(text)) > 0:
        raise argparse.ArgumentTypeError("must be more than 0")
    return value


if __name__ == "__main__":
    sys.exit(main())
