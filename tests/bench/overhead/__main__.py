"""What the service costs: pictures per second and latency over HTTP, beside an engine alone.

The engine is an emulated one of known speed; LitServe, and FastAPI with a lock, serve the same
engine in the same rounds. Prints tables and goals, writes JSON, and fails when the service lost a
request or showed an older picture after a newer one.

    make bench                        # about six minutes
    make bench ARGS=--quick           # does it run? about one minute
    make bench ARGS="--no-peers --rounds 5"
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import orjson

from engines.bench.machine import describe_machine, load_average
from tests.bench.overhead.engine import PACES, encode_jpeg, texture_HWC
from tests.bench.overhead.report import print_report
from tests.bench.overhead.rounds import CELLS, FULL, QUICK, Bench, Effort
from tests.bench.overhead.servers import LITSERVES, ONESTEP, ONESTEP_PREPARED, Server
from tests.bench.overhead.verdicts import Rounds, verdicts

_PACKAGES = (
    *("fastapi", "starlette", "uvicorn", "uvloop", "httptools", "websockets", "pydantic", "orjson"),
    *("simplejpeg", "tokenizers", "prometheus-client", "litserve", "pyzmq"),
)


def main() -> int:
    """Measure, print, write."""
    options = _parser().parse_args()
    effort = QUICK if options.quick else FULL
    if options.rounds is not None:
        effort = replace(effort, num_rounds=options.rounds)
    report = measure(effort, _servers(options))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2) + b"\n")
    print_report(report)
    print(f"\nwritten to {options.out}")
    return 1 if num_failed(report) else 0


def measure(effort: Effort, servers: list[Server]) -> dict[str, Any]:
    """The whole report, JSON-ready."""
    load_before = load_average()[0]
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), effort, lambda text: print(text, file=sys.stderr, flush=True))
        client = bench.client()
        typing = bench.typing()
        rounds = [bench.round(number, servers) for number in range(effort.num_rounds)]
    kept = Rounds(rounds)
    return {
        "machine": describe_machine(None) | {"lscpu": _lscpu(), "node": platform.release()},
        "versions": {name: metadata.version(name) for name in _PACKAGES if _is_installed(name)},
        "load_average": load_before,
        "effort": asdict(effort),
        "paces_ms": {name: pace._asdict() for name, pace in PACES.items()},
        "picture_bytes": len(encode_jpeg(texture_HWC(0))),
        "client": client,
        "rounds": rounds,
        "typing": typing,
        "verdicts": [one.as_json() for one in verdicts(kept, client, typing)] if kept.kept else [],
    }


def num_failed(report: dict[str, Any]) -> int:
    """Requests that the service lost, and pictures that it showed too late or wrong."""
    lost: int = sum(
        cell["num_lost"]
        for one in report["rounds"]
        for server in (ONESTEP, ONESTEP_PREPARED)
        for cell in one["servers"][server.name].values()
    )
    typing = report["typing"]
    amiss: int = sum(typing[name] for name in ("num_stale", "num_wrong", "num_unanswered"))
    return lost + amiss


def _servers(options: argparse.Namespace) -> list[Server]:
    if options.no_peers:
        return [ONESTEP, ONESTEP_PREPARED]
    if options.quick:
        return [ONESTEP, ONESTEP_PREPARED, LITSERVES[-1]]
    return list(CELLS)


def _lscpu() -> str:
    try:
        return subprocess.run(["lscpu"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="make bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("bench-results/overhead.json"))
    parser.add_argument("--quick", action="store_true", help="one short round, fewer peers")
    parser.add_argument("--rounds", type=int, help="how often everything is measured")
    parser.add_argument("--no-peers", action="store_true", help="the service alone")
    return parser


if __name__ == "__main__":
    sys.exit(main())
